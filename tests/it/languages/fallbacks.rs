//! A backend of one language takes over from one of any other, whatever the client speaks: nothing
//! of the fault is to be seen.

use std::{cell::Cell, time::Duration};

use futures::future::join_all;
use serde_json::Value;

use super::{
    LANGUAGES, PATIENT, about, ask, first_and_second, hear, models, path, request, says, speaker,
};
use crate::support::{
    Gateway, Receiver, eventually,
    faults::{Fault, at_rest, heal, tries_of},
    http,
};

const TOKENS: u64 = 8;

/// Every fault that comes before any content, at a backend of this language.
async fn faults_of(language: &str) {
    let pairs = LANGUAGES.map(|other| stage(language, other));
    join_all(pairs).await;
}

#[tokio::test]
async fn another_backend_takes_over_from_chat() {
    faults_of("chat").await;
}

#[tokio::test]
async fn another_backend_takes_over_from_messages() {
    faults_of("messages").await;
}

#[tokio::test]
async fn another_backend_takes_over_from_responses() {
    faults_of("responses").await;
}

/// Every client asks a backend that fails, and gets the answer of the other one.
async fn stage(first: &str, second: &str) {
    let sims = [
        speaker(first, |b| (b.tokens, b.slow_ms, b.models) = (TOKENS, 30, models(200))).await,
        speaker(second, |b| (b.tokens, b.models) = (TOKENS, models(200))).await,
    ];
    let receiver = Receiver::start().await;
    let text = format!(
        "{}{PATIENT}timeouts: {{first_byte: 700ms, first_token: 700ms, between_chunks: 700ms}}\n{}",
        first_and_second((&sims[0].url(), first), (&sims[1].url(), second)),
        receiver.hook(),
    );
    let gateway = Gateway::start(&text).await;
    let (mut ids, next) = (Vec::new(), Cell::new(0));
    for fault in Fault::ALL {
        fault.befall(&sims[0]).await;
        let cases = LANGUAGES.iter().flat_map(|client| [(*client, true), (*client, false)]);
        let cases = cases.filter(|(_, stream)| !(*stream && fault.is_after_content()));
        let all = join_all(cases.map(|(client, stream)| {
            let (gateway, sims) = (&gateway, &sims);
            let model = format!("model-{}", next.replace(next.get() + 1));
            async move {
                let id = format!("{fault:?}-{client}-{stream}");
                let head = format!("X-Request-Id: {id}\r\n");
                let body = about(request(client, stream), &model);
                let answer = ask(gateway, client, &head, &body).await;
                let case = format!("{first}, {second}: {id}: {}", answer.text());
                let tries = tries_of(sims, &id);
                if fault != Fault::Refuse {
                    assert_eq!(tries[0], 1, "the first is asked. {case}");
                }
                if fault == Fault::NoModel && answer.status == 404 {
                    assert_eq!(tries[1], 0, "{case}");
                    return (id, 404);
                }
                assert_eq!((answer.status, answer.whole), (200, true), "{case}");
                let heard = hear(client, stream, &answer);
                // A native document that was broken off passes where nothing shows it.
                let broken = fault == Fault::AbortMidStream || fault == Fault::AbortBeforeContent;
                if broken && !stream && first == "messages" && client == "messages" {
                    return (id, 200);
                }
                assert!(heard.is_complete(TOKENS), "{case}\n{heard:?}");
                assert_eq!(heard.model, model, "{case}");
                assert_eq!(tries[1], usize::from(fault != Fault::Slow), "{case}");
                (id, 200)
            }
        }))
        .await;
        ids.extend(all);
        heal(&sims[0]);
    }
    at_rest(&sims).await;
    let records = receiver.wait_for(ids.len()).await;
    assert_eq!(records.len(), ids.len(), "one record for each");
    for (id, status) in ids {
        let found: Vec<&Value> =
            records.iter().filter(|r| r["request_id"] == id.as_str()).collect();
        assert_eq!(found.len(), 1, "{id}");
        assert_eq!(found[0]["status_code"], status, "{}", found[0]);
        if status == 200 && found[0]["backend_url"] == sims[1].url() {
            let record = found[0];
            assert_eq!(record["outcome"], "complete", "{record}");
            assert_eq!(record["completion_tokens"], TOKENS, "{record}");
            assert!(record["prompt_tokens"].as_u64() > Some(0), "{record}");
            assert_eq!(record["usage_source"], "final", "{record}");
        }
    }
}

