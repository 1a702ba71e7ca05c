//! What a translation loses, and what it refuses.

use serde_json::{Value, json};

use super::{LANGUAGES, PATIENT, ask, before, hear, line, refusal, request, speaker};
use crate::support::{Gateway, Receiver, eventually, free_address, http};

const TOKENS: u64 = 8;

/// What a request asks that no other language, or not this one, can say: the client's language, the
/// backend's, the members, and the path that is at fault.
fn impossible() -> Vec<(&'static str, &'static str, Value, &'static str)> {
    let file = json!([{"role": "user", "content": [{"type": "document", "source": {"type": "file", "file_id": "file_1"}}]}]);
    vec![
        ("chat", "messages", json!({"n": 2}), "n"),
        ("chat", "responses", json!({"n": 2}), "n"),
        ("chat", "messages", json!({"logprobs": true}), "logprobs"),
        ("responses", "chat", json!({"background": true}), "background"),
        ("responses", "messages", json!({"background": true}), "background"),
        ("responses", "chat", json!({"conversation": "conv_1"}), "conversation"),
        ("messages", "chat", json!({"messages": file}), "messages[0]"),
        ("messages", "responses", json!({"messages": file}), "messages[0]"),
        ("messages", "chat", json!({"container": "c_1"}), "container"),
    ]
}

