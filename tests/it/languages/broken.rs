//! What breaks after content has gone out: the client gets the end that its own language has for
//! that, once, and no other backend is asked.

use futures::future::join_all;
use llmproxy::sim::Fail;
use serde_json::{Value, json};

use super::{
    Heard, LANGUAGES, ONCE, PATIENT, about, ask, before, first_and_second, hear, models, path,
    request, speaker,
};
use crate::support::{
    Gateway, Receiver, eventually,
    faults::{Fault, at_rest, heal, tries_of},
};

const TOKENS: u64 = 8;

/// The faults after content, with the code of OpenAI's languages and the type of Messages.
const AFTER: [(Fault, &str, &str); 4] = [
    (Fault::DieMidStream, "backend_failed", "api_error"),
    (Fault::ErrorMidStream, "server_error", "api_error"),
    (Fault::AbortMidStream, "server_error", "api_error"),
    (Fault::WedgeMidStream, "backend_timeout", "timeout_error"),
];

#[tokio::test]
async fn a_stream_that_breaks_ends_as_the_clients_language_has_it() {
    join_all(LANGUAGES.map(breaks)).await;
}

async fn breaks(backend: &str) {
    let sims = [
        speaker(backend, |b| (b.tokens, b.inter_token_ms) = (TOKENS, 5)).await,
        speaker("chat", |b| b.tokens = TOKENS).await,
    ];
    let receiver = Receiver::start().await;
    let text = format!(
        "{}{PATIENT}timeouts: {{between_chunks: 700ms}}\n{}",
        first_and_second((&sims[0].url(), backend), (&sims[1].url(), "chat")),
        receiver.hook(),
    );
    let gateway = Gateway::start(&text).await;
    let mut sent = 0;
    for (fault, code, kind) in AFTER {
        fault.befall(&sims[0]).await;
        for client in LANGUAGES {
            let id = format!("{fault:?}-{client}");
            let head = format!("X-Request-Id: {id}\r\n");
            let answer = ask(&gateway, client, &head, &request(client, true)).await;
            sent += 1;
            let case = format!("{backend} to {client}, {fault:?}: {}", answer.text());
            assert_eq!(answer.status, 200, "{case}");
            let heard = hear(client, true, &answer);
            let tries = tries_of(&sims, &id);
            let records = receiver.wait_for(sent).await;
            let record = records.iter().find(|r| r["request_id"] == id.as_str()).unwrap();
            if fault == Fault::DieMidStream && tries[1] > 0 {
                // A reset can discard content that was not read yet.
                assert!(heard.is_complete(TOKENS), "{case}");
                continue;
            }
            assert_eq!(tries, [1, 0], "no other is asked. {case}");
            assert!(!heard.text.is_empty() && heard.text.starts_with("Hello"), "{case}");
            if backend == client {
                natively_broken(client, fault, &heard, &case);
            } else {
                assert!(!heard.open, "what was open is closed. {case}");
                assert_eq!(heard.done, client == "chat", "{case}");
                assert_eq!(heard.end, None, "{case}");
                let error = heard.error.as_ref().unwrap_or_else(|| panic!("{case}"));
                is_worded(client, error, code, kind, &case);
            }
            assert_eq!(record["outcome"], "upstream_error", "{case}\n{record}");
            assert_eq!((&record["status_code"], &record["tries"]), (&json!(200), &json!(1)));
            assert!(
                record["prompt_tokens"].as_u64() > Some(0) || backend == "responses",
                "{case}\n{record}"
            );
            let completion = record["completion_tokens"].as_u64().unwrap();
            if backend == "chat" {
                let words = heard.tokens();
                // The engine counts its last token too, which is not shown where it broke off.
                assert!((words..=words + 1).contains(&completion), "{case}\n{record}");
            }
        }
        heal(&sims[0]);
    }
    at_rest(&sims).await;
    assert_eq!(receiver.all().len(), sent, "one record for each");
}

/// The error of a translated stream, or one of the gateway's own.
fn is_worded(client: &str, error: &Value, code: &str, kind: &str, case: &str) {
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{case}");
    match client {
        "chat" => {
            // Where the backend has said no code that is a word, Chat has one.
            let codes = if code == "server_error" { ["backend_failed", code] } else { [code; 2] };
            assert_eq!(error["type"], "server_error", "{case}");
            assert!(codes.contains(&error["code"].as_str().unwrap()), "{case}");
            assert_eq!(error.get("param"), Some(&Value::Null), "{case}");
        }
        "messages" => assert_eq!(error["type"], kind, "{case}"),
        _ => assert_eq!(error["code"], code, "{case}"),
    }
}

/// On the way without a translation the backend's own words pass.
fn natively_broken(client: &str, fault: Fault, heard: &Heard, case: &str) {
    match fault {
        Fault::ErrorMidStream => {
            let error = heard.error.as_ref().unwrap_or_else(|| panic!("{case}"));
            let own = match client {
                "chat" => &error["type"] == "InternalServerError",
                "messages" => &error["type"] == "internal_error",
                _ => error["message"].is_string(),
            };
            assert!(own, "{case}");
        }
        Fault::AbortMidStream => assert!(heard.error.is_none(), "{case}"),
        _ => {
            let error = heard.error.as_ref().unwrap_or_else(|| panic!("{case}"));
            let silent = fault.is_silence();
            let code = if silent { "backend_timeout" } else { "backend_failed" };
            let kind = if silent { "timeout_error" } else { "api_error" };
            is_worded(client, error, code, kind, case);
        }
    }
}

