//! The HTTPS listener.

use crate::support::{Gateway, chat, http, sim};

pub fn certificate(folder: &std::path::Path) -> reqwest::Certificate {
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
