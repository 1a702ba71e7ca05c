//! A backend that keeps what it gets, and answers in Chat.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};

use crate::support::serve;

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    pub headers: HeaderMap,
    pub body: String,
}

impl Seen {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// A running backend.
pub struct Backend {
    pub url: String,
    state: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    seen: Vec<Seen>,
    status: u16,
    pieces: Vec<String>,
}

/// The events of a stream with these pieces of content.
pub fn events(pieces: &[&str]) -> String {
    let chunk = |delta: Value, finish: Value| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": finish});
        let chunk = json!({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [choice]});
        format!("data: {chunk}\n\n")
    };
    let mut text = chunk(json!({"role": "assistant", "content": ""}), Value::Null);
    for piece in pieces {
        text += &chunk(json!({"content": piece}), Value::Null);
    }
    text += &chunk(json!({}), "stop".into());
    let usage = json!({"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12});
    let last = json!({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [], "usage": usage});
    text + &format!("data: {last}\n\ndata: [DONE]\n\n")
}

impl Backend {
    pub async fn start() -> Self {
        let state = Arc::new(Mutex::new(Inner {
            status: 200,
            pieces: vec!["Hel".into(), "lo".into(), " you".into()],
            ..Inner::default()
        }));
        let app = Router::new()
            .route("/v1/chat/completions", post(answer))
            .with_state(Arc::clone(&state));
        Self { url: serve(app).await, state }
    }

    /// What came so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().seen.clone()
    }

    pub fn last(&self) -> Seen {
        self.seen().pop().expect("a request has come")
    }

    /// The status of its answers from here on.
    pub fn answer_with(&self, status: u16) {
        self.state.lock().unwrap().status = status;
    }

    /// The pieces of its streams from here on.
    pub fn say(&self, pieces: &[&str]) {
        self.state.lock().unwrap().pieces = pieces.iter().map(|p| (*p).to_owned()).collect();
    }
}

async fn answer(
    State(state): State<Arc<Mutex<Inner>>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let body = String::from_utf8(body.to_vec()).unwrap();
    let (status, pieces) = {
        let mut inner = state.lock().unwrap();
        inner.seen.push(Seen { headers, body: body.clone() });
        (inner.status, inner.pieces.clone())
    };
    let asked: Value = serde_json::from_str(&body).unwrap_or_default();
    if status != 200 {
        let error = json!({"error": {"message": "broken", "type": "x", "code": "y"}});
        let head = [("content-type", "application/json")];
        return (StatusCode::from_u16(status).unwrap(), head, error.to_string()).into_response();
    }
    if asked["stream"] == true {
        let pieces: Vec<_> = pieces.iter().map(String::as_str).collect();
        return ([("content-type", "text/event-stream")], events(&pieces)).into_response();
    }
    let message = json!({"role": "assistant", "content": pieces.concat()});
    let answer = json!({"id": "c1", "object": "chat.completion", "created": 1, "model": asked["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": null}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}});
    ([("content-type", "application/json"), ("x-served-by-test", "one")], answer.to_string())
        .into_response()
}
