//! Scripts, limits, affinities, guarded fields and aliases mean the same in every language.

use std::collections::{BTreeMap, BTreeSet};

use llmproxy::sim::{Fail, Sim};
use serde_json::{Value, json};

use super::{
    LANGUAGES, ask, before, first_and_second, hear, line, path, refusal, request, says, speaker,
};
use crate::{
    scripts::with_script,
    support::{Gateway, Receiver, eventually},
};

const TOKENS: u64 = 8;

/// A key for each language, and what else the configuration has.
fn keys(more: &str) -> String {
    let keys = LANGUAGES.map(|language| format!("  - {{key: sk-of-{language}}}\n")).concat();
    format!("auth: {{}}\napi_keys:\n{keys}{more}")
}

fn key(language: &str) -> String {
    format!("Authorization: Bearer sk-of-{language}\r\n")
}

#[tokio::test]
async fn a_script_sees_the_same_whatever_the_language() {
    let sim = speaker("chat", |_| {}).await;
    let receiver = Receiver::start().await;
    let script = "
if request.model == 'forbidden' then return {allow = false, message = 'not for you', status = 403} end
return {metadata = {model = request.model, stream = request.stream, path = request.path}}";
    let text = with_script(&sim.url(), script).replace("\"}]", "\", languages: [chat]}]");
    let gateway = Gateway::start(&format!("{text}{}", receiver.hook())).await;
    let mut sent = 0;
    for client in LANGUAGES {
        for stream in [false, true] {
            let answer = ask(&gateway, client, &key(client), &request(client, stream)).await;
            assert_eq!(answer.status, 200, "{client}: {}", answer.text());
            sent += 1;
            let record = receiver.wait_for(sent).await.pop().unwrap();
            let seen = json!({"model": "sim-model", "stream": stream, "path": path(client)});
            assert_eq!(record["metadata"], seen, "{client}");
            let mut forbidden = request(client, stream);
            forbidden["model"] = "forbidden".into();
            let answer = ask(&gateway, client, &key(client), &forbidden).await;
            sent += 1;
            let (kind, _, message) = refusal(client, &answer);
            assert_eq!((answer.status, message.as_str()), (403, "not for you"));
            let expected =
                if client == "messages" { "permission_error" } else { "invalid_request_error" };
            assert_eq!(kind, expected, "{client}");
        }
    }
}

#[tokio::test]
async fn limits_refuse_in_the_clients_language() {
    for (limits, expected) in [
        ("rate_limit: {per_key: {requests_per_minute: 1}}\n", ["requests", "rate_limit_error"]),
        ("rate_limit: {per_key: {tokens_per_minute: 20}}\n", ["tokens", "rate_limit_error"]),
        (
            "rate_limit: {models: {sim-model: {requests_per_minute: 1}}}\n",
            ["requests", "rate_limit_error"],
        ),
    ] {
        for backend in LANGUAGES {
            for client in LANGUAGES {
                let sim = speaker(backend, |_| {}).await;
                let gateway = before(&sim.url(), backend, &keys(limits)).await;
                let mut body = request(client, false);
                if client == "messages" {
                    body["max_tokens"] = 9.into();
                }
                let first = ask(&gateway, client, &key(client), &body).await;
                let case = format!("{limits}{backend} to {client}");
                assert_eq!(first.status, 200, "{case}: {}", first.text());
                let second = ask(&gateway, client, &key(client), &body).await;
                assert_eq!(second.status, 429, "{case}: {}", second.text());
                assert!(second.header("retry-after").is_some(), "{case}");
                let (kind, code, _) = refusal(client, &second);
                if client == "messages" {
                    assert_eq!(kind, expected[1], "{case}");
                } else {
                    assert_eq!(
                        (kind, code),
                        (json!(expected[0]), json!("rate_limit_exceeded")),
                        "{case}"
                    );
                }
                assert_eq!(sim.stats().requests(), 1, "{case}");
            }
        }
    }
}

fn tokens_left(client: &str, answer: &crate::support::client::Response) -> u64 {
    let name = match client {
        "messages" => "anthropic-ratelimit-tokens-remaining",
        _ => "x-ratelimit-remaining-tokens",
    };
    answer.header(name).unwrap_or_else(|| panic!("{client}: {answer:?}")).parse().unwrap()
}

