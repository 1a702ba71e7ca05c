//! Retries: when, how often, after which waits, and what the client gets if all attempts fail.

use std::time::{Duration, Instant};

use futures::future::join_all;
use llmproxy::sim::{Fail, Sim};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    Client, Gateway, Receiver, chat, chat_of,
    client::Response,
    eventually,
    faults::{Fault, at_rest, fleet, urls},
    http,
    raw::{self, Step},
    saying, sim_with,
};

const PATH: &str = "/v1/chat/completions";
const COMMENT: &str = ": keep-alive\n\n";
/// In milliseconds: longer than any test.
const EVER: u64 = 3_600_000;

/// A gateway that tries these backends in order; `routing` adds to that section.
async fn in_order(backends: &[String], routing: &str, more: &str) -> Gateway {
    let list: String = (backends.iter().enumerate())
        .map(|(i, url)| format!("  - {{name: b{i}, url: \"{url}\"}}\n"))
        .collect();
    let others: Vec<_> = (1..backends.len()).map(|i| format!("b{i}")).collect();
    let rule = match others.len() {
        0 => String::new(),
        _ => format!("  fallback: [{{primary: b0, fallback: [{}]}}]\n", others.join(", ")),
    };
    Gateway::start(&format!(
        "backends:\n{list}routing:\n  circuit: {{enabled: false}}\n{rule}{routing}{more}"
    ))
    .await
}

async fn ask(gateway: &Gateway, stream: bool) -> Response {
    gateway.client().await.ask(PATH, chat(stream)).await
}

async fn direct(sim: &Sim, stream: bool) -> Response {
    Client::connect(sim.address).await.ask(PATH, chat(stream)).await
}

fn requests(sims: &[Sim]) -> Vec<u64> {
    sims.iter().map(|sim| sim.stats().requests()).collect()
}

/// Whether the response is complete and successful.
fn is_good(answer: &Response, stream: bool) -> bool {
    let text = answer.text();
    let whole = match stream {
        true => text.matches("\"role\"").count() == 1 && text.ends_with("data: [DONE]\n\n"),
        false => text.ends_with('}'),
    };
    answer.status == 200 && answer.whole && whole && !text.contains("error")
}

/// The error in the last event of a stream.
fn last_error(text: &str) -> Value {
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    serde_json::from_str::<Value>(last.strip_prefix("data: ").unwrap()).unwrap()["error"].clone()
}

#[tokio::test]
async fn if_all_attempts_fail_the_client_gets_the_last_response() {
    let sims = fleet(2, |b| b.models = (0..12).map(|n| format!("model-{n}")).collect()).await;
    let receiver = Receiver::start().await;
    let gateway = in_order(&urls(&sims), "", &receiver.hook()).await;
    let cases = [
        (Fault::Dead, Fault::Busy, 503, Some(1)),
        (Fault::Busy, Fault::Dead, 500, Some(1)),
        (Fault::Busy, Fault::Reset, 503, Some(0)),
        (Fault::TooMany, Fault::DieAfterHeaders, 429, Some(0)),
        (Fault::Dead, Fault::Refuse, 500, Some(0)),
        (Fault::Refuse, Fault::Refuse, 502, None),
    ];
    let mut records = 0;
    for (first, second, status, whose) in cases {
        first.befall(&sims[0]).await;
        second.befall(&sims[1]).await;
        for stream in [true, false] {
            // A busy backend cools down for the model.
            let body = chat(stream).replace("sim-model", &format!("model-{records}"));
            let answer = gateway.client().await.ask(PATH, &body).await;
            let case = format!("{first:?} {second:?} {stream}");
            assert_eq!(answer.status, status, "{case}");
            match whose {
                Some(whose) => {
                    let expected =
                        Client::connect(sims[whose].address).await.ask(PATH, &body).await;
                    assert_eq!(answer.text(), expected.text(), "{case}");
                    let field = |name| (answer.header(name), expected.header(name));
                    for name in ["retry-after", "content-type"] {
                        assert_eq!(field(name).0, field(name).1, "{case}");
                    }
                }
                None => assert_eq!(answer.json()["error"]["code"], "backend_unreachable", "{case}"),
            }
            assert!(answer.header("x-request-id").is_some(), "{case}");
            records += 1;
            let all = receiver.wait_for(records).await;
            let last = all.last().unwrap();
            assert_eq!(last["status_code"], status, "{case}");
            assert_eq!(last["completion_tokens"], 0, "{case}");
            if let Some(whose) = whose {
                assert_eq!(last["backend_url"], sims[whose].url(), "{case}");
            }
        }
    }
}

