//! Timeouts and deadlines.

use llmproxy::sim::Fail;

use crate::support::{Gateway, Receiver, chat, sim_with};

const PATH: &str = "/v1/chat/completions";

/// The last event of a stream.
fn last_error(text: &str) -> serde_json::Value {
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    serde_json::from_str::<serde_json::Value>(last.strip_prefix("data: ").unwrap()).unwrap()["error"].clone()
}

#[tokio::test]
async fn a_backend_without_a_first_byte_times_out() {
    let sim = sim_with(|b| b.fail = Fail::Wedge).await;
    let receiver = Receiver::start().await;
    let more = format!("timeouts: {{first_byte: 100ms}}\n{}", receiver.hook());
    let gateway = Gateway::before(&[sim.url()], &more).await;
    for stream in [true, false] {
        let answer = gateway.client().await.ask(PATH, chat(stream)).await;
        assert_eq!(
            (answer.status, answer.json()["error"]["code"].as_str()),
            (504, Some("backend_timeout"))
        );
    }
    let records = receiver.wait_for(2).await;
    assert!(records.iter().all(|r| r["outcome"] == "upstream_error" && r["status_code"] == 504));
    crate::support::eventually("the backend is let go", async || sim.stats().running() == 0).await;
}

#[tokio::test]
async fn headers_alone_are_not_a_first_token() {
    // vLLM sends them before it starts to generate.
    let sim = sim_with(|b| b.first_token_ms = 3_600_000).await;
    let gateway = Gateway::before(&[sim.url()], "timeouts: {first_byte: 100ms}\n").await;
    let answer = gateway.client().await.ask(PATH, chat(true)).await;
    assert_eq!(
        (answer.status, &last_error(answer.text())["code"]),
        (200, &"backend_timeout".into())
    );
}

#[tokio::test]
async fn a_stalled_stream_times_out() {
    let sim = sim_with(|b| b.fail = Fail::Stall).await;
    let gateway = Gateway::before(&[sim.url()], "timeouts: {between_chunks: 100ms}\n").await;
    let answer = gateway.client().await.ask(PATH, chat(true)).await;
    assert!(answer.whole && answer.text().contains("Hello"));
    assert_eq!(last_error(answer.text())["code"], "backend_timeout");
}

#[tokio::test]
async fn a_deadline_limits_the_whole_request() {
    let sim = sim_with(|b| (b.inter_token_ms, b.tokens) = (20, 1_000_000)).await;
    // Long enough for the stream to begin on a busy machine.
    let gateway = Gateway::before(&[sim.url()], "timeouts: {total: 1s}\n").await;
    let answer = gateway.client().await.ask(PATH, chat(true)).await;
    assert_eq!(last_error(answer.text())["code"], "request_timeout");
    let answer = gateway.client().await.ask(PATH, chat(false)).await;
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_str()),
        (504, Some("request_timeout"))
    );
}

#[tokio::test]
async fn a_pause_between_tokens_is_not_a_late_first_byte() {
    // Each token takes longer than `first_byte` allows, but the first one was immediate.
    let sim = sim_with(|b| (b.inter_token_ms, b.tokens) = (400, 4)).await;
    let gateway = Gateway::before(&[sim.url()], "timeouts: {first_byte: 300ms}\n").await;
    let answer = gateway.client().await.ask(PATH, chat(true)).await;
    assert!(answer.text().ends_with("data: [DONE]\n\n"), "{}", answer.text());
}

#[tokio::test]
async fn a_backend_that_accepts_too_slowly_is_replaced() {
    // A listener with a full backlog accepts no further connection.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = socket.listen(1).unwrap();
    let address = full.local_addr().unwrap();
    let mut queue = Vec::new();
    for _ in 0..8 {
        let connect = tokio::net::TcpStream::connect(address);
        let waited = tokio::time::timeout(std::time::Duration::from_millis(200), connect).await;
        queue.push(waited);
    }
    assert!(queue.iter().any(Result::is_err), "the queue is not full");
    let sim = sim_with(|_| {}).await;
    let more = "timeouts: {connect: 200ms}\n";
    let gateway = Gateway::before(&[format!("http://{address}"), sim.url()], more).await;
    for _ in 0..4 {
        assert_eq!(gateway.client().await.ask(PATH, chat(true)).await.status, 200);
    }
    assert!(gateway.metric("llmproxy_retries_total{reason=\"connect_timeout\"}").await >= 1.0);
    drop(gateway);
    let gateway = Gateway::before(&[format!("http://{address}")], more).await;
    let answer = gateway.client().await.ask(PATH, chat(true)).await;
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_str()),
        (504, Some("backend_timeout"))
    );
}

#[tokio::test]
async fn a_client_that_does_not_send_its_body_is_refused() {
    let sim = sim_with(|_| {}).await;
    let gateway = Gateway::before(&[sim.url()], "timeouts: {client_read: 100ms}\n").await;
    let mut client = gateway.client().await;
    client
        .send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nContent-Length: 100\r\n\r\n{")
        .await;
    let answer = client.answer().await;
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_str()),
        (408, Some("request_timeout"))
    );
}

#[tokio::test]
async fn a_truncated_response_without_a_length_is_a_failure() {
    // Without length and chunks the end of the connection ends the body.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut open = Vec::new();
        while let Ok((mut socket, _)) = listener.accept().await {
            socket.read_u8().await.unwrap();
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {\"choices\":[]}\n\n";
            socket.write_all(head.as_bytes()).await.unwrap();
            open.push(socket);
        }
    });
    let receiver = Receiver::start().await;
    let gateway = Gateway::before(
        &[url],
        &format!("timeouts: {{between_chunks: 100ms}}\n{}", receiver.hook()),
    )
    .await;
    let answer = gateway.client().await.ask(PATH, chat(true)).await;
    assert_eq!(last_error(answer.text())["code"], "backend_timeout");
    assert_eq!(receiver.one().await["outcome"], "upstream_error");
}

#[tokio::test]
async fn the_deadline_also_applies_to_a_client_that_does_not_read() {
    let sim = sim_with(|b| b.tokens = 100_000).await;
    let receiver = Receiver::start().await;
    let more = format!("timeouts: {{total: 200ms, client_write: 1h}}\n{}", receiver.hook());
    let gateway = Gateway::before(&[sim.url()], &more).await;
    let mut deaf = gateway.client().await;
    deaf.post(PATH, chat(true)).await;
    deaf.head().await;
    assert_eq!(receiver.one().await["usage_source"], "partial");
}
