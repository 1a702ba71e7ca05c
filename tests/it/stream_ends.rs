//! The end of streams, and keep-alives: `[DONE]` ends a response, whatever happens to the connection;
//! the chunk that ends a choice is not held back for long; heartbeats of an engine reach the client.

use std::sync::atomic::Ordering;

use llmproxy::sim::{Fail, StreamEnd};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{
    Gateway, PATIENCE, Receiver, chat, eventually, http,
    raw::{self, Step, backend, chunk, events, last, send},
    sim_with,
};

const PATH: &str = "/v1/chat/completions";
const CONTENT: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hello\"},\"finish_reason\":null}]}\n\n";
const FINISH: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4,\"total_tokens\":7}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

/// Settings that change how responses pass through the gateway.
const WAYS: [&str; 3] = [
    "",
    "routing: {retry: {initial_wait: 10ms, max_wait: 10ms}}\n",
    "routing: {keep_alive: 10s}\n",
];

/// How a backend may misbehave after `[DONE]`.
fn endings() -> Vec<(&'static str, Vec<Step>)> {
    let stream = format!("{CONTENT}{FINISH}{USAGE}{DONE}");
    let length = stream.len() + 10;
    let short = format!("Content-Type: text/event-stream\r\nContent-Length: {length}\r\n");
    let open_ended = "Content-Type: text/event-stream\r\nConnection: close\r\n";
    vec![
        ("closed", vec![events(), chunk(&stream)]),
        ("reset", vec![events(), chunk(&stream), Step::Reset]),
        ("open", vec![events(), chunk(&stream), Step::Open]),
        ("more", vec![events(), chunk(&stream), chunk(": late\n\n"), chunk(CONTENT), Step::Open]),
        ("more in the same chunk", vec![events(), chunk(format!("{stream}{CONTENT}")), Step::Open]),
        ("no chunk", vec![events(), chunk(&stream), send("what is this?")]),
        ("half a chunk", vec![events(), chunk(&stream), send("ff\r\ndata: ")]),
        ("too short", vec![raw::head(&short), send(&stream)]),
        ("too short and open", vec![raw::head(&short), send(&stream), Step::Open]),
        ("no length", vec![raw::head(open_ended), send(&stream)]),
        ("no length and open", vec![raw::head(open_ended), send(&stream), Step::Open]),
        ("as it should", vec![events(), chunk(&stream), last()]),
    ]
}

#[tokio::test]
async fn done_ends_a_stream_whatever_happens_to_the_connection() {
    for (way, several) in WAYS.into_iter().flat_map(|way| [(way, false), (way, true)]) {
        for (name, steps) in endings() {
            let (url, requests) = backend(move |_| steps.clone()).await;
            let other = url.replace("127.0.0.1", "localhost");
            let urls = if several { vec![url, other] } else { vec![url] };
            let receiver = Receiver::start().await;
            let gateway = Gateway::before(&urls, &format!("{way}{}", receiver.hook())).await;
            let h2 = http::builder().http2_prior_knowledge().build().unwrap();
            // More than opens a circuit.
            for n in 1..=6 {
                let (status, body) = if n % 2 == 0 {
                    let request = h2.post(gateway.url(PATH)).body(chat(true));
                    let answer = request.send().await.unwrap();
                    (answer.status().as_u16(), answer.text().await.unwrap())
                } else {
                    let mut client = gateway.client().await;
                    let answer = client.ask(PATH, chat(true)).await;
                    assert!(answer.whole, "{name} {way} {several}");
                    (answer.status, answer.text().to_owned())
                };
                assert_eq!(status, 200, "{name} {way} {several}");
                assert_eq!(body, format!("{CONTENT}{FINISH}{DONE}"), "{name} {way} {several}");
            }
            let records = receiver.wait_for(6).await;
            for record in &records {
                assert_eq!(record["outcome"], "complete", "{name} {way} {several}: {record}");
                assert_eq!(record["usage_source"], "final", "{name}: {record}");
                assert_eq!((&record["total_tokens"], &record["tries"]), (&7.into(), &1.into()));
            }
            assert_eq!(requests.load(Ordering::SeqCst), 6, "{name}: nothing is tried again");
            let failed =
                gateway.metric("llmproxy_errors_total{side=\"backend\",reason=\"broken\"}");
            assert_eq!(failed.await, 0.0, "{name}");
        }
    }
}