#[tokio::test]
async fn a_single_backend_is_retried_after_a_wait() {
    join_all(Fault::ALL.map(async |fault| {
        if !fault.is_silence() && !matches!(fault, Fault::Refuse | Fault::NoModel | Fault::Slow) {
            tried_again(fault).await;
        }
    }))
    .await;
}

/// The backend fails twice and then succeeds.
async fn tried_again(fault: Fault) {
    let again = "  retry: {initial_wait: 10ms, max_wait: 5s, max_retries: 2}\n";
    let sim = sim_with(|b| (b.fail_first, b.retry_after) = (2, 0)).await;
    let gateway = in_order(&[sim.url()], again, "").await;
    for stream in [true, false] {
        if stream && fault.is_after_content() {
            continue;
        }
        fault.befall(&sim).await;
        let before = sim.stats().requests();
        let answer = ask(&gateway, stream).await;
        assert!(is_good(&answer, stream), "{fault:?} {stream}: {}", answer.text());
        // A kept connection that closes before a response is replaced, which is one of the three.
        assert_eq!(sim.stats().requests() - before, 3, "{fault:?} {stream}");
    }
}

#[tokio::test]
async fn attempts_of_a_request_are_limited() {
    let sims = fleet(1, |b| b.fail = Fail::Error).await;
    for (retry, attempts) in [
        ("{initial_wait: 1ms, max_wait: 5ms, max_retries: 4}", 5),
        ("{initial_wait: 1ms, max_wait: 5ms, max_retries: 0}", 1),
        ("{initial_wait: 1ms, max_wait: 5ms}", 4),
        ("{enabled: false}", 1),
    ] {
        let gateway = in_order(&urls(&sims), &format!("  retry: {retry}\n"), "").await;
        let before = sims[0].stats().requests();
        assert_eq!(ask(&gateway, true).await.status, 500, "{retry}");
        assert_eq!(sims[0].stats().requests() - before, attempts, "{retry}");
    }
    // Nor are all of six backends tried.
    let sims = fleet(6, |b| b.fail = Fail::Error).await;
    let gateway = in_order(&urls(&sims), "", "").await;
    assert_eq!(ask(&gateway, false).await.status, 500);
    assert_eq!(requests(&sims), [1, 1, 1, 1, 0, 0]);
    // Refused connections are not attempts.
    for sim in &sims[..5] {
        sim.refuse().await.unwrap();
    }
    sims[5].change(|b| b.fail = Fail::None);
    assert_eq!(ask(&gateway, false).await.status, 200);
}

#[tokio::test]
async fn without_retries_there_is_one_attempt() {
    let sims = fleet(2, |_| {}).await;
    for off in ["  retry: {enabled: false}\n", "  enabled: false\n"] {
        for fault in [Fault::Refuse, Fault::Dead, Fault::Reset, Fault::Busy] {
            let list: String = urls(&sims).iter().map(|u| format!("  - url: \"{u}\"\n")).collect();
            let text = format!("backends:\n{list}routing:\n  circuit: {{enabled: false}}\n{off}");
            let gateway = Gateway::start(&text).await;
            fault.befall(&sims[0]).await;
            // Round robin: every second request gets the failing backend.
            let statuses = [ask(&gateway, false).await.status, ask(&gateway, false).await.status];
            let failed = statuses.iter().filter(|s| **s >= 500).count();
            assert_eq!(failed, 1, "{off} {fault:?}: {statuses:?}");
            crate::support::faults::heal(&sims[0]);
        }
    }
}

