//! The simulated backend itself: what the other tests take for granted.

mod captures;
mod languages;
mod replies;

use std::time::Duration;

use llmproxy::sim::{Fail, Load, Sim};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{
    Client, PATIENCE, chat, chat_of, eventually,
    faults::{Fault, at_rest, fleet, heal, tries_of, urls},
    sim_with,
};

const PATH: &str = "/v1/chat/completions";
/// Longer than any test.
const EVER: u64 = 3_600_000;

/// How a backend answers, in words: the status, then the events of a stream or how much of a plain
/// answer came, then how the connection ended. Who is silent is waited for as long as is given.
/// `read` says what is in a body: of a stream (`true`), or of a whole plain answer.
async fn answer_in_words(
    sim: &Sim,
    (path, body): (&str, &str),
    silence: Option<Duration>,
    read: impl Fn(&str, bool) -> Vec<&'static str>,
) -> String {
    let Ok(mut socket) = TcpStream::connect(sim.address).await else {
        return "refused".to_owned();
    };
    let head = format!("POST {path} HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len());
    socket.write_all((head + body).as_bytes()).await.unwrap();
    let mut raw = Vec::new();
    let end = loop {
        match timeout(silence.unwrap_or(PATIENCE), socket.read_buf(&mut raw)).await {
            Err(_) if silence.is_some() => break "silence",
            Err(_) => panic!("no end: {}", String::from_utf8_lossy(&raw)),
            Ok(Ok(0)) => break "closed",
            Ok(Ok(_)) => {}
            Ok(Err(_)) => break "reset",
        }
    };
    let raw = String::from_utf8(raw).unwrap();
    let Some((head, body)) = raw.split_once("\r\n\r\n") else {
        return end.to_owned();
    };
    let status = head.split(' ').nth(1).unwrap();
    let words = match head.split_once("content-length: ") {
        None => read(body, true),
        Some((_, length)) => {
            let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
            match body.len() {
                0 => vec!["nothing"],
                n if n < length => vec!["part"],
                _ => read(body, false),
            }
        }
    };
    format!("{status} {} {end}", words.join(" ")).replace("  ", " ")
}

/// The same in Chat.
async fn chat_in_words(sim: &Sim, stream: bool, silence: Option<Duration>) -> String {
    let body = chat(stream);
    answer_in_words(sim, (PATH, &body), silence, |body, stream| match stream {
        true => body.lines().filter_map(|line| Some(event(line.strip_prefix("data: ")?))).collect(),
        false => vec![event(body)],
    })
    .await
}

fn event(text: &str) -> &'static str {
    let Ok(event) = serde_json::from_str::<serde_json::Value>(text) else {
        return "done";
    };
    let choice = &event["choices"][0];
    match choice["finish_reason"].as_str() {
        _ if !event["error"].is_null() => "error",
        Some("abort") => "abort",
        Some(_) => "stop",
        None if !choice["delta"]["role"].is_null() => "role",
        None => "content",
    }
}

/// How a fault looks to a client, in the words of [`answer_in_words`]: of a stream and of a plain answer.
fn look(fault: Fault) -> [&'static str; 2] {
    match fault {
        Fault::Refuse => ["refused", "refused"],
        Fault::Reset => ["reset", "reset"],
        Fault::DieAfterHeaders => ["200 closed", "200 nothing reset"],
        Fault::DieBeforeContent => ["200 role reset", "200 part reset"],
        Fault::DieMidStream => ["200 role content content reset", "200 part closed"],
        Fault::ErrorFirst => ["200 error done closed", "500 error closed"],
        Fault::ErrorAfterRole => ["200 role error done closed", "500 error closed"],
        Fault::ErrorMidStream => ["200 role content content error done closed", "500 error closed"],
        Fault::AbortBeforeContent => ["200 role abort done closed", "200 abort closed"],
        Fault::AbortMidStream => ["200 role content content abort done closed", "200 abort closed"],
        Fault::Busy | Fault::Backlog | Fault::Paused | Fault::Scaling => {
            ["503 error closed", "503 error closed"]
        }
        Fault::Dead => ["500 error closed", "500 error closed"],
        Fault::TooMany => ["429 error closed", "429 error closed"],
        Fault::NoModel => ["404 error closed", "404 error closed"],
        Fault::WedgeBeforeHeaders => ["silence", "silence"],
        Fault::WedgeAfterHeaders => ["200 silence", "200 nothing silence"],
        Fault::WedgeBeforeContent => ["200 role silence", "200 part silence"],
        Fault::WedgeMidStream => ["200 role content content silence", "200 part silence"],
        Fault::Slow => WELL,
    }
}

