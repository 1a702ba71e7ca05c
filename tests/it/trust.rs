//! An unusable trust store: an error if anything needs it, otherwise a warning.

use std::path::Path;

use crate::support::{Gateway, check, eventually, sim};

/// Unusable values of `SSL_CERT_FILE` and `SSL_CERT_DIR`, and their messages.
fn broken(folder: &Path) -> Vec<(Vec<(&'static str, String)>, &'static str)> {
    let file = |name: &str, text: &[u8]| {
        std::fs::write(folder.join(name), text).unwrap();
        folder.join(name).display().to_string()
    };
    std::fs::create_dir_all(folder.join("none")).unwrap();
    let pem = |base64: &str| {
        format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n")
    };
    vec![
        (vec![("SSL_CERT_FILE", String::new())], "`SSL_CERT_FILE`, which is set but empty, cannot"),
        (vec![("SSL_CERT_FILE", file("empty.pem", b""))], "empty.pem) holds no certificate"),
        (vec![("SSL_CERT_FILE", file("text.pem", b"no PEM"))], "text.pem) holds no certificate"),
        (
            vec![("SSL_CERT_FILE", folder.join("missing.pem").display().to_string())],
            "missing.pem) cannot be used",
        ),
        (
            vec![("SSL_CERT_FILE", file("bad.pem", pem("AAAA").as_bytes()))],
            "bad.pem) has 1 of 1 certificates that cannot be used",
        ),
        (
            vec![("SSL_CERT_FILE", file("broken.pem", pem("%%%").as_bytes()))],
            "broken.pem) cannot be used",
        ),
        (
            vec![("SSL_CERT_DIR", folder.join("none").display().to_string())],
            "none) holds no certificate",
        ),
        (
            vec![("SSL_CERT_DIR", folder.join("nowhere").display().to_string())],
            "nowhere) cannot be used",
        ),
        (
            vec![("SSL_CERT_FILE", String::new()), ("SSL_CERT_DIR", String::new())],
            "`SSL_CERT_DIR`, which is set but empty,",
        ),
    ]
}

#[test]
fn check_fails_if_the_trust_store_is_needed_and_warns_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    for (env, part) in broken(folder.path()) {
        let output = check("backends: [{url: \"https://h\", proxy: none}]\n", &env);
        let printed = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{env:?}: {printed}");
        assert!(printed.contains("backends[0].url: needs the trust store"), "{env:?}: {printed}");
        assert!(printed.contains(part) && !printed.contains("panicked"), "{part}: {printed}");

        let output = check("backends: [{url: \"http://h\"}]\n", &env);
        let printed = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{env:?}: {printed}");
        assert!(printed.contains("warning: ") && printed.contains(part), "{env:?}: {printed}");
    }
}

#[test]
fn all_tls_targets_need_the_trust_store() {
    let empty = [("SSL_CERT_FILE", String::new())];
    for (configuration, path) in [
        ("backends: [{url: \"http://a\"}, {url: \"https://b\", proxy: none}]\n", "backends[1].url"),
        (
            "discovery: {sources: [{type: http, http: {url: \"https://h\"}}]}\n",
            "discovery.sources[0].http.url",
        ),
        ("backends: [{url: \"http://a\"}]\nusage_hook: {url: \"https://h\"}\n", "usage_hook.url"),
        (
            "backends: [{url: \"http://a\"}]\nusage: {reporters: [{type: webhook, webhook: {url: \"https://h\"}}]}\n",
            "usage.reporters[0].webhook.url",
        ),
        (
            "backends: [{url: \"http://a\"}]\nauth: {pipeline: [{type: webhook, webhook: {url: \"https://h\"}}]}\n",
            "auth.pipeline[0].webhook.url",
        ),
        (
            "backends: [{url: \"http://a\"}]\nstorage: {caches: [{name: x, addr: \"rediss://h:1\"}]}\n",
            "storage.caches[0].addr",
        ),
        (
            "backends: [{url: \"http://a\"}]\nauth: {pipeline: [{type: redis, redis: {addr: \"rediss://h:1\"}}]}\n",
            "auth.pipeline[0].redis.addr",
        ),
    ] {
        let output = check(configuration, &empty);
        let printed = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{configuration}: {printed}");
        assert!(printed.contains(&format!("{path}: needs the trust store")), "{path}: {printed}");
    }
    // Disabled features need no trust store.
    for configuration in [
        "backends: [{url: \"http://a\"}, {url: \"https://b\", enabled: false}]\n",
        "backends: [{url: \"http://a\"}]\nusage: {reporters: [{type: webhook, enabled: false, webhook: {url: \"https://h\"}}]}\n",
        "backends: [{url: \"http://a\"}]\nusage: {enabled: false, reporters: [{type: webhook, webhook: {url: \"https://h\"}}]}\n",
        "backends: [{url: \"http://a\"}]\nstorage: {caches: [{name: x, enabled: false, addr: \"rediss://h:1\"}]}\n",
    ] {
        let output = check(configuration, &empty);
        let printed = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.success() && printed.contains("warning"),
            "{configuration}: {printed}"
        );
    }
}

#[tokio::test]
async fn a_gateway_without_tls_serves_without_a_trust_store() {
    let folder = tempfile::tempdir().unwrap();
    let sim = sim().await;
    for (env, part) in broken(folder.path()) {
        let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        // With hedging, which has its own connector.
        let gateway = Gateway::spawn(
            &format!(
                "backends: [{{url: \"{0}\", name: a}}, {{url: \"{0}\", name: b}}]\nhealth_check: {{interval: 1h}}\nrouting: {{hedge: {{delay: 10m}}}}\n",
                sim.url()
            ),
            &env,
        );
        eventually("the gateway answers", async || {
            tokio::net::TcpStream::connect(gateway.address).await.is_ok()
        })
        .await;
        for body in [
            crate::support::chat(true),
            r#"{"model":"sim-model","messages":[],"max_tokens":5}"#.to_owned(),
        ] {
            let answer = gateway.client().await.ask("/v1/chat/completions", &body).await;
            assert_eq!(answer.status, 200, "{env:?}: {}", gateway.log());
        }
        assert_eq!(gateway.client().await.get("/v1/models").await.status, 200);
        gateway.logs(part).await;
        let log = gateway.log();
        assert!(!log.contains("panicked"), "{log}");
    }
}
