//! Metering: usage in every format and under any header of an engine, and what the client receives.

use std::{io::Write, sync::atomic::Ordering, time::Instant};

use flate2::{
    Compression,
    write::{DeflateEncoder, GzEncoder, ZlibEncoder},
};
use llmproxy::sim::Numbers;

use crate::support::{
    Gateway, Receiver, chat, http,
    raw::{self, Step, backend, chunk, events, last, send},
    sim_with,
};

const PATH: &str = "/v1/chat/completions";
const CONTENT: &str = "data: {\"model\":\"real\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hello\"},\"finish_reason\":null}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1}}\n\n";
const FINISH: &str = "data: {\"model\":\"real\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\n\n";
const USAGE: &str = "data: {\"model\":\"real\",\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4,\"total_tokens\":7}}\n\n";
const DONE: &str = "data: [DONE]\n\n";
const DOCUMENT: &str = "{\"model\":\"real\",\"choices\":[{\"index\":0,\"message\":{\"content\":\"Hello\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4,\"total_tokens\":7}}";

/// A gateway with backends at this address that use another model name.
async fn renaming(url: &str, several: bool, more: &str) -> Gateway {
    let other = url.replace("127.0.0.1", "localhost");
    let (b, route) = if several {
        (format!("  - {{name: b, url: \"{other}\"}}\n"), ", {backend: b, model: real}")
    } else {
        (String::new(), "")
    };
    Gateway::start(&format!(
        "backends:\n  - {{name: a, url: \"{url}\"}}\n{b}models:\n  sim-model: {{routes: [{{backend: a, model: real}}{route}]}}\n{more}"
    ))
    .await
}

fn stream() -> String {
    format!("{CONTENT}{FINISH}{USAGE}{DONE}")
}

/// The stream for a client that did not request usage.
fn stripped() -> String {
    let content = CONTENT.replace(",\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1}", "");
    let finish = FINISH.replace(",\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}", "");
    format!("{content}{finish}{DONE}").replace("real", "sim-model")
}

#[tokio::test]
async fn a_missing_or_wrong_content_type_does_not_prevent_metering() {
    let kinds = [
        "",
        "Content-Type: \r\n",
        "Content-Type: text/plain; charset=utf-8\r\n",
        "Content-Type: application/octet-stream\r\n",
        "Content-Type: application/json\r\n",
        "Content-Type: text/event-stream\r\n",
        "Content-Type: text/event-stream\r\nContent-Encoding: identity\r\n",
        "Content-Type: application/json\r\nContent-Encoding:\r\n",
    ];
    for (kind, several) in kinds.into_iter().flat_map(|kind| [(kind, false), (kind, true)]) {
        // In one piece, in pieces, byte by byte, and with a length.
        let (url, _) = backend(move |n| {
            let text = if n % 2 == 0 { stream() } else { DOCUMENT.to_owned() };
            let chunked = raw::head(&format!("{kind}Transfer-Encoding: chunked\r\n"));
            let mut steps = match n / 2 {
                3 => {
                    return vec![
                        raw::head(&format!("{kind}Content-Length: {}\r\n", text.len())),
                        send(text),
                    ];
                }
                _ => vec![chunked],
            };
            let size = [text.len(), 3, 1][n / 2];
            steps.extend(text.as_bytes().chunks(size).take(20).map(chunk));
            let rest = &text.as_bytes()[text.len().min(20 * size)..];
            steps.extend((!rest.is_empty()).then(|| chunk(rest)));
            steps.push(last());
            steps
        })
        .await;
        let receiver = Receiver::start().await;
        let gateway = renaming(&url, several, &receiver.hook()).await;
        for n in 0..8 {
            let answer = gateway.client().await.ask(PATH, chat(n % 2 == 0)).await;
            let record = receiver.wait_for(n + 1).await.pop().unwrap();
            let context = format!("{kind:?} {several} {n}: {}\n{record}", answer.text());
            assert!(answer.whole && answer.status == 200, "{context}");
            let expected =
                if n % 2 == 0 { stripped() } else { DOCUMENT.replace("real", "sim-model") };
            assert_eq!(answer.text(), expected, "{context}");
            assert_eq!(
                (&record["total_tokens"], &record["usage_source"]),
                (&7.into(), &"final".into()),
                "{context}"
            );
            assert_eq!(record["response_model"], "real", "{context}");
        }
    }
}

