//! A backend that says what the user said, in each language, whole or in pieces.

use std::{
    convert::Infallible,
    io,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use futures::{StreamExt, stream};
use serde_json::{Value, json};

use crate::support::serve;

/// How it answers.
#[derive(Clone)]
pub struct Manner {
    pub status: u16,
    /// Letters in a piece of a stream.
    pub piece: usize,
    /// What it says in place of what the user said.
    pub says: Option<String>,
    /// The connection breaks after the pieces of the text.
    pub breaks: bool,
    /// Before the first event or the whole answer.
    pub delay: Duration,
    /// A comment before the first event.
    pub comment: bool,
    /// A whole document where a stream was asked for.
    pub whole: bool,
}

#[derive(Default)]
struct Book {
    seen: Vec<String>,
    manner: Option<Manner>,
}

type Shared = Arc<Mutex<Book>>;

/// A running backend. It speaks all languages.
pub struct Echo {
    pub url: String,
    shared: Shared,
}

impl Echo {
    pub async fn start() -> Self {
        let shared = Shared::default();
        let manner = Manner {
            status: 200,
            piece: 3,
            says: None,
            breaks: false,
            delay: Duration::ZERO,
            comment: false,
            whole: false,
        };
        shared.lock().unwrap().manner = Some(manner);
        let route = |language: &'static str| {
            post(async move |State(state): State<Shared>, _: HeaderMap, body: Bytes| {
                answer(&state, language, &body).await
            })
        };
        let app = Router::new()
            .route("/v1/chat/completions", route("chat"))
            .route("/v1/messages", route("messages"))
            .route("/v1/responses", route("responses"))
            .with_state(Arc::clone(&shared));
        Self { url: serve(app).await, shared }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.shared.lock().unwrap()
    }

    /// Changes how it answers from here on.
    pub fn change(&self, change: impl FnOnce(&mut Manner)) {
        change(self.book().manner.as_mut().unwrap());
    }

    /// The bodies of the requests so far.
    pub fn seen(&self) -> Vec<String> {
        self.book().seen.clone()
    }

    pub fn last(&self) -> String {
        self.seen().pop().expect("a request has come")
    }

    pub fn last_json(&self) -> Value {
        serde_json::from_str(&self.last()).unwrap()
    }
}

async fn answer(state: &Shared, language: &str, body: &[u8]) -> Response {
    let asked: Value = serde_json::from_slice(body).unwrap();
    let manner = {
        let mut book = state.lock().unwrap();
        book.seen.push(String::from_utf8(body.to_vec()).unwrap());
        book.manner.clone().unwrap()
    };
    tokio::time::sleep(manner.delay).await;
    let json_type = [("content-type", "application/json")];
    if manner.status != 200 {
        let error = json!({"error": {"message": "broken", "type": "x", "code": "y"}});
        let status = StatusCode::from_u16(manner.status).unwrap();
        return (status, json_type, error.to_string()).into_response();
    }
    let text = manner.says.clone().unwrap_or_else(|| last_text(&asked));
    let calls = asked["tools"].as_array().is_some_and(|tools| !tools.is_empty());
    let told = if calls { json!({"text": text}).to_string() } else { text };
    if asked["stream"] != true || manner.whole {
        return (json_type, plain(language, &told, calls).to_string()).into_response();
    }
    let letters: Vec<char> = told.chars().collect();
    let pieces: Vec<String> =
        letters.chunks(manner.piece).map(|piece| piece.iter().collect()).collect();
    let (head, tail) = match language {
        "chat" => chat(&pieces, calls),
        "messages" => messages(&pieces, calls),
        _ => responses(&pieces, &told, calls),
    };
    let mut events = if manner.breaks { head } else { [head, tail].concat() };
    if manner.comment {
        events.insert(0, ": working\n\n".to_owned());
    }
    let pauses = manner.comment;
    let events = stream::iter(events).then(move |event| async move {
        match pauses {
            true => tokio::time::sleep(Duration::from_millis(20)).await,
            false => tokio::task::yield_now().await,
        }
        Ok::<_, io::Error>(Bytes::from(event))
    });
    let kind = [("content-type", "text/event-stream")];
    if !manner.breaks {
        return (kind, Body::from_stream(events)).into_response();
    }
    // What was written before the connection breaks must have arrived.
    let broken = stream::once(async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        Err(io::Error::other("broken"))
    });
    (kind, Body::from_stream(events.chain(broken))).into_response()
}

