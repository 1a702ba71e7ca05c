//! Signs of life while a request waits, in the form of the client's language, and what may follow them.

use std::time::Duration;

use llmproxy::sim::Fail;
use serde_json::json;

use super::{
    Heard, LANGUAGES, ONCE, PATIENT, ask, before, events, first_and_second, hear, path, request,
    speaker,
};
use crate::support::{Gateway, Receiver, client::Response, eventually};

const TOKENS: u64 = 8;

/// What keeps a waiting client of this language.
fn sign(language: &str) -> &'static str {
    match language {
        "messages" => "event: ping\ndata: {\"type\": \"ping\"}\n\n",
        _ => ": keep-alive\n\n",
    }
}

/// The answer behind the signs of life, of which there must be some.
fn behind(language: &str, answer: &Response, case: &str) -> (usize, Heard) {
    let text = answer.text();
    let rest = text.trim_start_matches(sign(language));
    let signs = (text.len() - rest.len()) / sign(language).len();
    assert!(!rest.contains(sign(language)), "{case}: {text}");
    (signs, hear(language, true, answer))
}

#[tokio::test]
async fn a_client_that_waits_for_a_backend_gets_signs_of_life() {
    for backend in LANGUAGES {
        let sim = speaker(backend, |b| (b.tokens, b.first_token_ms) = (TOKENS, 350)).await;
        let receiver = Receiver::start().await;
        let more = format!("routing: {{keep_alive: 100ms}}\n{}", receiver.hook());
        let gateway = before(&sim.url(), backend, &more).await;
        for (n, client) in LANGUAGES.into_iter().enumerate() {
            let answer = ask(&gateway, client, "", &request(client, true)).await;
            let case = format!("{backend} to {client}");
            assert_eq!(answer.status, 200, "{case}");
            // A backend of Responses begins at once, and so does its answer; the signs go on until there is
            // content.
            let (before, after) = answer.text().rsplit_once(sign(client)).unwrap_or_else(|| {
                panic!("{case}: no sign: {}", answer.text());
            });
            assert!(!before.contains("Hello") && !after.is_empty(), "{case}: {}", answer.text());
            let heard = hear(client, true, &answer);
            assert!(heard.is_complete(TOKENS), "{case}: {}", answer.text());
            let record = receiver.wait_for(n + 1).await.pop().unwrap();
            assert_eq!(record["outcome"], "complete", "{case}: {record}");
            assert_eq!(record["completion_tokens"], TOKENS, "{case}: {record}");
        }
    }
}

#[tokio::test]
async fn another_backend_takes_over_behind_signs_of_life() {
    for first in LANGUAGES {
        for second in LANGUAGES {
            let sims = [
                speaker(first, |b| b.first_token_ms = 250).await,
                speaker(second, |b| (b.tokens, b.first_token_ms) = (TOKENS, 250)).await,
            ];
            let text = first_and_second((&sims[0].url(), first), (&sims[1].url(), second));
            let routing = PATIENT.replace("{circuit", "{keep_alive: 100ms, circuit");
            let gateway = Gateway::start(&format!("{text}{routing}")).await;
            for fail in [Fail::BeforeContent, Fail::ErrorEvent, Fail::AfterHeaders] {
                sims[0].change(|b| b.fail = fail);
                for client in LANGUAGES {
                    let answer = ask(&gateway, client, "", &request(client, true)).await;
                    let case = format!("{first}, {second} to {client}, {fail:?}");
                    let (signs, heard) = behind(client, &answer, &case);
                    assert!(signs > 0, "{case}: {}", answer.text());
                    assert!(heard.is_complete(TOKENS), "{case}: {}", answer.text());
                }
            }
        }
    }
}

