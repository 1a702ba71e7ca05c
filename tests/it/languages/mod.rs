//! The policies of the gateway in every language, and in every pair of a client's and a backend's.

mod broken;
mod completions;
mod credentials;
mod errors;
mod fallbacks;
mod odd_answers;
mod policies;
mod refusals;
mod waiting;

use llmproxy::sim::{Behaviour, Language, Sim};
use serde_json::{Value, json};

use crate::support::{Gateway, client::Response, sim_with};

pub const LANGUAGES: [&str; 3] = ["chat", "messages", "responses"];

/// Retries as often as it takes, and no backend is ejected.
pub const PATIENT: &str =
    "routing: {circuit: {enabled: false}, retry: {budget: {ratio: 1, min_per_second: 1000}}}\n";

/// For a sole backend: it is asked once.
pub const ONCE: &str = "routing: {circuit: {enabled: false}, retry: {enabled: false}}\n";

pub fn path(language: &str) -> &'static str {
    match language {
        "chat" => "/v1/chat/completions",
        "messages" => "/v1/messages",
        _ => "/v1/responses",
    }
}

/// A request that says `Hello`.
pub fn request(language: &str, stream: bool) -> Value {
    says(language, stream, "Hello")
}

pub fn says(language: &str, stream: bool, text: &str) -> Value {
    let turn = json!([{"role": "user", "content": text}]);
    match language {
        "chat" => json!({"model": "sim-model", "messages": turn, "stream": stream}),
        "messages" => {
            json!({"model": "sim-model", "messages": turn, "stream": stream, "max_tokens": 4096})
        }
        _ => json!({"model": "sim-model", "input": turn, "stream": stream}),
    }
}

/// A backend that speaks this language alone.
pub async fn speaker(language: &str, change: impl FnOnce(&mut Behaviour)) -> Sim {
    sim_with(|behaviour| {
        behaviour.languages = vec![match language {
            "chat" => Language::Chat,
            "messages" => Language::Messages,
            _ => Language::Responses,
        }];
        change(behaviour);
    })
    .await
}

/// A line of `backends`. `more` has more members, each with a comma before it.
pub fn line(name: &str, url: &str, language: &str, more: &str) -> String {
    format!("  - {{name: {name}, url: \"{url}\", languages: [{language}]{more}}}\n")
}

/// A gateway with one backend, which speaks this language.
pub async fn before(url: &str, language: &str, more: &str) -> Gateway {
    Gateway::start(&format!("backends:\n{}{more}", line("a", url, language, ""))).await
}

/// Two backends, of which the second one is asked only where the first one fails.
pub fn first_and_second(first: (&str, &str), second: (&str, &str)) -> String {
    let (a, b) = (line("a", first.0, first.1, ", weight: 1000"), line("b", second.0, second.1, ""));
    format!("backends:\n{a}{b}")
}

/// The same request for another model. A busy backend rests for a model, and so does a failing one.
pub fn about(mut body: Value, model: &str) -> Value {
    body["model"] = model.into();
    body
}

/// Models of backends that are asked for this and that.
pub fn models(count: usize) -> Vec<String> {
    let more = (0..count).map(|n| format!("model-{n}"));
    std::iter::once("sim-model".to_owned()).chain(more).collect()
}

/// Asks on a new connection, with these header lines.
pub async fn ask(gateway: &Gateway, language: &str, headers: &str, body: &Value) -> Response {
    let mut client = gateway.client().await;
    client.post_with(path(language), headers, body.to_string().as_bytes()).await;
    client.answer().await
}

/// What a client has understood of an answer.
#[derive(Debug, Default)]
pub struct Heard {
    pub model: String,
    pub text: String,
    /// The language's word for a complete answer.
    pub end: Option<String>,
    /// The error that ended a stream, as the language has it.
    pub error: Option<Value>,
    /// Tokens of the prompt and of the answer, as far as they were said.
    pub usage: Option<(u64, u64)>,
    /// Something began and was not ended.
    pub open: bool,
    /// `[DONE]` ended it.
    pub done: bool,
}

impl Heard {
    /// It is complete, and has as many tokens.
    pub fn is_complete(&self, tokens: u64) -> bool {
        self.error.is_none()
            && !self.open
            && self.end.as_deref().is_some_and(|end| WELL.contains(&end))
            && self.tokens() == tokens
    }

