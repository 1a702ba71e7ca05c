//! Configurations of the original project: what is told of them, and what `llmproxy convert` makes of
//! them.

use std::{
    os::unix::fs::PermissionsExt,
    process::{Command, Output},
};

use llmproxy::config;
use serde_json::Value;

use crate::support::{Gateway, chat, free_address, sim};

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/seeds/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_llmproxy"))
        .args(arguments)
        .env("DB_PASSWORD", "secret")
        .output()
        .unwrap()
}

/// The new text of an old one; it must be valid.
fn converted(old: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("old.yaml"), folder.path().join("new.yaml"));
    let scripts = folder.path().join("scripts");
    std::fs::create_dir(&scripts).unwrap();
    for name in ["on_request", "routing", "ratelimit"] {
        std::fs::write(scripts.join(format!("{name}.lua")), "return nil").unwrap();
    }
    std::fs::write(&from, old).unwrap();
    let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
    let output = run(&["convert", from, "--output", to]);
    let told = String::from_utf8(output.stderr).unwrap();
    let new = std::fs::read_to_string(to).unwrap_or_default();
    assert!(output.status.success(), "{told}\n{new}");
    let output = run(&["check", "--config", to]);
    assert!(output.status.success(), "{}\n{new}", String::from_utf8_lossy(&output.stderr));
    // A file that is there is not replaced.
    let output = run(&["convert", from, "--output", from]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(std::fs::read_to_string(from).unwrap(), old);
    // On the standard output it is the same.
    let output = run(&["convert", from]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), new);
    new
}

fn shown(text: &str) -> Value {
    // Where the scripts are does not matter here.
    let text = text.replace(
        "./scripts/",
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/seed-scripts/"),
    );
    let loaded = config::load_text(&text, std::path::Path::new("."), &|_| Some("x".to_owned()));
    loaded.plan.unwrap_or_else(|| panic!("{:?}", loaded.problems)).shown
}

#[test]
fn every_example_of_old_is_valid_when_converted() {
    let mut all = 0;
    for entry in std::fs::read_dir(fixture("")).unwrap() {
        let path = entry.unwrap().path();
        let old = std::fs::read_to_string(&path).unwrap();
        for old in [old.clone(), format!("\u{feff}{old}"), old.replace('\n', "\r\n")] {
            converted(&old);
        }
        all += 1;
    }
    assert!(all >= 5, "{all}");
}