#[tokio::test]
async fn an_error_behind_signs_of_life_is_the_end_of_the_stream() {
    for backend in LANGUAGES {
        let sim = speaker(backend, |b| (b.fail, b.slow_ms) = (Fail::Slow, 400)).await;
        let receiver = Receiver::start().await;
        let more = format!("{ONCE}timeouts: {{first_token: 300ms}}\n{}", receiver.hook());
        let gateway =
            before(&sim.url(), backend, &more.replace("{circuit", "{keep_alive: 100ms, circuit"))
                .await;
        for (n, client) in LANGUAGES.into_iter().enumerate() {
            let answer = ask(&gateway, client, "", &request(client, true)).await;
            let case = format!("{backend} to {client}: {}", answer.text());
            assert_eq!((answer.status, answer.whole), (200, true), "{case}");
            let all = events(answer.text());
            let ends = all.iter().filter(|(name, event)| match client {
                "chat" => !event["error"].is_null(),
                "messages" => name == "error",
                _ => name == "response.failed",
            });
            assert_eq!(ends.count(), 1, "{case}");
            let (name, last) = all.iter().rfind(|(_, event)| *event != "[DONE]").unwrap();
            let (word, expected) = match client {
                "chat" => (&last["error"]["code"], "backend_timeout"),
                "messages" => (&last["error"]["type"], "timeout_error"),
                _ => (&last["response"]["error"]["code"], "backend_timeout"),
            };
            assert_eq!(word, expected, "{case} {name}");
            let record = receiver.wait_for(n + 1).await.pop().unwrap();
            assert_eq!(record["outcome"], "upstream_error", "{case}: {record}");
        }
    }
}

#[tokio::test]
async fn a_client_in_the_queue_gets_signs_of_life_and_then_its_answer() {
    let limits = "rate_limit: {global: {max_concurrent: 1}, queue: {max_queue_size: 9, queue_timeout: 1h, keep_alive: 100ms}}\n";
    for backend in LANGUAGES {
        for client in LANGUAGES {
            let sim = speaker(backend, |b| (b.tokens, b.inter_token_ms) = (TOKENS, 600_000)).await;
            let gateway = before(&sim.url(), backend, limits).await;
            let mut first = gateway.client().await;
            first.post(path("chat"), request("chat", true).to_string()).await;
            assert_eq!(first.head().await.status, 200);
            sim.change(|b| b.inter_token_ms = 0);
            let mut second = gateway.client().await;
            second.post(path(client), request(client, true).to_string()).await;
            let mut answer = second.head().await;
            let mut early = Vec::new();
            while early.len() < 2 * sign(client).len() {
                early.extend(second.chunk().await.unwrap());
            }
            assert_eq!(sim.stats().requests(), 1, "{backend} to {client}: it waits");
            drop(first);
            answer.body = early;
            let answer = second.rest(answer).await;
            let case = format!("{backend} to {client}");
            let (signs, heard) = behind(client, &answer, &case);
            assert!(signs >= 2, "{case}: {}", answer.text());
            assert!(heard.is_complete(TOKENS), "{case}: {}", answer.text());
        }
    }
}

#[tokio::test]
async fn who_leaves_while_it_waits_costs_nothing() {
    for backend in LANGUAGES {
        let sim = speaker(backend, |b| b.first_token_ms = 600_000).await;
        let receiver = Receiver::start().await;
        let more = format!("routing: {{keep_alive: 100ms}}\n{}", receiver.hook());
        let gateway = before(&sim.url(), backend, &more).await;
        for (n, client) in LANGUAGES.into_iter().enumerate() {
            let mut connection = gateway.client().await;
            connection.post(path(client), request(client, true).to_string()).await;
            eventually("the backend works", async || sim.stats().open() == 1).await;
            tokio::time::sleep(Duration::from_millis(150)).await;
            drop(connection);
            eventually("the backend stops", async || sim.stats().aborted() == n as u64 + 1).await;
            let record = receiver.wait_for(n + 1).await.pop().unwrap();
            let case = format!("{backend} to {client}: {record}");
            assert_eq!(record["outcome"], "client_aborted", "{case}");
            assert_eq!(record["completion_tokens"], json!(0), "{case}");
        }
    }
}