#[tokio::test]
async fn only_configured_failures_are_retried() {
    let sims = fleet(2, |_| {}).await;
    let cases = [
        ("[connect_failure]", Fault::Refuse, 200),
        ("[connect_failure]", Fault::Dead, 500),
        ("[connect_failure]", Fault::Reset, 502),
        ("[connect_failure]", Fault::NoModel, 404),
        // A full engine always leads to a retry elsewhere.
        ("[connect_failure]", Fault::Busy, 200),
        ("[5xx]", Fault::Dead, 200),
        ("[5xx]", Fault::Refuse, 502),
        ("[5xx]", Fault::TooMany, 429),
        ("[429]", Fault::TooMany, 200),
        ("[404]", Fault::NoModel, 200),
        ("[4xx]", Fault::NoModel, 200),
        ("[reset]", Fault::DieAfterHeaders, 200),
        ("[reset]", Fault::Dead, 500),
    ];
    for (on, fault, status) in cases {
        let gateway = in_order(&urls(&sims), &format!("  retry: {{retry_on: {on}}}\n"), "").await;
        fault.befall(&sims[0]).await;
        assert_eq!(ask(&gateway, false).await.status, status, "{on} {fault:?}");
        crate::support::faults::heal(&sims[0]);
    }
}

#[tokio::test]
async fn retry_after_of_a_backend_sets_the_wait() {
    let sim = sim_with(|b| (b.fail, b.fail_first, b.retry_after) = (Fail::TooMany, 1, 1)).await;
    let gateway = in_order(&[sim.url()], "  retry: {initial_wait: 1ms, max_wait: 5s}\n", "").await;
    let start = Instant::now();
    assert!(is_good(&ask(&gateway, true).await, true));
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(sim.stats().requests(), 2);
}

#[tokio::test]
async fn client_errors_are_returned_without_a_retry() {
    let sims = fleet(2, |_| {}).await;
    let gateway = in_order(&urls(&sims), "", "").await;
    // The error says how many members the request has: the gateway has to add none.
    let bad = r#"{"model":"sim-model","stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}"#;
    let expected = Client::connect(sims[0].address).await.ask(PATH, bad).await;
    let answer = gateway.client().await.ask(PATH, bad).await;
    assert_eq!((answer.status, answer.text()), (400, expected.text()));
    sims[0].change(|b| b.fail = Fail::NoModel);
    let expected = direct(&sims[0], false).await;
    let answer = ask(&gateway, false).await;
    assert_eq!((answer.status, answer.text()), (404, expected.text()));
    assert_eq!(requests(&sims), [4, 0]);
}

#[tokio::test]
async fn a_client_error_in_a_stream_is_returned_too() {
    let sims = fleet(1, |_| {}).await;
    let error = r#"data: {"error":{"message":"too long","type":"BadRequestError","code":400}}"#;
    let stream = format!("{error}\n\ndata: [DONE]\n\n");
    let gateway = in_order(&[streaming(stream.clone()).await, sims[0].url()], "", "").await;
    let answer = ask(&gateway, true).await;
    assert_eq!((answer.status, answer.text()), (200, stream.as_str()));
    assert_eq!(requests(&sims), [0]);
}

/// A backend that responds to every request with this stream.
async fn streaming(stream: String) -> String {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
    saying(head.to_owned() + &stream).await
}

#[tokio::test]
async fn operators_can_configure_further_failures() {
    let sims = fleet(2, |_| {}).await;
    sims[0].change(|b| b.fail = Fail::NoModel);
    for (detection, status) in [
        ("{error_patterns: [\"does not exist\"]}", 200),
        ("{error_patterns: [\"insufficient_quota\"]}", 404),
        ("{error_codes: [\"404\"]}", 200),
        ("{error_codes: [\"5xx\"]}", 404),
    ] {
        let more = format!("detection: {detection}\n");
        let gateway = in_order(&urls(&sims), "", &more).await;
        for stream in [true, false] {
            assert_eq!(ask(&gateway, stream).await.status, status, "{detection}");
        }
    }
}

