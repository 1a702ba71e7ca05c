//! Tests of the whole codec, and what they share: a strict reader of our streams, and equality of
//! requests.

mod answers;
mod reading;
mod streams;
mod writing;

use serde_json::Value;

use super::{LANGUAGE, MessagesCodec};
use crate::dialect::hub::{
    Codec, Event, Exchange, Json, Losses, Refused, Request, Response, StopReason, Target, Usage,
    normal::Normal, translator,
};

const CODEC: MessagesCodec = MessagesCodec;

/// One of the files that were captured from servers and clients.
macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!("../../../../../tests/fixtures/translate/messages/", $name))
    };
}
use fixture;

/// An exchange with a backend of this language, or of another.
fn exchange(backend: &'static str) -> Exchange {
    Exchange {
        model: Some("alias".to_owned()),
        created: 0x10,
        issuer: "issuer.example".to_owned(),
        backend,
        ..Exchange::default()
    }
}

fn read(body: &str) -> Request {
    CODEC.read(body).unwrap_or_else(|refused| panic!("{refused}: {body}"))
}

fn refusal(body: &str) -> Refused {
    CODEC.read(body).expect_err(body)
}

fn write(request: &Request, target: &Target) -> (Value, Losses) {
    let mut losses = Losses::default();
    let body = CODEC.write(request, target, &mut losses).unwrap_or_else(|e| panic!("{e}"));
    (serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}: {body}")), losses)
}

fn refused(request: &Request, target: &Target) -> Refused {
    CODEC.write(request, target, &mut Losses::default()).expect_err("is refused")
}

