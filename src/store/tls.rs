//! TLS: the listener, and the trusted certificates.

use std::{
    env,
    sync::{
        Arc, LazyLock, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use pingora::{
    connectors::ConnectorOptions,
    listeners::tls::{Acceptor, TlsSettings},
    protocols::tls::CaType,
    tls::{
        CertificateDer, ClientConfig, CryptoProvider, DigitallySignedStruct,
        HandshakeSignatureValid, ResolvesServerCert, RootCertStore, RusTlsError,
        ServerCertVerified, ServerCertVerifier, ServerConfig, ServerName, SignatureScheme,
        TlsAcceptor, UnixTime, WebPkiServerVerifier, load_native_certs, version,
    },
    utils::tls::{WrappedX509, parse_x509},
};

use crate::base::TlsVersion;

/// A file without certificates, for Pingora if the trust store cannot be used: Pingora would panic.
const NONE: &str = "/dev/null";

/// The trust store of the machine when it was first read, and what is wrong with it.
struct Trust {
    roots: RootCertStore,
    problem: Option<String>,
}

/// Read once per process, like Pingora does, when something needs it.
static TRUST: OnceLock<Trust> = OnceLock::new();

/// Checks the trust store: `SSL_CERT_FILE`, `SSL_CERT_DIR`, or that of the system.
///
/// # Errors
/// Where it is, and what is wrong with it.
pub fn trusted() -> Result<(), &'static str> {
    match &trust().problem {
        Some(why) => Err(why),
        None => Ok(()),
    }
}

fn trust() -> &'static Trust {
    TRUST.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        let problem = fill(&mut roots).err().map(|why| format!("{} {why}", source()));
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

/// Whether the environment names another trust store than that of the system.
pub fn is_named() -> bool {
    let folder = env::var_os("SSL_CERT_DIR");
    env::var_os("SSL_CERT_FILE").is_some() || folder.is_some_and(|named| named != "/etc/ssl/certs")
}

/// Where certificates are read from.
fn source() -> String {
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

/// Whether Pingora's connectors for proxied requests trust nothing of their own, because nothing needed
/// that when the process started.
static TRUSTLESS: AtomicBool = AtomicBool::new(false);

/// The file from which the connectors for proxied requests read trusted certificates; `None`: Pingora's
/// default. There is one for each thread, and each reads it. `used`: the configuration has TLS.
pub fn proxy_ca_file(used: bool) -> Option<String> {
    let trusted = used && trusted().is_ok();
    TRUSTLESS.store(!trusted, Ordering::Relaxed);
    (!trusted).then(|| NONE.to_owned())
}

/// The certificates that a peer with TLS has to bring along, because the connectors have none: it came by a
/// reload. Pingora reads them again for each new connection.
pub fn peer_certificates() -> Option<Arc<CaType>> {
    static ALL: LazyLock<Option<Arc<CaType>>> = LazyLock::new(|| {
        let certificates = load_native_certs().ok()?;
        // Pingora's parser panics at what it cannot read.
        let parsed =
            |der: Vec<u8>| std::panic::catch_unwind(|| WrappedX509::new(der, parse_x509)).ok();
        Some(certificates.into_iter().filter_map(|der| parsed(der.to_vec())).collect())
    });
    if !TRUSTLESS.load(Ordering::Relaxed) {
        return None;
    }
    ALL.clone().filter(|all| !all.is_empty())
}

/// The file from which a connector reads trusted certificates; `None`: Pingora's default.
fn ca_file() -> Option<String> {
    trusted().is_err().then(|| NONE.to_owned())
}

pub fn connector(connections: usize) -> ConnectorOptions {
    let mut options = ConnectorOptions::new(connections);
    options.ca_file = ca_file();
    options
}

/// HTTP/1.1 in ALPN.
pub const HTTP_1: &str = "http/1.1";

/// HTTP/2 in ALPN.
pub const HTTP_2: &str = "h2";

/// The TLS configuration of clients: the trust store of the machine, and the protocols to offer. An unusable
/// trust store is reported as a configuration problem, not here.
pub fn client(protocols: &[&str]) -> ClientConfig {
    install_crypto();
    let mut config = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(of_machine())
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

/// Verifies certificates by the trust store of the machine.
pub(super) fn of_machine() -> Arc<dyn ServerCertVerifier> {
    Arc::new(MachineTrust::default())
}

/// Verifies certificates by the trust store of the machine, which is read for the first of them: most
/// gateways never need it, and reading it took half of the time of a start.
#[derive(Debug, Default)]
struct MachineTrust(OnceLock<Result<Arc<WebPkiServerVerifier>, RusTlsError>>);

impl MachineTrust {
    fn verifier(&self) -> Result<&WebPkiServerVerifier, RusTlsError> {
        let verifier = self.0.get_or_init(|| {
            let built = WebPkiServerVerifier::builder(Arc::new(trust().roots.clone())).build();
            built.map_err(|e| RusTlsError::General(e.to_string()))
        });
        verifier.as_deref().map_err(Clone::clone)
    }
}

impl ServerCertVerifier for MachineTrust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, RusTlsError> {
        self.verifier()?.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RusTlsError> {
        self.verifier()?.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RusTlsError> {
        self.verifier()?.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        // Those of the provider, whatever is trusted.
        CryptoProvider::get_default().map_or_else(Vec::new, |provider| {
            provider.signature_verification_algorithms.supported_schemes()
        })
    }
}

/// What accepts connections with HTTP/2 and HTTP/1.1 over TLS, by the certificates that a resolver has when
/// a connection comes.
pub fn acceptor(least: TlsVersion, certificates: Arc<dyn ResolvesServerCert>) -> Acceptor {
    install_crypto();
    let versions: &[_] = match least {
        TlsVersion::V1_2 => &[&version::TLS12, &version::TLS13],
        TlsVersion::V1_3 => &[&version::TLS13],
    };
    let mut config = ServerConfig::builder_with_protocol_versions(versions)
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(&certificates));
    config.alpn_protocols = [HTTP_2, HTTP_1].map(|name| name.as_bytes().to_vec()).to_vec();
    // Pingora's settings have no versions.
    let mut settings = TlsSettings::intermediate("", "").expect("it only stores the names");
    settings.set_cert_resolver(certificates);
    let mut acceptor = settings.build();
    acceptor.acceptor = TlsAcceptor::from(Arc::new(config));
    acceptor
}

/// Installs the crypto provider of the process. Further calls have no effect.
pub fn install_crypto() {
    pingora::tls::install_default_crypto_provider();
}
