//! Certificates of the listener.

use std::path::Path;

use pingora::{listeners::tls::TlsSettings, tls::ServerConfig};

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
