//! What an operator sees: metrics and the log.

use crate::support::{Client, Gateway, Receiver, chat, eventually, free_address, sim, sim_with};

const PATH: &str = "/v1/chat/completions";

#[tokio::test]
async fn metrics_have_their_names_types_and_labels() {
    let sim = sim().await;
    let receiver = Receiver::start().await;
    let backend =
        format!("backends:\n  - {{name: one, url: \"{}\"}}\n{}", sim.url(), receiver.hook());
    let gateway = Gateway::start(&backend).await;
    gateway.client().await.ask(PATH, chat(true)).await;
    gateway.client().await.ask(PATH, chat(false)).await;
    gateway.client().await.get("/nowhere?key=secret").await;
    receiver.wait_for(2).await;
    eventually("both delivered", async || {
        gateway.metric("llmproxy_webhook_success_total").await == 2.0
    })
    .await;
    let answer = gateway.client().await.get("/metrics").await;
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = answer.text();
    for (name, kind) in [
        ("llmproxy_requests_total", "counter"),
        ("llmproxy_latency_ms", "histogram"),
        ("llmproxy_webhook_success_total", "counter"),
        ("llmproxy_webhook_failure_total", "counter"),
        ("llmproxy_usage_tokens_total", "counter"),
        ("llmproxy_time_to_first_token_seconds", "histogram"),
        ("llmproxy_inter_token_latency_seconds", "histogram"),
        ("llmproxy_requests_in_flight", "gauge"),
        ("llmproxy_backend_up", "gauge"),
        ("llmproxy_config_reload_success", "gauge"),
    ] {
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name}");
    }
    for line in [
        r#"llmproxy_requests_total{backend="one",path="/v1/chat/completions",status="200",stream="true"} 1"#,
        r#"llmproxy_requests_total{backend="one",path="/v1/chat/completions",status="200",stream="false"} 1"#,
        r#"llmproxy_requests_total{backend="",path="other",status="404",stream="false"} 1"#,
        r#"llmproxy_latency_ms_count{backend="one",path="/v1/chat/completions",stream="true"} 1"#,
        "llmproxy_time_to_first_token_seconds_count 1",
        r#"llmproxy_backend_up{backend="one"} 1"#,
        r#"llmproxy_usage_tokens_total{model="sim-model",type="completion"} 32"#,
        // The scrape itself.
        "llmproxy_requests_in_flight 1",
    ] {
        assert!(text.contains(&format!("{line}\n")), "{line}\n{text}");
    }
    for le in ["10", "50", "100", "200", "500", "1000", "2000", "5000", "10000", "+Inf"] {
        assert!(text.contains(&format!("le=\"{le}\"}}")), "{le}");
    }
    // Sixteen tokens and the first event: gaps between them, and after them `[DONE]`.
    let gaps = gateway.metric("llmproxy_inter_token_latency_seconds_count").await;
    assert!((1.0..=18.0).contains(&gaps), "{gaps}");
}

#[tokio::test]
async fn metrics_can_have_a_listener_of_their_own() {
    let sim = sim().await;
    let address = free_address();
    let gateway =
        Gateway::before(&[sim.url()], &format!("server: {{metrics_listen: \"{address}\"}}\n"))
            .await;
    assert_eq!(gateway.client().await.get("/metrics").await.status, 404);
    assert_eq!(gateway.client().await.get("/health").await.status, 200);
    let mut operator = Client::connect(address).await;
    assert!(operator.get("/metrics").await.text().contains("llmproxy_requests_total"));
    assert_eq!(operator.get("/health").await.text(), "OK");
    assert_eq!(operator.get("/ready").await.status, 200);
    assert_eq!(operator.ask(PATH, chat(false)).await.status, 404, "no traffic here");
}

