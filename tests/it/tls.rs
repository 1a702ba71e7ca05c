//! The HTTPS listener.

use std::{net::SocketAddr, path::Path};

use crate::support::{Gateway, chat, eventually, http, sim, sim_with};

pub fn certificate(folder: &Path) -> reqwest::Certificate {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    reqwest::Certificate::from_pem(made.cert.pem().as_bytes()).unwrap()
}

#[tokio::test]
async fn https_serves_http2_and_http1() {
    let sim = sim().await;
    let folder = tempfile::tempdir().unwrap();
    let root = certificate(folder.path());
    let files = folder.path().display();
    let more =
        format!("server: {{tls: {{cert_file: {files}/cert.pem, key_file: {files}/key.pem}}}}\n");
    let gateway = Gateway::before(&[sim.url()], &more).await;
    let url = format!("https://localhost:{}/v1/chat/completions", gateway.address.port());
    for (http1, version) in [(false, reqwest::Version::HTTP_2), (true, reqwest::Version::HTTP_11)] {
        let builder =
            http::builder().tls_certs_only([root.clone()]).resolve("localhost", gateway.address);
        let client = if http1 { builder.http1_only() } else { builder }.build().unwrap();
        let answer = client.post(&url).body(chat(true)).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.version()), (200, version));
        assert!(answer.text().await.unwrap().ends_with("data: [DONE]\n\n"));
    }
}

#[tokio::test]
async fn check_reports_unusable_certificates() {
    let folder = tempfile::tempdir().unwrap();
    certificate(folder.path());
    let other = rcgen::KeyPair::generate().unwrap();
    std::fs::write(folder.path().join("other.pem"), other.serialize_pem()).unwrap();
    std::fs::write(folder.path().join("empty.pem"), "").unwrap();
    for (key, message) in [
        ("other.pem", "cannot be used"),
        ("empty.pem", "no key in the files"),
        ("none.pem", "cannot read"),
    ] {
        let text = format!(
            "server: {{tls: {{cert_file: cert.pem, key_file: {key}}}}}\nbackends: [{{url: \"http://x\"}}]\n"
        );
        let loaded = llmproxy::config::load_text(&text, folder.path(), &|_| None);
        assert!(loaded.plan.is_none());
        let all: Vec<_> = loaded.problems.iter().map(ToString::to_string).collect();
        assert!(all.len() == 1 && all[0].contains(message), "{key}: {all:?}");
    }
}

/// A certificate for these names, in `FILE.pem` and `FILE-key.pem`.
fn certificate_for(folder: &Path, file: &str, names: &[&str]) -> reqwest::Certificate {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    std::fs::write(folder.join(format!("{file}-key.pem")), made.signing_key.serialize_pem())
        .unwrap();
    std::fs::write(folder.join(format!("{file}.pem")), made.cert.pem()).unwrap();
    reqwest::Certificate::from_pem(made.cert.pem().as_bytes()).unwrap()
}

/// A client that trusts this certificate alone, and opens a new connection.
fn trusting(root: &reqwest::Certificate, name: &str, address: SocketAddr) -> reqwest::Client {
    http::builder().tls_certs_only([root.clone()]).resolve(name, address).build().unwrap()
}

async fn asks(root: &reqwest::Certificate, name: &str, address: SocketAddr) -> bool {
    let url = format!("https://{name}:{}/v1/chat/completions", address.port());
    let answer = trusting(root, name, address).post(&url).body(chat(false)).send().await;
    answer.is_ok_and(|answer| answer.status() == 200)
}

#[tokio::test]
async fn each_name_has_its_certificate() {
    let sim = sim().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let first = certificate_for(path, "first", &["a.test"]);
    let second = certificate_for(path, "second", &["b.test", "*.c.test"]);
    let more = format!(
        "server: {{tls: {{cert_file: {0}/first.pem, key_file: {0}/first-key.pem, certificates: [{{cert_file: {0}/second.pem, key_file: {0}/second-key.pem}}]}}}}\n",
        path.display()
    );
    let gateway = Gateway::before(&[sim.url()], &more).await;
    let address = gateway.address;
    for (root, name, fine) in [
        (&first, "a.test", true),
        (&second, "a.test", false),
        (&second, "b.test", true),
        (&second, "x.c.test", true),
        (&first, "b.test", false),
        (&first, "other.test", false),
    ] {
        assert_eq!(asks(root, name, address).await, fine, "{name}");
    }
    let ends = format!(
        "llmproxy_certificate_expiry_timestamp_seconds{{certificate=\"{}/second.pem\"}}",
        path.display()
    );
    let metrics = trusting(&first, "a.test", address)
        .get(format!("https://a.test:{}/metrics", address.port()));
    let text = metrics.send().await.unwrap().text().await.unwrap();
    let line = text.lines().find(|line| line.starts_with(&ends)).unwrap();
    assert!(line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() > 1.7e9, "{line}");
}

#[tokio::test]
async fn a_new_certificate_drops_no_stream() {
    let sim = sim_with(|b| (b.tokens, b.inter_token_ms) = (60, 100)).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let old = certificate_for(path, "cert", &["localhost"]);
    let more = format!(
        "server: {{tls: {{cert_file: {0}/cert.pem, key_file: {0}/cert-key.pem}}}}\n",
        path.display()
    );
    let gateway = Gateway::before(&[sim.url()], &more).await;
    let address = gateway.address;
    let url = format!("https://localhost:{}/v1/chat/completions", address.port());
    let stream =
        trusting(&old, "localhost", address).post(&url).body(chat(true)).send().await.unwrap();
    let new = certificate_for(path, "cert", &["localhost"]);
    eventually("the new certificate is shown", async || asks(&new, "localhost", address).await)
        .await;
    assert!(!asks(&old, "localhost", address).await);
    // One that cannot be used changes nothing.
    std::fs::write(path.join("cert.pem"), "no PEM").unwrap();
    gateway.logs("there is no certificate or no key in the files").await;
    assert!(asks(&new, "localhost", address).await);
    assert!(stream.text().await.unwrap().ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn old_versions_are_refused() {
    let sim = sim().await;
    let folder = tempfile::tempdir().unwrap();
    let root = certificate(folder.path());
    for (least, old) in [("1.2", true), ("1.3", false)] {
        let more = format!(
            "server: {{tls: {{cert_file: {0}/cert.pem, key_file: {0}/key.pem, min_version: \"{least}\"}}}}\n",
            folder.path().display()
        );
        let gateway = Gateway::before(&[sim.url()], &more).await;
        let url = format!("https://localhost:{}/health", gateway.address.port());
        let builder =
            || http::builder().tls_certs_only([root.clone()]).resolve("localhost", gateway.address);
        let client = builder().tls_version_max(reqwest::tls::Version::TLS_1_2).build().unwrap();
        assert_eq!(client.get(&url).send().await.is_ok(), old, "{least}");
        assert!(builder().build().unwrap().get(&url).send().await.is_ok(), "{least}");
    }
}
