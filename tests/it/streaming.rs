//! Streams: immediate, unchanged, and aborted when the client disconnects.

use std::time::{Duration, Instant};

use llmproxy::sim::Fail;

use crate::support::{Gateway, chat, eventually, http, sim, sim_with};

const PATH: &str = "/v1/chat/completions";

#[tokio::test]
async fn the_first_event_is_sent_immediately() {
    // The second token would come after an hour, so the first one was not held back.
    let sim = sim_with(|b| b.inter_token_ms = 3_600_000).await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    let mut client = gateway.client().await;
    client.post(PATH, chat(true)).await;
    assert_eq!(client.head().await.status, 200);
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("Hello") {
        seen.extend(client.chunk().await.unwrap());
    }
    assert!(seen.ends_with(b"\n\n"), "a whole event");
}

#[tokio::test]
async fn headers_reach_the_client_before_the_first_event() {
    let sim = sim_with(|b| b.first_token_ms = 3_600_000).await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    let mut client = gateway.client().await;
    client.post(PATH, chat(true)).await;
    let head = client.head().await;
    assert_eq!(head.status, 200);
    assert_eq!(head.header("content-type"), Some("text/event-stream; charset=utf-8"));
}

#[tokio::test]
async fn a_stream_is_the_same_as_without_the_gateway() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    let options = [
        "",
        r#","stream_options":null"#,
        r#","stream_options":{"include_usage":false}"#,
        r#","stream_options":{}"#,
        r#","stream_options":{"continuous_usage_stats":true}"#,
        r#","stream_options":{"include_usage":true}"#,
        r#","stream_options":{"include_usage":true,"continuous_usage_stats":true}"#,
    ];
    let tools =
        r#","tools":[{"type":"function","function":{"name":"get_weather","parameters":{}}}]"#;
    for path in [PATH, "/v1/completions"] {
        for option in options {
            for tool in ["", tools] {
                let body = format!(
                    r#"{{"model":"sim-model","prompt":"x","messages":[],"max_tokens":5,"stream":true{option}{tool}}}"#
                );
                // The response contains the request id, which makes both responses comparable.
                let id = "X-Request-Id: fixed\r\n";
                let mut direct = crate::support::Client::connect(sim.address).await;
                direct.post_with(path, id, body.as_bytes()).await;
                let mut client = gateway.client().await;
                client.post_with(path, id, body.as_bytes()).await;
                let (expected, found) = (direct.answer().await, client.answer().await);
                let plain = |a: &crate::support::client::Response| without_time(a.text());
                assert_eq!(plain(&found), plain(&expected), "{path} {option} {tool}");
                assert!(found.whole);
            }
        }
    }
}

/// `created` may differ by a second between two requests.
pub fn without_time(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((head, tail)) = rest.split_once("\"created\":") {
        out.push_str(head);
        rest = tail.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    out + rest
}

#[tokio::test]
async fn a_refusal_of_a_stream_arrives_unchanged() {
    let sim = sim_with(|b| b.fail = Fail::TooMany).await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    let answer = gateway.client().await.ask(PATH, chat(true)).await;
    assert_eq!(answer.status, 429);
    assert_eq!(answer.header("retry-after"), Some("7"));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(
        answer.text(),
        r#"{"error":{"message":"Too many requests","type":"RateLimitError","param":null,"code":429}}"#
    );

    sim.change(|b| b.fail = Fail::None);
    let body = r#"{"model":"sim-model","stream":true}"#;
    let answer = gateway.client().await.ask(PATH, body).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.json()["error"]["param"], "body.messages");
}

#[tokio::test]
async fn a_disconnect_stops_the_backend() {
    for stream in [true, false] {
        let sim = sim_with(|b| (b.first_token_ms, b.inter_token_ms) = (0, 3_600_000)).await;
        let gateway = Gateway::before(&[sim.url()], "").await;
        let mut fastest = Duration::MAX;
        for n in 1..=10 {
            let mut client = gateway.client().await;
            client.post(PATH, chat(stream)).await;
            eventually("the backend works", async || sim.stats().running() == 1).await;
            if stream {
                client.head().await;
                client.chunk().await.unwrap();
            }
            let left = Instant::now();
            drop(client);
            eventually("the backend stops", async || sim.stats().aborted() == n).await;
            fastest = fastest.min(left.elapsed());
        }
        assert_eq!(sim.stats().connections(), 10, "a connection that was left is not used again");
        // The fastest of ten, which is robust on a busy machine.
        assert!(fastest < Duration::from_millis(100), "stream: {stream}, {fastest:?}");
    }
}

#[tokio::test]
async fn a_disconnect_over_http2_stops_the_backend() {
    let sim = sim_with(|b| b.inter_token_ms = 3_600_000).await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    let client = http::builder().http2_prior_knowledge().build().unwrap();
    let mut answer = client.post(gateway.url(PATH)).body(chat(true)).send().await.unwrap();
    assert!(answer.chunk().await.unwrap().is_some());
    drop(answer);
    eventually("the backend stops", async || sim.stats().aborted() == 1).await;
}

#[tokio::test]
async fn a_disconnect_is_not_logged_as_an_error() {
    let sim = sim_with(|b| b.inter_token_ms = 3_600_000).await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    let mut client = gateway.client().await;
    client.post(PATH, chat(true)).await;
    client.head().await;
    client.chunk().await.unwrap();
    drop(client);
    gateway.logs("outcome=client_aborted").await;
    let log = gateway.log();
    assert!(!log.contains("ERROR") && !log.contains("WARN"), "{log}");
}

#[tokio::test]
async fn streams_work_over_http2() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    let client = http::builder().http2_prior_knowledge().build().unwrap();
    let answer = client.post(gateway.url(PATH)).body(chat(true)).send().await.unwrap();
    let text = answer.text().await.unwrap();
    assert!(text.ends_with("data: [DONE]\n\n"));
    assert!(!text.contains("usage"));
}

#[tokio::test]
async fn memory_does_not_grow_during_a_stream() {
    let sim = sim_with(|b| b.tokens = 200_000).await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    let mut client = gateway.client().await;
    client.post(PATH, chat(true)).await;
    client.head().await;
    let resident = || gateway.resident_kib();
    let (mut early, mut read) = (0, 0usize);
    loop {
        let chunk = client.chunk().await.unwrap();
        if chunk.is_empty() {
            break;
        }
        read += chunk.len();
        if early == 0 && read > 1 << 20 {
            early = resident();
        }
    }
    assert!(read > 30 << 20, "{read}");
    let grown = resident().saturating_sub(early);
    assert!(grown < 8 * 1024, "{grown} KiB more after {} MiB", read >> 20);
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_no_chunks() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    let mut socket = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
    let body = chat(true);
    let request = format!("POST {PATH} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(!head.to_ascii_lowercase().contains("transfer-encoding"), "{head}");
    assert!(body.starts_with("data: {") && body.ends_with("data: [DONE]\n\n"), "{body}");
}