fn encoded(coding: &str, text: &[u8]) -> Vec<u8> {
    match coding {
        "gzip" => {
            let mut out = GzEncoder::new(Vec::new(), Compression::default());
            out.write_all(text).unwrap();
            out.finish().unwrap()
        }
        "deflate" => {
            let mut out = ZlibEncoder::new(Vec::new(), Compression::default());
            out.write_all(text).unwrap();
            out.finish().unwrap()
        }
        _ => {
            let mut out = DeflateEncoder::new(Vec::new(), Compression::default());
            out.write_all(text).unwrap();
            out.finish().unwrap()
        }
    }
}

#[tokio::test]
async fn compressed_responses_are_decoded_and_metered() {
    for (coding, several) in [("gzip", false), ("deflate", true), ("raw", false)] {
        for (kind, streams) in
            [("text/event-stream", true), ("application/json", false), ("text/plain", true)]
        {
            let text = if streams { stream() } else { DOCUMENT.to_owned() };
            let body = encoded(coding, text.as_bytes());
            let word = if coding == "raw" { "deflate" } else { coding };
            let head = format!("Content-Type: {kind}\r\nContent-Encoding: {word}\r\n");
            let (url, _) = backend(move |n| {
                if n == 0 {
                    let length = format!("{head}Content-Length: {}\r\n", body.len());
                    return vec![raw::head(&length), send(&body)];
                }
                let mut steps = vec![raw::head(&format!("{head}Transfer-Encoding: chunked\r\n"))];
                steps.extend(body.chunks(7).map(chunk));
                steps.push(last());
                steps
            })
            .await;
            let receiver = Receiver::start().await;
            let gateway = renaming(&url, several, &receiver.hook()).await;
            for n in 0..2 {
                let answer = gateway.client().await.ask(PATH, chat(streams)).await;
                assert_eq!(answer.header("content-encoding"), None);
                let expected =
                    if streams { stripped() } else { DOCUMENT.replace("real", "sim-model") };
                assert_eq!(answer.text(), expected, "{coding} {kind} {n}");
                assert!(answer.whole);
                let record = receiver.wait_for(n + 1).await.pop().unwrap();
                assert_eq!(record["total_tokens"], 7, "{coding} {kind} {n}: {record}");
            }
        }
    }
}

#[tokio::test]
async fn a_decompression_bomb_fails_without_using_memory() {
    let bomb = encoded("gzip", &vec![b' '; 256 << 20]);
    let head = format!(
        "Content-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n",
        bomb.len()
    );
    let (url, _) = backend(move |_| vec![raw::head(&head), send(&bomb)]).await;
    let gateway = Gateway::before(&[url.clone(), url.replace("127.0.0.1", "localhost")], "").await;
    let before = gateway.resident_kib();
    for _ in 0..3 {
        let answer = gateway.client().await.ask(PATH, chat(false)).await;
        // Empty if the head was already sent.
        assert!(!answer.whole || answer.status == 502, "{} {}", answer.status, answer.body.len());
    }
    let grown = gateway.resident_kib().saturating_sub(before);
    assert!(grown < 150 * 1024, "{grown} KiB more");
}

#[tokio::test]
async fn an_undecodable_response_passes_and_is_logged_once() {
    let body = [0x1b, 0x7f, 0x00, 0x00, 0x44].repeat(50);
    let sent = body.clone();
    let (url, _) = backend(move |_| {
        let head = "Content-Type: application/json\r\nContent-Encoding: br\r\n";
        vec![raw::head(&format!("{head}Content-Length: {}\r\n", sent.len())), send(&sent)]
    })
    .await;
    let receiver = Receiver::start().await;
    let gateway = Gateway::before(&[url], &receiver.hook()).await;
    for n in 1..=3 {
        let answer = gateway.client().await.ask(PATH, chat(false)).await;
        assert_eq!((answer.header("content-encoding"), &answer.body), (Some("br"), &body));
        assert_eq!(receiver.wait_for(n).await.pop().unwrap()["usage_source"], "none");
    }
    assert_eq!(gateway.log().matches("only gzip and deflate can be decoded").count(), 1);
}