    /// Tokens of the simulated model: words and marks.
    pub fn tokens(&self) -> u64 {
        (self.text.split_whitespace().count() + self.text.matches(['!', ',', '.']).count()) as u64
    }
}

/// The languages' words for the usual end.
const WELL: [&str; 3] = ["stop", "end_turn", "completed"];

/// Reads an answer as a strict client does: what is not of the language fails.
pub fn hear(language: &str, stream: bool, answer: &Response) -> Heard {
    assert!(answer.whole, "{language}: {}", answer.text());
    if !stream {
        assert_eq!(answer.header("content-type"), Some("application/json"), "{language}");
        return document(language, &answer.json());
    }
    let kind = answer.header("content-type").unwrap_or_default();
    assert!(kind.starts_with("text/event-stream"), "{language}: {kind}");
    match language {
        "chat" => chat_stream(answer.text()),
        "messages" => messages_stream(answer.text()),
        _ => responses_stream(answer.text()),
    }
}

fn counts(usage: &Value, names: [&str; 2]) -> Option<(u64, u64)> {
    Some((usage[names[0]].as_u64()?, usage[names[1]].as_u64()?))
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(parts: &Value) -> String {
    parts.as_array().into_iter().flatten().map(|part| word(&part["text"])).collect()
}

/// Reads a plain answer.
pub fn document(language: &str, said: &Value) -> Heard {
    let end = |word: &Value| word.as_str().map(str::to_owned);
    let model = word(&said["model"]);
    match language {
        "chat" => {
            assert_eq!(said["object"], "chat.completion", "{said}");
            let choice = &said["choices"][0];
            Heard {
                model,
                text: word(&choice["message"]["content"]),
                end: end(&choice["finish_reason"]),
                usage: counts(&said["usage"], ["prompt_tokens", "completion_tokens"]),
                ..Heard::default()
            }
        }
        "messages" => {
            assert_eq!((&said["type"], &said["role"]), (&json!("message"), &json!("assistant")));
            Heard {
                model,
                text: texts(&said["content"]),
                end: end(&said["stop_reason"]),
                usage: counts(&said["usage"], ["input_tokens", "output_tokens"]),
                ..Heard::default()
            }
        }
        _ => {
            assert_eq!(said["object"], "response", "{said}");
            let items = said["output"].as_array().unwrap();
            Heard {
                model,
                text: items.iter().map(|item| texts(&item["content"])).collect(),
                end: end(&said["status"]),
                usage: counts(&said["usage"], ["input_tokens", "output_tokens"]),
                ..Heard::default()
            }
        }
    }
}

/// Name and document of each event; comments are left out.
pub fn events(text: &str) -> Vec<(String, Value)> {
    let event = |event: &str| {
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
        let data = field("data:")?.trim();
        let document = serde_json::from_str(data).unwrap_or_else(|_| data.into());
        Some((field("event:").unwrap_or_default().trim().to_owned(), document))
    };
    assert!(text.is_empty() || text.ends_with("\n\n"), "a whole event: {text}");
    text.split_terminator("\n\n").filter_map(event).collect()
}

fn chat_stream(text: &str) -> Heard {
    let mut heard = Heard::default();
    for (name, event) in events(text) {
        assert!(name.is_empty() && !heard.done, "nothing follows the end: {text}");
        if event == "[DONE]" {
            heard.done = true;
            continue;
        }
        assert!(heard.error.is_none(), "only the end follows an error: {text}");
        if !event["error"].is_null() {
            heard.error = Some(event["error"].clone());
            continue;
        }
        heard.model = word(&event["model"]);
        let choice = &event["choices"][0];
        heard.text += choice["delta"]["content"].as_str().unwrap_or_default();
        if let Some(reason) = choice["finish_reason"].as_str() {
            assert!(heard.end.is_none(), "one end: {text}");
            heard.end = Some(reason.to_owned());
        }
        let usage = counts(&event["usage"], ["prompt_tokens", "completion_tokens"]);
        heard.usage = usage.or(heard.usage);
    }
    assert!(heard.done || heard.error.is_some(), "it ends: {text}");
    heard
}

fn messages_stream(text: &str) -> Heard {
    let mut heard = Heard::default();
    let (mut begun, mut over, mut blocks, mut open) = (false, false, 0, None);
    let mut counted = (None, None);
    for (name, event) in events(text) {
        assert_eq!(event["type"], name.as_str(), "{text}");
        assert!(!over, "nothing follows the end: {text}");
        match name.as_str() {
            "ping" => continue,
            "message_start" => {
                assert!(!std::mem::replace(&mut begun, true), "one beginning: {text}");
                heard.model = word(&event["message"]["model"]);
                counted.0 = event["message"]["usage"]["input_tokens"].as_u64();
            }
            "error" => {
                heard.error = Some(event["error"].clone());
                over = true;
                continue;
            }
            _ => {}
        }
        assert!(begun, "it begins first: {text}");
        match name.as_str() {
            "content_block_start" => {
                assert_eq!((event["index"].as_u64(), open), (Some(blocks), None), "{text}");
                open = Some(blocks);
                blocks += 1;
            }
            "content_block_delta" => {
                assert_eq!(event["index"].as_u64(), open, "{text}");
                heard.text += event["delta"]["text"].as_str().unwrap_or_default();
            }
            "content_block_stop" => assert_eq!(event["index"].as_u64(), open.take(), "{text}"),
            "message_delta" => {
                heard.end = event["delta"]["stop_reason"].as_str().map(str::to_owned);
                counted.0 = event["usage"]["input_tokens"].as_u64().or(counted.0);
                counted.1 = event["usage"]["output_tokens"].as_u64();
            }
            "message_stop" => over = true,
            _ => {}
        }
    }
    assert!(over, "it ends: {text}");
    heard.usage = counted.0.zip(counted.1);
    heard.open = open.is_some();
    heard
}

fn responses_stream(text: &str) -> Heard {
    let mut heard = Heard::default();
    let (mut begun, mut over, mut open) = (false, false, 0_i64);
    for (number, (name, event)) in events(text).into_iter().enumerate() {
        assert_eq!(event["type"], name.as_str(), "{text}");
        assert_eq!(event["sequence_number"].as_u64(), Some(number as u64), "{text}");
        assert!(!over, "nothing follows the end: {text}");
        let kind = name.strip_prefix("response.").unwrap_or(&name);
        if kind == "created" {
            assert!(!std::mem::replace(&mut begun, true), "one beginning: {text}");
        }
        assert!(begun, "it begins first: {text}");
        match kind {
            "output_item.added" => open += 1,
            "output_item.done" => open -= 1,
            "output_text.delta" => heard.text += &word(&event["delta"]),
            "completed" | "incomplete" | "failed" => {
                over = true;
                let response = &event["response"];
                heard.model = word(&response["model"]);
                heard.usage = counts(&response["usage"], ["input_tokens", "output_tokens"]);
                match kind {
                    "failed" => {
                        assert_eq!(response["status"], "failed", "{text}");
                        let items = response["output"].as_array().unwrap();
                        let whole = items.iter().any(|item| item["status"] == "in_progress");
                        assert!(!whole, "what was open is incomplete: {text}");
                        heard.error = Some(response["error"].clone());
                    }
                    _ => heard.end = Some(word(&response["status"])),
                }
            }
            _ => {}
        }
    }
    assert!(over, "it ends: {text}");
    heard.open = open != 0;
    heard
}

/// The error of a response, in the form of the language: its type, its code (`null` where the
/// language has none), and its message.
pub fn refusal(language: &str, answer: &Response) -> (Value, Value, String) {
    let body = answer.json();
    let error = &body["error"];
    assert!(error["type"].is_string() && error["message"].is_string(), "{body}");
    let members: Vec<&str> = error.as_object().unwrap().keys().map(String::as_str).collect();
    if language == "messages" {
        assert_eq!(body["type"], "error", "{body}");
        assert_eq!(members, ["type", "message"], "{body}");
    } else {
        for member in ["message", "type", "param", "code"] {
            assert!(members.contains(&member), "{body}");
        }
        assert_eq!(body.get("type"), None, "{body}");
    }
    (error["type"].clone(), error["code"].clone(), word(&error["message"]))
}
