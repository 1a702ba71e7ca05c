//! Secrets at every place of a configuration: white space around them is removed, invalid ones are
//! refused, and none is printed.

use std::path::Path;

use llmproxy::config::{
    self, Loaded,
    plan::{Destination, Source},
};

use crate::support::{Gateway, free_address, http, recorder::Recorder};

/// A backend for configurations without their own.
const BACKEND: &str = "backends: [{url: \"http://x\"}]\n";

/// The places of secrets (`@`), each with its path. Each also has a key ending in `_file`, except
/// connection strings and proxies.
const PLACES: [(&str, &str); 21] = [
    ("backends: [{url: \"http://x\", api_key: @}]\n", "backends[0].api_key"),
    ("backends: [{url: \"http://x\", headers: {X-Token: @}}]\n", "backends[0].headers.X-Token"),
    ("backends: [{url: \"http://x\", proxy: @}]\n", "backends[0].proxy"),
    (
        "discovery: {sources: [{type: file, file: {path: x}, api_key: @}]}\n",
        "discovery.sources[0].api_key",
    ),
    (
        "discovery: {sources: [{type: http, http: {url: \"http://x\", headers: {X-Token: @}}}]}\n",
        "discovery.sources[0].http.headers.X-Token",
    ),
    ("auth: {}\napi_keys: [{key: @}]\n", "api_keys[0].key"),
    (
        "auth: {pipeline: [{type: static, static: {keys: [{key: @}]}}]}\n",
        "auth.pipeline[0].static.keys[0].key",
    ),
    (
        "auth: {pipeline: [{type: redis, redis: {addr: \"r:1\", password: @}}]}\n",
        "auth.pipeline[0].redis.password",
    ),
    (
        "auth: {pipeline: [{type: database, database: {driver: sqlite, dsn: @}}]}\n",
        "auth.pipeline[0].database.dsn",
    ),
    (
        "auth: {pipeline: [{type: webhook, webhook: {url: \"http://x\", headers: {X-Token: @}}}]}\n",
        "auth.pipeline[0].webhook.headers.X-Token",
    ),
    ("storage: {databases: [{name: d, driver: sqlite, dsn: @}]}\n", "storage.databases[0].dsn"),
    (
        "storage: {databases: [{name: d, driver: mysql, user: u, database: d, password: @}]}\n",
        "storage.databases[0].password",
    ),
    ("storage: {caches: [{name: c, addr: \"r:1\", password: @}]}\n", "storage.caches[0].password"),
    ("admin: {enabled: true, token: @}\n", "admin.token"),
    (
        "usage: {reporters: [{type: webhook, webhook: {url: \"http://x\", headers: {X-Token: @}}}]}\n",
        "usage.reporters[0].webhook.headers.X-Token",
    ),
    (
        "usage: {reporters: [{type: webhook, webhook: {url: \"http://x\", secret: @}}]}\n",
        "usage.reporters[0].webhook.secret",
    ),
    (
        "usage: {reporters: [{type: database, database: {driver: sqlite, dsn: @}}]}\n",
        "usage.reporters[0].database.dsn",
    ),
    ("usage_hook: {url: \"http://x\", headers: {X-Token: @}}\n", "usage_hook.headers.X-Token"),
    ("usage_hook: {url: \"http://x\", secret: @}\n", "usage_hook.secret"),
    ("routing: {cache_salt: per_key, cache_salt_secret: @}\n", "routing.cache_salt_secret"),
    ("auth: {}\napi_keys: [{key: sk-other}, {key: @}]\n", "api_keys[1].key"),
];

fn load(place: &str, secret: &str, env: Option<&str>) -> Loaded {
    let backend = if place.starts_with("backends") { "" } else { BACKEND };
    let text = format!("{backend}{}", place.replace('@', secret));
    config::load_text(&text, Path::new("."), &|name| {
        (name == "SECRET").then(|| env.map(str::to_owned)).flatten()
    })
}

fn problems(loaded: &Loaded) -> Vec<String> {
    loaded.problems.iter().map(ToString::to_string).collect()
}