#[tokio::test]
async fn a_hedge_may_speak_another_language() {
    for first in LANGUAGES {
        for second in LANGUAGES.into_iter().filter(|second| *second != first) {
            let slow = speaker(first, |b| b.first_token_ms = 600_000).await;
            let fast = speaker(second, |b| b.tokens = TOKENS).await;
            let receiver = Receiver::start().await;
            let text = format!(
                "{}routing: {{hedge: {{enabled: true, delay: 50ms}}}}\n{}",
                first_and_second((&slow.url(), first), (&fast.url(), second)),
                receiver.hook(),
            );
            let gateway = Gateway::start(&text).await;
            for (n, client) in LANGUAGES.into_iter().enumerate() {
                let mut body = request(client, false);
                let limit = match client {
                    "responses" => "max_output_tokens",
                    _ => "max_tokens",
                };
                body[limit] = 64.into();
                // What is stored must not be made twice.
                if client == "responses" {
                    body["store"] = false.into();
                }
                let answer = ask(&gateway, client, "", &body).await;
                let case = format!("{first}, {second} to {client}: {}", answer.text());
                assert_eq!(answer.status, 200, "{case}");
                assert!(hear(client, false, &answer).is_complete(TOKENS), "{case}");
                assert_eq!(fast.stats().requests(), n as u64 + 1, "{case}");
                let broken_off = || slow.stats().aborted() == n as u64 + 1;
                eventually("the slow one is left", async || broken_off()).await;
                let record = receiver.wait_for(n + 1).await.pop().unwrap();
                assert_eq!(record["outcome"], "complete", "{record}");
                assert_eq!(record["completion_tokens"], TOKENS, "{record}");
                assert_eq!(record["backend_url"], fast.url(), "{record}");
            }
            let won = gateway.metric("llmproxy_hedges_total{result=\"won\"}").await;
            assert_eq!(won, 3.0, "{first}, {second}");
        }
    }
}

#[tokio::test]
async fn what_has_no_content_is_held_until_there_is_some() {
    // The first backend breaks after it has begun its answer, half a second later.
    for first in LANGUAGES {
        let begun = speaker(first, |b| b.tokens = TOKENS).await;
        Fault::WedgeBeforeContent.befall(&begun).await;
        let other = speaker("chat", |b| b.tokens = TOKENS).await;
        let text = format!(
            "{}{PATIENT}timeouts: {{first_token: 500ms}}\n",
            first_and_second((&begun.url(), first), (&other.url(), "chat")),
        );
        let gateway = Gateway::start(&text).await;
        for client in LANGUAGES {
            let mut connection = gateway.client().await;
            let body = request(client, true).to_string();
            connection.post(path(client), body).await;
            let early = tokio::time::timeout(Duration::from_millis(200), connection.head()).await;
            assert!(early.is_err(), "{first} to {client}: {early:?}");
            let answer = connection.answer().await;
            let heard = hear(client, true, &answer);
            assert!(heard.is_complete(TOKENS), "{first} to {client}: {}", answer.text());
        }
    }
}

#[tokio::test]
async fn http2_clients_see_nothing_of_a_fault() {
    let broken = speaker("messages", |b| b.tokens = TOKENS).await;
    Fault::DieBeforeContent.befall(&broken).await;
    let other = speaker("responses", |b| b.tokens = TOKENS).await;
    let text = first_and_second((&broken.url(), "messages"), (&other.url(), "responses"));
    let gateway = Gateway::start(&format!("{text}{PATIENT}")).await;
    let h2 = http::builder().http2_prior_knowledge().build().unwrap();
    for client in LANGUAGES {
        for n in 0..3 {
            let body = says(client, true, &format!("Hello {n}")).to_string();
            let answer = h2.post(gateway.url(path(client))).body(body).send().await.unwrap();
            assert_eq!(answer.status().as_u16(), 200, "{client}");
            let text = answer.text().await.unwrap();
            let end = match client {
                "chat" => "data: [DONE]\n\n",
                "messages" => "data: {\"type\":\"message_stop\"}\n\n",
                _ => "}\n\n",
            };
            assert!(text.ends_with(end) && !text.contains("rror\":{"), "{client}: {text}");
        }
    }
}
