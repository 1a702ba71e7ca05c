//! Implausible times and amounts, such as milliseconds for seconds or negative quotas: they are reported
//! wherever they come from, and never mean an unlimited key.

use std::process::Command;

use llmproxy::config;
use serde_json::{Value, json};

use super::{
    admin::Admin,
    support::{Gateway, servers::Redis, sim},
};

/// A date in the year 2033 in units other than seconds.
const NO_SECONDS: [&str; 5] =
    ["2000000000000", "2000000000000000", "2000000000000000000", "253402300800", "-1"];

fn problems(text: &str) -> Vec<String> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    config::load_text(text, root, &|_| None).problems.iter().map(ToString::to_string).collect()
}

fn with_key(fields: &str) -> String {
    format!(
        "backends: [{{url: \"http://x\"}}]\nauth: {{enabled: true}}\napi_keys: [{{key: sk-1-12345678, {fields}}}]\n"
    )
}

#[test]
fn implausible_values_in_the_configuration_are_refused_with_a_hint() {
    for field in ["starts_at", "expires_at", "last_reset_at"] {
        for number in NO_SECONDS {
            for form in [number.to_owned(), format!("\"{number}\"")] {
                let found = problems(&with_key(&format!("{field}: {form}")));
                let [one] = &found[..] else { panic!("{field}: {form}: {found:?}") };
                assert!(one.contains("api_keys[0]") && one.contains(field), "{one}");
                assert!(one.contains("write Unix seconds"), "{one}");
            }
        }
        for fine in ["0", "2000000000", "253402300799", "\"2033-05-18\"", "\"9999-12-31\"", "\"\""]
        {
            assert_eq!(
                problems(&with_key(&format!("{field}: {fine}"))),
                [""; 0],
                "{field}: {fine}"
            );
        }
    }
    for (fields, expected) in [
        ("total_quota: -1", "`total_quota` is negative: for no limit, write 0 or leave it out"),
        ("total_quota: -0.001", "`total_quota` is negative"),
        ("total_quota: .inf", "is not a finite number"),
        ("total_quota: -.inf", "is not a finite number"),
        ("balance: .nan", "is not a finite number"),
        ("used_quota: .inf, total_quota: 5", "is not a finite number"),
        ("limits: {requests_per_minute: -1}", "is not a number of 0 or more"),
        ("limits: {per_user: {max_concurrent: -3}}", "is not a number of 0 or more"),
        ("limits: {budget: -0.5}", "is not a number of 0 or more"),
    ] {
        let all = problems(&with_key(fields));
        assert!(all.iter().any(|one| one.contains(expected)), "{fields}: {all:?}");
    }
    for fine in ["balance: -5", "total_quota: 0", "total_quota: 5, used_quota: 7"] {
        assert_eq!(problems(&with_key(fine)), [""; 0], "{fine}");
    }
    for (section, expected) in [
        ("auth: {enabled: true, defaults: {total_quota: -1}}", "auth.defaults.total_quota"),
        ("rate_limit: {global: {tokens_per_minute: -1}}", "global.tokens_per_minute"),
        (
            "rate_limit: {global: {budget: -1}, prices: {\"*\": {input: 1, output: 1}}}",
            "global.budget",
        ),
        ("rate_limit: {prices: {\"*\": {input: -1, output: 1}}}", "rate_limit.prices.*"),
        (
            "rate_limit: {prices: {\"*\": {input: 1, output: 1, cached_input: -0.1}}}",
            "rate_limit.prices.*",
        ),
        (
            "rate_limit: {prices: {\"*\": {input: 1, output: 1, cache_write: -0.1}}}",
            "rate_limit.prices.*",
        ),
        (
            "rate_limit: {prices: {\"*\": {input: 1, output: 1, reasoning: -0.1}}}",
            "rate_limit.prices.*",
        ),
        (
            "rate_limit: {prices: {\"*\": {input: 1, output: 1, audio_input: .nan}}}",
            "rate_limit.prices.*",
        ),
        (
            "rate_limit: {prices: {\"*\": {input: 1, output: 1, audio_output: -1}}}",
            "rate_limit.prices.*",
        ),
    ] {
        let text = format!("backends: [{{url: \"http://x\"}}]\n{section}\n");
        let all = problems(&text);
        assert!(
            all.iter().any(|one| one.contains(expected) && one.contains("of 0 or more")),
            "{section}: {all:?}"
        );
    }
}

#[test]
fn check_reports_implausible_values() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.yaml");
    std::fs::write(&file, with_key("expires_at: 1800000000000")).unwrap();
    let mut check = Command::new(env!("CARGO_BIN_EXE_llmproxy"));
    let done = check.args(["check", "--config"]).arg(&file).output().unwrap();
    let printed = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1));
    assert!(printed.contains("looks like milliseconds: write Unix seconds"), "{printed}");
}

