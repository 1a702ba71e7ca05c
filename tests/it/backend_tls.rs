//! TLS to backends: certificates of a company's own CA, other names, and the gateway's own certificate.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
    },
};

use crate::support::{Gateway, check, eventually};

/// An authority of its own, whose certificate is in `ca.pem`.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(folder: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let made = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(folder.join(format!("{name}.pem")), made.pem()).unwrap();
        Self(made)
    }

    /// A certificate for this name in `NAME.pem`, with its key in `NAME-key.pem`.
    fn sign(&self, folder: &Path, name: &str) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let made = params.signed_by(&key, &self.0).unwrap();
        std::fs::write(folder.join(format!("{name}.pem")), made.pem()).unwrap();
        std::fs::write(folder.join(format!("{name}-key.pem")), key.serialize_pem()).unwrap();
    }
}

/// What a backend has seen of a connection: the name, and whether it got a certificate.
type Seen = Arc<Mutex<Vec<(Option<String>, bool)>>>;

/// A backend that shows the certificate of `name`, and asks for one that `ca` has signed.
async fn backend(folder: &Path, name: &str, ca: Option<&str>) -> (SocketAddr, Seen) {
    llmproxy::store::tls::install_crypto();
    let read = |file: &str| std::fs::read(folder.join(file)).unwrap();
    let chain = CertificateDer::from_pem_slice(&read(&format!("{name}.pem"))).unwrap();
    let key = PrivateKeyDer::from_pem_slice(&read(&format!("{name}-key.pem"))).unwrap();
    let builder = ServerConfig::builder();
    let builder = match ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(&read(ca)).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
    };
    let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(vec![chain], key).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Seen::default();
    let all = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, all) = (acceptor.clone(), Arc::clone(&all));
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let connection = stream.get_ref().1;
                let name = connection.server_name().map(str::to_owned);
                let certified = connection.peer_certificates().is_some();
                all.lock().unwrap().push((name, certified));
                let mut request = Vec::new();
                while !is_whole(&request) {
                    let mut piece = [0; 4096];
                    match stream.read(&mut piece).await {
                        Ok(n) if n > 0 => request.extend_from_slice(&piece[..n]),
                        _ => return,
                    }
                }
                let body =
                    r#"{"id":"c","object":"chat.completion","model":"m","choices":[],"data":[]}"#;
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close";
                let answer = format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await.ok();
                stream.shutdown().await.ok();
            });
        }
    });
    (address, seen)
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let head = head.to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
    length.is_none_or(|length| body.len() >= length.parse().unwrap())
}

/// A gateway whose machine trusts nobody of these tests.
async fn gateway(address: SocketAddr, tls: &str) -> Gateway {
    gateway_to(&format!("https://localhost:{}", address.port()), tls).await
}

async fn gateway_to(url: &str, tls: &str) -> Gateway {
    Gateway::start(&format!(
        "health_check: {{interval: 1h}}\nbackends: [{{name: one, url: \"{url}\", proxy: none, tls: {{{tls}}}}}]\n"
    ))
    .await
}

/// Whether the probe or the request itself has found that there is no such backend.
async fn fails(gateway: &Gateway) {
    let status = gateway.ask_with("").await.status;
    assert!([502, 503].contains(&status), "{status}");
}

#[tokio::test]
async fn a_backend_is_trusted_by_its_own_authority() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    Authority::new(path, "ca").sign(path, "localhost");
    Authority::new(path, "other");
    let file = |name: &str| path.join(name).display().to_string();
    let (address, seen) = backend(path, "localhost", None).await;
    let fine = gateway(address, &format!("ca: \"{}\"", file("ca.pem"))).await;
    assert_eq!(fine.ask_with("").await.status, 200);
    // The gateway's own requests go the same way.
    assert_eq!(fine.client().await.get("/v1/models").await.status, 200);
    eventually("a probe finds it healthy", async || {
        fine.metric("llmproxy_backend_up{backend=\"one\"}").await == 1.0
    })
    .await;
    let all = seen.lock().unwrap().clone();
    assert!(all.iter().all(|(name, certified)| name.as_deref() == Some("localhost") && !certified));
    let wrong = gateway(address, &format!("ca: \"{}\"", file("other.pem"))).await;
    fails(&wrong).await;
    let unverified =
        gateway(address, &format!("ca: \"{}\", verify: false", file("other.pem"))).await;
    assert_eq!(unverified.ask_with("").await.status, 200);
    unverified.logs("whoever answers is taken for the backend").await;
}

