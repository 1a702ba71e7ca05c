//! Body and header fields that pass between client and backend, and those that do not.

use llmproxy::sim::ReceivedRequest;

use crate::support::{Gateway, sim, sim_with};

async fn seen_by_backend(more: &str, headers: &str, body: &str) -> ReceivedRequest {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], more).await;
    let mut client = gateway.client().await;
    client.post_with("/v1/chat/completions", headers, body.as_bytes()).await;
    assert_eq!(client.answer().await.status, 200);
    sim.stats().last().unwrap()
}

const PRIVILEGED: &str = concat!(
    r#"{"priority":-9,"model":"sim-model","kv_transfer_params":{"a":[1]},"messages":[{"role":"user","#,
    r#""content":"priority"}],"cache_salt":"x","prior\u0069ty":1,"vllm_xargs":{}, "seed" : 1}"#
);

#[tokio::test]
async fn privileged_inputs_do_not_reach_an_engine() {
    let headers = "X-Vllm-Priority: -5\r\nx-DATA-parallel-rank: 1\r\nX-Other: kept\r\n";
    let seen = seen_by_backend("", headers, PRIVILEGED).await;
    assert_eq!(seen.header("x-vllm-priority"), None);
    assert_eq!(seen.header("x-data-parallel-rank"), None);
    assert_eq!(seen.header("x-other"), Some("kept"));
    assert_eq!(
        String::from_utf8(seen.body).unwrap(),
        r#"{"model":"sim-model","messages":[{"role":"user","content":"priority"}], "seed" : 1}"#
    );
}

#[tokio::test]
async fn the_list_of_privileged_inputs_can_be_changed() {
    let more = "edge_guard:\n  remove_headers: [X-Other]\n  remove_fields: [seed]\n";
    let headers = "X-Vllm-Priority: -5\r\nX-Other: dropped\r\n";
    let seen = seen_by_backend(more, headers, PRIVILEGED).await;
    assert_eq!(seen.header("x-vllm-priority"), Some("-5"));
    assert_eq!(seen.header("x-other"), None);
    let body = String::from_utf8(seen.body).unwrap();
    assert_eq!(body, PRIVILEGED.replace(r#", "seed" : 1"#, ""));
}

#[tokio::test]
async fn guarded_fields_are_removed_and_usage_is_requested_together() {
    let body = r#"{"priority":1,"model":"sim-model","messages":[],"stream":true,"stream_options":{"include_usage":false},"cache_salt":"x"}"#;
    let seen = seen_by_backend("", "", body).await;
    assert_eq!(
        String::from_utf8(seen.body).unwrap(),
        r#"{"model":"sim-model","messages":[],"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}"#
    );
}

#[tokio::test]
async fn other_parts_of_a_body_are_unchanged() {
    let body = r#"{ "model" : "sim-model",  "messages":[{"role":"user","content":"\u00e9 é 1.0e5"}], "x": 1.000, "y": 12345678901234567890 }"#;
    let seen = seen_by_backend("", "", body).await;
    assert_eq!(String::from_utf8(seen.body).unwrap(), body);
}

#[tokio::test]
async fn the_clients_key_is_not_forwarded() {
    let headers = "Authorization: Bearer sk-client\r\nX-API-Key: sk-client\r\nApi-Key: sk-client\r\n\
                   X-API-Key-UserID: root\r\n";
    let body = crate::support::chat(false);
    let seen = seen_by_backend("", headers, &body).await;
    let text = format!("{:?}", seen.headers);
    assert!(!text.contains("sk-client") && !text.contains("root"), "{text}");
}

#[tokio::test]
async fn the_backends_own_key_is_sent() {
    let sim = sim_with(|b| b.api_key = "sk-backend".to_owned()).await;
    let backend = format!("backends:\n  - url: \"{}\"\n    api_key: \"sk-backend\"\n", sim.url());
    let gateway = Gateway::start(&backend).await;
    let mut client = gateway.client().await;
    let headers = "Authorization: Bearer sk-client\r\n";
    client.post_with("/v1/chat/completions", headers, crate::support::chat(false).as_bytes()).await;
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(sim.stats().last().unwrap().header("authorization"), Some("Bearer sk-backend"));
    let models = gateway.client().await.get("/v1/models").await;
    assert_eq!(models.json()["data"][0]["id"], "sim-model");
    gateway.logs("GET /v1/models").await;
    assert!(!gateway.log().contains("sk-backend"));
}

#[tokio::test]
async fn header_fields_are_handled_by_the_rules() {
    let sim = sim().await;
    let gateway = Gateway::before(&[format!("{}/v1", sim.url())], "").await;
    let mut client = gateway.client().await;
    let headers = "Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\nKeep-Alive: timeout=9\r\n\
                   Upgrade: websocket\r\nProxy-Authorization: Basic x\r\nAccept-Encoding: gzip\r\n\
                   User-Agent: test/1\r\nX-Request-Id: my-req-42\r\n";
    client
        .post_with(
            "/v1/chat/completions?a=1&b=%20x",
            headers,
            crate::support::chat(false).as_bytes(),
        )
        .await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("x-request-id"), Some("my-req-42"));
    assert_eq!(answer.json()["id"], "chatcmpl-my-req-42");
    assert_eq!(answer.header("server"), None, "what the backend runs on is its own business");
    let seen = sim.stats().last().unwrap();
    assert_eq!(seen.line, "POST /v1/chat/completions?a=1&b=%20x");
    assert_eq!(seen.header("host"), Some(sim.address.to_string().as_str()));
    assert_eq!(seen.header("user-agent"), Some("test/1"));
    for name in [
        "x-hop",
        "te",
        "keep-alive",
        "upgrade",
        "proxy-authorization",
        "accept-encoding",
        "connection",
    ] {
        assert_eq!(seen.header(name), None, "{name}");
    }
}

#[tokio::test]
async fn an_unsafe_request_id_is_replaced() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    for bad in ["a b", "a\"b", &"x".repeat(129), "{}"] {
        let mut client = gateway.client().await;
        let header = format!("X-Request-Id: {bad}\r\n");
        client
            .post_with("/v1/chat/completions", &header, crate::support::chat(false).as_bytes())
            .await;
        let answer = client.answer().await;
        let id = answer.header("x-request-id").unwrap();
        assert!(id.starts_with("req_") && id.len() == 36, "{id}");
        assert_eq!(sim.stats().last().unwrap().header("x-request-id"), Some(id));
    }
}
