//! Authentication: where keys are read from, how they are decided about, and what is known of a caller.

use super::support::{Gateway, Receiver, chat, sim, sim_with};

/// Status and error code of a response.
fn code(answer: &super::support::client::Response) -> (u16, String) {
    let code = answer.json()["error"]["code"].as_str().unwrap_or_default().to_owned();
    (answer.status, code)
}

fn no(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

const KEYS: &str = "auth: {}
api_keys:
  - {key: sk-good-000001, user_id: user_001, name: Erste}
  - {key: sk-off-0000001, status: disabled}
  - {key: sk-off-number, status: 1}
  - {key: sk-late-000001, expires_at: \"2020-01-01T00:00:00Z\"}
  - {key: sk-late-status, status: 3}
  - {key: sk-late-spent, expires_at: 1, total_quota: 1, used_quota: 2}
  - {key: sk-early-00001, starts_at: 4102444800}
  - {key: sk-spent-00001, total_quota: 10, used_quota: 10}
  - {key: sk-spent-word, status: quota_exceeded}
  - {key: sk-poor-000001, balance: 0}
  - {key: sk-here-000001, allowed_ips: [\"127.0.0.0/8\"]}
  - {key: sk-there-00001, allowed_ips: [\"192.0.2.0/24\"]}
  - {key: sk-not-here-01, denied_ips: [\"127.0.0.1\"]}
";

#[tokio::test]
async fn the_default_rules_decide_without_a_script() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], KEYS).await;
    for (key, expected) in [
        ("sk-off-0000001", no(403, "DISABLED")),
        ("sk-off-number", no(403, "DISABLED")),
        ("sk-late-000001", no(403, "EXPIRED")),
        ("sk-late-status", no(403, "EXPIRED")),
        ("sk-early-00001", no(403, "NOT_YET_VALID")),
        ("sk-spent-00001", no(429, "QUOTA_EXCEEDED")),
        ("sk-spent-word", no(429, "QUOTA_EXCEEDED")),
        ("sk-poor-000001", no(429, "QUOTA_EXCEEDED")),
        ("sk-there-00001", no(403, "IP_NOT_ALLOWED")),
        ("sk-not-here-01", no(403, "IP_NOT_ALLOWED")),
        ("sk-unknown", no(401, "NOT_FOUND")),
    ] {
        assert_eq!(code(&gateway.ask_as(key).await), expected, "{key}");
    }
    for key in ["sk-good-000001", "sk-here-000001"] {
        assert_eq!(gateway.ask_as(key).await.status, 200, "{key}");
    }
    let missing = gateway.ask_with("").await;
    assert_eq!(code(&missing), no(401, "MISSING_KEY"));
    assert_eq!(missing.header("www-authenticate"), Some("Bearer"));
    assert_eq!(sim.stats().requests(), 2, "refused requests reach no backend");
    let count = gateway.metric("llmproxy_auth_total{decision=\"allow\",provider=\"file\"}").await;
    assert_eq!(count, 2.0);
    // The log contains no keys.
    assert!(!gateway.log().contains("sk-good-000001"));
}

#[tokio::test]
async fn keys_are_read_from_the_configured_headers() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], KEYS).await;
    for (headers, status) in [
        ("Authorization: Bearer sk-good-000001\r\n", 200),
        ("authorization: bearer sk-good-000001\r\n", 200),
        ("X-API-Key: sk-good-000001\r\n", 200),
        ("x-api-key: sk-good-000001\r\nanthropic-version: 2023-06-01\r\n", 200),
        ("Authorization: Basic c2s=\r\nX-API-Key: sk-good-000001\r\n", 200),
        ("Authorization: sk-good-000001\r\n", 401),
        ("Authorization: Bearer sk-unknown\r\nX-API-Key: sk-good-000001\r\n", 401),
        ("api-key: sk-good-000001\r\n", 200),
        ("x-key: sk-good-000001\r\n", 401),
    ] {
        assert_eq!(gateway.ask_with(headers).await.status, status, "{headers}");
    }
    let more = KEYS.replace("auth: {}", "auth: {header_names: [X-My-Key]}");
    let gateway = Gateway::before(&[sim.url()], &more).await;
    assert_eq!(gateway.ask_with("X-My-Key: sk-good-000001\r\n").await.status, 200);
    assert_eq!(gateway.ask_as("sk-good-000001").await.status, 401);
    assert_eq!(sim.stats().last().unwrap().header("x-my-key"), None);
}

#[tokio::test]
async fn only_api_endpoints_require_a_key() {
    let sim = sim().await;
    let more = KEYS.replace("auth: {}", "auth: {skip_paths: [/v1/embed]}");
    let gateway = Gateway::before(&[sim.url()], &more).await;
    let mut client = gateway.client().await;
    for (path, status) in [
        ("/health", 200),
        ("/ready", 200),
        ("/metrics", 200),
        ("/v1/models", 401),
        ("/nothing", 404),
    ] {
        assert_eq!(client.get(path).await.status, status, "{path}");
    }
    assert_eq!(
        client.ask("/v1/embeddings", r#"{"model":"sim-model","input":"x"}"#).await.status,
        200
    );
    client.send(b"GET /v1/models HTTP/1.1\r\nHost: g\r\nX-API-Key: sk-good-000001\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 200);
}

#[tokio::test]
async fn a_body_is_not_read_without_a_key() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], KEYS).await;
    let mut client = gateway.client().await;
    // The body is announced but never sent: waiting for it would never end.
    client
        .send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nContent-Length: 1000000\r\n\r\n")
        .await;
    assert_eq!(client.answer().await.status, 401);
}

#[tokio::test]
async fn status_codes_can_be_configured() {
    let sim = sim().await;
    let more = KEYS.replace(
        "auth: {}",
        "auth:
  status_codes:
    quota_exceeded: {http_code: 402, code: insufficient_quota, message: \"额度已用尽，请充值\"}
    expired: {allow: true}
    not_found: {message: \"无效的 API Key\"}",
    );
    let gateway = Gateway::before(&[sim.url()], &more).await;
    let spent = gateway.ask_as("sk-spent-00001").await;
    assert_eq!(code(&spent), no(402, "insufficient_quota"));
    assert_eq!(spent.json()["error"]["message"], "额度已用尽，请充值");
    assert_eq!(gateway.ask_as("sk-late-000001").await.status, 200);
    // Only the tolerated failure is ignored.
    assert_eq!(gateway.ask_as("sk-late-spent").await.status, 402);
    assert_eq!(gateway.ask_as("sk-x").await.json()["error"]["message"], "无效的 API Key");

    let simple = format!("{KEYS}server: {{error_format: simple}}\n");
    let gateway = Gateway::before(&[sim.url()], &simple).await;
    let answer = gateway.ask_as("sk-off-0000001").await;
    assert_eq!(answer.json(), serde_json::json!({"error": "The API key is disabled", "code": 403}));
}

#[tokio::test]
async fn a_caller_is_named_in_records_and_logs_and_to_backends_only_if_configured() {
    let sim = sim().await;
    let receiver = Receiver::start().await;
    let hook = receiver.hook();
    let more =
        KEYS.replace("name: Erste", "name: 生产, id: key-7, team: red, metadata: {tier: gold}");
    let gateway = Gateway::before(&[sim.url()], &format!("{more}{hook}")).await;
    let forged = "X-API-Key-UserID: root\r\nX-API-Key-Name: admin\r\nX-API-Key: sk-good-000001\r\n";
    assert_eq!(gateway.ask_with(forged).await.status, 200);
    let record = receiver.one().await;
    assert_eq!(record["user_id"], "user_001");
    assert_eq!(record["key_id"], "key-7");
    assert_eq!(record["key_name"], "生产");
    assert_eq!(record["team"], "red");
    assert_eq!(record["metadata"], serde_json::json!({"tier": "gold"}));
    gateway.logs("user=\"user_001\"").await;
    let seen = format!("{:?}", sim.stats().last().unwrap().headers);
    assert!(!seen.contains("x-api-key"), "{seen}");
    // A refused request has a record too.
    gateway.ask_as("sk-off-0000001").await;
    let refused = receiver.wait_for(2).await[1].clone();
    assert!(refused["key_id"].as_str().unwrap().starts_with("key_"));
    assert_eq!((&refused["outcome"], &refused["status_code"]), (&"rejected".into(), &403.into()));

    let telling = more.replace("auth: {}", "auth: {forward_identity: true}");
    let gateway = Gateway::before(&[sim.url()], &telling).await;
    assert_eq!(gateway.ask_with(forged).await.status, 200);
    let seen = sim.stats().last().unwrap();
    assert_eq!(seen.header("x-api-key-userid"), Some("user_001"));
    assert_eq!(seen.header("x-api-key-name"), Some("生产"));
}

#[tokio::test]
async fn address_rules_apply_first_and_trust_only_configured_proxies() {
    let sim = sim().await;
    let rules = "server: {denied_ips: [\"198.51.100.0/24\"], trusted_proxies: [\"127.0.0.1\"]}\n";
    let keys = KEYS.replace("192.0.2.0/24", "192.0.2.7");
    let gateway = Gateway::before(&[sim.url()], &format!("{keys}{rules}")).await;
    let from = |ip: &str, key: &str| format!("X-Forwarded-For: {ip}\r\nX-API-Key: {key}\r\n");
    for (ip, key, expected) in [
        ("198.51.100.9", "sk-good-000001", 403),
        ("198.51.100.9", "sk-unknown", 403),
        ("192.0.2.7", "sk-there-00001", 200),
        ("192.0.2.8", "sk-there-00001", 403),
        ("192.0.2.7, 203.0.113.1", "sk-there-00001", 403),
    ] {
        assert_eq!(gateway.ask_with(&from(ip, key)).await.status, expected, "{ip} {key}");
    }
    // Health endpoints stay open, as probes come from anywhere.
    let mut client = gateway.client().await;
    client.send(b"GET /health HTTP/1.1\r\nHost: g\r\nX-Forwarded-For: 198.51.100.9\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 200);
    let gateway = Gateway::before(&[sim.url()], &keys).await;
    assert_eq!(gateway.ask_with(&from("192.0.2.7", "sk-there-00001")).await.status, 403);
}

#[tokio::test]
async fn the_modes_first_match_and_all_work() {
    let sim = sim().await;
    let pipeline = "
  pipeline:
    - {type: static, name: one, static: {keys: [{key: sk-both-00001, user_id: u, metadata: {a: 1}}, {key: sk-first-0001, status: disabled}]}}
    - {type: static, name: two, static: {keys: [{key: sk-both-00001, name: n, metadata: {b: 2}}, {key: sk-first-0001}, {key: sk-second-001}]}}
";
    let first =
        Gateway::before(&[sim.url()], &format!("auth:\n  mode: first_match{pipeline}")).await;
    for (key, status) in
        [("sk-both-00001", 200), ("sk-first-0001", 403), ("sk-second-001", 200), ("sk-none", 401)]
    {
        assert_eq!(first.ask_as(key).await.status, status, "first_match {key}");
    }
    let receiver = Receiver::start().await;
    let all = format!("auth:\n  mode: all{pipeline}{}", receiver.hook());
    let all = Gateway::before(&[sim.url()], &all).await;
    for (key, status) in
        [("sk-both-00001", 200), ("sk-first-0001", 403), ("sk-second-001", 401), ("sk-none", 401)]
    {
        assert_eq!(all.ask_as(key).await.status, status, "all {key}");
    }
    // Records arrive in any order.
    let records = receiver.wait_for(4).await;
    let record = records.iter().find(|r| r["status_code"] == 200).unwrap();
    assert_eq!((&record["user_id"], &record["key_name"]), (&"u".into(), &"n".into()));
    assert_eq!(record["metadata"], serde_json::json!({"a": 1, "b": 2}));
}

#[tokio::test]
async fn mode_all_refuses_requests_while_a_provider_is_down() {
    let sim = sim().await;
    let away = "{type: redis, redis: {addr: \"127.0.0.1:1\"}}";
    let here = "{type: static, static: {keys: [{key: sk-good-000001}]}}";
    for (mode, order, status) in [
        ("all", [here, away], 503),
        ("all", [away, here], 503),
        ("first_match", [away, here], 200),
        ("first_match", [here, away], 200),
    ] {
        let [one, two] = order;
        let text = format!("auth: {{mode: {mode}, pipeline: [{one}, {two}]}}\n");
        let gateway = Gateway::before(&[sim.url()], &text).await;
        assert_eq!(gateway.ask_as("sk-good-000001").await.status, status, "{mode} {order:?}");
    }
}

#[tokio::test]
async fn every_refusal_can_be_configured() {
    let sim = sim().await;
    let script = "if api_key == 'sk-no' then return false end error('x')";
    let away = "{type: redis, name: away, redis: {addr: \"127.0.0.1:1\"}}";
    let lua = format!("{{type: lua, lua_script: \"{script}\"}}");
    for (reason, pipeline, key) in [
        ("not_yet_valid", "{type: file}", "sk-early-00001"),
        ("ip_denied", "{type: file}", "sk-there-00001"),
        ("disabled", "{type: file}", "sk-off-0000001"),
        ("expired", "{type: file}", "sk-late-000001"),
        ("missing_key", "{type: file}", ""),
        ("not_found", "{type: file}", "sk-unknown"),
        ("unavailable", away, "sk-unknown"),
        ("denied", &lua, "sk-no"),
        ("script_error", &lua, "sk-error"),
    ] {
        let set = format!(
            "auth: {{pipeline: [{pipeline}], status_codes: {{{reason}: {{http_code: 418, code: MINE, message: 短}}}}}}"
        );
        let gateway = Gateway::before(&[sim.url()], &KEYS.replace("auth: {}", &set)).await;
        let answer = gateway.ask_as(key).await;
        assert_eq!(code(&answer), no(418, "MINE"), "{reason}");
        assert_eq!(answer.json()["error"]["message"], "短", "{reason}");
    }
    let closed = KEYS.replace("auth: {}", "auth: {status_codes: {active: {allow: false}}}");
    let gateway = Gateway::before(&[sim.url()], &closed).await;
    assert_eq!(code(&gateway.ask_as("sk-good-000001").await), no(403, "CLOSED"));
}

#[tokio::test]
async fn streams_need_a_key_and_a_reload_changes_the_keys() {
    let sim = sim_with(|b| b.tokens = 3).await;
    let gateway = Gateway::before(&[sim.url()], KEYS).await;
    let mut client = gateway.client().await;
    client.post("/v1/chat/completions", chat(true)).await;
    assert_eq!(client.answer().await.status, 401);
    let key = "Authorization: Bearer sk-good-000001\r\n";
    client.post_with("/v1/chat/completions", key, chat(true).as_bytes()).await;
    let answer = client.answer().await;
    assert!(answer.status == 200 && answer.text().ends_with("data: [DONE]\n\n"));
    let backends = format!("backends: [{{url: \"{}\"}}]\n", sim.url());
    gateway.rewrite(&format!("{backends}{}", KEYS.replace("sk-good-000001", "sk-good-000002")));
    gateway.logs("configuration 2 is in force").await;
    assert_eq!(gateway.ask_as("sk-good-000001").await.status, 401);
    assert_eq!(gateway.ask_as("sk-good-000002").await.status, 200);
}
