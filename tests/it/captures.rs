//! Captures of a real vLLM and a real llama.cpp server, split at every position: neither the client's
//! bytes nor the counts depend on the split.

use std::{fs, path::PathBuf};

use bytes::Bytes;
use llmproxy::base::TokenCounts;
use llmproxy::dialect::{
    Meter, Progress,
    openai::stream::{StreamMeter, Strip},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::support::{Gateway, Receiver};

const STRIPS: [Strip; 4] =
    [Strip::Nothing, Strip::Running, Strip::All { nulls: false }, Strip::All { nulls: true }];

/// Name and body of every captured stream of events.
fn captures() -> Vec<(String, Vec<u8>)> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut found = Vec::new();
    for folder in ["vllm", "llamacpp", "vllm-death", "vllm-sigterm"] {
        for file in fs::read_dir(root.join(folder)).unwrap() {
            let path = file.unwrap().path();
            let raw = fs::read(&path).unwrap();
            let Some(end) = memchr::memmem::find(&raw, b"\r\n\r\n") else {
                continue;
            };
            let head = String::from_utf8_lossy(&raw[..end]).to_ascii_lowercase();
            if path.extension().is_some_and(|e| e == "txt") && head.contains("text/event-stream") {
                let name = format!("{folder}/{}", path.file_name().unwrap().display());
                found.push((name, raw[end + 4..].to_vec()));
            }
        }
    }
    found.sort();
    assert!(found.len() >= 30, "only {} captures of streams", found.len());
    found
}

/// The client's bytes and the counts for a stream that arrives in these pieces.
fn run(strip: Strip, stream: &[u8], cuts: &[usize]) -> (Vec<u8>, String) {
    let stream = Bytes::copy_from_slice(stream);
    let (mut meter, mut seen) = (StreamMeter::new(strip), Progress::default());
    let mut out = Vec::new();
    let mut at = 0;
    for cut in cuts.iter().copied().chain([stream.len()]) {
        out.extend_from_slice(&meter.push(stream.slice(at..cut), &mut seen));
        at = cut;
    }
    out.extend_from_slice(&meter.finish(&mut seen));
    let seen = format!(
        "{:?} done {} aborted {} failed {} events {}",
        seen.usage(meter.counts()),
        seen.finished,
        seen.aborted,
        seen.error.is_some(),
        seen.events
    );
    (out, seen)
}

#[test]
fn streams_can_be_split_at_every_position() {
    let mut random = StdRng::seed_from_u64(7);
    for (name, stream) in captures() {
        for strip in STRIPS {
            let whole = run(strip, &stream, &[]);
            if strip == Strip::Nothing {
                assert!(whole.0 == stream, "{name}: changed without a reason");
            }
            // Long streams at random positions, as all positions would take minutes.
            let single: Vec<usize> = match stream.len() {
                len @ ..4000 => (0..=len).collect(),
                len => (0..300).map(|_| random.random_range(0..=len)).collect(),
            };
            for cut in single {
                assert!(run(strip, &stream, &[cut]) == whole, "{name} {strip:?} cut at {cut}");
            }
            for _ in 0..20 {
                let n = random.random_range(2..40);
                let mut cuts: Vec<usize> =
                    (0..n).map(|_| random.random_range(0..=stream.len())).collect();
                cuts.sort_unstable();
                assert!(run(strip, &stream, &cuts) == whole, "{name} {strip:?} cut at {cuts:?}");
            }
        }
    }
}

#[test]
fn streams_can_arrive_byte_by_byte() {
    for (name, stream) in captures().into_iter().filter(|(_, s)| s.len() < 10_000) {
        let cuts: Vec<usize> = (1..stream.len()).collect();
        for strip in STRIPS {
            assert!(run(strip, &stream, &cuts) == run(strip, &stream, &[]), "{name} {strip:?}");
        }
    }
}

#[test]
fn line_ends_may_be_crlf() {
    for (name, stream) in captures().into_iter().filter(|(_, s)| s.len() < 10_000) {
        let crlf = String::from_utf8(stream.clone()).unwrap().replace('\n', "\r\n").into_bytes();
        for strip in STRIPS {
            let (out, seen) = run(strip, &crlf, &[]);
            let (plain, plain_seen) = run(strip, &stream, &[]);
            assert_eq!(seen, plain_seen, "{name}");
            let back = String::from_utf8(out.clone()).unwrap().replace("\r\n", "\n");
            assert_eq!(back.as_bytes(), plain, "{name}");
            for cut in (0..crlf.len()).step_by(7) {
                assert!(run(strip, &crlf, &[cut]).0 == out, "{name} {strip:?} cut at {cut}");
            }
        }
    }
}

/// The members of the last chunk of a choice, in order.
fn last_chunk(stream: &str) -> Vec<String> {
    let event = stream.split("\n\n").filter(|e| e.contains("finish_reason\":\"")).last().unwrap();
    let value: serde_json::Value =
        serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
    value.as_object().unwrap().keys().cloned().collect()
}