#[tokio::test]
async fn every_fault_is_what_it_is_called() {
    for fault in Fault::ALL {
        let sim = sim_with(|b| {
            (b.tokens, b.keep_alive_ms, b.slow_ms) = (4, 20, 30);
        })
        .await;
        fault.befall(&sim).await;
        let expected = look(fault);
        for (stream, expected) in [(true, expected[0]), (false, expected[1])] {
            if fault.is_silence() {
                // Silence is only a guess, on a machine that is slow a bad one.
                let mut patience = Duration::from_millis(50);
                eventually(expected, async || {
                    patience *= 2;
                    chat_in_words(&sim, stream, Some(patience)).await == expected
                })
                .await;
            } else {
                let words = chat_in_words(&sim, stream, None).await;
                assert_eq!(words, expected, "{fault:?} {stream}");
            }
        }
        let content = expected[0].contains("content") && fault != Fault::Slow;
        assert_eq!(content, fault.is_after_content(), "{fault:?}");
        assert_eq!(sim.stats().completed(), if fault == Fault::Slow { 2 } else { 0 });
        eventually("all has ended", async || sim.stats().open() == 0).await;
        heal(&sim);
        assert_eq!(chat_in_words(&sim, true, None).await, WELL[0], "{fault:?}");
    }
}

const WELL: [&str; 2] = ["200 role content content content stop done closed", "200 stop closed"];

#[tokio::test]
async fn a_backend_that_refuses_comes_back_at_its_address() {
    let sims = fleet(2, |b| b.keep_alive_ms = EVER).await;
    let mut client = Client::connect(sims[0].address).await;
    assert_eq!(client.ask(PATH, chat(false)).await.status, 200);
    Fault::Refuse.befall(&sims[0]).await;
    // Once more changes nothing.
    Fault::Refuse.befall(&sims[0]).await;
    assert!(client.chunk().await.is_none(), "connections that were open are cut");
    assert!(TcpStream::connect(sims[0].address).await.is_err());
    assert!(TcpStream::connect(sims[1].address).await.is_ok(), "the other one is not concerned");
    heal(&sims[0]);
    let mut client = Client::connect(sims[0].address).await;
    assert_eq!(client.ask(PATH, chat(false)).await.status, 200);
    assert_eq!(sims[0].stats().requests(), 2);
}

#[tokio::test]
async fn only_some_requests_fail_if_so_wanted() {
    let sim = sim_with(|b| {
        b.models.push("other".to_owned());
        (b.fail, b.fail_first, b.fail_model) = (Fail::Busy, 2, "other".to_owned());
    })
    .await;
    let mut client = Client::connect(sim.address).await;
    let mut statuses = async |model: &str| {
        let mut all = Vec::new();
        for _ in 0..3 {
            let answer = client.ask(PATH, chat(false).replace("sim-model", model)).await;
            all.push(answer.status);
        }
        all
    };
    assert_eq!(statuses("sim-model").await, [200, 200, 200]);
    assert_eq!(statuses("other").await, [503, 503, 200]);
    sim.change(|b| (b.fail_first, b.fail_model) = (1, String::new()));
    assert_eq!(statuses("sim-model").await, [503, 200, 200], "counted anew after a change");
    let stats = sim.stats();
    assert_eq!((stats.requests_for("sim-model"), stats.requests_for("other")), (6, 3));
    assert_eq!((stats.requests(), stats.completed()), (9, 6));
}

#[tokio::test]
async fn who_served_a_request_is_known_by_its_id() {
    let sims = fleet(3, |_| {}).await;
    assert_eq!(urls(&sims)[2], sims[2].url());
    let mut client = Client::connect(sims[1].address).await;
    for id in ["a", "b", "b"] {
        let id = format!("X-Request-Id: {id}\r\n");
        client.post_with(PATH, &id, chat(false).as_bytes()).await;
        client.answer().await;
    }
    at_rest(&sims).await;
    assert_eq!(tries_of(&sims, "b"), [0, 2, 0]);
    assert_eq!(tries_of(&sims, "c"), [0, 0, 0]);
    assert_eq!(sims[1].stats().recent()[0].header("x-request-id"), Some("a"));
}