#[tokio::test]
async fn bodies_of_any_size_are_resent() {
    for fault in [Fault::Dead, Fault::Reset, Fault::Refuse] {
        let sims = fleet(2, |_| {}).await;
        let gateway = in_order(&urls(&sims), "", "").await;
        fault.befall(&sims[0]).await;
        for size in [100, 65_536, 65_537, 1 << 20] {
            for (stream, chunked) in [(true, false), (false, false), (true, true), (false, true)] {
                let body = chat_of(size, stream);
                let mut client = gateway.client().await;
                if chunked {
                    post_chunked(&mut client, &body).await;
                } else {
                    client.post(PATH, &body).await;
                }
                let answer = client.answer().await;
                let case = format!("{fault:?} {size} {stream} {chunked}: {}", answer.text());
                assert!(is_good(&answer, stream), "{case}");
                let usual = stream && size > 65_536;
                let got = sims[1].stats().last().unwrap().body;
                assert!(usual || got.len() >= size && is_same(&got, &body), "{case}");
            }
        }
    }
}

/// Whether the bodies are the same, except for the added request for usage.
fn is_same(got: &[u8], sent: &[u8]) -> bool {
    let messages = |body| serde_json::from_slice::<Value>(body).unwrap()["messages"].clone();
    messages(got) == messages(sent)
}

