//! Comments that keep a waiting stream alive, and what may follow them.

use super::*;

const COMMENT: &str = ": keep-alive\n\n";

const KEEP_ALIVE: &str = "{global: {max_concurrent: 1}, queue: {max_queue_size: 9, queue_timeout: 1h, keep_alive: 100ms}}";

/// Reads until `n` comments have arrived. Returns all text read.
async fn read_comments(client: &mut Client, n: usize) -> String {
    let mut text = String::new();
    while text.matches(COMMENT).count() < n {
        text.push_str(std::str::from_utf8(&client.chunk().await.unwrap()).unwrap());
    }
    text
}

/// Reads to the proper end of the body. Returns the text after the comments.
async fn read_events(client: &mut Client, mut text: String) -> String {
    loop {
        let chunk = client.chunk().await.expect("the end of the body");
        if chunk.is_empty() {
            break;
        }
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    text.trim_start_matches(COMMENT).to_owned()
}

/// The JSON of a stream with a single event.
fn only_event(text: &str) -> Value {
    let document = text.strip_prefix("data: ").and_then(|t| t.strip_suffix("\n\n"));
    serde_json::from_str(document.unwrap_or(text)).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[tokio::test]
async fn a_waiting_stream_gets_comments_and_then_its_events() {
    let sim = sim_with(|b| b.inter_token_ms = FOREVER).await;
    let receiver = Receiver::start().await;
    let more = format!("{KEYS}rate_limit: {KEEP_ALIVE}\n{}", receiver.hook());
    let gateway = Gateway::before(&[sim.url()], &more).await;
    let first = open_stream(&gateway, A).await;
    sim.change(|b| b.inter_token_ms = 0);
    let mut client = gateway.client().await;
    let id = "X-Request-Id: fixed\r\n";
    let headers = format!("{}{id}Accept-Encoding: gzip\r\n", bearer(B));
    client.post_with(PATH, &headers, chat(true).as_bytes()).await;
    let head = client.head().await;
    assert_eq!(head.status, 200);
    assert_eq!(head.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!(head.header("x-request-id"), Some("fixed"));
    let text = read_comments(&mut client, 3).await;
    assert_eq!(text.replace(COMMENT, ""), "");
    assert_eq!(sim.stats().requests(), 1, "the request waits");
    drop(first);
    let found = read_events(&mut client, text).await;
    assert_eq!(sim.stats().last().unwrap().header("accept-encoding"), None);
    let mut direct = Client::connect(sim.address).await;
    direct.post_with(PATH, id, chat(true).as_bytes()).await;
    let expected = direct.answer().await;
    assert_eq!(without_time(&found), without_time(expected.text()));
    assert!(found.ends_with("data: [DONE]\n\n"));
    // The connection can be reused.
    let again = ask(&mut client, B, &chat(false)).await;
    assert_eq!((again.status, again.header("content-type")), (200, Some("application/json")));
    let records = receiver.wait_for(3).await;
    let record = records.iter().find(|r| r["request_id"] == "fixed").unwrap();
    assert_eq!((&record["outcome"], &record["status_code"]), (&"complete".into(), &200.into()));
    assert_eq!((&record["total_tokens"], &record["usage_source"]), (&25.into(), &"final".into()));
    assert!(!gateway.log().contains("WARN") && !gateway.log().contains("ERROR"));
}

#[tokio::test]
async fn comments_are_sent_over_http2() {
    let sim = sim_with(|b| b.inter_token_ms = FOREVER).await;
    let gateway = gateway_with(&sim, KEEP_ALIVE).await;
    let first = open_stream(&gateway, A).await;
    sim.change(|b| b.inter_token_ms = 0);
    let h2 = http::builder().http2_prior_knowledge().build().unwrap();
    let request = h2.post(gateway.url(PATH)).bearer_auth(B).body(chat(true));
    let mut answer = request.send().await.unwrap();
    assert_eq!((answer.version(), answer.status().as_u16()), (reqwest::Version::HTTP_2, 200));
    assert_eq!(answer.chunk().await.unwrap().unwrap(), COMMENT.as_bytes());
    drop(first);
    let text = answer.text().await.unwrap();
    let events = text.trim_start_matches(COMMENT);
    assert!(events.starts_with("data: {\"id\"") && events.ends_with("data: [DONE]\n\n"), "{text}");
}

#[tokio::test]
async fn only_waiting_streams_get_comments() {
    let sim = sim_with(|b| b.inter_token_ms = FOREVER).await;
    let gateway = gateway_with(&sim, KEEP_ALIVE).await;
    let first = open_stream(&gateway, A).await;
    sim.change(|b| b.inter_token_ms = 0);
    let mut plain = send_chat(&gateway, A, false).await;
    wait_for_queue(&gateway, 1).await;
    let mut stream = open_stream(&gateway, B).await;
    // The plain request waits for as long as this stream, which gets three comments.
    let text = read_comments(&mut stream, 3).await;
    drop(first);
    let answer = plain.answer().await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    assert_eq!(answer.json()["usage"]["total_tokens"], 25);
    assert!(read_events(&mut stream, text).await.ends_with("data: [DONE]\n\n"));
    // A stream that does not wait gets none either.
    let mut client = gateway.client().await;
    assert!(ask(&mut client, A, &chat(true)).await.text().starts_with("data: {\"id\""));
}

#[tokio::test]
async fn a_refusal_after_comments_is_an_event() {
    let sim = sim_with(|b| b.inter_token_ms = FOREVER).await;
    let receiver = Receiver::start().await;
    let limits = KEEP_ALIVE.replace("1h", "1s");
    let gateway =
        Gateway::before(&[sim.url()], &format!("{KEYS}rate_limit: {limits}\n{}", receiver.hook()))
            .await;
    let _first = open_stream(&gateway, A).await;
    let mut client = open_stream(&gateway, B).await;
    let text = read_comments(&mut client, 1).await;
    let error = only_event(&read_events(&mut client, text).await);
    assert_eq!(error["error"]["code"], "concurrency_limit_exceeded");
    assert_eq!(error["error"]["type"], "concurrency");
    let record = receiver.one().await;
    assert_eq!((&record["outcome"], &record["status_code"]), (&"rejected".into(), &429.into()));
    assert_eq!(refusals_by(&gateway, "global.max_concurrent").await, 1.0);
    assert_eq!(sim.stats().requests(), 1);
}

#[tokio::test]
async fn a_backend_error_after_comments_is_an_event() {
    for fail in [Fail::Error, Fail::TooMany, Fail::Busy] {
        let sim = sim_with(|b| b.inter_token_ms = FOREVER).await;
        let gateway = gateway_with(&sim, KEEP_ALIVE).await;
        let first = open_stream(&gateway, A).await;
        sim.change(|b| b.fail = fail);
        let mut client = open_stream(&gateway, B).await;
        let text = read_comments(&mut client, 1).await;
        drop(first);
        let found = read_events(&mut client, text).await;
        let direct = Client::connect(sim.address).await.ask(PATH, chat(true)).await;
        assert_eq!(found, format!("data: {}\n\n", direct.text()), "{fail:?}");
    }
}

#[tokio::test]
async fn a_backend_failure_after_comments_is_an_event() {
    let sim = sim_with(|b| b.inter_token_ms = FOREVER).await;
    let (dead, _socket) = unreachable();
    let text = format!(
        "backends:\n  - {{url: \"{}\", models: [sim-model]}}\n  - {{url: \"{dead}\", models: [dead-model]}}\n{KEYS}rate_limit: {KEEP_ALIVE}\n",
        sim.url(),
    );
    let gateway = Gateway::start(&text).await;
    for (model, code) in [("dead-model", "backend_unreachable"), ("sim-model", "backend_failed")] {
        sim.change(|b| b.fail = Fail::None);
        let mut first = None;
        eventually("a free slot", async || {
            let mut client = send_chat(&gateway, A, true).await;
            client.head().await;
            let text = client.chunk().await.unwrap();
            first = Some(client);
            text.starts_with(b"data: {")
        })
        .await;
        sim.change(|b| b.fail = Fail::BeforeHeaders);
        let mut client = gateway.client().await;
        let body = chat(true).replace("sim-model", model);
        client.post_with(PATH, &bearer(B), body.as_bytes()).await;
        assert_eq!(client.head().await.status, 200);
        let text = read_comments(&mut client, 1).await;
        drop(first);
        let error = only_event(&read_events(&mut client, text).await);
        assert_eq!(error["error"]["code"], code);
    }
}

/// What the client receives after comments if the backend answers with these bytes, and the usage
/// record of the request.
async fn response_after_comments(answer: &str) -> (String, Value) {
    let sim = sim_with(|b| b.inter_token_ms = FOREVER).await;
    let url = saying(answer.to_owned()).await;
    let receiver = Receiver::start().await;
    let text = format!(
        "backends:\n  - {{url: \"{}\", models: [sim-model]}}\n  - {{url: \"{url}\", models: [odd]}}\n{KEYS}rate_limit: {KEEP_ALIVE}\n{}",
        sim.url(),
        receiver.hook()
    );
    let gateway = Gateway::start(&text).await;
    let first = open_stream(&gateway, A).await;
    let mut client = gateway.client().await;
    let body = chat(true).replace("sim-model", "odd");
    client.post_with(PATH, &bearer(B), body.as_bytes()).await;
    assert_eq!(client.head().await.status, 200);
    let text = read_comments(&mut client, 1).await;
    drop(first);
    let found = read_events(&mut client, text).await;
    let records = receiver.wait_for(2).await;
    (found, records.into_iter().find(|r| r["model"] == "odd").unwrap())
}

#[tokio::test]
async fn a_json_response_after_comments_is_an_event_and_is_metered() {
    let document = r#"{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":16,"total_tokens":25}}"#;
    for (status, tokens, source) in [("200 OK", 25, "final"), ("400 Bad Request", 0, "none")] {
        let (found, record) = response_after_comments(&format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{document}",
            document.len()
        ))
        .await;
        assert_eq!(found, format!("data: {document}\n\n"));
        assert_eq!(
            (&record["total_tokens"], &record["usage_source"]),
            (&tokens.into(), &source.into())
        );
    }
}

#[tokio::test]
async fn an_empty_response_after_comments_is_an_error_event() {
    for head in [
        "204 No Content\r\n",
        "302 Found\r\nLocation: http://10.1.2.3/\r\nContent-Length: 0\r\n",
        "200 OK\r\nContent-Type: application/json\r\nContent-Length: 0\r\n",
        "200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        "500 Internal Server Error\r\nContent-Length: 0\r\n",
    ] {
        let (found, record) = response_after_comments(&format!("HTTP/1.1 {head}\r\n")).await;
        assert_eq!(only_event(&found)["error"]["code"], "backend_failed", "{head}");
        assert_eq!(
            (&record["outcome"], &record["status_code"]),
            (&"upstream_error".into(), &502.into()),
            "{head}"
        );
    }
}