#[tokio::test]
async fn a_stream_cut_anywhere_is_complete_after_done() {
    let stream = format!("{CONTENT}{FINISH}{USAGE}{DONE}");
    // After `data: [DONE]` only a line break is missing, which the gateway adds.
    let complete = stream.len() - 2;
    for reset in [false, true] {
        let text = stream.clone();
        let (url, _) = backend(move |n| {
            let mut steps = vec![events(), chunk(&text[..=n.min(text.len() - 1)])];
            steps.extend(reset.then_some(Step::Reset));
            steps
        })
        .await;
        let receiver = Receiver::start().await;
        let more = format!("routing: {{circuit: {{enabled: false}}}}\n{}", receiver.hook());
        let gateway = Gateway::before(&[url], &more).await;
        for n in 0..stream.len() {
            let sent = n + 1;
            let answer = gateway.client().await.ask(PATH, chat(true)).await;
            let record = receiver.wait_for(sent).await.pop().unwrap();
            let body = answer.text();
            assert!(answer.whole, "{sent}: {body}");
            if sent >= complete {
                assert_eq!(body, format!("{CONTENT}{FINISH}{DONE}"), "{sent}");
                assert_eq!(
                    (&record["outcome"], &record["total_tokens"]),
                    (&"complete".into(), &7.into())
                );
            } else {
                assert!(body.contains("\"error\"") && !body.contains("[DONE]"), "{sent}: {body}");
                assert_eq!(record["outcome"], "upstream_error", "{sent}");
            }
        }
    }
}

#[tokio::test]
async fn a_backend_that_does_not_close_after_done_delays_no_client() {
    for end in [StreamEnd::Close, StreamEnd::Reset, StreamEnd::Open] {
        let sim = sim_with(|b| b.stream_end = end).await;
        let gateway =
            Gateway::before(&[sim.url(), sim.url().replace("127.0.0.1", "localhost")], "").await;
        let mut client = gateway.client().await;
        for n in 0..12 {
            // The client connection stays usable, even after the longest wait for the end.
            let answer = client.ask(PATH, chat(true)).await;
            assert_eq!(answer.status, 200, "{end:?} {n}");
            assert!(answer.whole && answer.text().ends_with(DONE), "{end:?} {n}");
        }
        // Each on a new connection, and none that was closed already.
        assert_eq!((sim.stats().requests(), sim.stats().connections()), (12, 12), "{end:?}");
        let stale = gateway.metric("llmproxy_retries_total{reason=\"stale_connection\"}").await;
        assert_eq!(stale, 0.0, "{end:?}");
        eventually("nothing is in flight", async || {
            gateway.metric("llmproxy_requests_in_flight").await <= 1.0
        })
        .await;
    }
}

