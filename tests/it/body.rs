//! Request bodies: all sizes at which the handling changes, in every framing, with and without a failing
//! backend.

use std::fmt::Write;

use llmproxy::sim::{Fail, Sim};

use crate::support::{Client, Gateway, PATIENCE, chat, chat_of, free_address, http, sim, sim_with};

const CAP: usize = 2 << 20;
const SIZES: [usize; 7] = [100, 65_535, 65_536, 65_537, 65_536 * 2, 1 << 20, CAP];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Framing {
    Length,
    Chunked,
    Http2,
    Http2NoLength,
}

const FRAMINGS: [Framing; 4] =
    [Framing::Length, Framing::Chunked, Framing::Http2, Framing::Http2NoLength];

fn chunked(body: &[u8], piece: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for chunk in body.chunks(piece) {
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

async fn post(gateway: &Gateway, framing: Framing, body: Vec<u8>) -> u16 {
    let path = "/v1/chat/completions";
    match framing {
        Framing::Length => gateway.client().await.ask(path, &body).await.status,
        Framing::Chunked => {
            let mut client = gateway.client().await;
            let head =
                format!("POST {path} HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n");
            client.send(head.as_bytes()).await;
            // A refused body may not be read to its end.
            client.try_send(&chunked(&body, 10_000)).await;
            client.answer().await.status
        }
        Framing::Http2 | Framing::Http2NoLength => {
            let client = http::builder().http2_prior_knowledge().build().unwrap();
            let body = if framing == Framing::Http2 {
                reqwest::Body::from(body)
            } else {
                // A body of unknown length, sent without content-length.
                unsized_body(body)
            };
            let request = client.post(gateway.url(path)).timeout(PATIENCE).body(body);
            let answer = request.send().await.unwrap();
            assert_eq!(answer.version(), reqwest::Version::HTTP_2);
            answer.status().as_u16()
        }
    }
}

fn unsized_body(body: Vec<u8>) -> reqwest::Body {
    let pieces: Vec<_> = body.chunks(10_000).map(bytes::Bytes::copy_from_slice).collect();
    reqwest::Body::wrap(http_body_util::StreamBody::new(futures::stream::iter(
        pieces.into_iter().map(|p| Ok::<_, std::io::Error>(http_body::Frame::data(p))),
    )))
}

fn received(sim: &Sim) -> Vec<u8> {
    sim.stats().last().unwrap().body
}

#[tokio::test]
async fn every_size_arrives_unchanged_in_every_framing() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], &format!("server: {{max_body_size: {CAP}}}")).await;
    for framing in FRAMINGS {
        for size in SIZES {
            let body = chat_of(size, false);
            assert_eq!(post(&gateway, framing, body.clone()).await, 200, "{framing:?} {size}");
            assert!(received(&sim) == body, "{framing:?} {size}: the body was changed");
        }
    }
}

#[tokio::test]
async fn every_size_survives_an_unreachable_backend() {
    let sim = sim().await;
    let dead = format!("http://{}", free_address());
    let more =
        format!("server: {{max_body_size: {CAP}}}\nrouting: {{circuit: {{enabled: false}}}}");
    let gateway = Gateway::before(&[dead, sim.url()], &more).await;
    for framing in FRAMINGS {
        for size in SIZES {
            let body = chat_of(size, false);
            // Two in a row, so that one of them tries the dead backend.
            for _ in 0..2 {
                assert_eq!(post(&gateway, framing, body.clone()).await, 200, "{framing:?} {size}");
                assert!(received(&sim) == body, "{framing:?} {size}: the body was changed");
            }
        }
    }
    let retries = gateway.metric("llmproxy_retries_total{reason=\"connect_failure\"}").await;
    assert!(retries >= (FRAMINGS.len() * SIZES.len()) as f64, "{retries}");
}

#[tokio::test]
async fn usage_is_requested_in_bodies_of_every_size() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    let splice = br#","stream_options":{"include_usage":true,"continuous_usage_stats":true}}"#;
    for framing in FRAMINGS {
        for size in SIZES {
            let body = chat_of(size, true);
            assert_eq!(post(&gateway, framing, body.clone()).await, 200, "{framing:?} {size}");
            let expected = [&body[..body.len() - 1], splice].concat();
            assert!(received(&sim) == expected, "{framing:?} {size}");
        }
    }
}

#[tokio::test]
async fn one_byte_above_the_limit_is_refused() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], &format!("server: {{max_body_size: {CAP}}}")).await;
    for framing in FRAMINGS {
        assert_eq!(post(&gateway, framing, chat_of(CAP + 1, false)).await, 413, "{framing:?}");
    }
    assert_eq!(sim.stats().requests(), 0);
    let answer = gateway.client().await.ask("/v1/chat/completions", chat_of(CAP + 1, false)).await;
    assert_eq!(answer.json()["error"]["code"], "request_too_large");
}

#[tokio::test]
async fn the_default_limit_is_32_mib() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    assert_eq!(post(&gateway, Framing::Length, chat_of(32 << 20, false)).await, 200);
    assert_eq!(post(&gateway, Framing::Length, chat_of((32 << 20) + 1, false)).await, 413);
}

#[tokio::test]
async fn expect_100_continue_is_answered() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "server: {max_body_size: 1MiB}").await;
    let body = chat_of(300_000, false);
    let mut client = gateway.client().await;
    let head = |n: usize| {
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nExpect: 100-continue\r\nContent-Length: {n}\r\n\r\n"
        )
    };
    client.send(head(body.len()).as_bytes()).await;
    assert_eq!(client.head().await.status, 100);
    client.send(&body).await;
    assert_eq!(client.answer().await.status, 200);
    assert!(received(&sim) == body);
    assert_eq!(sim.stats().last().unwrap().header("expect"), None);

    let mut client = gateway.client().await;
    client.send(head(2 << 20).as_bytes()).await;
    assert_eq!(client.head().await.status, 413, "refused without having been sent");
}

