//! Every fault of a backend with every strategy: the client gets a complete response if there is a healthy
//! backend and no content was sent before the fault. Nothing is sent twice, nothing leaks.

use std::{cell::Cell, collections::HashMap};

use futures::future::join_all;
use llmproxy::sim::Sim;
use serde_json::{Value, json};

use crate::support::{
    Client, Gateway, Receiver,
    client::Response,
    eventually,
    faults::{Fault, at_rest, fleet, heal, tries_of, urls},
    free_address, http,
};

const PATH: &str = "/v1/chat/completions";
const TOKEN: &str = "a-token-for-tests";
/// Tokens per response.
const TOKENS: u64 = 8;
/// Concurrent requests.
const AT_ONCE: usize = 6;
/// The number of rounds within which every strategy uses every backend.
const MOST: usize = 500;

macro_rules! tests {
    ($($strategy:ident)*) => {
        $(
            #[tokio::test]
            async fn $strategy() {
                super::matrix(stringify!($strategy)).await;
            }
        )*
    };
}

/// One test for each strategy.
mod strategies {
    tests!(round_robin least_connections latency_based random p2c consistent_hash prefix_affinity least_load);
}

/// Tests every fault at one of two, one of three and two of three backends.
async fn matrix(strategy: &str) {
    let stages = [(2, 1, false), (2, 1, true), (3, 1, false), (3, 1, true), (3, 2, false)];
    join_all(stages.map(async |(n, faulty, silent)| {
        let stage = Stage::new(strategy, n, faulty, silent).await;
        for fault in Fault::ALL.into_iter().filter(|f| f.is_silence() == silent) {
            stage.survives(fault).await;
        }
        stage.accounts_for_everything().await;
    }))
    .await;
}

/// A gateway with backends, the first of which can be made to fail.
struct Stage {
    name: String,
    sims: Vec<Sim>,
    faulty: usize,
    gateway: Gateway,
    admin: String,
    receiver: Receiver,
    /// The response of a healthy backend: plain, and as a stream.
    right: [String; 2],
    asked: Cell<u64>,
    records: std::cell::RefCell<HashMap<String, Value>>,
    _folder: tempfile::TempDir,
}