/// The text of the last turn.
fn last_text(asked: &Value) -> String {
    let turns = if asked["messages"].is_array() { &asked["messages"] } else { &asked["input"] };
    text_of(match turns.as_array().and_then(|all| all.last()) {
        Some(turn) => &turn["content"],
        None => turns,
    })
}

fn text_of(value: &Value) -> String {
    match value {
        Value::Array(parts) => parts.iter().map(|part| text_of(&part["text"])).collect(),
        other => other.as_str().unwrap_or_default().to_owned(),
    }
}

fn plain(language: &str, told: &str, calls: bool) -> Value {
    let arguments = || serde_json::from_str::<Value>(told).unwrap();
    match (language, calls) {
        ("chat", _) => {
            let call = json!({"id": "call_1", "type": "function", "function": {"name": "tell", "arguments": told}});
            let (message, end) = match calls {
                true => (
                    json!({"role": "assistant", "content": null, "tool_calls": [call]}),
                    "tool_calls",
                ),
                false => (json!({"role": "assistant", "content": told}), "stop"),
            };
            json!({"id": "c1", "object": "chat.completion", "created": 1, "model": "sim-model",
                "choices": [{"index": 0, "message": message, "finish_reason": end}],
                "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}})
        }
        ("messages", _) => {
            let (block, end) = match calls {
                true => (
                    json!({"type": "tool_use", "id": "toolu_1", "name": "tell", "input": arguments()}),
                    "tool_use",
                ),
                false => (json!({"type": "text", "text": told}), "end_turn"),
            };
            json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "sim-model", "content": [block],
                "stop_reason": end, "stop_sequence": null, "usage": {"input_tokens": 5, "output_tokens": 7}})
        }
        _ => response("completed", &[item(told, calls)]),
    }
}

/// The output item of Responses.
fn item(told: &str, calls: bool) -> Value {
    match calls {
        true => json!({"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "tell",
            "arguments": told, "status": "completed"}),
        false => {
            json!({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
            "content": [{"type": "output_text", "text": told, "annotations": []}]})
        }
    }
}