#[tokio::test]
async fn a_backend_may_have_another_name_than_its_url() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    Authority::new(path, "ca").sign(path, "vllm.internal");
    let ca = path.join("ca.pem").display().to_string();
    let (address, seen) = backend(path, "vllm.internal", None).await;
    for host in ["localhost", "127.0.0.1"] {
        let url = format!("https://{host}:{}", address.port());
        let named = gateway_to(&url, &format!("ca: \"{ca}\", server_name: vllm.internal")).await;
        assert_eq!(named.ask_with("").await.status, 200, "{host}");
        assert_eq!(named.client().await.get("/v1/models").await.status, 200, "{host}");
        let plain = gateway_to(&url, &format!("ca: \"{ca}\"")).await;
        fails(&plain).await;
    }
    let all = seen.lock().unwrap().clone();
    assert!(all.iter().all(|(name, _)| name.as_deref() == Some("vllm.internal")), "{all:?}");
}

#[tokio::test]
async fn the_gateway_shows_its_own_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let authority = Authority::new(path, "ca");
    authority.sign(path, "localhost");
    authority.sign(path, "gateway");
    Authority::new(path, "other").sign(path, "stranger");
    let file = |name: &str| path.join(name).display().to_string();
    let (address, seen) = backend(path, "localhost", Some("ca.pem")).await;
    let with = |name: &str| {
        let (cert, key) = (file(&format!("{name}.pem")), file(&format!("{name}-key.pem")));
        format!("ca: \"{}\", cert: \"{cert}\", key: \"{key}\"", file("ca.pem"))
    };
    let fine = gateway(address, &with("gateway")).await;
    assert_eq!(fine.ask_with("").await.status, 200);
    assert_eq!(fine.client().await.get("/v1/models").await.status, 200);
    assert!(seen.lock().unwrap().iter().all(|(_, certified)| *certified));
    for none in [format!("ca: \"{}\"", file("ca.pem")), with("stranger")] {
        let refused = gateway(address, &none).await;
        fails(&refused).await;
    }
}

#[test]
fn mistakes_are_found_before_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let authority = Authority::new(path, "ca");
    authority.sign(path, "one");
    authority.sign(path, "two");
    std::fs::write(path.join("text.pem"), "no PEM").unwrap();
    let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    std::fs::write(path.join("bad.pem"), bad).unwrap();
    for (url, tls, part) in [
        ("http://h", "ca: \"DIR/ca.pem\"", "tls: has no effect without https"),
        ("https://h", "ca: \"DIR/none.pem\"", "tls.ca: cannot read"),
        ("https://h", "ca: \"DIR/text.pem\"", "tls.ca: DIR/text.pem: holds no certificate"),
        ("https://h", "ca: \"DIR/bad.pem\"", "tls.ca: DIR/bad.pem: "),
        (
            "https://h",
            "ca: \"DIR/ca.pem\", cert: \"DIR/one.pem\"",
            "needs `cert` and `key` together",
        ),
        (
            "https://h",
            "ca: \"DIR/ca.pem\", cert: \"DIR/one.pem\", key: \"DIR/text.pem\"",
            "tls.key: DIR/text.pem: holds no key",
        ),
        (
            "https://h",
            "ca: \"DIR/ca.pem\", cert: \"DIR/one.pem\", key: \"DIR/two-key.pem\"",
            "certificate and key do not belong together",
        ),
        (
            "https://h",
            "ca: \"DIR/ca.pem\", server_name: \"https://h\"",
            "tls.server_name: `https://h` is not a host name",
        ),
        ("https://h", "ca: \"DIR/ca.pem\", insecure: true", "insecure"),
    ] {
        let dir = path.display().to_string();
        let tls = tls.replace("DIR", &dir);
        let text = format!("backends: [{{url: \"{url}\", proxy: none, tls: {{{tls}}}}}]\n");
        let output = check(&text, &[]);
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{tls}: {printed}");
        assert!(printed.contains(&part.replace("DIR", &dir)), "{part}: {printed}");
        assert!(!printed.contains("panicked"), "{printed}");
    }
    // The trust store of the machine is not needed then.
    let ca = path.join("ca.pem").display().to_string();
    let text = format!("backends: [{{url: \"https://h\", proxy: none, tls: {{ca: \"{ca}\"}}}}]\n");
    let empty = [("SSL_CERT_FILE", String::new())];
    let output = check(&text, &empty);
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{printed}");
}
