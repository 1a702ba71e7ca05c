//! The allowed paths, and errors in OpenAI's format.

use crate::support::{Gateway, sim};

#[tokio::test]
async fn other_paths_of_an_engine_are_not_reachable() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    for path in [
        "/",
        "/pause",
        "/resume",
        "/sleep",
        "/wake_up",
        "/collective_rpc",
        "/update_weights",
        "/invocations",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/tokenize",
        "/v1/messages/batches",
        "/v1/chat/completions/",
        "//v1/chat/completions",
        "/v1/chat/completions/../../pause",
        "/v1/chat/completions%2f..%2f..%2fpause",
        "/V1/CHAT/COMPLETIONS",
        "/sim/stats",
    ] {
        let answer = gateway.client().await.ask(path, r#"{"model":"sim-model"}"#).await;
        assert_eq!(answer.status, 404, "{path}");
        let error = &answer.json()["error"];
        assert_eq!(
            (error["type"].as_str(), error["code"].as_str()),
            (Some("invalid_request_error"), Some("unknown_url"))
        );
    }
    assert_eq!(sim.stats().requests(), 0);
    let total = gateway
        .metric(r#"llmproxy_requests_total{backend="",path="other",status="404",stream="false"}"#)
        .await;
    assert!(total >= 18.0, "refused requests count: {total}");
}

#[tokio::test]
async fn a_wrong_method_gets_405_with_allow() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    for path in ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"] {
        let answer = gateway.client().await.get(path).await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")), "{path}");
    }
    for path in ["/v1/models", "/health", "/ready", "/metrics"] {
        let answer = gateway.client().await.ask(path, "{}").await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")), "{path}");
    }
}

#[tokio::test]
async fn headers_above_the_limit_are_refused() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "server: {max_header_size: 8KiB}").await;
    let mut client = gateway.client().await;
    let long = format!("X-Long: {}\r\n", "a".repeat(9 * 1024));
    client.post_with("/v1/chat/completions", &long, b"{}").await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 431);
    assert_eq!(answer.json()["error"]["code"], "headers_too_large");
    let fits = format!("X-Long: {}\r\n", "a".repeat(7 * 1024));
    let mut client = gateway.client().await;
    client.post_with("/v1/chat/completions", &fits, crate::support::chat(false).as_bytes()).await;
    assert_eq!(client.answer().await.status, 200);
}

#[tokio::test]
async fn the_connection_stays_open_after_a_refusal() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    let mut client = gateway.client().await;
    assert_eq!(client.ask("/nowhere", "some body").await.status, 404);
    assert_eq!(client.ask("/v1/chat/completions", "not json").await.status, 400);
    assert_eq!(client.ask("/v1/chat/completions", crate::support::chat(false)).await.status, 200);
    assert_eq!(client.get("/health").await.text(), "OK");
}

#[tokio::test]
async fn embeddings_and_completions_are_served() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    let mut client = gateway.client().await;
    let answer = client.ask("/v1/embeddings", r#"{"model":"sim-model","input":"hello"}"#).await;
    assert_eq!(answer.json()["data"][0]["object"], "embedding");
    let answer = client.ask("/v1/completions", r#"{"model":"sim-model","prompt":"hello"}"#).await;
    assert_eq!(answer.json()["object"], "text_completion");
}