async fn post_chunked(client: &mut Client, body: &[u8]) {
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(head.as_bytes()).await;
    for piece in body.chunks(50_000) {
        let chunk = [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
        client.send(&chunk).await;
    }
    client.send(b"0\r\n\r\n").await;
}

#[tokio::test]
async fn a_retry_works_over_http2() {
    let h2 = http::builder().http2_prior_knowledge().build().unwrap();
    for keep_alive in ["0", "100ms"] {
        let sims = fleet(2, |_| {}).await;
        let routing = format!("  keep_alive: {keep_alive}\n");
        let gateway = in_order(&urls(&sims), &routing, "").await;
        for fault in Fault::ALL {
            if fault.is_silence() || matches!(fault, Fault::NoModel | Fault::Slow) {
                continue;
            }
            fault.befall(&sims[0]).await;
            for (stream, size) in [(true, 200), (false, 200), (true, 1 << 20), (false, 1 << 20)] {
                if stream && fault.is_after_content() {
                    continue;
                }
                let request = h2.post(gateway.url(PATH)).body(chat_of(size, stream));
                let answer = request.send().await.unwrap();
                let status = answer.status().as_u16();
                let text = answer.text().await.unwrap();
                let case = format!("{keep_alive} {fault:?} {stream} {size}: {status} {text}");
                assert!(status == 200 && !text.contains("error"), "{case}");
                let text = text.trim_start_matches(COMMENT);
                assert_eq!(text.matches("\"role\"").count(), 1, "{case}");
                assert!(!stream || text.ends_with("data: [DONE]\n\n"), "{case}");
            }
            crate::support::faults::heal(&sims[0]);
        }
        at_rest(&sims).await;
    }
}

#[tokio::test]
async fn a_waiting_client_gets_comments() {
    let sims = fleet(2, |b| b.first_token_ms = 250).await;
    let receiver = Receiver::start().await;
    let gateway = in_order(&urls(&sims), "  keep_alive: 100ms\n", &receiver.hook()).await;
    let h2 = http::builder().http2_prior_knowledge().build().unwrap();
    let expected = direct(&sims[1], true).await;
    let mut records = 0;
    // The second backend takes over after comments were sent.
    for fail in [Fail::None, Fail::BeforeContent, Fail::ErrorEvent, Fail::AfterHeaders] {
        sims[0].change(|b| b.fail = fail);
        let by_h2 = async {
            let answer = h2.post(gateway.url(PATH)).body(chat(true)).send().await.unwrap();
            answer.text().await.unwrap()
        };
        let (by_h1, by_h2) = tokio::join!(ask(&gateway, true), by_h2);
        assert_eq!(by_h1.header("content-type"), expected.header("content-type"));
        for text in [by_h1.text(), &by_h2] {
            let events = text.trim_start_matches(COMMENT);
            assert!(events.len() < text.len() && !events.contains(COMMENT), "{fail:?}: {text}");
            assert_eq!(events.matches("\"content\"").count(), 17, "{fail:?}: {text}");
            assert!(events.ends_with("data: [DONE]\n\n"), "{fail:?}: {text}");
        }
        records += 2;
        let all = receiver.wait_for(records).await;
        assert!(all.iter().all(|r| r["outcome"] == "complete" && r["completion_tokens"] == 16));
    }
    // A response that is no stream gets no comments.
    assert!(is_good(&ask(&gateway, false).await, false));
}

#[tokio::test]
async fn a_failure_after_comments_is_an_event() {
    let sims = fleet(2, |b| (b.first_token_ms, b.fail) = (300, Fail::BeforeContent)).await;
    let gateway = in_order(&urls(&sims), "  keep_alive: 100ms\n", "").await;
    let answer = ask(&gateway, true).await;
    assert!(answer.status == 200 && answer.whole, "{}", answer.text());
    assert_eq!(answer.text().matches("data: ").count(), 1, "{}", answer.text());
    assert_eq!(last_error(answer.text())["code"], "backend_failed");
    // A status that arrives too late becomes an event with its body. Comments also continue during waits.
    let sims = fleet(1, |b| b.fail = Fail::Error).await;
    let routing = "  keep_alive: 100ms\n  retry: {initial_wait: 400ms, max_retries: 1}\n";
    let gateway = in_order(&urls(&sims), routing, "").await;
    let answer = ask(&gateway, true).await;
    let text = answer.text();
    assert!(answer.status == 200 && answer.whole && text.starts_with(COMMENT), "{text}");
    assert_eq!(text.matches("data: ").count(), 1, "{text}");
    assert_eq!(last_error(text), direct(&sims[0], true).await.json()["error"]);
}

#[tokio::test]
async fn a_disconnect_during_a_wait_is_noticed() {
    let sim = sim_with(|b| b.first_token_ms = EVER).await;
    let receiver = Receiver::start().await;
    let gateway = in_order(&[sim.url()], "  keep_alive: 100ms\n", &receiver.hook()).await;
    let mut client = gateway.client().await;
    client.post(PATH, chat(true)).await;
    assert_eq!(client.head().await.status, 200);
    for _ in 0..2 {
        assert_eq!(client.chunk().await.unwrap(), COMMENT.as_bytes());
    }
    drop(client);
    eventually("the backend stops", async || sim.stats().aborted() == 1).await;
    assert_eq!(receiver.one().await["outcome"], "client_aborted");
    let h2 = http::builder().http2_prior_knowledge().build().unwrap();
    let mut answer = h2.post(gateway.url(PATH)).body(chat(true)).send().await.unwrap();
    assert_eq!(answer.chunk().await.unwrap().unwrap(), COMMENT.as_bytes());
    drop(answer);
    eventually("the backend stops", async || sim.stats().aborted() == 2).await;
    assert_eq!(receiver.wait_for(2).await[1]["outcome"], "client_aborted");
    // A client that disconnects is also noticed during a wait.
    sim.change(|b| (b.first_token_ms, b.fail) = (0, Fail::Error));
    let routing = "  retry: {initial_wait: 1h, max_wait: 1h}\n";
    let gateway = in_order(&[sim.url()], routing, &receiver.hook()).await;
    let mut client = gateway.client().await;
    client.post(PATH, chat(true)).await;
    eventually("an attempt was made", async || sim.stats().requests() == 3).await;
    drop(client);
    assert_eq!(receiver.wait_for(3).await[2]["outcome"], "client_aborted");
}

#[tokio::test]
async fn a_disconnect_is_noticed_while_a_retry_is_possible() {
    let sims = fleet(2, |b| b.first_token_ms = EVER).await;
    let receiver = Receiver::start().await;
    let gateway = in_order(&urls(&sims), "", &receiver.hook()).await;
    let h2 = http::builder().http2_prior_knowledge().build().unwrap();
    for (n, stream) in [true, false].into_iter().enumerate() {
        let seen = 2 * n as u64;
        let mut client = gateway.client().await;
        client.post(PATH, chat(stream)).await;
        eventually("the backend has the request", async || sims[0].stats().requests() == seen + 1)
            .await;
        drop(client);
        eventually("the backend stops", async || sims[0].stats().aborted() == seen + 1).await;
        let request = tokio::spawn(h2.post(gateway.url(PATH)).body(chat(stream)).send());
        eventually("the backend has the request", async || sims[0].stats().requests() == seen + 2)
            .await;
        request.abort();
        eventually("the backend stops", async || sims[0].stats().aborted() == seen + 2).await;
    }
    let records = receiver.wait_for(4).await;
    assert!(records.iter().all(|r| r["outcome"] == "client_aborted"), "{records:?}");
    assert_eq!(requests(&sims), [4, 0]);
}

#[tokio::test]
async fn a_client_connection_survives_backend_failures() {
    let sims = fleet(2, |_| {}).await;
    for keep_alive in ["0", "100ms"] {
        let gateway = in_order(&urls(&sims), &format!("  keep_alive: {keep_alive}\n"), "").await;
        let mut client = gateway.client().await;
        for fault in Fault::ALL {
            if fault.is_silence() || fault == Fault::NoModel {
                continue;
            }
            fault.befall(&sims[0]).await;
            for stream in [true, false] {
                if !(stream && fault.is_after_content()) {
                    let answer = client.ask(PATH, chat(stream)).await;
                    let text = answer.text().replace(COMMENT, "");
                    let good = is_good(&answer, stream) && text.contains("Hello");
                    assert!(good, "{fault:?} {stream}: {text}");
                }
            }
            crate::support::faults::heal(&sims[0]);
        }
    }
}

#[tokio::test]
async fn a_retry_works_for_http_1_0() {
    let sims = fleet(2, |_| {}).await;
    let gateway = in_order(&urls(&sims), "  keep_alive: 100ms\n", "").await;
    for fault in [Fault::Dead, Fault::DieBeforeContent, Fault::Refuse] {
        fault.befall(&sims[0]).await;
        for stream in [true, false] {
            let body = chat(stream);
            let head = format!("POST {PATH} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
            let mut socket = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
            socket.write_all((head + &body).as_bytes()).await.unwrap();
            let mut text = String::new();
            let read = socket.read_to_string(&mut text);
            tokio::time::timeout(crate::support::PATIENCE, read).await.unwrap().unwrap();
            assert!(text.split(' ').nth(1) == Some("200"), "{fault:?} {stream}: {text}");
            assert_eq!(text.matches("Hello").count(), 2, "{fault:?} {stream}: {text}");
            assert!(!stream || text.ends_with("data: [DONE]\n\n"), "{fault:?}: {text}");
        }
    }
}

#[tokio::test]
async fn the_retry_budget_limits_retries_in_an_outage() {
    const REQUESTS: u64 = 300;
    for fault in [Fault::Dead, Fault::Refuse] {
        let sims = fleet(2, |_| {}).await;
        let retry = "  circuit: {enabled: false}\n  retry: {initial_wait: 1ms, max_wait: 5ms, \
                     budget: {ratio: 0.1, min_per_second: 1}}\n";
        let gateway = Gateway::before(&urls(&sims), &format!("routing:\n{retry}")).await;
        for sim in &sims {
            fault.befall(sim).await;
        }
        let start = Instant::now();
        join_all((0..10).map(async |_| {
            for _ in 0..REQUESTS / 10 {
                assert!(ask(&gateway, true).await.status >= 500);
            }
        }))
        .await;
        let reason = if fault == Fault::Dead { "status" } else { "connect_failure" };
        let name = format!("llmproxy_retries_total{{reason=\"{reason}\"}}");
        let retries = gateway.metric(&name).await;
        // The budget starts with the credit of ten seconds and a hundred requests.
        let earned = 0.1 * REQUESTS as f64 + start.elapsed().as_secs_f64();
        let most = 10.0 + 0.1 * 100.0 + earned + 1.0;
        assert!(retries > 0.0 && retries <= most, "{fault:?}: {retries} of {most}");
        if fault == Fault::Dead {
            let attempts: u64 = requests(&sims).iter().sum();
            assert!(attempts as f64 <= REQUESTS as f64 + most, "{attempts}");
        }
        assert!(gateway.metric("llmproxy_retry_budget_exhausted_total").await > 0.0);
    }
}

#[tokio::test]
async fn a_response_without_a_body_can_be_retried() {
    let sims = fleet(1, |_| {}).await;
    for answer in [
        "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 0\r\n\r\n",
    ] {
        let backends = [saying(answer.to_owned()).await, sims[0].url()];
        let gateway = in_order(&backends, "", "").await;
        assert!(is_good(&ask(&gateway, true).await, true), "{answer}");
        // Without another backend the client gets the response.
        let gateway = in_order(&backends[..1], "", "").await;
        let to_client = ask(&gateway, true).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {}", to_client.status)), "{answer}");
        assert!(to_client.body.is_empty(), "{answer}");
    }
}

#[tokio::test]
async fn a_body_that_is_not_an_error_event_becomes_one() {
    for body in ["<html>\r\n<h1>502</h1>\r\n</html>", "{\n \"detail\": \"broken\"\n}", ""] {
        let answer = format!(
            "HTTP/1.1 502 Bad Gateway\r\ncontent-type: text/html\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let backends = [saying(answer).await];
        let routing = "  keep_alive: 100ms\n  retry: {initial_wait: 400ms, max_retries: 1}\n";
        let gateway = in_order(&backends, routing, "").await;
        let answer = ask(&gateway, true).await;
        let text = answer.text();
        assert!(answer.status == 200 && text.starts_with(COMMENT), "{text}");
        assert_eq!(last_error(text)["code"], "backend_failed", "{text}");
        assert_eq!(text.matches("data: ").count(), 1, "{text}");
    }
}

#[tokio::test]
async fn a_head_without_its_body_is_replaced_whatever_it_says() {
    let good = sim_with(|_| {}).await;
    for start in [
        "200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: 10",
        "200 OK\r\nContent-Type: application/json\r\nContent-Encoding: br\r\nContent-Length: 10",
        "200 OK\r\nContent-Type: application/json\r\nContent-Length: 10",
        "200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked",
        "200 OK\r\nTransfer-Encoding: chunked",
    ] {
        let head = format!("HTTP/1.1 {start}\r\n\r\n");
        let steps = move |_| vec![raw::send(&head), Step::Pause(50)];
        let (dying, _) = raw::backend(steps).await;
        let gateway = in_order(&[dying, good.url()], "", "").await;
        for stream in [false, true] {
            let answer = ask(&gateway, stream).await;
            assert!(is_good(&answer, stream), "{start}: {} {}", answer.status, answer.text());
        }
    }
}

#[tokio::test]
async fn the_last_attempt_is_held_back_like_the_first() {
    for (start, stream) in [
        ("Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n", true),
        ("Content-Type: application/json\r\nContent-Length: 10\r\n", false),
    ] {
        let (silent, _) = raw::backend(|_| Vec::new()).await;
        let (dying, _) = raw::backend(move |_| vec![raw::head(start), Step::Pause(50)]).await;
        let gateway = in_order(&[silent, dying], "  retry: {max_retries: 1}\n", "").await;
        let answer = ask(&gateway, stream).await;
        assert_eq!(answer.status, 502, "{start}: {}", answer.text());
        assert!(answer.text().starts_with("{\"error\""), "{}", answer.text());
    }
}