/// A chat whose prompt has exactly so many blocks.
fn chat_of_blocks(blocks: usize, more: &str) -> String {
    let content = "c".repeat(64 * blocks - r#"[{"role":"user","content":""}]"#.len());
    format!(r#"{{"model":"sim-model","messages":[{{"role":"user","content":"{content}"}}]{more}}}"#)
}

#[tokio::test]
async fn a_prompt_that_is_known_is_not_read_again() {
    let sim = sim_with(|b| (b.prefix_cache, b.prompt_tokens_details) = (100, true)).await;
    let mut client = Client::connect(sim.address).await;
    let mut cached = async |body: String| {
        let answer = client.ask(PATH, &body).await.json();
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64()
    };
    assert_eq!(cached(chat_of_blocks(4, "")).await, None);
    assert_eq!(cached(chat_of_blocks(4, "")).await, Some(64));
    assert_eq!(cached(chat_of_blocks(8, "")).await, Some(48), "the last block has its own end");
    assert_eq!(cached(chat_of_blocks(4, r#","cache_salt":"a""#)).await, None);
    // From now on whoever has to read anything takes for ever.
    sim.change(|b| b.prefill_ms_per_kb = EVER * 1000);
    assert_eq!(cached(chat_of_blocks(8, "")).await, Some(128));
    let all = 65 + 65 + 129 + 65 + 129;
    assert_eq!(sim.stats().cached(), (64 + 48 + 128, all));
    let mut new = Client::connect(sim.address).await;
    let text = new.get("/metrics").await;
    let hits = "\nvllm:prefix_cache_hits_total{engine=\"0\",model_name=\"sim-model\"} 240.0\n";
    assert!(text.text().contains(hits), "{}", text.text());
    sim.forget();
    new.post(PATH, chat_of_blocks(8, "")).await;
    eventually("it reads", async || sim.stats().running() == 1).await;
    drop(new);
    eventually("it is let go", async || sim.stats().aborted() == 1).await;
}

#[tokio::test]
async fn who_finds_no_place_waits_for_one() {
    let sim = sim_with(|b| (b.max_running, b.inter_token_ms) = (1, EVER)).await;
    let stats = sim.stats();
    let mut first = Client::connect(sim.address).await;
    first.post(PATH, chat(true)).await;
    eventually("the first runs", async || stats.running() == 1).await;
    let mut others = Vec::new();
    for waiting in 1..=3 {
        let mut client = Client::connect(sim.address).await;
        client.post(PATH, chat(waiting == 2)).await;
        others.push(client);
        eventually("another waits", async || stats.waiting() == waiting).await;
    }
    assert_eq!(others[1].head().await.status, 200, "a stream's head does not wait");
    assert_eq!((stats.running(), stats.open()), (1, 4));
    let text = Client::connect(sim.address).await.get("/metrics").await;
    for line in [
        "num_requests_running{engine=\"0\",model_name=\"sim-model\"} 1.0\n",
        "num_requests_waiting{engine=\"0\",model_name=\"sim-model\"} 3.0\n",
        "kv_cache_usage_perc{engine=\"0\",model_name=\"sim-model\"} 1.0\n",
    ] {
        assert!(text.text().contains(line), "{}", text.text());
    }
    drop(others.pop());
    eventually("who leaves waits no more", async || stats.waiting() == 2).await;
    drop(first);
    eventually("the next runs", async || (stats.running(), stats.waiting()) == (1, 1)).await;
    drop(others);
    eventually("all have ended", async || stats.open() == 0).await;
    assert_eq!(stats.aborted(), 4);
}

#[tokio::test]
async fn load_is_told_in_a_header_of_plain_answers_only() {
    let load = Load { running: 1, waiting: 7, kv_cache_usage: 0.25 };
    let sim = sim_with(|b| b.reports = Some(load)).await;
    let mut client = Client::connect(sim.address).await;
    for stream in [false, true] {
        let ask = "endpoint-load-metrics-format: TEXT\r\n";
        client.post_with(PATH, ask, chat(stream).as_bytes()).await;
        let told = "TEXT named_metrics.kv_cache_usage_perc=0.25, \
                    named_metrics.num_requests_waiting=7.0";
        let answer = client.answer().await;
        assert_eq!(answer.header("endpoint-load-metrics"), (!stream).then_some(told));
    }
}

#[tokio::test]
async fn refusals_have_the_words_of_vllm() {
    let sim = sim_with(|b| b.retry_after = 3).await;
    let mut client = Client::connect(sim.address).await;
    let mut told = async |fault: Fault| {
        fault.befall(&sim).await;
        client.ask(PATH, chat(true)).await
    };
    let busy = told(Fault::Busy).await.json();
    assert_eq!(busy["error"]["type"], "Service Unavailable");
    let backlog = told(Fault::Backlog).await.json();
    assert!(backlog["error"]["message"].as_str().unwrap().contains("prefill token backlog limit"));
    assert_eq!(told(Fault::Paused).await.json()["error"]["type"], "ServiceUnavailableError");
    let scaling = told(Fault::Scaling).await.json();
    assert_eq!(scaling["error"], "The model is currently scaling. Please try again later.");
    assert_eq!(told(Fault::NoModel).await.json()["error"]["type"], "NotFoundError");
    let limited = told(Fault::TooMany).await;
    assert_eq!(limited.header("retry-after"), Some("3"));
}

#[tokio::test]
async fn several_choices_are_given() {
    let sim = sim_with(|b| b.tokens = 3).await;
    let mut client = Client::connect(sim.address).await;
    let several = |stream| chat(stream).replace("\"messages\"", "\"n\":2,\"messages\"");
    let answer = client.ask(PATH, several(false)).await.json();
    assert_eq!(answer["choices"].as_array().unwrap().len(), 2);
    assert_eq!(answer["choices"][1]["index"], 1);
    assert_eq!(answer["usage"]["completion_tokens"], 6);
    let asked = several(true).replace("\"n\"", "\"stream_options\":{\"include_usage\":true},\"n\"");
    let answer = client.ask(PATH, asked).await;
    let text = answer.text();
    assert_eq!(text.matches("\"index\":1").count(), 4, "{text}");
    assert!(text.contains("\"completion_tokens\":6"), "{text}");
}

#[tokio::test]
async fn large_requests_are_remembered_too() {
    let sim = sim_with(|_| {}).await;
    let body = chat_of(1 << 20, false);
    Client::connect(sim.address).await.ask(PATH, &body).await;
    assert_eq!(sim.stats().last().unwrap().body, body);
}