#[tokio::test]
async fn a_large_chunked_body_that_cannot_be_resent_is_an_error() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    // A kept-alive connection that breaks with the next request.
    let mut client = gateway.client().await;
    assert_eq!(client.ask("/v1/chat/completions", chat_of(100, false)).await.status, 200);
    sim.change(|b| b.fail = Fail::BeforeHeaders);
    let head =
        "POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.send(head.as_bytes()).await;
    client.send(&chunked(&chat_of(300_000, false), 10_000)).await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 502);
    assert_eq!(answer.json()["error"]["type"], "server_error");
}

#[tokio::test]
async fn a_body_is_read_in_any_pieces() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    let body = chat_of(200, false);
    let mut request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    write!(request, "{}", String::from_utf8(body.clone()).unwrap()).unwrap();
    let mut client = Client::connect(gateway.address).await;
    for byte in request.as_bytes() {
        client.send(&[*byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(client.answer().await.status, 200);
    assert!(received(&sim) == body);
}

#[tokio::test]
async fn invalid_json_is_reported() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    for bad in ["", "hello", "[1]", r#"{"model":"sim-model""#, "{\"a\":\"\u{1}\"}", "{} {}"] {
        let answer = gateway.client().await.ask("/v1/chat/completions", bad).await;
        assert_eq!(answer.status, 400, "{bad}");
        let error = &answer.json()["error"];
        assert_eq!(error["code"], "invalid_json", "{bad}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    let answer = gateway.client().await.ask("/v1/chat/completions", r#"{"model":7}"#).await;
    assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &"model".into()));
    assert_eq!(sim.stats().requests(), 0);
}

#[tokio::test]
async fn the_length_of_a_model_name_is_limited() {
    let sim = sim_with(|b| b.models.push("m".repeat(1024))).await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    for (bytes, status) in [(1024, 200), (1025, 400), (100_000, 400)] {
        let body = chat(false).replace("sim-model", &"m".repeat(bytes));
        let answer = gateway.client().await.ask("/v1/chat/completions", body).await;
        assert_eq!(answer.status, status, "{bytes}");
        if status == 400 {
            let error = &answer.json()["error"];
            assert_eq!(
                (&error["param"], &error["code"]),
                (&"model".into(), &"invalid_value".into())
            );
        }
    }
    assert_eq!(sim.stats().requests(), 1);
}

#[tokio::test]
async fn requests_may_be_pipelined() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    let mut client = gateway.client().await;
    let body = String::from_utf8(chat_of(200, false)).unwrap();
    let one = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    client.send(format!("{one}{one}").as_bytes()).await;
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(client.answer().await.status, 200);
}

#[tokio::test]
async fn a_repeated_length_must_be_equal() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    // Too large to be resent from Pingora's buffer.
    let body = chat_of(300_000, false);
    let head = |length: &str| {
        format!("POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nContent-Length: {length}\r\n\r\n")
    };
    let mut client = gateway.client().await;
    client.send(head("300000, 300000").as_bytes()).await;
    client.send(&body).await;
    assert_eq!(client.answer().await.status, 200);
    assert!(received(&sim) == body);
    for wrong in ["300000, 300001", "-1", "3e5", "0x10"] {
        let mut client = gateway.client().await;
        client.send(head(wrong).as_bytes()).await;
        client.try_send(&body).await;
        assert_eq!(client.head().await.status, 400, "{wrong}");
    }
    assert_eq!(sim.stats().requests(), 1);
}

#[tokio::test]
async fn ambiguous_values_of_stream_are_refused() {
    let sim = sim().await;
    let gateway = Gateway::before(&[sim.url()], "").await;
    for bad in [
        r#""stream":1"#,
        r#""stream":"true""#,
        r#""stream":true,"stream_options":{"include_usage":1}"#,
    ] {
        let body = format!(r#"{{"model":"sim-model","messages":[],{bad}}}"#);
        let answer = gateway.client().await.ask("/v1/chat/completions", body).await;
        assert_eq!(
            (answer.status, answer.json()["error"]["code"].as_str()),
            (400, Some("invalid_value")),
            "{bad}"
        );
    }
    assert_eq!(sim.stats().requests(), 0);
}

#[tokio::test]
async fn every_framing_survives_a_dead_connection() {
    for framing in FRAMINGS {
        // A chunked body can be resent while it fits into Pingora's buffer.
        for size in [200, 60_000, 300_000] {
            if framing == Framing::Chunked && size > 64_000 {
                continue;
            }
            let sim = sim().await;
            // One thread, so that the kept connection is reused.
            let gateway = Gateway::before(&[sim.url()], "server: {threads: 1}\n").await;
            assert_eq!(
                gateway
                    .client()
                    .await
                    .ask("/v1/chat/completions", chat_of(100, false))
                    .await
                    .status,
                200
            );
            sim.change(|b| (b.fail, b.fail_every) = (Fail::BeforeHeaders, 2));
            let body = chat_of(size, false);
            assert_eq!(post(&gateway, framing, body.clone()).await, 200, "{framing:?} {size}");
            assert!(received(&sim) == body, "{framing:?} {size}");
            assert_eq!(sim.stats().requests(), 3, "{framing:?} {size}");
        }
    }
}
