//! The simulated backend and a real vLLM, asked the same: the answers have the same members in the same order, in
//! the same events. Texts, ids and counts differ, as the models do.

use std::fs;

use serde_json::{Map, Value};

use crate::support::{Client, client::Response, sim_with};

/// Request and answer of a capture.
struct Capture {
    line: String,
    request: String,
    status: u16,
    answer: String,
}

fn capture(name: &str) -> Capture {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/vllm/");
    let read = |end| fs::read_to_string(format!("{root}{name}.{end}")).unwrap();
    let (request, answer) = (read("req"), read("txt"));
    let (line, request) = request.split_once('\n').unwrap();
    let (head, answer) = answer.split_once("\r\n\r\n").unwrap();
    Capture {
        line: line.to_owned(),
        request: request.trim_end_matches('\n').to_owned(),
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        answer: answer.to_owned(),
    }
}

/// The simulated answer to the request of a capture.
async fn asked(capture: &Capture) -> Response {
    let sim = sim_with(|b| {
        b.models = vec!["tiny-llama".to_owned()];
        b.context_length = 2048;
    })
    .await;
    let mut client = Client::connect(sim.address).await;
    let (method, path) = capture.line.split_once(' ').unwrap();
    match method {
        "GET" => client.get(path).await,
        _ => client.ask(path, &capture.request).await,
    }
}

/// Members whose values say what the answer is; of all others only the kind is compared.
const TELLING: [&str; 14] = [
    "type",
    "object",
    "role",
    "finish_reason",
    "stop_reason",
    "status",
    "name",
    "reason",
    "index",
    "output_index",
    "content_index",
    "partial_json",
    "message",
    "input",
];

fn shape(name: &str, value: &Value) -> Value {
    match value {
        Value::Object(_) if name == "input" => "arguments".into(),
        Value::Object(members) => {
            let shaped: Map<String, Value> =
                members.iter().map(|(name, value)| (name.clone(), shape(name, value))).collect();
            Value::Object(shaped)
        }
        Value::Array(items) => {
            let mut shapes: Vec<Value> = items.iter().map(|item| shape("", item)).collect();
            shapes.dedup();
            Value::Array(shapes)
        }
        Value::String(_) if name == "partial_json" || !TELLING.contains(&name) => "text".into(),
        Value::Number(_) if !TELLING.contains(&name) => "number".into(),
        other => other.clone(),
    }
}

/// The shapes of an answer: of a stream, those of all events, runs of the same as one.
fn shapes(answer: &str) -> Vec<String> {
    if let Ok(document) = serde_json::from_str::<Value>(answer) {
        return vec![shape("", &document).to_string()];
    }
    let mut shapes: Vec<String> = answer
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| match line.strip_prefix("data: ").map(serde_json::from_str::<Value>) {
            Some(Ok(data)) => shape("", &data).to_string(),
            _ => line.to_owned(),
        })
        .collect();
    // An event is one line or two.
    let names = answer.contains("event: ");
    if names {
        shapes = shapes.chunks(2).map(|pair| pair.join(" ")).collect();
    }
    shapes.dedup();
    shapes
}

// Where a model stops by itself, vLLM's last event has an empty delta; the simulated one has a token in it, unless
// it calls a tool: such streams are not among these.
#[tokio::test]
async fn answers_have_the_shape_of_captured_ones() {
    for name in [
        "anthropic_count_tokens",
        "anthropic_messages",
        "anthropic_messages_stream",
        "anthropic_tools",
        "anthropic_tools_stream",
        "chat_content_parts",
        "chat_json_schema",
        "chat_max_completion_tokens",
        "chat_natural_stop",
        "chat_nonstream",
        "chat_stream",
        "chat_stream_continuous_usage",
        "chat_stream_nullopts",
        "chat_stream_usage",
        "chat_stream_usage_false",
        "chat_tools_auto",
        "chat_tools_auto_stream",
        "chat_tools_named",
        "chat_tools_named_stream",
        "chat_tools_required",
        "chat_tools_required_stream",
        "completions",
        "completions_stream",
        "err_404",
        "err_405",
        "responses",
        "responses_stream",
    ] {
        let capture = capture(name);
        let answer = asked(&capture).await;
        assert_eq!(answer.status, capture.status, "{name}: {}", answer.text());
        let (ours, theirs) = (shapes(answer.text()), shapes(&capture.answer));
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_eq!(ours, theirs, "{name}");
        }
        assert_eq!(ours.len(), theirs.len(), "{name}: {}", answer.text());
    }
}

#[tokio::test]
async fn refusals_have_the_bytes_of_captured_ones() {
    for name in [
        "anthropic_err_json",
        "anthropic_err_model",
        "anthropic_err_nomaxtokens",
        "chat_stream_options_nostream",
        "err_bad_json",
        "err_bad_model",
        "err_bad_model_stream",
        "err_empty_body",
        "err_json_array",
        "err_max_tokens_too_big",
        "err_missing_messages",
        "err_tool_choice_no_tools",
        "responses_err_model",
        "responses_get_missing",
    ] {
        let capture = capture(name);
        let answer = asked(&capture).await;
        assert_eq!(answer.status, capture.status, "{name}: {}", answer.text());
        assert_eq!(answer.text(), capture.answer, "{name}");
    }
}

#[tokio::test]
async fn a_prompt_that_is_too_long_is_refused_in_the_words_of_vllm() {
    let too_long = capture("err_ctx_too_long");
    let text = "long ".repeat(2048);
    for stream in [false, true] {
        let body = serde_json::json!({"model": "tiny-llama", "messages": [{"role": "user", "content": text}],
            "stream": stream, "max_tokens": 4});
        let chat = Capture {
            line: "POST /v1/chat/completions".to_owned(),
            request: body.to_string(),
            ..capture("err_ctx_too_long")
        };
        let answer = asked(&chat).await;
        assert_eq!((answer.status, answer.text()), (too_long.status, too_long.answer.as_str()));
        let messages = Capture { line: "POST /v1/messages".to_owned(), ..chat };
        let answer = asked(&messages).await;
        let theirs: Value = serde_json::from_str(&too_long.answer).unwrap();
        assert_eq!(answer.status, too_long.status);
        assert_eq!(answer.json()["type"], "error");
        assert_eq!(answer.json()["error"]["message"], theirs["error"]["message"]);
    }
}