impl Stage {
    async fn new(strategy: &str, n: usize, faulty: usize, silent: bool) -> Self {
        let sims = fleet(n, |b| {
            (b.tokens, b.slow_ms, b.inter_token_ms) = (TOKENS, 30, 1);
            b.models =
                Fault::ALL.iter().flat_map(|f| [model(*f, true), model(*f, false)]).collect();
        })
        .await;
        let (receiver, folder) = (Receiver::start().await, tempfile::tempdir().unwrap());
        let admin = free_address().to_string();
        let wait = if silent { "400ms" } else { "1m" };
        let more = format!(
            "routing:
  load_balance_strategy: {strategy}
  circuit: {{enabled: false}}
  load: {{interval: 100ms}}
  retry: {{budget: {{ratio: 1, min_per_second: 1000}}}}
timeouts: {{first_byte: {wait}, first_token: {wait}, between_chunks: {wait}}}
admin: {{enabled: true, listen: \"{admin}\", token: {TOKEN}, db_path: \"{}\"}}
{}",
            folder.path().join("keys.db").display(),
            receiver.hook(),
        );
        let gateway = Gateway::before(&urls(&sims), &more).await;
        let mut direct = Client::connect(sims[0].address).await;
        let mut right = [String::new(), String::new()];
        for stream in [false, true] {
            let model = model(Fault::Slow, stream);
            let body = body(&model, 0, stream);
            direct.post_with(PATH, "X-Request-Id: r\r\n", body.as_bytes()).await;
            right[usize::from(stream)] = comparable(&direct.answer().await, "r", &model);
        }
        let name = format!("{strategy}, {faulty} of {n}");
        let (asked, records) = (Cell::new(0), HashMap::new().into());
        #[rustfmt::skip]
        return Self { name, sims, faulty, gateway, admin, receiver, right, asked, records, _folder: folder };
    }

    /// Sends requests until the faulty backends were used.
    async fn survives(&self, fault: Fault) {
        for sim in &self.sims[..self.faulty] {
            fault.befall(sim).await;
        }
        for stream in [true, false] {
            let refused = self.refused().await;
            for n in 0.. {
                assert!(n < MOST, "{}: {fault:?}: the backend is never asked", self.name);
                // Concurrently, as some strategies prefer backends without requests.
                let hits = join_all((0..AT_ONCE).map(|_| self.ask(fault, stream))).await;
                let hit = match fault {
                    Fault::Refuse => self.refused().await > refused,
                    _ => hits.contains(&true),
                };
                if hit {
                    break;
                }
            }
        }
        self.sims.iter().for_each(heal);
        at_rest(&self.sims).await;
        self.nothing_in_flight().await;
    }

    async fn refused(&self) -> f64 {
        self.gateway.metric("llmproxy_retries_total{reason=\"connect_failure\"}").await
    }

    /// Sends one request; `true` if a faulty backend was used.
    async fn ask(&self, fault: Fault, stream: bool) -> bool {
        let number = self.asked.replace(self.asked.get() + 1);
        let id = format!("request-{number}");
        let headers = format!("X-Request-Id: {id}\r\nX-Session-ID: {number}\r\n");
        let model = model(fault, stream);
        let mut client = self.gateway.client().await;
        client.post_with(PATH, &headers, body(&model, number, stream).as_bytes()).await;
        let answer = client.answer().await;
        let attempts = tries_of(&self.sims, &id);
        let hit = attempts[..self.faulty].iter().any(|n| *n > 0);
        let moved = attempts.iter().filter(|n| **n > 0).count() > 1;
        let case = format!(
            "{}: {fault:?}, stream {stream}, attempts {attempts:?}:\n{}",
            self.name,
            String::from_utf8_lossy(&answer.body)
        );
        assert!(answer.whole, "{case}");
        let got = comparable(&answer, &id, &model);
        let right = &self.right[usize::from(stream)];
        let record = if answer.status == 404 {
            assert!(fault == Fault::NoModel && hit, "{case}");
            ("rejected", 404, 0)
        } else if stream && hit && fault.is_after_content() {
            assert_eq!(answer.status, 200, "{case}");
            if fault == Fault::DieMidStream && moved {
                // A reset can discard content that was not read yet.
                assert_eq!(&got, right, "{case}");
                ("complete", 200, TOKENS)
            } else {
                assert!(!moved, "a second backend was asked. {case}");
                ("upstream_error", 200, broken(fault, &got, right, &case))
            }
        } else {
            assert_eq!(answer.status, 200, "{case}");
            assert_eq!(&got, right, "{case}");
            ("complete", 200, TOKENS)
        };
        let (outcome, status, completion) = record;
        let record = json!({"outcome": outcome, "status": status, "completion": completion});
        self.records.borrow_mut().insert(id, record);
        hit
    }

    async fn nothing_in_flight(&self) {
        let url = format!("http://{}/admin/v1/backends", self.admin);
        let client = http::client();
        eventually(&format!("{}: nothing is in flight", self.name), async || {
            let asked = client.get(&url).header("X-Admin-Token", TOKEN).send().await.unwrap();
            let listed: Value = serde_json::from_str(&asked.text().await.unwrap()).unwrap();
            let all = listed["backends"].as_array().unwrap();
            all.len() == self.sims.len() && all.iter().all(|b| b["in_flight"] == 0)
        })
        .await;
    }

    /// Checks that each request has one correct record.
    async fn accounts_for_everything(&self) {
        let expected = self.records.take();
        let records = self.receiver.wait_for(expected.len()).await;
        let prompt =
            serde_json::from_str::<Value>(&self.right[0]).unwrap()["usage"]["prompt_tokens"]
                .clone();
        let mut seen = HashMap::new();
        for record in &records {
            let id = record["request_id"].as_str().unwrap();
            assert!(seen.insert(id, ()).is_none(), "{}: two records of {id}", self.name);
            let got = json!({"outcome": record["outcome"], "status": record["status_code"],
                             "completion": record["completion_tokens"]});
            assert_eq!(got, expected[id], "{}: {id}: {record}", self.name);
            if record["outcome"] == "complete" {
                assert_eq!(record["prompt_tokens"], prompt, "{record}");
            }
        }
        // Includes the request for the metrics itself.
        assert_eq!(self.gateway.metric("llmproxy_requests_in_flight").await, 1.0, "{}", self.name);
    }
}

/// Each fault has its own models, as a backend is ejected per model.
fn model(fault: Fault, stream: bool) -> String {
    format!("{fault:?}-{stream}")
}

/// A unique request of constant length.
fn body(model: &str, number: u64, stream: bool) -> String {
    let prompt = format!("{number:06} ").repeat(100);
    json!({"model": model, "stream": stream, "messages": [{"role": "user", "content": prompt}]})
        .to_string()
}

/// A response without the parts that differ between requests.
fn comparable(answer: &Response, id: &str, model: &str) -> String {
    let text = answer.text().replace(&format!("\"chatcmpl-{id}\""), "\"ID\"");
    let text = text.replace(&format!("\"{model}\""), "\"MODEL\"");
    let mut parts = text.split("\"created\":");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str("\"created\":0");
        text.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    text
}

/// Checks a stream that failed after some content: the content is right, and an error ends it. Returns
/// the number of tokens.
fn broken(fault: Fault, got: &str, right: &str, case: &str) -> u64 {
    let events = |text: &str| {
        text.split_terminator("\n\n")
            .map(|e| e.strip_prefix("data: ").unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let (got, right) = (events(got), events(right));
    let same = got.iter().zip(&right).take_while(|(a, b)| a == b).count();
    assert!(same > 1, "content came. {case}");
    let rest = &got[same..];
    let event: Value = serde_json::from_str(&rest[0]).unwrap();
    let tokens = same as u64 - 1;
    let error = &event["error"];
    match fault {
        // An error event of the engine passes unchanged.
        Fault::AbortMidStream => {
            assert_eq!(event["choices"][0]["finish_reason"], "abort", "{case}");
            assert_eq!(rest[1..], ["[DONE]"], "{case}");
            tokens + 1
        }
        Fault::ErrorMidStream => {
            assert_eq!(error["type"], "InternalServerError", "{case}");
            assert_eq!(rest[1..], ["[DONE]"], "{case}");
            tokens
        }
        _ => {
            let code = if fault.is_silence() { "backend_timeout" } else { "backend_failed" };
            assert_eq!(error["code"], code, "{case}");
            assert!(error["message"].is_string() && error["type"].is_string(), "{case}");
            assert_eq!(rest.len(), 1, "{case}");
            tokens
        }
    }
}