#[tokio::test]
async fn the_wanted_tokens_are_reserved_in_every_language() {
    const LIMIT: u64 = 1_000_000;
    let limits = format!("rate_limit: {{per_key: {{tokens_per_minute: {LIMIT}}}}}\n");
    for backend in LANGUAGES {
        let sim = speaker(backend, |_| {}).await;
        let gateway = before(&sim.url(), backend, &keys(&limits)).await;
        for client in LANGUAGES {
            let member = if client == "responses" { "max_output_tokens" } else { "max_tokens" };
            let mut left = Vec::new();
            for wanted in [16, 4000] {
                // The answer stops after a part, so that nothing is settled before its head is read.
                sim.change(|b| b.fail = Fail::Stall);
                let mut body = request(client, true);
                body[member] = wanted.into();
                let mut connection = gateway.client().await;
                let text = body.to_string();
                connection.post_with(path(client), &key(client), text.as_bytes()).await;
                let head = connection.head().await;
                assert_eq!(head.status, 200, "{backend} to {client}");
                left.push(tokens_left(client, &head));
                drop(connection);
                eventually("the backend stops", async || sim.stats().open() == 0).await;
                eventually("it is settled", async || {
                    gateway.metric("llmproxy_requests_in_flight").await <= 1.0
                })
                .await;
            }
            let case = format!("{backend} to {client}: {left:?}");
            assert!(left[0] > LIMIT - 200 && left[1] + 100 < left[0], "{case}");
        }
    }
}

#[tokio::test]
async fn what_a_translated_answer_has_used_is_settled() {
    let limits = "rate_limit: {per_key: {tokens_per_minute: 100000}}\n";
    for backend in LANGUAGES {
        let sim = speaker(backend, |b| b.tokens = 5000).await;
        let gateway = before(&sim.url(), backend, &keys(limits)).await;
        for client in LANGUAGES {
            for stream in [true, false] {
                let mut body = request(client, stream);
                if client == "messages" {
                    body["max_tokens"] = 6000.into();
                }
                let before = tokens_left(client, &ask(&gateway, client, &key(client), &body).await);
                // The next one finds what the first one has left.
                let after = tokens_left(client, &ask(&gateway, client, &key(client), &body).await);
                let used = before.saturating_sub(after);
                let case = format!("{backend} to {client}, {stream}: {before} {after}");
                assert!((2000..=6500).contains(&used), "{case}");
            }
        }
    }
}

/// The backends of each conversation, by a word in it.
fn places(sims: &[Sim], words: &[String]) -> BTreeMap<String, BTreeSet<usize>> {
    let mut places = BTreeMap::<String, BTreeSet<usize>>::new();
    for (n, sim) in sims.iter().enumerate() {
        for seen in sim.stats().recent() {
            let body = String::from_utf8_lossy(&seen.body).into_owned();
            let word = words.iter().find(|word| body.contains(*word)).unwrap();
            places.entry(word.clone()).or_default().insert(n);
        }
    }
    places
}

/// Three backends of this language.
async fn three(language: &str, more: &str) -> (Vec<Sim>, Gateway) {
    let mut sims = Vec::new();
    let mut text = "backends:\n".to_owned();
    for n in 0..3 {
        sims.push(speaker(language, |_| {}).await);
        text += &line(&format!("b{n}"), &sims[n].url(), language, "");
    }
    let gateway = Gateway::start(&format!("{text}{more}")).await;
    (sims, gateway)
}

#[tokio::test]
async fn a_session_stays_where_it_is_whatever_its_language() {
    for backend in LANGUAGES {
        let more = "routing: {load_balance_strategy: round_robin, affinity: {by: header}}\n";
        let (sims, gateway) = three(backend, more).await;
        let words: Vec<String> = (0..9).map(|n| format!("session-{n}-it-is")).collect();
        for client in LANGUAGES {
            for word in words.iter().chain(&words) {
                let head = format!("X-Session-ID: {word}\r\n");
                let answer = ask(&gateway, client, &head, &says(client, false, word)).await;
                assert_eq!(answer.status, 200, "{backend} to {client}: {}", answer.text());
            }
        }
        let places = places(&sims, &words);
        assert!(places.values().all(|at| at.len() == 1), "{backend}: {places:?}");
        let used: BTreeSet<_> = places.values().flatten().collect();
        assert!(used.len() > 1, "{backend}: {places:?}");
    }
}

#[tokio::test]
async fn a_conversation_stays_where_its_prefix_is_cached() {
    for backend in LANGUAGES {
        for client in LANGUAGES {
            let more = "routing: {load_balance_strategy: prefix_affinity}\n";
            let (sims, gateway) = three(backend, more).await;
            let words: Vec<String> = (0..6).map(|n| format!("conversation-{n}-it-is")).collect();
            for turn in 0..3 {
                for word in &words {
                    let text = format!("{} {}", word.repeat(40), "and so on ".repeat(20 * turn));
                    let answer = ask(&gateway, client, "", &says(client, false, &text)).await;
                    assert_eq!(answer.status, 200, "{backend} to {client}: {}", answer.text());
                }
            }
            let places = places(&sims, &words);
            assert!(places.values().all(|at| at.len() == 1), "{backend} to {client}: {places:?}");
            let used: BTreeSet<_> = places.values().flatten().collect();
            assert!(used.len() > 1, "{backend} to {client}: {places:?}");
        }
    }
}

