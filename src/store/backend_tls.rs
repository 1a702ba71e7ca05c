//! TLS to one backend: what it has to prove, and what the gateway proves to it.

use std::{fmt, sync::Arc};

use pingora::{
    protocols::tls::CaType,
    tls::{
        CertificateDer, ClientConfig, DigitallySignedStruct, HandshakeSignatureValid,
        PrivateKeyDer, RootCertStore, RusTlsError, ServerCertVerified, ServerCertVerifier,
        ServerName, SignatureScheme, UnixTime, WebPkiServerVerifier,
    },
    upstreams::peer::HttpPeer,
    utils::tls::{CertKey, WrappedX509, parse_x509},
};
use rustls_pki_types::pem::PemObject;
use xxhash_rust::xxh3::Xxh3Default;

use super::tls;

/// The files of a backend, and what is said beside them.
pub struct Files<'a> {
    /// Certificates of those who may have signed the backend's, as PEM; `None`: those of the machine.
    pub ca: Option<&'a str>,
    /// The gateway's own certificate, with what leads to its issuer, and its key, as PEM.
    pub client: Option<(&'a str, &'a str)>,
    /// The name in the backend's certificate, if it is not the host of its URL.
    pub server_name: Option<&'a str>,
    /// Whether the backend's certificate is looked at.
    pub verify: bool,
}

/// Which of the files cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Ca,
    Cert,
    Key,
}

/// How connections to a backend are secured.
#[derive(Clone)]
pub struct BackendTls {
    ca: Option<Arc<CaType>>,
    client: Option<Arc<CertKey>>,
    /// For the gateway's own requests, which Pingora does not make.
    config: ClientConfig,
    server_name: Option<String>,
    verify: bool,
    /// Of everything above.
    digest: u64,
}

impl BackendTls {
    /// Reads the files.
    ///
    /// # Errors
    /// Which of them cannot be used, and why.
    pub fn read(files: &Files<'_>) -> Result<Self, (Part, String)> {
        let ca =
            files.ca.map(|pem| certificates(pem).map_err(|why| (Part::Ca, why))).transpose()?;
        let mut roots = RootCertStore::empty();
        for certificate in ca.iter().flatten() {
            let added = roots.add(certificate.clone());
            added.map_err(|e| (Part::Ca, format!("a certificate cannot be used: {e}")))?;
        }
        let client = files.client.map(|(cert, key)| {
            let chain = certificates(cert).map_err(|why| (Part::Cert, why))?;
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
                .map_err(|_| (Part::Key, "holds no key".to_owned()))?;
            Ok((chain, key))
        });
        let client = client.transpose()?;
        let of_pingora = client.as_ref().map(|(chain, key)| {
            let chain = chain.iter().map(|der| der.to_vec()).collect();
            Arc::new(CertKey::new(chain, key.secret_der().to_vec()))
        });
        let mut digest = Xxh3Default::new();
        for pem in [files.ca, files.client.map(|pair| pair.0), files.client.map(|pair| pair.1)] {
            digest.update(pem.unwrap_or("-").as_bytes());
            digest.update(&[0]);
        }
        digest.update(files.server_name.unwrap_or_default().as_bytes());
        digest.update(&[u8::from(files.verify)]);
        let config = config(ca.as_ref().map(|_| roots), client, files.verify)?;
        Ok(Self {
            ca: ca.map(|all| {
                all.iter().map(|der| WrappedX509::new(der.to_vec(), parse_x509)).collect()
            }),
            client: of_pingora,
            config,
            server_name: files.server_name.map(str::to_owned),
            verify: files.verify,
            digest: digest.digest(),
        })
    }

    /// The name that is asked for in the handshake, if it is not the host of the URL.
    pub fn server_name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    /// Whether the backend's certificate is looked at.
    pub fn verifies(&self) -> bool {
        self.verify
    }

    /// What connections of a client of its own use.
    pub fn client(&self) -> ClientConfig {
        self.config.clone()
    }

    /// Sets it for the connections of proxied requests. They are not shared with a backend at the same
    /// address that is trusted for other reasons.
    pub fn secure(&self, peer: &mut HttpPeer) {
        if let Some(ca) = &self.ca {
            peer.options.ca = Some(Arc::clone(ca));
        }
        if let Some(name) = &self.server_name {
            peer.sni.clone_from(name);
        }
        peer.client_cert_key.clone_from(&self.client);
        peer.options.verify_cert = self.verify;
        peer.options.verify_hostname = self.verify;
        peer.group_key ^= OWN_TRUST | self.digest >> 2;
    }
}

/// Marks the connection groups of backends with TLS of their own; `balance::endpoint` has the others.
const OWN_TRUST: u64 = 1 << 62;

impl fmt::Debug for BackendTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { server_name, verify, .. } = self;
        f.debug_struct("BackendTls")
            .field("server_name", server_name)
            .field("verify", verify)
            .finish_non_exhaustive()
    }
}

impl PartialEq for BackendTls {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

/// The certificates of a text. Pingora panics at those that it cannot read.
fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let all = read.map_err(|e| format!("is not PEM: {e}"))?;
    if all.is_empty() {
        return Err("holds no certificate".to_owned());
    }
    let readable = |der: &CertificateDer<'_>| {
        // What rustls cannot read, Pingora cannot either, and panics with a word to the log.
        let read = RootCertStore::empty().add(der.clone().into_owned()).is_ok();
        read && std::panic::catch_unwind(|| WrappedX509::new(der.to_vec(), parse_x509)).is_ok()
    };
    match all.iter().all(readable) {
        true => Ok(all),
        false => Err("has a certificate that cannot be read".to_owned()),
    }
}

fn config(
    roots: Option<RootCertStore>,
    client: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    verify: bool,
) -> Result<ClientConfig, (Part, String)> {
    tls::install_crypto();
    let trust = match roots {
        None => tls::of_machine(),
        Some(roots) => {
            let built = WebPkiServerVerifier::builder(Arc::new(roots)).build();
            built.map_err(|e| (Part::Ca, e.to_string()))?
        }
    };
    let trust = if verify { trust } else { Arc::new(Unverified(trust)) };
    let builder = ClientConfig::builder().dangerous().with_custom_certificate_verifier(trust);
    let mut config = match client {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, key)
            .map_err(|e| (Part::Key, format!("certificate and key do not belong together: {e}")))?,
    };
    config.alpn_protocols = vec![tls::HTTP_1.as_bytes().to_vec()];
    Ok(config)
}

/// Accepts any certificate; the handshake still proves that its key is there.
#[derive(Debug)]
struct Unverified(Arc<dyn ServerCertVerifier>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, RusTlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RusTlsError> {
        self.0.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RusTlsError> {
        self.0.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