#[test]
fn a_new_file_is_as_secret_as_the_old_one() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("old.yaml"), folder.path().join("new.yaml"));
    std::fs::copy(fixture("v0.5-small.yaml"), &from).unwrap();
    std::fs::set_permissions(&from, std::fs::Permissions::from_mode(0o600)).unwrap();
    let output = run(&["convert", from.to_str().unwrap(), "--output", to.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(std::fs::metadata(to).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn what_needs_no_change_keeps_its_meaning() {
    for name in ["readme-0.1.yaml", "development-guide.yaml"] {
        let old = std::fs::read_to_string(fixture(name)).unwrap();
        assert_eq!(shown(&converted(&old)), shown(&old), "{name}");
    }
}

#[test]
fn moved_keys_are_where_they_belong_and_the_others_in_comments() {
    let old = std::fs::read_to_string(fixture("v0.5-reference.yaml")).unwrap();
    let new = converted(&old);
    let shown = shown(&new);
    for (pointer, value) in [
        ("/listen", Value::from(":8000")),
        ("/timeouts/client_read", "30s".into()),
        ("/timeouts/connect", "5s".into()),
        ("/server/max_header_size", 65536.into()),
        ("/server/max_body_size", 10_485_760.into()),
        ("/server/tls", Value::Null),
        ("/server/cors/allowed_origins", serde_json::json!(["*"])),
        ("/server/cors/max_age", "86400s".into()),
        ("/log/format", "json".into()),
        ("/log/access", true.into()),
        ("/backends/2/name", "static-1".into()),
        ("/backends/3", Value::Null),
        ("/discovery/sources/0/name", "registry".into()),
        ("/discovery/sources/1", Value::Null),
        ("/storage/caches/0/pool_size", 1.into()),
        ("/storage/caches/1", Value::Null),
        ("/admin/listen", "127.0.0.1:8001".into()),
        ("/auth/pipeline/5/static/keys/0/status", "active".into()),
        ("/hooks/on_request/0/max_memory", (10 << 20).into()),
        ("/scripts/routing/timeout", "1s".into()),
        ("/scripts/rate_limit/max_memory", (10 << 20).into()),
        ("/routing/load_balance_strategy", "weighted".into()),
        ("/routing/fallback/0/fallback", serde_json::json!(["http://localhost:8001"])),
        ("/routing/fallback/1/primary", Value::Null),
        ("/usage/reporters/2/builtin/retention_days", 30.into()),
    ] {
        let found = shown.pointer(pointer).cloned().unwrap_or_default();
        // Round robin is weighted.
        let found = if found == "round_robin" { "weighted".into() } else { found };
        assert_eq!(found, value, "{pointer} in\n{new}");
    }
    for comment in [
        "# server.write_timeout: ",
        "# log.output: ",
        "# log.file: ",
        "# backends[0].timeout: ",
        "# backends[0].max_idle_conns: ",
        "# discovery.sources[0]: ",
        "# storage.caches[1]: ",
        "# auth.pipeline[1].script: ",
        "# logging: ",
        "# routing.timeout: ",
        "# routing.fallback[0].fallback[1]: it is not a backend",
        "# health_check.script: ",
        "# metrics: ",
    ] {
        assert!(new.contains(comment), "{comment} in\n{new}");
    }
    // What it was stands there, and what was switched off does not.
    assert!(new.contains("#   latency_buckets:\n"), "{new}");
    for gone in ["server.tls", "etcd", "static-2"] {
        assert!(!new.contains(gone), "{gone} in\n{new}");
    }
    // Variables are the new file's business.
    assert!(new.contains("${DB_PASSWORD}"), "{new}");
}

#[test]
fn old_names_are_told_with_what_to_write_instead() {
    for (line, path, part) in [
        ("server: {listen: \":1\"}", "server.listen", "write `listen`"),
        ("server: {read_timeout: 1s}", "server.read_timeout", "write `timeouts.client_read`"),
        ("routing: {timeout: 60s}", "routing.timeout", "`timeouts.total`"),
        ("routing: {connect_timeout: 5s}", "routing.connect_timeout", "write `timeouts.connect`"),
        ("log: {output: stdout}", "log.output", "standard error"),
        ("metrics: {enabled: true}", "metrics", "`/metrics`"),
        ("logging: {enabled: true}", "logging", "`log.access`"),
        ("rate_limit: {script: {}}", "rate_limit.script", "write `scripts.rate_limit`"),
        ("routing: {script: {}}", "routing.script", "write `scripts.routing`"),
        ("health_check: {script: {}}", "health_check.script", "`expected_status`"),
    ] {
        let text = format!("backends: [{{url: \"http://x\"}}]\n{line}\n");
        let loaded = config::load_text(&text, std::path::Path::new("."), &|_| None);
        let told: Vec<_> = loaded.problems.iter().map(ToString::to_string).collect();
        let wanted = format!("line 2: {path}: unknown key");
        assert!(
            told.len() == 1 && told[0].starts_with(&wanted) && told[0].contains(part),
            "{told:?}"
        );
    }
}

#[test]
fn words_of_old_yaml_are_told_with_what_to_write_instead() {
    for (word, right) in
        [("yes", "true"), ("on", "true"), ("Yes", "true"), ("no", "false"), ("OFF", "false")]
    {
        for (line, path) in [
            (format!("health_check: {{enabled: {word}}}"), "health_check.enabled"),
            (format!("log: {{access: {word}}}"), "log.access"),
            (format!("server: {{h2c: {word}}}"), "server.h2c"),
            (format!("admin: {{enabled: {word}}}"), "admin.enabled"),
        ] {
            let text = format!("backends: [{{url: \"http://x\"}}]\n{line}\n");
            let loaded = config::load_text(&text, std::path::Path::new("."), &|_| None);
            let told: Vec<_> = loaded.problems.iter().map(ToString::to_string).collect();
            assert_eq!(told.len(), 1, "{line}: {told:?}");
            assert!(told[0].contains(path), "{told:?}");
            assert!(told[0].ends_with(&format!("(hint: write `{right}`)")), "{told:?}");
        }
    }
}

#[test]
fn holders_of_anchors_are_no_keys() {
    let text = "x-common: &common {weight: 7, nonsense-in-a-variable: \"${\"}\nx-list: [1, 2]\n\
                backends:\n  - {url: \"http://x\", weight: 2}\n";
    let loaded = config::load_text(text, std::path::Path::new("."), &|_| None);
    assert!(loaded.plan.is_some(), "{:?}", loaded.problems);
    let text = "x-common: &common {weight: 7}\nbackends: [{<<: *common, url: \"http://x\"}]\n";
    let loaded = config::load_text(text, std::path::Path::new("."), &|_| None);
    assert_eq!(loaded.plan.unwrap().backends[0].weight, 7);
    // Only at the top, and only with the hyphen.
    for text in [
        "xcommon: {}\nbackends: [{url: \"http://x\"}]\n",
        "backends: [{url: \"http://x\", x-common: 1}]\n",
    ] {
        let loaded = config::load_text(text, std::path::Path::new("."), &|_| None);
        assert!(loaded.problems[0].message.contains("unknown key"), "{:?}", loaded.problems);
    }
    let schema: Value = serde_json::from_slice(&run(&["schema"]).stdout).unwrap();
    assert!(schema["patternProperties"]["^x-"].is_object());
}

#[tokio::test]
async fn files_may_begin_with_a_byte_order_mark() {
    let sim = sim().await;
    let folder = tempfile::tempdir().unwrap();
    let address = free_address();
    let script = folder.path().join("allow.lua");
    std::fs::write(&script, "\u{feff}return api_key == 'sk-1'").unwrap();
    let file = folder.path().join("llmproxy.yaml");
    let text = format!(
        "\u{feff}listen: \"{address}\"\nbackends: [{{url: \"{}\"}}]\nauth: {{pipeline: [{{type: lua, lua_script_file: allow.lua}}]}}\n",
        sim.url()
    );
    std::fs::write(&file, text).unwrap();
    let gateway = Gateway::with_file(file, address, &[]).await;
    assert_eq!(gateway.ask_as("sk-1").await.status, 200, "{}", gateway.log());
    assert_eq!(gateway.ask_as("sk-2").await.status, 403);
    assert_eq!(gateway.client().await.ask("/v1/chat/completions", chat(false)).await.status, 401);
}