#[tokio::test]
async fn guarded_fields_reach_no_backend_of_any_language() {
    let guarded = ["priority", "cache_salt", "kv_transfer_params", "vllm_xargs"];
    for backend in LANGUAGES {
        let sim = speaker(backend, |_| {}).await;
        let more = "edge_guard: {remove_headers: [X-Secret]}\n";
        for more in ["", more] {
            let gateway = before(&sim.url(), backend, more).await;
            for client in LANGUAGES {
                let mut body = request(client, false);
                for name in guarded {
                    body[name] = json!({"a": 1});
                }
                body["priority"] = json!(-9);
                let head = "X-Vllm-Priority: -5\r\nX-Secret: yes\r\n";
                let answer = ask(&gateway, client, head, &body).await;
                assert_eq!(answer.status, 200, "{backend} to {client}: {}", answer.text());
                let seen = sim.stats().last().unwrap();
                let sent: Value = serde_json::from_slice(&seen.body).unwrap();
                for name in guarded {
                    assert_eq!(sent.get(name), None, "{backend} to {client}: {sent}");
                }
                assert_eq!(seen.header("x-secret").is_some(), more.is_empty());
                assert_eq!(seen.header("x-vllm-priority").is_some(), !more.is_empty());
            }
        }
    }
}

#[tokio::test]
async fn the_clients_name_of_the_model_comes_back() {
    for backend in LANGUAGES {
        let sim = speaker(backend, |b| (b.tokens, b.models) = (TOKENS, vec!["there".into()])).await;
        let receiver = Receiver::start().await;
        let text = format!(
            "backends:\n{}models: {{a-name: {{routes: [{{backend: a, model: there}}]}}}}\n{}",
            line("a", &sim.url(), backend, ""),
            receiver.hook()
        );
        let gateway = Gateway::start(&text).await;
        let mut sent = 0;
        for client in LANGUAGES {
            for stream in [false, true] {
                let mut body = request(client, stream);
                body["model"] = "a-name".into();
                let answer = ask(&gateway, client, "", &body).await;
                let case = format!("{backend} to {client}, {stream}: {}", answer.text());
                assert_eq!(answer.status, 200, "{case}");
                let heard = hear(client, stream, &answer);
                assert!(heard.is_complete(TOKENS), "{case}");
                assert_eq!(heard.model, "a-name", "{case}");
                assert!(!answer.text().contains("there"), "{case}");
                let seen: Value =
                    serde_json::from_slice(&sim.stats().last().unwrap().body).unwrap();
                assert_eq!(seen["model"], "there", "{case}");
                sent += 1;
                let record = receiver.wait_for(sent).await.pop().unwrap();
                assert_eq!(record["model"], "a-name", "{case}: {record}");
                assert_eq!(record["response_model"], "there", "{case}: {record}");
            }
        }
    }
}

#[tokio::test]
async fn a_fallback_model_may_speak_another_language() {
    for (first, second) in [("chat", "messages"), ("messages", "responses"), ("responses", "chat")]
    {
        let big = speaker(first, |b| (b.fail, b.models) = (Fail::Error, vec!["big".into()])).await;
        let small =
            speaker(second, |b| (b.tokens, b.models) = (TOKENS, vec!["small".into()])).await;
        let text = first_and_second((&big.url(), first), (&small.url(), second));
        let models = "models:\n  big: {fallback: [small]}\n";
        let backends = text.split("models:").next().unwrap();
        let backends = backends
            .replacen("languages", "models: [big], languages", 1)
            .replace("name: b, ", "name: b, models: [small], ");
        let gateway = Gateway::start(&format!(
            "{backends}{models}routing: {{circuit: {{enabled: false}}}}\n"
        ))
        .await;
        for client in LANGUAGES {
            for stream in [false, true] {
                let mut body = request(client, stream);
                body["model"] = "big".into();
                let answer = ask(&gateway, client, "", &body).await;
                let case = format!("{first}, {second} to {client}, {stream}: {}", answer.text());
                assert_eq!(answer.status, 200, "{case}");
                assert!(hear(client, stream, &answer).is_complete(TOKENS), "{case}");
            }
        }
    }
}