fn json(text: &str) -> Json {
    Json::parse(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// Two texts are the same JSON: numbers have the same digits, and arguments and schemas the same
/// order. Elsewhere the order of members is free.
fn same(a: &Json, b: &Json) -> bool {
    match (a.object(), b.object()) {
        (Some(a), Some(b)) => {
            a.members().count() == b.members().count()
                && a.members().all(|(name, a)| {
                    let (a, b) = (Json::of(a), b.get(name).map(Json::of));
                    let kept = matches!(name, "input" | "input_schema" | "schema");
                    b.is_some_and(|b| if kept { a == b } else { same(&a, &b) })
                })
        }
        _ => match (a.array(), b.array()) {
            (Some(a), Some(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(&Json::of(a), &Json::of(b)))
            }
            _ => match (a.as_text(), b.as_text()) {
                (Some(a), Some(b)) => a == b,
                _ => a == b,
            },
        },
    }
}

/// What a client has made of a stream.
#[derive(Debug, Default, PartialEq)]
struct Message {
    head: Value,
    blocks: Vec<Value>,
    stop: Value,
    usage: Value,
    error: Option<Value>,
    pings: usize,
}

/// Reads a stream as strictly as the strictest client does: one beginning, one open block at a
/// time, dense numbers, deltas of the block's kind, one end and nothing behind it.
fn judge(stream: &str) -> Message {
    let mut message = Message::default();
    let (mut started, mut open, mut delta, mut over) = (false, None::<usize>, false, false);
    let mut input = String::new();
    for event in stream.split_terminator("\n\n") {
        if event.starts_with(':') {
            continue;
        }
        let (name, data) = event.split_once("\ndata: ").unwrap_or_else(|| panic!("{event}"));
        let name = name.strip_prefix("event: ").unwrap_or_else(|| panic!("{event}"));
        let mut data: Value = serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}: {event}"));
        assert_eq!(data["type"], name, "{event}");
        assert!(!over, "an event behind the end: {event}");
        assert!(started || matches!(name, "message_start" | "error"), "before the start: {event}");
        match name {
            "message_start" => {
                assert!(!started, "a second start");
                started = true;
                message.head = data["message"].take();
                for member in ["id", "type", "role", "model", "content", "usage"] {
                    assert!(!message.head[member].is_null(), "{member}: {event}");
                }
                assert!(message.head["usage"]["input_tokens"].is_u64());
                assert!(message.head["usage"]["output_tokens"].is_u64());
            }
            "content_block_start" => {
                assert_eq!((open, delta), (None, false), "{event}");
                assert_eq!(data["index"], message.blocks.len(), "{event}");
                open = Some(message.blocks.len());
                message.blocks.push(data["content_block"].take());
                input.clear();
            }
            "content_block_delta" => {
                assert_eq!(data["index"].as_u64().map(|i| i as usize), open, "{event}");
                let block = message.blocks.last_mut().unwrap();
                add(block, &data["delta"], &mut input);
            }
            "content_block_stop" => {
                assert_eq!(data["index"].as_u64().map(|i| i as usize), open.take(), "{event}");
                let block = message.blocks.last_mut().unwrap();
                if !input.is_empty() {
                    // A call that was cut off keeps its text.
                    block["input"] = serde_json::from_str(&input).unwrap_or(input.clone().into());
                }
            }
            "message_delta" => {
                assert_eq!((open, delta), (None, false), "{event}");
                delta = true;
                assert!(data["delta"]["stop_reason"].is_string(), "{event}");
                assert!(data["usage"]["output_tokens"].is_u64(), "{event}");
                (message.stop, message.usage) = (data["delta"].take(), data["usage"].take());
            }
            "message_stop" => {
                assert!(delta, "{event}");
                over = true;
            }
            "error" => {
                assert_eq!((open, delta), (None, false), "{event}");
                assert!(data["error"]["message"].is_string() && data["error"]["type"].is_string());
                message.error = Some(data["error"].take());
                over = true;
            }
            "ping" => message.pings += 1,
            // Clients skip what is newer than they are.
            other => assert!(other.bytes().all(|b| b.is_ascii_graphic()), "{event}"),
        }
    }
    assert!(over, "no end: {stream}");
    message
}

fn add(block: &mut Value, delta: &Value, input: &mut String) {
    let (of, member, text) = match delta["type"].as_str().unwrap() {
        "text_delta" => ("text", "text", &delta["text"]),
        "thinking_delta" => ("thinking", "thinking", &delta["thinking"]),
        "signature_delta" => {
            assert_eq!(block["signature"], "", "one signature");
            ("thinking", "signature", &delta["signature"])
        }
        "input_json_delta" => {
            assert!(block["type"].as_str().unwrap().ends_with("tool_use"), "{block}");
            return input.push_str(delta["partial_json"].as_str().unwrap());
        }
        "citations_delta" => {
            assert_eq!(block["type"], "text");
            if !block["citations"].is_array() {
                block["citations"] = Value::Array(Vec::new());
            }
            return block["citations"].as_array_mut().unwrap().push(delta["citation"].clone());
        }
        other => panic!("unknown delta {other}"),
    };
    assert_eq!(block["type"], of, "{delta}");
    let all = format!("{}{}", block[member].as_str().unwrap(), text.as_str().unwrap());
    block[member] = all.into();
}

/// What a client gets for the events of a backend of another language.
fn client(events: &[Event]) -> Message {
    client_of(events, &exchange("chat"))
}

fn client_of(events: &[Event], exchange: &Exchange) -> Message {
    let (mut normal, mut ready) = (Normal::new(exchange), Vec::new());
    for event in events {
        normal.take(event.clone(), &mut ready);
    }
    normal.finish(&mut ready);
    let message = judge(&translator::stream(&CODEC, &ready, exchange));
    let document = translator::document(&CODEC, &ready, exchange);
    let document: Value = serde_json::from_str(&document).unwrap();
    agree(&message, &document, &ready);
    message
}

/// A plain answer says the same as the stream, except of calls that were cut off.
fn agree(message: &Message, document: &Value, events: &[Event]) {
    if let Some(error) = &message.error {
        assert_eq!(&document["error"], error);
        return;
    }
    let runs = |block: &&Value| block["input"].is_null() || block["input"].is_object();
    if message.blocks.iter().all(|block| runs(&block)) {
        assert_eq!(document["content"], Value::Array(message.blocks.clone()), "{events:?}");
    }
    assert_eq!(document["stop_reason"], message.stop["stop_reason"]);
    assert_eq!(document["stop_sequence"], message.stop["stop_sequence"]);
    assert_eq!(document["id"], message.head["id"]);
    assert_eq!(document["usage"]["output_tokens"], message.usage["output_tokens"]);
}

fn stop(reason: StopReason) -> Event {
    Event::Stop { choice: 0, reason }
}

fn usage(input: u64, output: u64) -> Usage {
    Usage { input: Some(input), output: Some(output), ..Usage::default() }
}

fn folded(events: &[Event]) -> Response {
    Response::of(events)
}