fn response(status: &str, output: &[Value]) -> Value {
    json!({"id": "resp_1", "object": "response", "created_at": 1, "model": "sim-model", "status": status,
        "output": output, "usage": (status == "completed").then(|| json!({"input_tokens": 5, "output_tokens": 7,
            "total_tokens": 12, "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}))})
}

fn chat(pieces: &[String], calls: bool) -> (Vec<String>, Vec<String>) {
    let chunk = |choices: Value, usage: Value| {
        let chunk = json!({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "sim-model",
            "choices": choices, "usage": usage});
        format!("data: {chunk}\n\n")
    };
    let choice = |delta: Value, end: Value| {
        chunk(json!([{"index": 0, "delta": delta, "finish_reason": end}]), Value::Null)
    };
    let mut head = vec![choice(json!({"role": "assistant", "content": ""}), Value::Null)];
    if calls {
        let call = json!({"index": 0, "id": "call_1", "type": "function", "function": {"name": "tell", "arguments": ""}});
        head.push(choice(json!({"tool_calls": [call]}), Value::Null));
    }
    head.extend(pieces.iter().map(|piece| {
        let delta = match calls {
            true => json!({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}),
            false => json!({"content": piece}),
        };
        choice(delta, Value::Null)
    }));
    let usage = json!({"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12});
    let end = if calls { "tool_calls" } else { "stop" };
    let tail =
        vec![choice(json!({}), end.into()), chunk(json!([]), usage), "data: [DONE]\n\n".to_owned()];
    (head, tail)
}

/// An event with a name.
fn named(event: &Value) -> String {
    format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap())
}

fn messages(pieces: &[String], calls: bool) -> (Vec<String>, Vec<String>) {
    let start = json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "sim-model", "content": [],
        "stop_reason": null, "stop_sequence": null, "usage": {"input_tokens": 5, "output_tokens": 1}});
    let block = match calls {
        true => json!({"type": "tool_use", "id": "toolu_1", "name": "tell", "input": {}}),
        false => json!({"type": "text", "text": ""}),
    };
    let mut head = vec![
        json!({"type": "message_start", "message": start}),
        json!({"type": "content_block_start", "index": 0, "content_block": block}),
    ];
    head.extend(pieces.iter().map(|piece| {
        let delta = match calls {
            true => json!({"type": "input_json_delta", "partial_json": piece}),
            false => json!({"type": "text_delta", "text": piece}),
        };
        json!({"type": "content_block_delta", "index": 0, "delta": delta})
    }));
    let end = if calls { "tool_use" } else { "end_turn" };
    let tail = [
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "delta": {"stop_reason": end, "stop_sequence": null}, "usage": {"output_tokens": 7}}),
        json!({"type": "message_stop"}),
    ];
    (head.iter().map(named).collect(), tail.iter().map(named).collect())
}

fn responses(pieces: &[String], told: &str, calls: bool) -> (Vec<String>, Vec<String>) {
    let id = if calls { "fc_1" } else { "msg_1" };
    let mut open = item("", calls);
    open["status"] = "in_progress".into();
    let part = |text: &str| json!({"type": "output_text", "text": text, "annotations": []});
    let mut head = vec![
        json!({"type": "response.created", "response": response("in_progress", &[])}),
        json!({"type": "response.in_progress", "response": response("in_progress", &[])}),
    ];
    if !calls {
        open["content"] = json!([]);
    }
    head.push(json!({"type": "response.output_item.added", "output_index": 0, "item": open}));
    let mut tail = Vec::new();
    let place = |kind: &str| json!({"type": kind, "item_id": id, "output_index": 0});
    let with = |kind: &str, members: &[(&str, Value)]| {
        let mut event = place(kind);
        for (name, value) in members {
            event[*name] = value.clone();
        }
        event
    };
    if calls {
        let kind = "response.function_call_arguments";
        head.extend(pieces.iter().map(|p| with(&format!("{kind}.delta"), &[("delta", json!(p))])));
        tail.push(with(&format!("{kind}.done"), &[("arguments", told.into())]));
    } else {
        let index = ("content_index", json!(0));
        head.push(with("response.content_part.added", &[index.clone(), ("part", part(""))]));
        head.extend(pieces.iter().map(|piece| {
            let members = [index.clone(), ("delta", json!(piece)), ("logprobs", json!([]))];
            with("response.output_text.delta", &members)
        }));
        let members = [index.clone(), ("text", told.into()), ("logprobs", json!([]))];
        tail.push(with("response.output_text.done", &members));
        tail.push(with("response.content_part.done", &[index, ("part", part(told))]));
    }
    let whole = item(told, calls);
    tail.push(json!({"type": "response.output_item.done", "output_index": 0, "item": whole}));
    tail.push(json!({"type": "response.completed", "response": response("completed", &[whole])}));
    let mut number = 0;
    let mut numbered = |event: &Value| {
        let mut event = event.clone();
        event["sequence_number"] = number.into();
        number += 1;
        named(&event)
    };
    let head: Vec<_> = head.iter().map(&mut numbered).collect();
    let tail = tail.iter().map(&mut numbered).collect();
    (head, tail)
}

/// A service that judges, and what it was asked.
pub struct Judge {
    pub url: String,
    asked: Arc<Mutex<Vec<(HeaderMap, Value)>>>,
    answer: Arc<Mutex<(u16, String, Duration)>>,
}

impl Judge {
    pub async fn start() -> Self {
        let asked = Arc::<Mutex<Vec<(HeaderMap, Value)>>>::default();
        let answer = Arc::new(Mutex::new((200, String::new(), Duration::ZERO)));
        let (book, manner) = (Arc::clone(&asked), Arc::clone(&answer));
        let judge = async move |headers: HeaderMap, body: Bytes| {
            book.lock().unwrap().push((headers, serde_json::from_slice(&body).unwrap()));
            let (status, text, delay) = manner.lock().unwrap().clone();
            tokio::time::sleep(delay).await;
            let status = StatusCode::from_u16(status).unwrap();
            Ok::<_, Infallible>((status, text))
        };
        let app = Router::new().route("/check", post(judge));
        Self { url: format!("{}/check", serve(app).await), asked, answer }
    }

    /// What it answers from here on.
    pub fn says(&self, status: u16, body: &Value, delay: Duration) {
        *self.answer.lock().unwrap() = (status, body.to_string(), delay);
    }

    pub fn asked(&self) -> Vec<(HeaderMap, Value)> {
        self.asked.lock().unwrap().clone()
    }
}