#[tokio::test]
async fn a_plain_answer_that_breaks_is_an_error_in_the_clients_language() {
    for backend in LANGUAGES {
        let sim = speaker(backend, |b| (b.tokens, b.models) = (TOKENS, models(100))).await;
        let receiver = Receiver::start().await;
        let more = format!(
            "{ONCE}timeouts: {{first_byte: 700ms, first_token: 700ms, between_chunks: 700ms}}\n{}",
            receiver.hook()
        );
        let gateway = before(&sim.url(), backend, &more).await;
        let mut sent = 0;
        for fault in Fault::ALL.into_iter().filter(|f| *f != Fault::Slow) {
            fault.befall(&sim).await;
            for client in LANGUAGES.into_iter().filter(|client| *client != backend) {
                let body = about(request(client, false), &format!("model-{sent}"));
                let answer = ask(&gateway, client, "", &body).await;
                sent += 1;
                let case = format!("{backend} to {client}, {fault:?}: {answer:?}");
                assert!(answer.whole, "{case}");
                let status = match fault {
                    Fault::Busy | Fault::Backlog | Fault::Paused | Fault::Scaling => {
                        if client == "messages" { 529 } else { 503 }
                    }
                    Fault::TooMany => 429,
                    Fault::NoModel => 404,
                    Fault::Dead
                    | Fault::ErrorFirst
                    | Fault::ErrorAfterRole
                    | Fault::ErrorMidStream => 500,
                    fault if fault.is_silence() => 504,
                    _ => 502,
                };
                assert_eq!(answer.status, status, "{case}");
                let (_, _, message) = super::refusal(client, &answer);
                assert!(!message.contains("not HTTP"), "{case}");
                let record = receiver.wait_for(sent).await.pop().unwrap();
                assert_eq!(record["status_code"], status, "{case}\n{record}");
                let outcome =
                    if status == 404 || status == 429 { "rejected" } else { "upstream_error" };
                assert_eq!(record["outcome"], outcome, "{case}\n{record}");
            }
            heal(&sim);
        }
        assert_eq!(receiver.all().len(), sent);
    }
}

#[tokio::test]
async fn a_client_that_leaves_a_translated_stream_stops_the_backend() {
    for backend in LANGUAGES {
        let sim = speaker(backend, |b| (b.tokens, b.fail) = (600, Fail::Stall)).await;
        let receiver = Receiver::start().await;
        let more = format!(
            "auth: {{}}\napi_keys:\n{}rate_limit: {{per_key: {{tokens_per_minute: 100000}}}}\n{}",
            LANGUAGES.map(|l| format!("  - {{key: sk-of-{l}}}\n")).concat(),
            receiver.hook(),
        );
        let gateway = before(&sim.url(), backend, &more).await;
        for (n, client) in LANGUAGES.into_iter().enumerate() {
            let key = format!("Authorization: Bearer sk-of-{client}\r\n");
            let mut connection = gateway.client().await;
            let body = request(client, true).to_string();
            connection.post_with(path(client), &key, body.as_bytes()).await;
            let head = connection.head().await;
            assert_eq!(head.status, 200, "{backend} to {client}");
            let mut seen = String::new();
            let content = match client {
                "chat" => "\"content\":\"",
                "messages" => "text_delta",
                _ => "response.output_text.delta\n",
            };
            // All of the half that comes; Chat's first event has an empty content.
            while seen.matches(content).count() < 300 {
                let chunk = connection.chunk().await.unwrap();
                seen.push_str(std::str::from_utf8(&chunk).unwrap());
            }
            drop(connection);
            eventually("the backend stops", async || sim.stats().aborted() == n as u64 + 1).await;
            let record = receiver.wait_for(n + 1).await.pop().unwrap();
            let case = format!("{backend} to {client}: {record}");
            assert_eq!(record["outcome"], "client_aborted", "{case}");
            // A backend of Responses counts at the end alone.
            let source = if backend == "responses" { "none" } else { "partial" };
            assert_eq!(record["usage_source"], source, "{case}");
            if backend == "chat" {
                let completion = record["completion_tokens"].as_u64().unwrap();
                assert!((299..=301).contains(&completion), "{case}");
            }
            eventually("nothing is in flight", async || {
                gateway.metric("llmproxy_requests_in_flight").await <= 1.0
            })
            .await;
        }
        assert_eq!(sim.stats().open(), 0);
    }
}

#[tokio::test]
async fn deadlines_hold_for_translated_streams() {
    for backend in LANGUAGES {
        for client in LANGUAGES {
            // The first token is late; then a token is.
            for (first, between, status) in [(600_000, 0, 504), (0, 600_000, 200)] {
                let change = |b: &mut llmproxy::sim::Behaviour| {
                    (b.first_token_ms, b.inter_token_ms) = (first, between);
                };
                let sim = speaker(backend, change).await;
                let more = "timeouts: {first_token: 300ms, between_chunks: 300ms}\n";
                let gateway = before(&sim.url(), backend, more).await;
                let body = request(client, true);
                let answer = ask(&gateway, client, "", &body).await;
                let case = format!("{backend} to {client}, {first} {between}: {}", answer.text());
                if answer.status == 200 {
                    let heard = hear(client, true, &answer);
                    let error = heard.error.unwrap_or_else(|| panic!("{case}"));
                    is_worded(client, &error, "backend_timeout", "timeout_error", &case);
                    assert_eq!(heard.text.is_empty(), status == 504, "{case}");
                } else {
                    assert_eq!(answer.status, status, "{case}");
                    super::refusal(client, &answer);
                }
                eventually("the backend is left", async || sim.stats().open() == 0).await;
            }
        }
    }
}
