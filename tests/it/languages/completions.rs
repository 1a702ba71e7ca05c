//! The older Completions before backends that do not have them.

use serde_json::{Value, json};

use super::{LANGUAGES, events, line, speaker};
use crate::support::{Gateway, Receiver, client::Response};

const TOKENS: u64 = 8;

async fn ask(gateway: &Gateway, more: Value) -> Response {
    let mut body = json!({"model": "sim-model", "prompt": "Hello", "max_tokens": TOKENS});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    gateway.client().await.ask("/v1/completions", body.to_string()).await
}

#[tokio::test]
async fn a_prompt_is_answered_by_every_language() {
    for backend in LANGUAGES {
        let sim = speaker(backend, |b| b.tokens = TOKENS).await;
        let receiver = Receiver::start().await;
        let has_none = if backend == "chat" { ", completions: false" } else { "" };
        let line = line("a", &sim.url(), backend, has_none);
        let gateway = Gateway::start(&format!("backends:\n{line}{}", receiver.hook())).await;
        let plain = ask(&gateway, json!({})).await;
        let case = format!("{backend}: {plain:?}");
        assert_eq!((plain.status, plain.whole), (200, true), "{case}");
        let said = plain.json();
        assert_eq!(
            (&said["object"], &said["model"]),
            (&json!("text_completion"), &json!("sim-model"))
        );
        let text = said["choices"][0]["text"].as_str().unwrap().to_owned();
        assert!(!text.is_empty() && said["choices"][0].get("message").is_none(), "{case}");
        assert!(said["choices"][0]["finish_reason"].is_string(), "{case}");
        assert_eq!(said["usage"]["completion_tokens"], TOKENS, "{case}");
        let more = json!({"stream": true, "stream_options": {"include_usage": true}});
        let stream = ask(&gateway, more).await;
        let case = format!("{backend}: {}", stream.text());
        assert!(stream.whole && stream.text().ends_with("data: [DONE]\n\n"), "{case}");
        let (mut all, mut reasons, mut usage) = (String::new(), 0, Value::Null);
        for (_, event) in events(stream.text()).into_iter().filter(|(_, e)| *e != "[DONE]") {
            assert_eq!(event["object"], "text_completion", "{case}");
            all += event["choices"][0]["text"].as_str().unwrap_or_default();
            reasons += usize::from(event["choices"][0]["finish_reason"].is_string());
            if !event["usage"].is_null() {
                usage = event["usage"].clone();
            }
        }
        assert_eq!((all, reasons), (text, 1), "{case}");
        assert_eq!(usage["completion_tokens"], TOKENS, "{case}");
        for record in receiver.wait_for(2).await {
            assert_eq!(record["completion_tokens"], TOKENS, "{record}");
            assert_eq!(record["endpoint"], "/v1/completions", "{record}");
        }
        let seen = sim.stats().recent();
        assert!(seen.iter().all(|request| !request.line.contains("/v1/completions")));
        let asked = sim.stats().requests();
        for (more, path) in [
            (json!({"echo": true}), "echo"),
            (json!({"suffix": "x"}), "suffix"),
            (json!({"logprobs": 1}), "logprobs"),
            (json!({"best_of": 2}), "best_of"),
            (json!({"prompt": ["a", "b"]}), "prompt"),
            (json!({"prompt": [1, 2]}), "prompt"),
        ] {
            let refused = ask(&gateway, more).await;
            let error = &refused.json()["error"];
            assert_eq!((refused.status, &error["param"]), (400, &json!(path)), "{error}");
            assert_eq!(error["code"], "translation_unsupported", "{error}");
        }
        assert_eq!(sim.stats().requests(), asked);
    }
}

#[tokio::test]
async fn a_backend_that_has_completions_gets_them_as_they_are() {
    let sim = speaker("chat", |b| b.tokens = TOKENS).await;
    let gateway =
        Gateway::start(&format!("backends:\n{}", line("a", &sim.url(), "chat", ""))).await;
    let answer = ask(&gateway, json!({"prompt": ["a", "b"]})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(sim.stats().last().unwrap().line.contains("/v1/completions"));
}