fn with(client: &str, stream: bool, more: &Value) -> Value {
    let mut body = request(client, stream);
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[tokio::test]
async fn what_cannot_be_said_is_refused_with_its_path_and_reaches_no_backend() {
    for (client, backend, more, param) in impossible() {
        let sim = speaker(backend, |_| {}).await;
        let receiver = Receiver::start().await;
        let gateway = before(&sim.url(), backend, &receiver.hook()).await;
        for stream in [false, true] {
            let answer = ask(&gateway, client, "", &with(client, stream, &more)).await;
            let case = format!("{client} to {backend}, {more}: {answer:?}");
            assert_eq!((answer.status, answer.whole), (400, true), "{case}");
            let (kind, code, message) = refusal(client, &answer);
            assert_eq!(kind, "invalid_request_error", "{case}");
            assert!(message.contains(param), "{case}");
            if client != "messages" {
                assert_eq!(code, "translation_unsupported", "{case}");
                let said = answer.json()["error"]["param"].as_str().unwrap_or_default().to_owned();
                assert!(said.starts_with(param), "{case}");
            }
        }
        assert_eq!(sim.stats().requests(), 0);
        let records = receiver.wait_for(2).await;
        for record in &records {
            assert_eq!(
                (&record["outcome"], &record["status_code"]),
                (&json!("rejected"), &json!(400))
            );
        }
        // It counts against no backend: far more than would eject it.
        for _ in 0..20 {
            ask(&gateway, client, "", &with(client, false, &more)).await;
        }
        let answer = ask(&gateway, client, "", &request(client, false)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

#[tokio::test]
async fn a_backend_that_can_say_it_serves_what_another_one_cannot() {
    for (client, other, more, _) in impossible() {
        if more.get("conversation").is_some() || more.get("background").is_some() {
            // What only a store can answer.
            continue;
        }
        let foreign = speaker(other, |b| b.tokens = TOKENS).await;
        let native = speaker(client, |b| b.tokens = TOKENS).await;
        let text = format!(
            "backends:\n{}{}{PATIENT}",
            line("a", &foreign.url(), other, ", weight: 1000"),
            line("b", &native.url(), client, ""),
        );
        let gateway = Gateway::start(&text).await;
        for n in 1..=6 {
            let answer = ask(&gateway, client, "", &with(client, n % 2 == 0, &more)).await;
            assert_eq!(answer.status, 200, "{client}, {other}, {more}: {}", answer.text());
            assert_eq!(native.stats().requests(), n, "{client}, {other}, {more}");
        }
        assert_eq!(foreign.stats().requests(), 0, "{client}, {other}, {more}");
        // The other one is as good as before.
        for _ in 0..60 {
            let answer = ask(&gateway, client, "", &request(client, false)).await;
            assert_eq!(answer.status, 200);
        }
        assert!(foreign.stats().requests() > 0, "{client}, {other}, {more}");
    }
}

/// What is dropped on the way: the client's language, the backend's, the members, and their paths.
fn droppable() -> Vec<(&'static str, &'static str, Value, &'static str)> {
    vec![
        ("chat", "messages", json!({"seed": 7}), "seed"),
        ("chat", "messages", json!({"logit_bias": {"1": 2}}), "logit_bias"),
        ("chat", "responses", json!({"frequency_penalty": 0.5}), "frequency_penalty"),
        ("messages", "responses", json!({"top_k": 5}), "top_k"),
        ("chat", "messages", json!({"no_such_member": 1}), "no_such_member"),
    ]
}

#[tokio::test]
async fn losses_are_named_to_the_client_in_the_log_and_in_the_explanation() {
    for (client, backend, more, path) in droppable() {
        let sim = speaker(backend, |b| b.tokens = TOKENS).await;
        let (control, folder) = (free_address(), tempfile::tempdir().unwrap());
        let admin = format!(
            "admin: {{enabled: true, listen: \"{control}\", token: a-token-for-tests, db_path: \"{}\"}}\n",
            folder.path().join("keys.db").display(),
        );
        let gateway = before(&sim.url(), backend, &admin).await;
        for stream in [false, true] {
            let id = format!("lost-{stream}");
            let head = format!("X-Request-Id: {id}\r\n");
            let answer = ask(&gateway, client, &head, &with(client, stream, &more)).await;
            let case = format!("{client} to {backend}, {more}: {answer:?}");
            assert_eq!(answer.status, 200, "{case}");
            assert!(hear(client, stream, &answer).is_complete(TOKENS), "{case}");
            let dropped = answer.header("x-llmproxy-dropped").unwrap_or_default();
            assert!(dropped.split(',').any(|lost| lost == path), "{case}");
            let sent: Value = serde_json::from_slice(&sim.stats().last().unwrap().body).unwrap();
            assert_eq!(sent.get(path), None, "{case}");
            gateway.logs(&format!("request {id}: translated from {client} to {backend}")).await;
            let url = format!("http://{control}/admin/v1/explain?request_id={id}");
            let mut story = Value::Null;
            eventually("the explanation", async || {
                let request = http::client().get(&url).header("X-Admin-Token", "a-token-for-tests");
                let answer = request.send().await.unwrap();
                story = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
                story["tries"].is_array()
            })
            .await;
            let attempt = &story["tries"][0];
            assert_eq!(attempt["language"], backend, "{story}");
            assert_eq!(attempt["language_reason"], "nearest", "{story}");
            assert!(attempt["dropped"].to_string().contains(path), "{story}");
        }
        let counted = |result: &str| {
            format!(
                "llmproxy_translations_total{{from=\"{client}\",result=\"{result}\",to=\"{backend}\"}}"
            )
        };
        assert_eq!(gateway.metric(&counted("lossy")).await, 2.0);
        let answer = ask(&gateway, client, "", &request(client, false)).await;
        let lost = answer.header("x-llmproxy-dropped");
        assert!(lost.is_none_or(|lost| !lost.contains(path)), "{lost:?}");
    }
}

#[tokio::test]
async fn what_a_backend_drops_is_left_out_in_every_language_and_named() {
    for (client, backend, more, dropped) in [
        ("chat", "messages", json!({"temperature": 0.5, "user": "u"}), "temperature"),
        ("responses", "messages", json!({"temperature": 0.5}), "temperature"),
        ("chat", "responses", json!({"temperature": 0.5}), "temperature"),
        ("messages", "chat", json!({"temperature": 0.5}), "temperature"),
        ("responses", "chat", json!({"top_p": 0.5}), "top_p"),
    ] {
        let sim = speaker(backend, |b| b.tokens = TOKENS).await;
        let dropping = format!(", drop_fields: [{dropped}]");
        let text = format!("backends:\n{}", line("a", &sim.url(), backend, &dropping));
        let gateway = Gateway::start(&text).await;
        let answer = ask(&gateway, client, "", &with(client, false, &more)).await;
        let case = format!("{client} to {backend}: {answer:?}");
        assert_eq!(answer.status, 200, "{case}");
        let lost = answer.header("x-llmproxy-dropped").unwrap_or_default();
        assert!(lost.split(',').any(|lost| lost == dropped), "{case}");
        let sent: Value = serde_json::from_slice(&sim.stats().last().unwrap().body).unwrap();
        assert_eq!(sent.get(dropped), None, "{case}");
        let tools = json!({"tools": [{"type": "function", "name": "f", "parameters": {"type": "object"},
            "function": {"name": "f", "parameters": {"type": "object"}},
            "input_schema": {"type": "object"}}]});
        let dropping = line("a", &sim.url(), backend, ", drop_fields: [tools]");
        let gateway = Gateway::start(&format!("backends:\n{dropping}")).await;
        let mut body = with(client, false, &tools);
        if client == "messages" {
            body["tools"] = json!([{"name": "f", "input_schema": {"type": "object"}}]);
        }
        let answer = ask(&gateway, client, "", &body).await;
        assert_eq!(answer.status, 400, "{client} to {backend}: {answer:?}");
    }
}

#[tokio::test]
async fn a_response_to_nothing_is_refused_in_clear_words() {
    for backend in ["chat", "messages"] {
        let sim = speaker(backend, |_| {}).await;
        let gateway = before(&sim.url(), backend, "").await;
        for input in [json!([]), Value::Null] {
            let body = json!({"model": "sim-model", "input": input});
            let answer = ask(&gateway, "responses", "", &body).await;
            let error = &answer.json()["error"];
            assert_eq!((answer.status, &error["param"]), (400, &json!("input")), "{answer:?}");
            assert!(error["message"].as_str().unwrap().contains("it is empty"), "{error}");
        }
        assert_eq!(sim.stats().requests(), 0);
    }
}

#[tokio::test]
async fn a_strict_model_refuses_every_loss() {
    for (client, backend, more, path) in droppable() {
        let sim = speaker(backend, |b| b.tokens = TOKENS).await;
        let strict = "models: {sim-model: {translation: strict}}\n";
        let gateway = before(&sim.url(), backend, strict).await;
        let answer = ask(&gateway, client, "", &with(client, false, &more)).await;
        let case = format!("{client} to {backend}, {more}: {answer:?}");
        assert_eq!(answer.status, 400, "{case}");
        let (_, code, message) = refusal(client, &answer);
        assert!(message.contains(path), "{case}");
        if client != "messages" {
            assert_eq!(code, "translation_unsupported", "{case}");
            assert_eq!(answer.json()["error"]["param"], path, "{case}");
        }
        assert_eq!(sim.stats().requests(), 0, "{case}");
        let answer = ask(&gateway, client, "", &request(client, false)).await;
        assert_eq!(answer.status, 200, "{client} to {backend}: {}", answer.text());
        // Nothing is lost where nothing is translated.
        let native = speaker(client, |b| b.tokens = TOKENS).await;
        let gateway = before(&native.url(), client, strict).await;
        let answer = ask(&gateway, client, "", &with(client, false, &more)).await;
        assert_eq!(answer.status, 200, "{case}");
        assert_eq!(answer.header("x-llmproxy-dropped"), None, "{case}");
    }
}

#[tokio::test]
async fn native_answers_name_no_losses() {
    for language in LANGUAGES {
        let sim = speaker(language, |_| {}).await;
        let gateway = before(&sim.url(), language, "").await;
        let answer = ask(&gateway, language, "", &request(language, true)).await;
        assert_eq!((answer.status, answer.header("x-llmproxy-dropped")), (200, None));
        assert!(!gateway.log().contains("translated"), "{}", gateway.log());
    }
}

#[tokio::test]
async fn case_35_tools_that_a_model_refuses_in_chat_are_served_by_responses() {
    let sim = speaker("chat", |b| b.languages = llmproxy::sim::Language::ALL.to_vec()).await;
    let text = format!(
        "backends:\n{}models: {{sim-model: {{abilities: {{chat_tools: false}}}}}}\n",
        line("a", &sim.url(), "chat, responses", "")
    );
    let gateway = Gateway::start(&text).await;
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}});
    for stream in [false, true] {
        let answer =
            ask(&gateway, "chat", "", &with("chat", stream, &json!({"tools": [tool]}))).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(sim.stats().last().unwrap().line, "POST /v1/responses");
        let heard = hear("chat", stream, &answer);
        assert_eq!(heard.end.as_deref(), Some("tool_calls"), "{}", answer.text());
        assert!(answer.text().contains("\"name\":\"f\""), "{}", answer.text());
        let answer = ask(&gateway, "chat", "", &request("chat", stream)).await;
        assert_eq!((answer.status, answer.header("x-llmproxy-dropped")), (200, None));
        assert_eq!(sim.stats().last().unwrap().line, "POST /v1/chat/completions");
    }
}
