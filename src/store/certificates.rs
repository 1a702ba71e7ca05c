//! The certificates of the listener: each connection gets the one for the name that it asks for.

use std::{fmt, sync::Arc};

use pingora::tls::{CertificateDer, CryptoProvider, PrivateKeyDer, sign::CertifiedKey};
use rustls_pki_types::pem::PemObject;
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

use super::tls;

/// A certificate with its key.
#[derive(Clone)]
pub struct Certificate {
    /// The file, as it is configured.
    pub file: String,
    /// The names that it is for, in lower case.
    names: Vec<String>,
    /// When it ends, in seconds since 1970.
    pub ends: i64,
    key: Arc<CertifiedKey>,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, names, ends, .. } = self;
        let mut shown = f.debug_struct("Certificate");
        shown.field("file", file).field("names", names).field("ends", ends).finish_non_exhaustive()
    }
}

impl Certificate {
    /// Reads the chain, the certificate itself first, and its key, both as PEM. `file` is its name in metrics.
    ///
    /// # Errors
    /// What is wrong, in one sentence.
    pub fn read(file: &str, chain: &[u8], key: &[u8]) -> Result<Self, String> {
        tls::install_crypto();
        let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
        let chain = read.map_err(|e| format!("the certificate is not PEM: {e}"))?;
        let key = PrivateKeyDer::from_pem_slice(key).ok();
        let (Some(first), Some(key)) = (chain.first().cloned(), key) else {
            return Err("there is no certificate or no key in the files".to_owned());
        };
        let (_, parsed) = parse_x509_certificate(&first)
            .map_err(|e| format!("the certificate cannot be read: {e}"))?;
        let (names, ends) = (names(&parsed), parsed.validity().not_after.timestamp());
        let provider = CryptoProvider::get_default().ok_or("there is no cryptography")?;
        let key = CertifiedKey::from_der(chain, key, provider)
            .map_err(|e| format!("certificate and key cannot be used: {e}"))?;
        Ok(Self { file: file.to_owned(), names, ends, key: Arc::new(key) })
    }

    fn is_for(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }

    /// By a wildcard, which stands for one label.
    fn is_for_all_like(&self, name: &str) -> bool {
        let Some((_, domain)) = name.split_once('.') else { return false };
        self.names.iter().any(|known| known.strip_prefix("*.") == Some(domain))
    }
}

/// The DNS names of a certificate.
fn names(parsed: &x509_parser::certificate::X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return Vec::new() };
    let dns = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    dns.collect()
}

/// All certificates of a listener. The first is for whoever asks for no name, or for one that none has.
#[derive(Clone, Debug)]
pub struct Certificates(Vec<Certificate>);

impl Certificates {
    /// `None` if there are none.
    pub fn new(all: Vec<Certificate>) -> Option<Self> {
        (!all.is_empty()).then_some(Self(all))
    }

    pub fn list(&self) -> &[Certificate] {
        &self.0
    }

    /// The one for a name.
    pub fn find(&self, name: Option<&str>) -> Arc<CertifiedKey> {
        let name = name.map(str::to_ascii_lowercase).unwrap_or_default();
        let exact = self.0.iter().find(|one| one.is_for(&name));
        let like = || self.0.iter().find(|one| one.is_for_all_like(&name));
        Arc::clone(&exact.or_else(like).unwrap_or(&self.0[0]).key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(names: &[&str]) -> Certificate {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names.clone()).unwrap();
        let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        Certificate::read(&names[0], chain.as_bytes(), key.as_bytes()).unwrap()
    }

    #[test]
    fn the_closest_name_is_taken() {
        let all = [&["a.test", "b.test"][..], &["*.b.test"], &["x.b.test"]];
        let all = Certificates::new(all.map(certificate).to_vec()).unwrap();
        for (name, expected) in [
            (Some("a.test"), 0),
            (Some("B.Test"), 0),
            (Some("y.b.test"), 1),
            (Some("x.b.test"), 2),
            (Some("z.y.b.test"), 0),
            (Some("other.test"), 0),
            (Some("test"), 0),
            (Some(""), 0),
            (None, 0),
        ] {
            assert!(Arc::ptr_eq(&all.find(name), &all.0[expected].key), "{name:?}");
        }
        assert!(all.list().iter().all(|one| one.ends > 1_700_000_000));
    }
}