#[test]
fn a_stripped_stream_looks_like_one_without_usage() {
    let all = captures();
    let find = |name: &str| {
        let (_, stream) = all.iter().find(|(n, _)| n == name).unwrap();
        stream.clone()
    };
    for engine in ["vllm", "llamacpp"] {
        let plain = String::from_utf8(find(&format!("{engine}/chat_stream.txt"))).unwrap();
        for asked in ["chat_stream_usage", "chat_stream_continuous_usage"] {
            let stream = find(&format!("{engine}/{asked}.txt"));
            let (out, seen) = run(Strip::All { nulls: false }, &stream, &[]);
            let out = String::from_utf8(out).unwrap();
            assert!(
                !out.contains("\"usage\"") && !out.contains("\"choices\":[]"),
                "{engine} {asked}"
            );
            assert!(seen.contains("Final"), "{engine} {asked}: {seen}");
            // vLLM moves `system_fingerprint` to the usage chunk, llama.cpp `timings`.
            assert_eq!(last_chunk(&out), last_chunk(&plain), "{engine} {asked}");
        }
    }
}

#[test]
fn captures_have_the_right_counts() {
    let counted = |name: &str| {
        let (_, stream) = captures().into_iter().find(|(n, _)| n == name).unwrap();
        run(Strip::Nothing, &stream, &[]).1
    };
    for (name, cached) in [("vllm", None), ("llamacpp", Some(20))] {
        let counts =
            TokenCounts { prompt: 21, completion: 12, total: 33, cached, ..TokenCounts::default() };
        let usage = format!("({counts:?}, Final) done true aborted false failed false");
        assert!(counted(&format!("{name}/chat_stream_usage.txt")).starts_with(&usage));
    }
    assert!(
        counted("vllm/chat_long_stream.txt").contains("prompt: 16, completion: 485, total: 501")
    );
    // llama.cpp reports usage per choice, vLLM for both.
    for name in ["vllm", "llamacpp"] {
        let both = counted(&format!("{name}/chat_stream_n2.txt"));
        assert!(both.contains("prompt: 21, completion: 8, total: 29"), "{name}: {both}");
    }
    assert!(counted("vllm/chat_stream.txt").contains("None) done true"));
    assert!(counted("vllm-sigterm/stream.txt").contains("aborted true"));
    assert!(counted("vllm-death/stream_when_engine_killed.txt").contains("failed true"));
}

/// A server that responds to one request per connection with a captured stream, in pieces.
async fn replay(stream: Vec<u8>, cuts: Vec<usize>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let (stream, cuts) = (stream.clone(), cuts.clone());
            tokio::spawn(async move {
                // Head and body arrive separately; unread data would reset the connection.
                let mut request = Vec::new();
                while !request.ends_with(b"}") {
                    socket.read_buf(&mut request).await.unwrap();
                }
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
                socket.write_all(head.as_bytes()).await.unwrap();
                let mut at = 0;
                for cut in cuts.into_iter().chain([stream.len()]) {
                    if cut == at {
                        continue;
                    }
                    let mut piece = format!("{:x}\r\n", cut - at).into_bytes();
                    piece.extend_from_slice(&stream[at..cut]);
                    piece.extend_from_slice(b"\r\n");
                    socket.write_all(&piece).await.unwrap();
                    tokio::task::yield_now().await;
                    at = cut;
                }
                socket.write_all(b"0\r\n\r\n").await.unwrap();
            });
        }
    });
    url
}

#[tokio::test]
async fn captures_pass_through_the_gateway() {
    let mut random = StdRng::seed_from_u64(11);
    let streams: Vec<_> = captures()
        .into_iter()
        .filter(|(name, _)| !name.contains("anthropic") && !name.contains("responses"))
        .collect();
    let mut backends = String::from("backends:\n");
    for (name, stream) in &streams {
        let mut cuts: Vec<usize> = (0..30).map(|_| random.random_range(0..=stream.len())).collect();
        cuts.sort_unstable();
        let url = replay(stream.clone(), cuts).await;
        backends.push_str(&format!("  - url: \"{url}\"\n    models: [\"{name}\"]\n"));
    }
    let receiver = Receiver::start().await;
    let gateway = Gateway::start(&format!("{backends}{}", receiver.hook())).await;
    for (n, (name, stream)) in streams.iter().enumerate() {
        for (options, strip) in [
            ("", Strip::All { nulls: false }),
            (r#","stream_options":{"include_usage":true}"#, Strip::Running),
            (
                r#","stream_options":{"include_usage":true,"continuous_usage_stats":true}"#,
                Strip::Nothing,
            ),
        ] {
            let body = format!(r#"{{"model":"{name}","messages":[],"stream":true{options}}}"#);
            let answer = gateway.client().await.ask("/v1/chat/completions", body).await;
            assert_eq!(answer.status, 200);
            let expected = run(strip, stream, &[]).0;
            let same = answer.body.iter().zip(&expected).take_while(|(a, b)| a == b).count();
            let from = |bytes: &[u8]| {
                let part = &bytes[same.saturating_sub(100)..bytes.len().min(same + 200)];
                String::from_utf8_lossy(part).into_owned()
            };
            assert!(
                answer.body == expected,
                "{name} {strip:?} differs at {same} of {}:\n{}\n---\n{}",
                expected.len(),
                from(&answer.body),
                from(&expected)
            );
        }
        let records = receiver.wait_for(3 * (n + 1)).await;
        let totals: Vec<_> = records[3 * n..].iter().map(|r| r["total_tokens"].clone()).collect();
        assert!(totals.iter().all(|t| *t == totals[0]), "{name}: {totals:?}");
        let outcome = if name.contains("death") || name.contains("sigterm") {
            "upstream_error"
        } else {
            "complete"
        };
        assert!(records[3 * n..].iter().all(|r| r["outcome"] == outcome), "{name}: {records:?}");
    }
}
