//! Certificates: of the listener, and those that others are trusted by.

use std::{env, path::Path, sync::OnceLock};

use pingora::{
    connectors::ConnectorOptions,
    listeners::tls::TlsSettings,
    tls::{ClientConfig, RootCertStore, ServerConfig, load_native_certs},
};

/// A file without certificates, for Pingora where the trust store cannot be used: it would panic.
const NONE: &str = "/dev/null";

/// What the machine trusts, as it was when it was first asked for; and what is wrong with it.
struct Trust {
    roots: RootCertStore,
    problem: Option<String>,
}

/// Of the process: Pingora, too, reads it once.
static TRUST: OnceLock<Trust> = OnceLock::new();

/// Whether the trust store of the machine can be used: `SSL_CERT_FILE`, `SSL_CERT_DIR`, or that of
/// the system.
///
/// # Errors
/// What is wrong with it, and where it is.
pub fn trusted() -> Result<(), &'static str> {
    match &trust().problem {
        Some(why) => Err(why),
        None => Ok(()),
    }
}

fn trust() -> &'static Trust {
    TRUST.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        let problem = fill(&mut roots).err().map(|why| format!("{} {why}", place()));
        Trust { roots, problem }
    })
}

fn fill(roots: &mut RootCertStore) -> Result<(), String> {
    let certificates = load_native_certs().map_err(|e| format!("cannot be used: {e}"))?;
    if certificates.is_empty() {
        return Err("holds no certificate".to_owned());
    }
    let all = certificates.len();
    let mut unusable = None;
    for certificate in certificates {
        if let Err(e) = roots.add(certificate) {
            unusable = Some(e);
        }
    }
    match unusable {
        Some(e) => {
            Err(format!("has {} of {all} certificates that cannot be used: {e}", all - roots.len()))
        }
        None => Ok(()),
    }
}

/// Where certificates are looked for.
fn place() -> String {
    let named: Vec<String> = ["SSL_CERT_FILE", "SSL_CERT_DIR"]
        .iter()
        .filter_map(|name| {
            let value = env::var_os(name)?;
            Some(match value.is_empty() {
                true => format!("`{name}`, which is set but empty,"),
                false => format!("`{name}` ({})", value.display()),
            })
        })
        .collect();
    match named[..] {
        [] => "the trust store of the system (`SSL_CERT_FILE` is not set)".to_owned(),
        _ => named.join(" with "),
    }
}

/// The file that Pingora reads trusted certificates from; `None`: it looks for them itself.
pub fn ca_file() -> Option<String> {
    trusted().is_err().then(|| NONE.to_owned())
}

/// Options for a connector of Pingora.
pub fn connector(connections: usize) -> ConnectorOptions {
    let mut options = ConnectorOptions::new(connections);
    options.ca_file = ca_file();
    options
}

/// HTTP/1.1, as TLS names it.
pub const HTTP_1: &str = "http/1.1";

/// HTTP/2, as TLS names it.
pub const HTTP_2: &str = "h2";

/// How clients check certificates, by what the machine trusts, and what they offer to speak. A trust
/// store that cannot be used is a problem of the configuration, and no reason to fail here.
pub fn client(protocols: &[&str]) -> ClientConfig {
    install_crypto();
    let mut config =
        ClientConfig::builder().with_root_certificates(trust().roots.clone()).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

/// The settings of a listener for HTTP/2 and HTTP/1.1, once it is known that certificate and key
/// belong together: Pingora itself would panic.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn listener(cert: &Path, key: &Path) -> Result<TlsSettings, String> {
    install_crypto();
    let (cert, key) = (cert.display().to_string(), key.display().to_string());
    let (chain, private) = match pingora::tls::load_certs_and_key_files(&cert, &key) {
        Ok(Some(found)) => found,
        Ok(None) => return Err("there is no certificate or no key in the files".to_owned()),
        Err(e) => return Err(format!("cannot read certificate or key: {e}")),
    };
    ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|e| format!("certificate and key cannot be used: {e}"))?;
    let mut settings = TlsSettings::intermediate(&cert, &key).map_err(|e| e.to_string())?;
    settings.enable_h2();
    Ok(settings)
}

/// Chooses the cryptography of the process, once. Harmless when called again.
pub fn install_crypto() {
    pingora::tls::install_default_crypto_provider();
}