#[test]
fn secrets_that_yaml_reads_as_numbers_need_quotes() {
    for (place, path) in PLACES {
        for secret in [
            "1e5",
            "0x1F",
            "1.10",
            "0o17",
            "12345",
            "0.1",
            "-7",
            ".inf",
            ".nan",
            "true",
            "123456789012345678901234567890",
            "[a]",
            "{a: b}",
        ] {
            let loaded = load(place, secret, None);
            let found = problems(&loaded);
            let wanted = format!("{path}: is read by YAML as something other than text");
            assert!(
                found.iter().any(|f| f.contains(&wanted) && f.contains("(hint: put it in quotes)")),
                "{path} {secret}: {found:?}"
            );
            assert!(!found.iter().any(|f| f.contains(secret)), "{found:?}");
        }
        // In quotes they are taken as written.
        if !path.contains("proxy") && !path.contains("token") && !path.contains("salt") {
            let loaded = load(place, "\"0x1F\"", None);
            assert_eq!(problems(&loaded), [""; 0], "{path}");
        }
    }
}

#[test]
fn an_unclosed_variable_is_not_printed() {
    for (place, path) in PLACES {
        for secret in [
            "\"VERYSECRET${VERYSECRET\"",
            "\"${VERYSECRET\"",
            "\"VERYSECRET${SECRET}${VERYSECRET\"",
            "\"${VERY-SECRET}VERYSECRET\"",
            "\"${}VERYSECRET\"",
            "\"${SECRET:=VERYSECRET}\"",
            "\"${1VERYSECRET}\"",
        ] {
            let loaded = load(place, secret, Some("VERYSECRET"));
            let found = problems(&loaded);
            assert!(found.iter().any(|f| f.contains(&format!("{path}: has a `${{"))), "{found:?}");
            assert!(!found.iter().any(|f| f.contains("VERY")), "{path} {secret}: {found:?}");
        }
    }
}

/// White space around secrets in files and variables.
const AROUND: [(&str, &str); 7] = [
    ("", ""),
    ("", "\n"),
    ("", "\r\n"),
    (" \t", " "),
    ("\u{feff}", "\n"),
    ("\n\n", "\n\n"),
    ("\u{feff} ", "\u{a0}"),
];

/// A secret that is valid at every place.
const SECRET: &str = "http://sk-VERYSECRET-0123456789";

#[test]
fn white_space_around_a_secret_is_removed_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let clean: Vec<_> = PLACES
        .iter()
        .map(|(place, _)| secrets(&load(place, "\"${SECRET}\"", Some(SECRET))))
        .collect();
    assert!(clean.iter().flatten().count() >= 12, "{clean:?}");
    for (before, after) in AROUND {
        let dirty = format!("{before}{SECRET}{after}");
        for ((place, path), clean) in PLACES.iter().zip(&clean) {
            // In a variable.
            let loaded = load(place, "\"${SECRET}\"", Some(&dirty));
            assert_eq!(problems(&loaded), [""; 0], "{path} {dirty:?}");
            assert_eq!(secrets(&loaded), *clean, "{path} {dirty:?}");
            // In the configuration itself.
            let quoted = serde_json::to_string(&dirty).unwrap();
            let loaded = load(place, &quoted, None);
            assert_eq!(secrets(&loaded), *clean, "{path} {dirty:?}");
            let shown = format!("{:?}", loaded.plan);
            // The host of a proxy and the file of a database are not secrets.
            assert!(
                path.ends_with("proxy") || path.ends_with("dsn") || !shown.contains("VERYSECRET"),
                "{path}: {shown}"
            );
            // In a file.
            let file = folder.path().join("secret");
            std::fs::write(&file, &dirty).unwrap();
            let quoted = format!("\"{}\"", file.display());
            let in_file = match place {
                _ if place.contains("dsn") || place.contains("proxy") => continue,
                _ if place.contains("headers:") => {
                    place.replace("headers:", "headers_file:").replace('@', &quoted)
                }
                _ => {
                    let (head, tail) = place.split_once(": @").unwrap();
                    format!("{head}_file: {quoted}{tail}")
                }
            };
            let loaded = load(&in_file, "", None);
            assert_eq!(problems(&loaded), [""; 0], "{in_file}");
            assert_eq!(secrets(&loaded), *clean, "{path} {dirty:?}");
        }
    }
}