#[tokio::test]
async fn each_request_has_a_line() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    let mut client = gateway.client().await;
    let headers = "X-Request-Id: line-1\r\nAuthorization: Bearer sk-0123456789abcdef\r\n";
    client.post_with(PATH, headers, chat(true).as_bytes()).await;
    client.answer().await;
    gateway.logs("id=line-1").await;
    let log = gateway.log();
    let line = log.lines().find(|l| l.contains("id=line-1")).unwrap();
    for part in [
        "ACCESS 127.0.0.1 sk-0***cdef \"POST /v1/chat/completions\" 200 ",
        "model=\"sim-model\"",
        &format!("backend=\"{}\"", sim.url()),
        "stream=true",
        "outcome=complete",
        "tokens=9+16",
        "ttft=",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert!(!log.contains("0123456789"), "keys are masked");
}

#[tokio::test]
async fn the_log_can_be_json() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "log: {format: json}\n").await;
    let mut client = gateway.client().await;
    client.post_with(PATH, "X-Request-Id: line-2\r\n", chat(false).as_bytes()).await;
    client.answer().await;
    gateway.client().await.get("/no\"where\\").await;
    gateway.logs("no\\\"where").await;
    let mut access = 0;
    for line in gateway.log().lines() {
        let value: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(value["ts"].is_string() && value["level"].is_string());
        if value["request_id"] == "line-2" {
            access += 1;
            assert_eq!(value["status"], 200);
            assert_eq!(value["completion_tokens"], 16);
            assert_eq!(value["outcome"], "complete");
            assert!(value["duration_ms"].is_number());
        }
    }
    assert_eq!(access, 1);
}

#[tokio::test]
async fn an_operator_chooses_the_fields_of_access_lines() {
    let sim = sim().await;
    let fields = "access_fields: [status, model, stream, prompt_tokens]";
    let gateway = Gateway::before(&[sim.url()], &format!("log: {{{fields}}}\n")).await;
    gateway.client().await.ask(PATH, chat(false)).await;
    gateway.logs("ACCESS status=200 model=\"sim-model\" stream=false prompt_tokens=").await;
    let json = format!("log: {{format: json, {fields}}}\n");
    let gateway = Gateway::before(&[sim.url()], &json).await;
    gateway.client().await.ask(PATH, chat(true)).await;
    gateway
        .logs("\n{\"status\":200,\"model\":\"sim-model\",\"stream\":true,\"prompt_tokens\":")
        .await;
    let unknown = "log: {access_fields: [status, prompt]}\n";
    gateway.rewrite(&format!("backends: [{{url: \"{}\"}}]\n{unknown}", sim.url()));
    gateway.logs("log.access_fields").await;
}

#[tokio::test]
async fn a_slow_request_is_warned_about() {
    let sim = sim_with(|b| b.first_token_ms = 300).await;
    let more = "log: {access: false, slow_requests: 200ms}\n";
    let gateway = Gateway::before(&[sim.url()], more).await;
    gateway.client().await.ask(PATH, chat(false)).await;
    gateway.logs("slow request: ").await;
    let log = gateway.log();
    let line = log.lines().find(|line| line.contains("slow request")).unwrap();
    for part in [
        "WARN",
        "ms, 0ms of it queued",
        "POST \"/v1/chat/completions\"",
        "backend=",
        "outcome=complete",
    ] {
        assert!(line.contains(part), "{line}");
    }
    assert!(!log.contains("ACCESS"));
    sim.change(|b| b.first_token_ms = 0);
    gateway.client().await.ask(PATH, chat(false)).await;
    gateway.rewrite("nonsense: 1\n");
    gateway.logs("unknown key `nonsense`").await;
    assert_eq!(gateway.log().matches("slow request").count(), 1);
}

#[tokio::test]
async fn the_access_log_can_be_off() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "log: {access: false}\n").await;
    gateway.client().await.ask(PATH, chat(false)).await;
    gateway.rewrite("nonsense: 1\n");
    gateway.logs("unknown key `nonsense`").await;
    assert!(!gateway.log().contains("ACCESS"));
}