#[tokio::test]
async fn other_responses_pass_unchanged() {
    let audio: Vec<u8> =
        (0..100_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for kind in ["audio/mpeg", "application/octet-stream", "text/plain", "image/png"] {
        for (start, several) in
            [(&b"RIFF"[..], false), (b"\xff\xfb", true), (b"da", false), (b"  x", true)]
        {
            let body = [start, &audio].concat();
            let sent = body.clone();
            let (url, _) = backend(move |n| {
                if n == 0 {
                    let length =
                        format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", sent.len());
                    return vec![raw::head(&length), send(&sent)];
                }
                let chunked =
                    raw::head(&format!("Content-Type: {kind}\r\nTransfer-Encoding: chunked\r\n"));
                vec![chunked, chunk(&sent[..1]), chunk(&sent[1..]), last()]
            })
            .await;
            let urls = [url.clone(), url.replace("127.0.0.1", "localhost")];
            let gateway = Gateway::before(&urls[..1 + usize::from(several)], "").await;
            for n in 0..2 {
                let answer = gateway.client().await.ask(PATH, chat(false)).await;
                assert!(answer.whole && answer.body == body, "{kind} {start:?} {n}");
                assert_eq!(answer.header("content-type"), Some(kind));
                let length = body.len().to_string();
                assert_eq!(answer.header("content-length"), (n == 0).then_some(&*length));
            }
        }
    }
}

#[tokio::test]
async fn lines_of_json_pass_one_by_one_and_are_metered() {
    let lines: Vec<String> = [CONTENT, FINISH, USAGE]
        .iter()
        .map(|event| format!("{}\n", event.trim_start_matches("data: ").trim_end()))
        .collect();
    let expected: Vec<String> = stripped()
        .split_inclusive("\n\n")
        .take(2)
        .map(|e| format!("{}\n", e.trim_start_matches("data: ").trim_end()))
        .collect();
    for kind in ["Content-Type: application/x-ndjson\r\n", "Content-Type: application/json\r\n", ""]
    {
        for several in [false, true] {
            let sent = lines.clone();
            let (url, _) = backend(move |n| {
                let mut steps = vec![raw::head(&format!("{kind}Transfer-Encoding: chunked\r\n"))];
                steps.extend(sent.iter().map(chunk));
                // First the response stays open, so that lines held back until the end would be missing.
                steps.extend(if n == 0 { [Step::Open] } else { [last()] });
                steps
            })
            .await;
            let receiver = Receiver::start().await;
            let gateway = renaming(&url, several, &receiver.hook()).await;
            let mut client = gateway.client().await;
            client.post(PATH, chat(true)).await;
            client.head().await;
            let mut seen = String::new();
            while seen.len() < expected.concat().len() {
                seen.push_str(&String::from_utf8(client.chunk().await.unwrap()).unwrap());
            }
            assert_eq!(seen, expected.concat(), "{kind}");
            drop(client);
            receiver.wait_for(1).await;
            let answer = gateway.client().await.ask(PATH, chat(true)).await;
            assert_eq!(answer.text(), expected.concat(), "{kind} {several}");
            let record = receiver.wait_for(2).await.pop().unwrap();
            assert_eq!(
                (&record["total_tokens"], &record["usage_source"]),
                (&7.into(), &"final".into())
            );
        }
    }
}

#[tokio::test]
async fn counts_are_read_in_every_format() {
    for numbers in [
        Numbers::Integers,
        Numbers::Floats,
        Numbers::Exponents,
        Numbers::Strings,
        Numbers::Negative,
        Numbers::Fractions,
    ] {
        let sim = sim_with(|b| b.usage_numbers = numbers).await;
        let receiver = Receiver::start().await;
        let gateway = Gateway::before(&[sim.url()], &receiver.hook()).await;
        let good = !matches!(numbers, Numbers::Negative | Numbers::Fractions);
        for (n, stream) in [true, false].into_iter().enumerate() {
            let answer = gateway.client().await.ask(PATH, chat(stream)).await;
            assert_eq!(answer.status, 200);
            assert!(!stream || !answer.text().contains("usage"), "{}", answer.text());
            let record = receiver.wait_for(n + 1).await.pop().unwrap();
            if good {
                assert_eq!(record["completion_tokens"], 16, "{numbers:?} {stream}: {record}");
                assert_eq!(record["usage_source"], "final", "{numbers:?}");
            } else {
                assert_eq!(record["completion_tokens"], 0, "{numbers:?} {stream}: {record}");
                assert_eq!(record["usage_source"], "none", "{numbers:?} {stream}");
            }
        }
    }
}

#[tokio::test]
async fn an_unreadable_response_is_charged_by_estimate() {
    for (numbers, read) in [(Numbers::Floats, true), (Numbers::Negative, false)] {
        let sim = sim_with(|b| b.usage_numbers = numbers).await;
        let rules = "rate_limit: {global: {tokens_per_minute: 10000}}\n";
        let gateway = Gateway::before(&[sim.url()], rules).await;
        let start = Instant::now();
        for _ in 0..4 {
            assert_eq!(gateway.client().await.ask(PATH, chat(false)).await.status, 200);
        }
        let small = r#"{"model":"sim-model","messages":[],"max_tokens":1}"#;
        let answer = gateway.client().await.ask(PATH, small).await;
        let left = answer.header("x-ratelimit-remaining-tokens").unwrap();
        let left: f64 = left.parse().unwrap();
        let refilled = 10_000.0 / 60.0 * start.elapsed().as_secs_f64() + 1.0;
        // The estimate for a model without metered responses is 256 tokens; these responses have 16.
        if read {
            assert!(left >= 9_500.0, "{left}");
        } else {
            assert!(left <= 10_000.0 - 4.0 * 256.0 + refilled, "{left}");
        }
    }
}

#[tokio::test]
async fn running_counts_are_summed_over_prompts() {
    let figure = |index: u64, prompt: u64, n: u64| {
        format!(
            "data: {{\"choices\":[{{\"index\":{index},\"text\":\"a\",\"finish_reason\":null}}],\"usage\":{{\"prompt_tokens\":{prompt},\"completion_tokens\":{n}}}}}\n\n"
        )
    };
    // Two prompts of 5 and 7 tokens, with one and with two choices each.
    for (prompt, n, prompts, completions) in [
        ("[\"one\",\"two\"]", 1, 12, 5),
        ("[[1,2],[3]]", 2, 12, 9),
        ("\"one\"", 2, 7, 9),
        ("[1,2,3]", 2, 7, 9),
    ] {
        let mut text = figure(0, 5, 2) + &figure(1, if n == 1 { 7 } else { 5 }, 3);
        if n == 2 {
            text += &(figure(2, 7, 1) + &figure(3, 7, 3));
        }
        let (url, _) = backend(move |_| vec![events(), chunk(&text), Step::Open]).await;
        let receiver = Receiver::start().await;
        let gateway = Gateway::before(&[url], &receiver.hook()).await;
        let mut client = gateway.client().await;
        let body = format!(r#"{{"model":"m","prompt":{prompt},"n":{n},"stream":true}}"#);
        client.post("/v1/completions", body).await;
        client.head().await;
        client.chunk().await.unwrap();
        drop(client);
        let record = receiver.one().await;
        assert_eq!(
            (&record["outcome"], &record["usage_source"]),
            (&"client_aborted".into(), &"partial".into())
        );
        assert_eq!(
            (&record["prompt_tokens"], &record["completion_tokens"]),
            (&prompts.into(), &completions.into()),
            "{prompt} {n}: {record}"
        );
    }
}

#[tokio::test]
async fn a_retry_is_possible_until_the_first_content() {
    for nothing in [
        "data:\n\n",
        "data: {}\n\n",
        "event: error\ndata: {\"message\":\"out of memory\",\"code\":500}\n\n",
        "data: {\"object\":\"error\",\"message\":\"gone\",\"code\":50001}\n\n",
    ] {
        let (broken, requests) =
            backend(move |_| vec![events(), chunk(nothing), Step::Reset]).await;
        let sim = sim_with(|_| {}).await;
        let more = "routing: {circuit: {enabled: false}}\n";
        let gateway = Gateway::before(&[broken, sim.url()], more).await;
        for _ in 0..10 {
            let answer = gateway.client().await.ask(PATH, chat(true)).await;
            assert!(
                answer.whole && answer.text().ends_with(DONE),
                "{nothing:?}: {}",
                answer.text()
            );
            assert!(!answer.text().contains("error"), "{nothing:?}: {}", answer.text());
        }
        assert!(requests.load(Ordering::SeqCst) > 0, "none has met the broken backend");
    }
}

#[tokio::test]
async fn sdks_read_streams_whose_header_is_wrong() {
    let sim = sim_with(|b| b.content_type = Some(String::new())).await;
    let receiver = Receiver::start().await;
    let gateway = Gateway::before(&[sim.url()], &receiver.hook()).await;
    let h2 = http::builder().http2_prior_knowledge().build().unwrap();
    for n in 1..=2 {
        let body = h2.post(gateway.url(PATH)).body(chat(true)).send().await.unwrap();
        let text = body.text().await.unwrap();
        assert!(text.ends_with(DONE) && !text.contains("usage"), "{text}");
        assert_eq!(receiver.wait_for(n).await.pop().unwrap()["usage_source"], "final");
    }
}