/// The secrets of a plan that tests can read.
fn secrets(loaded: &Loaded) -> Vec<String> {
    let plan = loaded.plan.as_ref().unwrap_or_else(|| panic!("{:?}", loaded.problems));
    let mut found = Vec::new();
    let mut field = |value: &::http::HeaderValue| {
        found.push(value.to_str().unwrap().to_owned());
    };
    for backend in &plan.backends {
        backend.identity().for_each(|(_, value)| field(value));
    }
    for source in &plan.discovery.sources {
        source.key.iter().for_each(|(_, value)| field(value));
        if let config::plan::SourceLocation::Http { headers, .. } = &source.location {
            headers.iter().for_each(|(_, value)| field(value));
        }
    }
    for reporter in &plan.usage.reporters {
        if let Destination::Webhook(hook) = &reporter.to {
            hook.headers.iter().for_each(|(_, value)| field(value));
        }
    }
    for provider in plan.auth.iter().flat_map(|auth| &auth.pipeline) {
        match &provider.source {
            Source::Keys(keys) => found.extend(keys.iter().map(|k| k.key.expose().to_owned())),
            Source::Redis { settings, .. } => {
                found.extend(settings.password.iter().map(|p| p.expose().to_owned()));
            }
            Source::Webhook { headers, .. } => {
                let texts = headers.iter().map(|(_, value)| value.to_str().unwrap().to_owned());
                found.extend(texts);
            }
            _ => {}
        }
    }
    found.extend(plan.fixed.admin.iter().map(|a| a.token.expose().to_owned()));
    found
}

#[test]
fn a_key_that_is_invalid_in_a_header_is_refused() {
    for (place, path) in [
        ("backends: [{url: \"http://x\", api_key: @}]\n", "backends[0].api_key"),
        ("auth: {}\napi_keys: [{key: @}]\n", "api_keys[0].key"),
        (
            "auth: {pipeline: [{type: static, static: {keys: [{key: @}]}}]}\n",
            "auth.pipeline[0].static.keys[0].key",
        ),
        ("admin: {enabled: true, token: @}\n", "admin.token"),
        (
            "discovery: {sources: [{type: file, file: {path: x}, api_key: @}]}\n",
            "discovery.sources[0].api_key",
        ),
    ] {
        for (secret, why) in [
            ("sk-VERY\\nSECRET", "a line end"),
            ("sk-VERY\\rSECRET", "a line end"),
            ("sk-VERY\\0SECRET", "another control character"),
            ("sk-VERY\\x7fSECRET", "another control character"),
            ("sk-VERYSECRÉT", "not ASCII"),
            ("sk-VERY\\u200bSECRET", "not ASCII"),
            ("sk-VERY SECRET", "a space"),
            ("Bearer sk-VERYSECRET", "a space"),
        ] {
            let found = problems(&load(place, &format!("\"{secret}\""), None));
            let wanted = format!("{path}: cannot be sent in a header field: it ");
            assert!(
                found.len() == 1 && found[0].contains(&wanted) && found[0].contains(why),
                "{path} {secret}: {found:?}"
            );
            assert!(!found[0].contains("VERY"), "{found:?}");
        }
    }
    // The key is not printed.
    for secret in ["\" \"", "\"\\n\"", "\"\\ufeff\""] {
        let found = problems(&load("backends: [{url: \"http://x\", api_key: @}]\n", secret, None));
        assert!(found[0].contains("it is empty"), "{found:?}");
    }
}

#[tokio::test]
async fn keys_from_files_and_variables_work_for_clients_backends_and_operators() {
    let backend = Recorder::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("client-key");
    std::fs::write(&file, "\u{feff}sk-client\r\n").unwrap();
    let admin = free_address();
    let configuration = format!(
        "backends: [{{url: \"{}\", api_key: \"${{BACKEND_KEY}}\"}}]\nauth: {{}}\napi_keys: [{{key_file: \"{}\"}}]\nadmin: {{enabled: true, listen: \"{admin}\", token: \"${{TOKEN}}\"}}\n",
        backend.url(),
        file.display()
    );
    let env = [("BACKEND_KEY", "sk-backend\n"), ("TOKEN", "\u{feff} token-of-admin \n")];
    let gateway = Gateway::spawn(&configuration, &env);
    crate::support::eventually("the gateway answers", async || {
        tokio::net::TcpStream::connect(gateway.address).await.is_ok()
    })
    .await;
    assert_eq!(gateway.ask_as("sk-client").await.status, 200, "{}", gateway.log());
    assert_eq!(gateway.ask_as("sk-other").await.status, 401);
    assert_eq!(backend.only().values("authorization"), ["Bearer sk-backend"]);
    let url = format!("http://{admin}/admin/v1/backends");
    let answer = http::client().get(url).header("X-Admin-Token", "token-of-admin").send().await;
    assert_eq!(answer.unwrap().status(), 200);
}