#[tokio::test]
async fn the_admin_api_refuses_implausible_values_with_a_hint() {
    let sim = sim().await;
    let admin = Admin::start(&[sim.url()], "").await;
    let fine = json!({"key": "sk-fine-1234", "expires_at": 2_000_000_000, "total_quota": 5});
    let (status, made) = admin.post("/admin/v1/keys", fine).await;
    assert_eq!(status, 201, "{made}");
    let mut wrong: Vec<(Value, &str)> = vec![
        (json!({"total_quota": -1}), "`total_quota` is negative"),
        (json!({"limits": {"requests_per_minute": -5}}), "is not a number of 0 or more"),
    ];
    for field in ["starts_at", "expires_at"] {
        for number in NO_SECONDS {
            let number: i64 = number.parse().unwrap();
            wrong.push((json!({field: number}), "write Unix seconds"));
            wrong.push((json!({field: number.to_string()}), "write Unix seconds"));
        }
    }
    for (fields, expected) in wrong {
        let mut fields = fields.as_object().unwrap().clone();
        let id = made["id"].as_str().unwrap();
        let path = format!("/admin/v1/keys/{id}");
        let (status, answer) = admin.patch(&path, fields.clone().into()).await;
        assert_eq!(status, 400, "{fields:?}: {answer}");
        assert!(answer.to_string().contains(expected), "{fields:?}: {answer}");
        fields.insert("key".to_owned(), "sk-wrong-123456".into());
        for path in ["/admin/v1/keys", "/admin/keys/create"] {
            let (status, answer) = admin.post(path, fields.clone().into()).await;
            assert_eq!(status, 400, "{path}: {fields:?}: {answer}");
            assert!(answer.to_string().contains(expected), "{path}: {fields:?}: {answer}");
        }
    }
    assert_eq!(admin.gateway.ask_as("sk-fine-1234").await.status, 200);
    assert_eq!(admin.gateway.ask_as("sk-wrong-123456").await.status, 401);
}

#[tokio::test]
async fn stored_keys_with_implausible_values_are_refused_and_logged() {
    let (sim, redis) = (sim().await, Redis::start().await);
    let fields = [
        ("ms", "expires_at", "2000000000000", 403),
        ("old-name", "expired_at", "2000000000000", 403),
        ("starts", "starts_at", "1000000000000", 403),
        ("minus", "total_quota", "-1", 403),
        ("never", "expires_at", "0", 200),
        ("go-never", "expires_at", "0001-01-01T00:00:00Z", 200),
        ("last-day", "expires_at", "253402300799", 200),
        ("seconds", "expires_at", "2000000000", 200),
        ("long-ago", "expires_at", "1900-01-01", 403),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.db");
    let mut sql =
        "CREATE TABLE api_keys (api_key TEXT, expires_at, expired_at, starts_at, total_quota);"
            .to_owned();
    for (name, field, value, _) in fields {
        redis.command(&["HSET", &format!("llmproxy:key:sk-{name}"), field, value]);
        redis.command(&[
            "SET",
            &format!("json:sk-{name}"),
            &format!("{{\"{field}\":\"{value}\"}}"),
        ]);
        sql += &format!("INSERT INTO api_keys (api_key, {field}) VALUES ('sk-{name}', '{value}');");
    }
    let script = "import sqlite3,sys; sqlite3.connect(sys.argv[1]).executescript(sys.argv[2])";
    let made = Command::new("python3").args(["-c", script]).arg(&path).arg(&sql).status().unwrap();
    assert!(made.success());
    let address = redis.address;
    for provider in [
        format!("{{type: redis, name: p, redis: {{addr: \"{address}\"}}}}"),
        format!(
            "{{type: redis, name: p, redis: {{addr: \"{address}\", key_pattern: \"json:{{api_key}}\"}}}}"
        ),
        format!(
            "{{type: database, name: p, database: {{driver: sqlite, dsn: \"{}\"}}}}",
            path.display()
        ),
    ] {
        let auth = format!("auth:\n  pipeline:\n    - {provider}\n");
        let gateway = Gateway::before(&[sim.url()], &auth).await;
        for (name, _, _, status) in fields {
            assert_eq!(
                gateway.ask_as(&format!("sk-{name}")).await.status,
                status,
                "{provider}: {name}"
            );
        }
        gateway.logs("looks like milliseconds: write Unix seconds").await;
        gateway.logs("`total_quota` is negative").await;
    }
}