#[tokio::test]
async fn a_client_without_chunked_encoding_sees_the_end() {
    for end in [StreamEnd::Whole, StreamEnd::Close, StreamEnd::Open] {
        let sim = sim_with(|b| b.stream_end = end).await;
        let gateway = Gateway::before(&[sim.url()], "").await;
        let mut socket = TcpStream::connect(gateway.address).await.unwrap();
        let body = chat(true);
        let head = format!(
            "POST {PATH} HTTP/1.0\r\nHost: gateway\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        socket.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, socket.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.ends_with(DONE), "{end:?}: {answer}");
    }
}

#[tokio::test]
async fn an_error_before_done_is_still_a_failure() {
    for end in [StreamEnd::Whole, StreamEnd::Close, StreamEnd::Open] {
        for fail in [Fail::ErrorEventMidStream, Fail::Abort] {
            let sim = sim_with(|b| (b.stream_end, b.fail) = (end, fail)).await;
            let receiver = Receiver::start().await;
            let gateway = Gateway::before(&[sim.url()], &receiver.hook()).await;
            let answer = gateway.client().await.ask(PATH, chat(true)).await;
            assert!(answer.whole && answer.text().ends_with(DONE), "{end:?} {fail:?}");
            assert_eq!(
                answer.text().matches("\"error\"").count(),
                usize::from(fail != Fail::Abort)
            );
            assert_eq!(receiver.one().await["outcome"], "upstream_error", "{end:?} {fail:?}");
        }
    }
}

#[tokio::test]
async fn a_client_that_closes_after_done_is_not_an_abort() {
    for end in [StreamEnd::Whole, StreamEnd::Close, StreamEnd::Open] {
        let sim = sim_with(|b| b.stream_end = end).await;
        let receiver = Receiver::start().await;
        let gateway = Gateway::before(&[sim.url()], &receiver.hook()).await;
        for n in 1..=20 {
            let mut client = gateway.client().await;
            client.post(PATH, chat(true)).await;
            client.head().await;
            let mut seen = Vec::new();
            while !seen.ends_with(DONE.as_bytes()) {
                seen.extend(client.chunk().await.unwrap());
            }
            drop(client);
            let record = receiver.wait_for(n).await.pop().unwrap();
            assert_eq!(record["outcome"], "complete", "{end:?}: {record}");
            assert_eq!(record["usage_source"], "final", "{end:?}: {record}");
        }
    }
}

#[tokio::test]
async fn the_chunk_that_ends_a_choice_is_not_held_forever() {
    let asked = chat(true)
        .replace("\"stream\":true", "\"stream\":true,\"stream_options\":{\"include_usage\":true}");
    for rest in [vec![], vec![chunk(": heartbeat\n\n")], vec![chunk("\n")]] {
        for (way, body) in
            WAYS.into_iter().flat_map(|way| [(way, chat(true)), (way, asked.clone())])
        {
            let mut steps = vec![events(), chunk(CONTENT), chunk(FINISH)];
            steps.extend(rest.clone());
            steps.push(Step::Open);
            let (url, _) = backend(move |_| steps.clone()).await;
            let gateway = Gateway::before(&[url], way).await;
            let mut client = gateway.client().await;
            client.post(PATH, &body).await;
            client.head().await;
            let mut seen = String::new();
            // Nothing follows, so the chunk must be sent without a further event.
            while !seen.contains("\"stop\"") {
                seen.push_str(&String::from_utf8(client.chunk().await.unwrap()).unwrap());
            }
            let mut response = http::builder()
                .http2_prior_knowledge()
                .build()
                .unwrap()
                .post(gateway.url(PATH))
                .body(body)
                .send()
                .await
                .unwrap();
            let mut seen = String::new();
            while !seen.contains("\"stop\"") {
                seen.push_str(
                    std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap(),
                );
            }
        }
    }
}

#[tokio::test]
async fn a_released_chunk_is_sent_once_and_the_rest_follows() {
    for (late, usage) in [(0, USAGE), (3, USAGE), (3, "")] {
        let sim =
            sim_with(|b| (b.late_heartbeats, b.heartbeat_ms, b.tokens) = (late, 150, 2)).await;
        let receiver = Receiver::start().await;
        let gateway = Gateway::before(&[sim.url()], &receiver.hook()).await;
        let body = if usage.is_empty() {
            chat(true)
        } else {
            chat(true).replace(
                "\"stream\":true",
                "\"stream\":true,\"stream_options\":{\"include_usage\":true}",
            )
        };
        let answer = gateway.client().await.ask(PATH, body).await;
        let text = answer.text();
        assert!(answer.whole && text.ends_with(DONE), "{text}");
        assert_eq!(text.matches("\"finish_reason\":\"stop\"").count(), 1, "{text}");
        assert_eq!(text.matches(": heartbeat\n\n").count() as u64, late, "{text}");
        assert_eq!(text.contains("\"choices\":[],\"usage\""), !usage.is_empty(), "{text}");
        assert_eq!(usage.is_empty(), !text.contains("usage"), "{text}");
        assert_eq!(receiver.one().await["usage_source"], "final");
    }
}

#[tokio::test]
async fn a_slow_event_does_not_hold_back_the_last_chunk() {
    // Half an event, byte by byte, without its end; then the connection breaks.
    for broken in [false, true] {
        let mut steps = vec![events(), chunk(CONTENT), chunk(FINISH)];
        for byte in USAGE.bytes().take(20) {
            steps.extend([chunk([byte]), Step::Pause(30)]);
        }
        steps.push(if broken { Step::Reset } else { Step::Open });
        let (url, _) = backend(move |_| steps.clone()).await;
        let gateway = Gateway::before(&[url], "").await;
        let h2 = http::builder().http2_prior_knowledge().build().unwrap();
        let mut response = h2.post(gateway.url(PATH)).body(chat(true)).send().await.unwrap();
        let mut client = gateway.client().await;
        client.post(PATH, chat(true)).await;
        client.head().await;
        let (mut seen, mut seen_h2) = (String::new(), String::new());
        let over =
            |seen: &str| seen.contains(if broken { "backend_failed" } else { "\"stop\"}]}\n\n" });
        while !over(&seen) {
            seen.push_str(&String::from_utf8(client.chunk().await.unwrap()).unwrap());
        }
        while !over(&seen_h2) {
            let piece = response.chunk().await.unwrap().unwrap();
            seen_h2.push_str(std::str::from_utf8(&piece).unwrap());
        }
        for seen in [seen, seen_h2] {
            assert!(seen.starts_with(&format!("{CONTENT}{FINISH}")), "{seen}");
            assert_eq!(seen.matches("\"stop\"").count(), 1, "{seen}");
            assert_eq!(seen.matches("data: {").count(), 2 + usize::from(broken), "{seen}");
        }
    }
}

#[tokio::test]
async fn heartbeats_do_not_accumulate() {
    let beat = ": heartbeat\n\n".repeat(1000);
    let Step::Send(bytes) = chunk(&beat) else { unreachable!() };
    let steps = vec![
        events(),
        chunk(CONTENT),
        chunk(FINISH),
        Step::Flood(bytes, 8000),
        chunk(DONE),
        last(),
    ];
    let (url, _) = backend(move |_| steps.clone()).await;
    let gateway = Gateway::before(&[url], "").await;
    assert_eq!(gateway.client().await.get("/health").await.status, 200);
    let before = gateway.resident_kib();
    let mut client = gateway.client().await;
    client.post(PATH, chat(true)).await;
    client.head().await;
    let (mut length, mut most, mut end) = (0, 0, Vec::new());
    while !end.ends_with(DONE.as_bytes()) {
        let piece = client.chunk().await.unwrap();
        length += piece.len();
        end.extend_from_slice(&piece[piece.len().saturating_sub(20)..]);
        end.drain(..end.len().saturating_sub(20));
        if length / (8 << 20) > most {
            most = length / (8 << 20);
            let grown = gateway.resident_kib().saturating_sub(before);
            assert!(grown < 48 * 1024, "{grown} KiB more after {length} bytes");
        }
    }
    assert!(length > 96 << 20, "only {length} bytes");
}

#[tokio::test]
async fn heartbeats_reach_a_client_whose_response_is_deferred() {
    for way in WAYS {
        for beat in [": processing\n\n", "\n", ":\r\n\r\n", "event: ping\ndata:\n\n"] {
            let first = vec![events(), chunk(beat), Step::Open];
            let (url, _) = backend(move |_| first.clone()).await;
            let urls = [url.clone(), url.replace("127.0.0.1", "localhost")];
            let gateway = Gateway::before(&urls, way).await;
            let mut client = gateway.client().await;
            client.post(PATH, chat(true)).await;
            let head = client.head().await;
            assert_eq!(head.status, 200, "{way} {beat:?}");
            assert!(head.header("content-type").unwrap().starts_with("text/event-stream"));
            assert_eq!(client.chunk().await.unwrap(), beat.as_bytes(), "{way}");
        }
    }
}

#[tokio::test]
async fn a_retry_is_possible_after_a_heartbeat() {
    let beat = ": processing\n\n";
    let (broken, requests) =
        backend(move |_| vec![events(), chunk(beat), chunk(beat), Step::Reset]).await;
    let sim = sim_with(|b| b.first_token_ms = 50).await;
    let receiver = Receiver::start().await;
    let more = format!("routing: {{circuit: {{enabled: false}}}}\n{}", receiver.hook());
    let gateway = Gateway::before(&[broken.clone(), sim.url()], &more).await;
    let h2 = http::builder().http2_prior_knowledge().build().unwrap();
    for n in 1..=20 {
        let text = if n % 2 == 0 {
            let answer = h2.post(gateway.url(PATH)).body(chat(true)).send().await.unwrap();
            assert_eq!(answer.status(), 200);
            answer.text().await.unwrap()
        } else {
            let answer = gateway.client().await.ask(PATH, chat(true)).await;
            assert!(answer.whole && answer.status == 200);
            answer.text().to_owned()
        };
        assert!(text.ends_with(DONE) && text.contains("Hello"), "{text}");
        assert!(!text.contains("\"error\"") && text.matches("[DONE]").count() == 1, "{text}");
    }
    assert!(requests.load(Ordering::SeqCst) > 0, "none has met the broken backend");
    assert!(receiver.wait_for(20).await.iter().all(|record| record["outcome"] == "complete"));
    // Without another backend the error is an event, as the head was already sent.
    let gateway =
        Gateway::before(&[broken.clone(), broken.replace("127.0.0.1", "localhost")], "").await;
    let answer = gateway.client().await.ask(PATH, chat(true)).await;
    assert_eq!(answer.status, 200);
    assert!(
        answer.text().starts_with(beat) && answer.text().contains("\"error\""),
        "{}",
        answer.text()
    );
    assert!(!answer.text().contains("[DONE]"));
}

#[tokio::test]
async fn blank_lines_before_a_document_reach_the_client() {
    for way in WAYS {
        let document = "{\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}";
        let head = "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n";
        // The second request must complete.
        let (url, _) = backend(move |n| {
            let mut steps = vec![raw::head(head), chunk("\n"), chunk(" \n")];
            steps.extend(if n == 0 { vec![Step::Open] } else { vec![chunk(document), last()] });
            steps
        })
        .await;
        let receiver = Receiver::start().await;
        let urls = [url.clone(), url.replace("127.0.0.1", "localhost")];
        let gateway = Gateway::before(&urls, &format!("{way}{}", receiver.hook())).await;
        let mut client = gateway.client().await;
        client.post(PATH, chat(false)).await;
        let head = client.head().await;
        assert_eq!(head.header("content-type"), Some("application/json"), "{way}");
        assert!(client.chunk().await.unwrap().starts_with(b"\n"), "{way}");
        drop(client);
        receiver.wait_for(1).await;
        let answer = gateway.client().await.ask(PATH, chat(false)).await;
        assert_eq!(answer.text(), format!("\n \n{document}"), "{way}");
        let record = receiver.wait_for(2).await.pop().unwrap();
        assert_eq!((&record["total_tokens"], &record["outcome"]), (&7.into(), &"complete".into()));
    }
}

#[tokio::test]
async fn a_slow_client_gets_the_end_of_a_complete_stream() {
    // More than socket buffers hold, and a backend that does not close.
    let event = format!(
        "data: {{\"choices\":[{{\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n",
        "x".repeat(60_000)
    );
    let all = event.repeat(200);
    let (url, _) = backend({
        let all = all.clone();
        move |_| vec![events(), chunk(&all), chunk(DONE), Step::Open]
    })
    .await;
    for more in ["", "routing: {retry: {initial_wait: 1ms, max_wait: 2ms}}\n"] {
        let gateway = Gateway::before(std::slice::from_ref(&url), more).await;
        let mut client = gateway.client().await;
        client.post(PATH, chat(true)).await;
        let head = client.head().await;
        // Longer than the limit for a backend that does not end its response, and than the limit for
        // clients after a deadline.
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        let answer = client.rest(head).await;
        assert!(answer.whole && answer.text().ends_with(DONE), "{} bytes", answer.body.len());
        assert_eq!(answer.body.len(), all.len() + DONE.len());
    }
}

#[tokio::test]
async fn a_heartbeat_of_a_failed_backend_is_discarded() {
    // The heartbeat and the failure arrive in one piece; then another backend refuses.
    let beat = ": ping\n\n";
    let failed = "data: {\"error\":{\"message\":\"no\",\"code\":500}}\n\n";
    let both = format!("{:x}\r\n{beat}\r\n{:x}\r\n{failed}\r\n", beat.len(), failed.len());
    let (first, _) = backend(move |_| {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        vec![send(format!("{head}{both}0\r\n\r\n"))]
    })
    .await;
    let refusal = r#"{"error":{"message":"bad","code":400}}"#;
    let (second, _) = backend(move |_| {
        let length = refusal.len();
        let head = "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n";
        vec![send(format!("{head}Content-Length: {length}\r\n\r\n{refusal}"))]
    })
    .await;
    let gateway = Gateway::before(&[first, second], "").await;
    for _ in 0..10 {
        let answer = gateway.client().await.ask(PATH, chat(true)).await;
        match answer.status {
            400 => assert_eq!(answer.text(), refusal),
            // The heartbeat was already sent, so the error is an event, as documented.
            status => {
                assert_eq!(
                    (status, answer.header("content-type")),
                    (200, Some("text/event-stream"))
                );
                assert!(
                    answer.text().lines().all(|l| l.is_empty() || l.starts_with([':', 'd'])),
                    "{}",
                    answer.text()
                );
            }
        }
    }
}
