//! The certificate of listeners with TLS.

use std::{path::PathBuf, sync::Arc};

use tokio_rustls::rustls;

/// A certificate for `localhost`.
pub struct Certificate {
    pub chain: PathBuf,
    pub key: PathBuf,
    /// Both in one file, for HAProxy.
    pub both: PathBuf,
    /// The configuration of clients that trust it.
    pub client: Arc<rustls::ClientConfig>,
}

impl Certificate {
    pub fn create(folder: &std::path::Path) -> Result<Self, String> {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]);
        let made = made.map_err(|e| e.to_string())?;
        let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let file = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).map(|()| path).map_err(|e| e.to_string())
        };
        let mut roots = rustls::RootCertStore::empty();
        roots.add(made.cert.der().clone()).map_err(|e| e.to_string())?;
        let client =
            rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Ok(Self {
            both: file("both.pem", &format!("{chain}{key}"))?,
            chain: file("cert.pem", &chain)?,
            key: file("key.pem", &key)?,
            client: Arc::new(client),
        })
    }
}
