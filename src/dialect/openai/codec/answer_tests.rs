//! Answers: streams of real and of odd servers, as a client of Chat gets them through the hub.

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::ChatCodec;
use crate::dialect::hub::{
    Class, Codec, Event, Exchange, Json, PartKind, Response, Start, StopReason, StreamFault,
    Translator, Usage,
    event::Citation,
    request::{ClientWishes, Part, State, ToolKind},
    stopwatch::Stopwatch,
    translator,
};

fn exchange() -> Exchange {
    Exchange {
        created: 7,
        issuer: "acme".into(),
        client: ClientWishes { usage: true, ..ClientWishes::default() },
        ..Exchange::default()
    }
}

/// Events of the hub for the client, and what the client gets.
fn translate_by(pieces: &[&[u8]], exchange: &Exchange) -> (Vec<Event>, String) {
    let mut translator = Translator::new(&ChatCodec, &ChatCodec, exchange);
    let (mut events, mut out) = (Vec::new(), String::new());
    for piece in pieces {
        translator.push(&Bytes::copy_from_slice(piece), &mut out, |e| events.push(e.clone()));
    }
    translator.finish(&mut out, |e| events.push(e.clone()));
    (events, out)
}

fn translate(stream: &str) -> (Vec<Event>, String) {
    translate_by(&[stream.as_bytes()], &exchange())
}

/// A stream of these chunks.
fn stream(chunks: &[Value]) -> String {
    let mut out: String = chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect();
    out += "data: [DONE]\n\n";
    out
}

fn chunk(delta: Value) -> Value {
    json!({"id": "x", "created": 5, "model": "m", "choices": [{"index": 0, "delta": delta}]})
}

fn finish(word: &str) -> Value {
    json!({"id": "x", "created": 5, "model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": word}]})
}

/// What a strict client makes of a stream: it must be valid to its end.
#[derive(Debug, Default, PartialEq)]
struct Client {
    choices: Vec<ClientChoice>,
    usage: Option<Value>,
    error: Option<Value>,
    id: String,
}

#[derive(Debug, Default, PartialEq)]
struct ClientChoice {
    role: bool,
    content: String,
    reasoning: String,
    refusal: String,
    /// Id, name, arguments.
    calls: Vec<(String, String, String)>,
    function: Option<(String, String)>,
    details: Vec<Value>,
    annotations: Vec<Value>,
    signatures: Vec<String>,
    tokens: Vec<Value>,
    finish: Option<String>,
}

fn client(out: &str) -> Client {
    let mut all = Client::default();
    let (mut done, mut constant) = (false, None);
    for event in out.split_terminator("\n\n") {
        assert!(!done, "something behind the end: {event}");
        if event.starts_with(':') {
            continue;
        }
        let data = event.strip_prefix("data: ").unwrap_or_else(|| panic!("{event:?}"));
        if data == "[DONE]" {
            done = true;
            continue;
        }
        assert!(all.error.is_none(), "something behind an error: {data}");
        let chunk: Value = serde_json::from_str(data).unwrap();
        if let Some(error) = chunk.get("error") {
            for name in ["message", "type", "param", "code"] {
                assert!(error.get(name).is_some(), "{error}");
            }
            all.error = Some(error.clone());
            continue;
        }
        assert_eq!(chunk["object"], "chat.completion.chunk");
        let of = ["id", "created", "model"].map(|name| chunk[name].clone());
        assert!(of[0].as_str().unwrap().starts_with("chatcmpl-"));
        all.id = of[0].as_str().unwrap().to_owned();
        assert_eq!(*constant.get_or_insert(of.clone()), of);
        for choice in chunk["choices"].as_array().unwrap() {
            let at = choice["index"].as_u64().unwrap() as usize;
            if all.choices.len() <= at {
                all.choices.resize_with(at + 1, ClientChoice::default);
            }
            take(&mut all.choices[at], choice);
        }
        if let Some(usage) = chunk.get("usage") {
            assert_eq!(chunk["choices"], json!([]));
            assert!(all.usage.replace(usage.clone()).is_none());
        }
    }
    assert!(done, "no end: {out}");
    if all.error.is_none() {
        assert!(!all.choices.is_empty());
        // Of a choice that was lost altogether nothing is said.
        let ends = |choice: &ClientChoice| !choice.role || choice.finish.is_some();
        assert!(all.choices.iter().all(ends), "{out}");
    }
    all
}

fn take(all: &mut ClientChoice, choice: &Value) {
    assert_eq!(all.finish, None, "something behind the finish: {choice}");
    let delta = &choice["delta"];
    let text = |name: &str| delta[name].as_str().unwrap_or("").to_owned();
    if let Some(role) = delta.get("role") {
        assert!(role == "assistant" && !all.role, "{choice}");
        all.role = true;
    }
    assert!(all.role, "the role is not first: {choice}");
    all.content += &text("content");
    all.refusal += &text("refusal");
    assert_eq!(text("reasoning"), text("reasoning_content"));
    all.reasoning += &text("reasoning");
    let list = |name: &str| delta[name].as_array().cloned().unwrap_or_default();
    all.details.extend(list("reasoning_details"));
    all.annotations.extend(list("annotations"));
    all.tokens.extend(choice["logprobs"]["content"].as_array().cloned().unwrap_or_default());
    for call in list("tool_calls") {
        let at = call["index"].as_u64().unwrap() as usize;
        let text = |name: &str| call["function"][name].as_str().unwrap_or("").to_owned();
        if at == all.calls.len() {
            let id = call["id"].as_str().unwrap().to_owned();
            assert!(!id.is_empty() && call["type"] == "function", "{call}");
            all.calls.push((id, text("name"), String::new()));
        } else {
            // As Python's reader has it: the list is dense, and only the last one grows.
            assert!(at + 1 == all.calls.len() && call.get("id").is_none(), "{call}");
        }
        all.calls[at].2 += &text("arguments");
        let signature = call["extra_content"]["google"]["thought_signature"].as_str();
        all.signatures.extend(signature.map(str::to_owned));
    }
    if let Some(call) = delta.get("function_call") {
        let text = |name: &str| call[name].as_str().unwrap_or("");
        let known = all.function.get_or_insert_default();
        known.0 += text("name");
        known.1 += text("arguments");
    }
    all.finish = choice["finish_reason"].as_str().map(str::to_owned);
    if let Some(word) = &all.finish {
        let words = ["stop", "length", "tool_calls", "content_filter", "function_call"];
        assert!(words.contains(&word.as_str()), "{word}");
    }
}

macro_rules! captures {
    ($($name:literal),* $(,)?) => {
        [$(
            (concat!("vllm/", $name), include_str!(concat!("../../../../tests/fixtures/vllm/", $name, ".txt"))),
            (concat!("llamacpp/", $name), include_str!(concat!("../../../../tests/fixtures/llamacpp/", $name, ".txt"))),
        )*]
    };
}

const STREAMS: [(&str, &str); 18] = captures![
    "chat_natural_stop_stream",
    "chat_stream",
    "chat_stream_continuous_usage",
    "chat_stream_n2",
    "chat_stream_usage",
    "chat_think_stream",
    "chat_tools_auto_stream",
    "chat_tools_named_stream",
    "chat_tools_required_stream",
];

const DOCUMENTS: [(&str, &str); 22] = captures![
    "chat_content_parts",
    "chat_json_schema",
    "chat_natural_stop",
    "chat_nonstream",
    "chat_nonstream_logprobs",
    "chat_stop",
    "chat_think",
    "chat_tool_result",
    "chat_tools_auto",
    "chat_tools_named",
    "chat_tools_required",
];

/// What is behind the head of a raw answer.
fn body(capture: &'static str) -> &'static str {
    let at = capture.find("\r\n\r\n").map(|at| at + 4);
    &capture[at.or(capture.find("\n\n").map(|at| at + 2)).unwrap()..]
}

/// What the chunks of a server say when they are simply added up.
fn sum(stream: &str) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    for line in stream.lines().filter_map(|line| line.strip_prefix("data: {")) {
        let chunk: Value = serde_json::from_str(&format!("{{{line}")).unwrap();
        for choice in chunk["choices"].as_array().unwrap() {
            let at = choice["index"].as_u64().unwrap() as usize;
            all.resize_with(all.len().max(at + 1), Default::default);
            all[at].0 += choice["delta"]["content"].as_str().unwrap_or("");
            let call = &choice["delta"]["tool_calls"][0]["function"]["arguments"];
            all[at].1 += call.as_str().unwrap_or("");
        }
    }
    all
}

#[test]
fn captured_streams_say_the_same_to_a_client() {
    for (name, capture) in STREAMS {
        let stream = body(capture);
        let client = client(&translate(stream).1);
        assert_eq!(client.error, None, "{name}");
        let said: Vec<_> = client
            .choices
            .iter()
            .map(|choice| {
                let arguments = choice.calls.first().map_or("", |call| &call.2);
                (choice.content.clone(), arguments.to_owned())
            })
            .collect();
        assert_eq!(said, sum(stream), "{name}");
        if name.contains("tools_named") || name.contains("tools_required") {
            // Case 18: vLLM says `stop` although a call was made.
            assert_eq!(client.choices[0].finish.as_deref(), Some("tool_calls"), "{name}");
            assert_eq!(client.choices[0].calls[0].1, "get_weather", "{name}");
        }
        let counted = stream.contains("\"usage\":{");
        assert_eq!(client.usage.is_some(), counted, "{name}");
    }
}

#[test]
fn an_engine_that_dies_or_is_stopped_gives_an_error() {
    let killed =
        include_str!("../../../../tests/fixtures/vllm-death/stream_when_engine_killed.txt");
    let stopped = include_str!("../../../../tests/fixtures/vllm-sigterm/stream.txt");
    for (capture, word) in [(killed, "EngineCore"), (stopped, "broke the answer off")] {
        let client = client(&translate(body(capture)).1);
        let said = &client.choices[0];
        assert!(!said.content.is_empty() || !said.reasoning.is_empty());
        assert_eq!(said.finish, None);
        let error = client.error.unwrap();
        assert!(error["message"].as_str().unwrap().contains(word), "{error}");
        assert_eq!(error["type"], "server_error");
    }
}

#[test]
fn any_cut_of_the_bytes_gives_the_same() {
    for (name, capture) in STREAMS {
        let stream = body(capture).as_bytes();
        let whole = translate_by(&[stream], &exchange()).1;
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(translate_by(&bytes, &exchange()).1, whole, "{name}");
        for at in (0..stream.len()).step_by(97) {
            let (left, right) = stream.split_at(at);
            assert_eq!(translate_by(&[left, right], &exchange()).1, whole, "{name} {at}");
        }
    }
}

#[test]
fn captured_answers_are_written_again() {
    for (name, capture) in DOCUMENTS {
        let text = body(capture);
        let events = translator::answer(&ChatCodec, text, &exchange()).unwrap();
        let out = translator::document(&ChatCodec, &events, &exchange());
        let (old, new): (Value, Value) =
            (serde_json::from_str(text).unwrap(), serde_json::from_str(&out).unwrap());
        for member in ["id", "created", "model", "object", "system_fingerprint"] {
            assert_eq!(new[member], old[member], "{name}");
        }
        for (member, value) in new["usage"].as_object().unwrap() {
            assert_eq!(*value, old["usage"][member], "{name} {member}");
        }
        let (old, new) = (&old["choices"], &new["choices"]);
        assert_eq!(old.as_array().unwrap().len(), new.as_array().unwrap().len());
        for (old, new) in old.as_array().unwrap().iter().zip(new.as_array().unwrap()) {
            let text =
                |choice: &Value| choice["message"]["content"].as_str().unwrap_or("").to_owned();
            assert_eq!(text(new), text(old), "{name}");
            assert_eq!(new["message"]["tool_calls"], old["message"]["tool_calls"], "{name}");
            assert_eq!(new["logprobs"]["content"], old["logprobs"]["content"], "{name}");
            if old["message"]["tool_calls"].is_null() {
                assert_eq!(new["finish_reason"], old["finish_reason"], "{name}");
            } else {
                assert_eq!(new["finish_reason"], "tool_calls", "{name}");
            }
        }
        // And as a stream, for a client that was promised one.
        let streamed = client(&translator::stream(&ChatCodec, &events, &exchange()));
        let content = new[0]["message"]["content"].as_str().unwrap_or("");
        assert_eq!(streamed.choices[0].content, content, "{name}");
    }
}

/// A delta with these calls.
fn calls(list: Value) -> Value {
    chunk(json!({"tool_calls": list}))
}

/// The calls that a client gets: name and arguments.
fn called(chunks: &[Value]) -> Vec<(String, String)> {
    let mut chunks = chunks.to_vec();
    chunks.push(finish("tool_calls"));
    let client = client(&translate(&stream(&chunks)).1);
    assert_eq!(client.error, None);
    let [choice] = &client.choices[..] else { panic!("{client:?}") };
    assert_eq!(choice.finish.as_deref(), Some("tool_calls"));
    let ids: std::collections::HashSet<_> = choice.calls.iter().map(|call| &call.0).collect();
    assert_eq!(ids.len(), choice.calls.len(), "{choice:?}");
    choice.calls.iter().map(|(_, name, arguments)| (name.clone(), arguments.clone())).collect()
}

fn pairs<const N: usize>(list: [(&str, &str); N]) -> Vec<(String, String)> {
    list.map(|(name, arguments)| (name.to_owned(), arguments.to_owned())).into()
}

#[test]
fn case_6_a_call_without_arguments_has_an_empty_object() {
    for arguments in [json!(null), json!("")] {
        let chunks = [calls(
            json!([{"index": 0, "id": "a", "function": {"name": "f", "arguments": arguments}}]),
        )];
        assert_eq!(called(&chunks), pairs([("f", "{}")]));
    }
    let none = [calls(json!([{"index": 0, "id": "a", "function": {"name": "f"}}]))];
    assert_eq!(called(&none), pairs([("f", "{}")]));
}

#[test]
fn case_7_deltas_of_two_calls_in_turn_give_two_whole_calls() {
    let chunks = [
        calls(json!([{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{\"x\":"}}])),
        calls(json!([{"index": 1, "id": "b", "function": {"name": "g", "arguments": "{\"y\""}}])),
        calls(json!([{"index": 0, "function": {"arguments": "1}"}}])),
        calls(json!([{"index": 1, "function": {"arguments": ":2}"}}])),
    ];
    assert_eq!(called(&chunks), pairs([("f", "{\"x\":1}"), ("g", "{\"y\":2}")]));
}

#[test]
fn case_13_calls_without_an_index_are_matched_by_id_and_order() {
    let by_id = [
        calls(json!([{"id": "a", "function": {"name": "f", "arguments": "{"}}])),
        calls(json!([{"id": "a", "function": {"arguments": "}"}}])),
        calls(
            json!([{"id": "b", "function": {"name": "g", "arguments": "{"}}, {"id": "b", "function": {"arguments": "}"}}]),
        ),
    ];
    assert_eq!(called(&by_id), pairs([("f", "{}"), ("g", "{}")]));
    let by_order = [
        calls(json!([{"function": {"name": "f", "arguments": "{"}}])),
        calls(json!([{"function": {"arguments": "}"}}])),
        calls(
            json!([{"function": {"name": "f", "arguments": "{\"a\":1}"}}, {"function": {"name": "g", "arguments": "{}"}}]),
        ),
    ];
    assert_eq!(called(&by_order), pairs([("f", "{}"), ("f", "{\"a\":1}"), ("g", "{}")]));
}

#[test]
fn case_14_each_new_id_is_a_new_call_although_all_have_index_0() {
    let chunks = [
        calls(json!([{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}])),
        calls(json!([{"index": 0, "id": "b", "function": {"name": "f", "arguments": "{}"}}])),
        calls(json!([{"index": 0, "id": "c", "function": {"name": "g", "arguments": ""}}])),
        calls(json!([{"index": 0, "id": "c", "function": {"arguments": "{\"q\":1}"}}])),
    ];
    assert_eq!(called(&chunks), pairs([("f", "{}"), ("f", "{}"), ("g", "{\"q\":1}")]));
    // Without ids, a whole call in the same place is the next one.
    let none = [
        calls(json!([{"index": 0, "function": {"name": "f", "arguments": "{}"}}])),
        calls(json!([{"index": 0, "function": {"name": "f", "arguments": "{\"q\":1}"}}])),
    ];
    assert_eq!(called(&none), pairs([("f", "{}"), ("f", "{\"q\":1}")]));
}

/// Servers that translate begin with an empty object, and then say what is meant.
#[test]
fn an_empty_object_is_replaced_by_what_comes_behind_it() {
    let piece = |text: &str| calls(json!([{"index": 0, "function": {"arguments": text}}]));
    let begin = |text: &str| {
        calls(json!([{"index": 0, "id": "a", "function": {"name": "f", "arguments": text}}]))
    };
    for (chunks, meant) in [
        (vec![begin("{}"), piece("{\"x\""), piece(":1}")], "{\"x\":1}"),
        (vec![begin(""), piece("{ }"), piece("{\"x\":1}")], "{\"x\":1}"),
        (vec![begin("{}"), piece(""), piece(" "), piece("{\"x\":1}")], "{\"x\":1}"),
        (vec![begin("{}"), piece("{}"), begin("{}")], "{}"),
        (vec![begin("{}")], "{}"),
        (vec![begin("{"), piece("}")], "{}"),
        (vec![begin("{\"x\":1}"), piece("{}")], "{\"x\":1}"),
    ] {
        assert_eq!(called(&chunks), pairs([("f", meant)]), "{chunks:?}");
    }
    // It has closed: another call has begun.
    let two = [
        begin("{}"),
        calls(json!([{"index": 1, "id": "b", "function": {"name": "g", "arguments": "{}"}}])),
        calls(json!([{"index": 1, "function": {"arguments": "{\"y\":2}"}}])),
    ];
    assert_eq!(called(&two), pairs([("f", "{}"), ("g", "{\"y\":2}")]));
}

/// Clients that look for `content_filter` would take the piece for the whole answer.
#[test]
fn an_answer_that_was_refused_without_words_is_filtered() {
    let (start, part) = (Event::Start(Start::default()), 0);
    let stop = || Event::Stop { choice: 0, reason: StopReason::Refusal };
    let kind = PartKind::Refusal;
    let words = [
        Event::PartStart { choice: 0, part, kind },
        Event::Refusal { choice: 0, part, text: "No.".into() },
        Event::PartStop { choice: 0, part },
    ];
    let bare = vec![start.clone(), stop(), Event::End];
    let said = [vec![start], words.to_vec(), vec![stop(), Event::End]].concat();
    for (events, word) in [(bare, "content_filter"), (said, "stop")] {
        let stream = client(&translator::stream(&ChatCodec, &events, &exchange()));
        assert_eq!(stream.choices[0].finish.as_deref(), Some(word));
        let document: Value =
            serde_json::from_str(&translator::document(&ChatCodec, &events, &exchange())).unwrap();
        assert_eq!(document["choices"][0]["finish_reason"], word);
    }
}

#[test]
fn case_15_the_first_call_has_index_0_whatever_the_server_says() {
    let chunks = [
        calls(json!([{"index": 1, "id": "a", "function": {"name": "f", "arguments": "{}"}}])),
        calls(json!([{"index": 5, "id": "b", "function": {"name": "g", "arguments": "{}"}}])),
    ];
    assert_eq!(called(&chunks), pairs([("f", "{}"), ("g", "{}")]));
}

#[test]
fn case_16_a_name_that_comes_late_or_once_more() {
    let late = [
        calls(json!([{"index": 0, "id": "a", "function": {"name": "", "arguments": "{\"x\""}}])),
        calls(json!([{"index": 0, "id": "", "function": {"name": null, "arguments": ":"}}])),
        calls(json!([{"index": 0, "id": null, "function": {"name": "f", "arguments": "1"}}])),
        calls(json!([{"index": 0, "function": {"name": "", "arguments": "}"}}])),
    ];
    assert_eq!(called(&late), pairs([("f", "{\"x\":1}")]));
    let again = [
        calls(json!([{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{"}}])),
        calls(json!([{"index": 0, "id": "a", "function": {"name": "f", "arguments": "}"}}])),
    ];
    assert_eq!(called(&again), pairs([("f", "{}")]));
    let late_id = [
        calls(json!([{"index": 0, "function": {"name": "f"}}])),
        calls(json!([{"index": 0, "id": "a", "function": {"arguments": "{}"}}])),
    ];
    assert_eq!(called(&late_id), pairs([("f", "{}")]));
    let another_id_each = [
        calls(json!([{"index": 0, "id": "r1", "function": {"name": "f", "arguments": "{"}}])),
        calls(json!([{"index": 0, "id": "r2", "function": {"arguments": "}"}}])),
    ];
    assert_eq!(called(&another_id_each), pairs([("f", "{}")]));
}

#[test]
fn a_call_that_never_has_a_name_is_an_error() {
    let chunks = [
        calls(json!([{"index": 0, "id": "a", "function": {"arguments": "{}"}}])),
        finish("tool_calls"),
    ];
    let client = client(&translate(&stream(&chunks)).1);
    assert_eq!(client.error.unwrap()["message"], "The backend calls a tool without its name");
}

#[test]
fn arguments_that_are_an_object_are_its_text() {
    let chunks = [calls(
        json!([{"index": 0, "id": "a", "function": {"name": "f", "arguments": {"b": 1, "a": [2]}}}]),
    )];
    assert_eq!(called(&chunks), pairs([("f", "{\"b\":1,\"a\":[2]}")]));
}

#[test]
fn a_whole_call_that_is_repeated_with_the_finish_is_one() {
    let whole = json!([{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}}]);
    let chunks = [
        calls(json!([{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{\"x\""}}])),
        calls(json!([{"index": 0, "function": {"arguments": ":1}"}}])),
        calls(whole.clone()),
    ];
    assert_eq!(called(&chunks), pairs([("f", "{\"x\":1}")]));
    let mut last = finish("tool_calls");
    last["choices"][0]["message"] = json!({"role": "assistant", "tool_calls": whole});
    let client = client(&translate(&stream(&[chunks[0].clone(), chunks[1].clone(), last])).1);
    assert_eq!(client.choices[0].calls.len(), 1);
}

#[test]
fn case_17_a_call_and_the_finish_in_one_chunk() {
    let mut one = calls(
        json!([{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]),
    );
    one["choices"][0]["finish_reason"] = json!("tool_calls");
    let (events, out) = translate(&stream(&[one]));
    let kinds: Vec<&str> = events
        .iter()
        .map(|event| match event {
            Event::Start(_) => "start",
            Event::PartStart { .. } => "part",
            Event::Arguments { .. } => "arguments",
            Event::PartStop { .. } => "stop",
            Event::Stop { .. } => "reason",
            Event::End => "end",
            _ => "?",
        })
        .collect();
    assert_eq!(kinds, ["start", "part", "arguments", "stop", "reason", "end"]);
    assert_eq!(client(&out).choices[0].finish.as_deref(), Some("tool_calls"));
}

#[test]
fn case_19_a_call_that_is_cut_off_does_not_look_as_if_it_could_run() {
    let begun =
        calls(json!([{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{\"x\":"}}]));
    let out = translate(&stream(&[begun.clone(), finish("length")])).1;
    let cut = client(&out);
    assert_eq!(cut.choices[0].finish.as_deref(), Some("length"));
    assert_eq!(cut.choices[0].calls[0].2, "{\"x\":");
    // Without a reason, an answer that stops there is broken.
    assert!(client(&translate(&stream(&[begun])).1).error.is_some());
}

#[test]
fn the_usual_order_of_calls_streams_without_waiting() {
    let mut translator = Translator::new(&ChatCodec, &ChatCodec, &exchange());
    let mut push = |chunk: Value| {
        let mut out = String::new();
        translator.push(&Bytes::from(format!("data: {chunk}\n\n")), &mut out, |_| {});
        out
    };
    push(calls(
        json!([{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{\"x\":1}"}}]),
    ));
    let second =
        push(calls(json!([{"index": 1, "id": "b", "function": {"name": "g", "arguments": "{"}}])));
    assert!(second.contains("\"name\":\"g\""), "{second}");
    assert!(push(calls(json!([{"index": 1, "function": {"arguments": "}"}}]))).contains("}"));
    let text = push(chunk(json!({"content": "then"})));
    assert!(text.contains("then"), "{text}");
}

#[test]
fn the_old_function_call_is_a_call() {
    let chunks = [
        chunk(json!({"function_call": {"name": "f", "arguments": ""}})),
        chunk(json!({"function_call": {"arguments": "{\"x\""}})),
        chunk(json!({"function_call": {"arguments": ":1}"}})),
    ];
    assert_eq!(called(&chunks), pairs([("f", "{\"x\":1}")]));
    // And a client that knows nothing else gets it so.
    let mut exchange = exchange();
    exchange.client.functions = true;
    let all = stream(&[chunks.to_vec(), vec![finish("function_call")]].concat());
    let (events, out) = translate_by(&[all.as_bytes()], &exchange);
    let client = client(&out);
    let choice = &client.choices[0];
    assert_eq!(choice.function, Some(("f".into(), "{\"x\":1}".into())));
    assert_eq!((choice.calls.len(), choice.finish.as_deref()), (0, Some("function_call")));
    let document: Value =
        serde_json::from_str(&translator::document(&ChatCodec, &events, &exchange)).unwrap();
    assert_eq!(document["choices"][0]["message"]["function_call"]["name"], "f");
}

#[test]
fn reasoning_is_read_wherever_it_stands_and_never_as_content() {
    let expected = ("hm, so", "Yes");
    for deltas in [
        vec![json!({"reasoning": "hm,"}), json!({"reasoning": " so"}), json!({"content": "Yes"})],
        vec![
            json!({"reasoning_content": "hm, so", "content": null}),
            json!({"reasoning_content": null, "content": "Yes"}),
        ],
        vec![
            json!({"reasoning_content": "hm, so", "reasoning": "hm, so"}),
            json!({"content": "Yes", "reasoning": ""}),
        ],
        vec![
            json!({"content": "", "reasoning": "hm,", "reasoning_details": [{"type": "reasoning.text", "text": "hm,", "index": 0}]}),
            json!({"content": "", "reasoning": " so", "reasoning_details": [{"type": "reasoning.text", "text": " so", "index": 0}]}),
            json!({"content": "Yes"}),
        ],
        vec![
            json!({"reasoning_details": [{"type": "reasoning.text", "text": "hm, so"}]}),
            json!({"content": "Yes"}),
        ],
        vec![
            json!({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm,"}]}]}),
            json!({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": " so"}], "closed": true}]}),
            json!({"content": [{"type": "text", "text": "Yes"}]}),
        ],
        vec![json!({"reasoning": "hm, so", "content": "Yes"})],
    ] {
        let mut chunks: Vec<_> = deltas.iter().cloned().map(chunk).collect();
        chunks.push(finish("stop"));
        let (events, out) = translate(&stream(&chunks));
        let client = client(&out);
        let choice = &client.choices[0];
        assert_eq!((choice.reasoning.as_str(), choice.content.as_str()), expected, "{deltas:?}");
        let parts = events.iter().filter(|e| matches!(e, Event::PartStart { .. })).count();
        assert_eq!(parts, 2, "{deltas:?}");
    }
}

#[test]
fn details_that_an_issuer_wants_back_are_a_state() {
    let details = |list: Value| chunk(json!({"reasoning_details": list}));
    let signed = [
        chunk(
            json!({"reasoning": "hm", "reasoning_details": [{"type": "reasoning.text", "text": "hm", "format": "anthropic-claude-v1", "index": 0}]}),
        ),
        details(
            json!([{"type": "reasoning.text", "signature": "S", "format": "anthropic-claude-v1", "index": 0}]),
        ),
        chunk(json!({"content": "Yes"})),
        finish("stop"),
    ];
    let state = |events: &[Event]| {
        events.iter().find_map(|event| match event {
            Event::State { state, part, .. } => Some((state.clone(), *part)),
            _ => None,
        })
    };
    let (events, out) = translate(&stream(&signed));
    let (found, part) = state(&events).unwrap();
    assert_eq!((found.issuer.as_deref(), found.language.as_str(), part), (Some("acme"), "chat", 0));
    let list: Value = serde_json::from_str(&found.value).unwrap();
    assert_eq!(
        list,
        json!([{"type": "reasoning.text", "text": "hm", "format": "anthropic-claude-v1", "signature": "S", "index": 0}])
    );
    assert_eq!(json!(client(&out).choices[0].details), list);
    // Without text, and behind the answer.
    let hidden = [
        chunk(json!({"content": "Yes"})),
        details(json!([{"type": "reasoning.encrypted", "data": "x", "index": 0}])),
        finish("stop"),
    ];
    let (events, _) = translate(&stream(&hidden));
    assert_eq!(state(&events).unwrap().1, 1);
    // What nobody wants back is no state.
    let open = [details(json!([{"type": "reasoning.text", "text": "hm"}])), finish("stop")];
    assert_eq!(state(&translate(&stream(&open)).0), None);
}

#[test]
fn usage_is_found_wherever_it_stands() {
    let usage = json!({"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12});
    let text = || chunk(json!({"content": "x"}));
    let with = |mut chunk: Value, path: &str| {
        *chunk.pointer_mut(path).unwrap() = usage.clone();
        chunk
    };
    let mut groq = finish("stop");
    groq["x_groq"] = json!({"id": "req", "usage": null});
    let mut finished = finish("stop");
    finished["usage"] = json!(null);
    let mut moonshot = finish("stop");
    moonshot["choices"][0]["usage"] = json!(null);
    let mut empty = chunk(json!({"content": "", "role": "assistant"}));
    empty["usage"] = json!(null);
    empty["choices"][0]["finish_reason"] = json!("stop");
    let own = json!({"id": "x", "created": 5, "model": "m", "choices": [], "usage": null});
    let continuous = |tokens: u64| {
        let mut chunk = text();
        chunk["usage"] =
            json!({"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": 9 + tokens});
        chunk
    };
    for (server, chunks) in [
        ("openai", vec![text(), finish("stop"), with(own.clone(), "/usage")]),
        ("deepseek", vec![text(), with(finished, "/usage")]),
        ("groq", vec![text(), with(groq, "/x_groq/usage")]),
        ("moonshot", vec![text(), with(moonshot, "/choices/0/usage")]),
        ("openrouter", vec![text(), finish("stop"), with(empty, "/usage")]),
        ("continuous", vec![continuous(1), continuous(2), continuous(3), finish("stop")]),
        ("before", vec![with(own, "/usage"), text(), finish("stop")]),
    ] {
        let (events, out) = translate(&stream(&chunks));
        assert_eq!(client(&out).usage, Some(usage.clone()), "{server}");
        let folded = Response::of(&events).usage;
        assert_eq!((folded.input, folded.output), (Some(9), Some(3)), "{server}");
        // A client that has not asked for it is not given it.
        let quiet = Exchange { client: ClientWishes::default(), ..exchange() };
        let (_, out) = translate_by(&[stream(&chunks).as_bytes()], &quiet);
        assert_eq!(client(&out).usage, None, "{server}");
    }
}

#[test]
fn an_answer_ends_without_done() {
    let whole = stream(&[chunk(json!({"content": "x"})), finish("stop")]);
    let without = whole.replace("data: [DONE]\n\n", "");
    assert_eq!(translate(&without).1, translate(&whole).1);
    // Some servers give no reason.
    let plain = client(&translate(&stream(&[chunk(json!({"content": "x"}))])).1);
    assert_eq!(plain.choices[0].finish.as_deref(), Some("stop"));
    // A body that ends earlier is broken, and so is one without anything.
    let cut = stream(&[chunk(json!({"content": "x"}))]).replace("data: [DONE]\n\n", "");
    for cut in [cut.as_str(), "", "data: [DONE]\n\n", ": ping\n\n"] {
        assert!(client(&translate(cut).1).error.is_some(), "{cut}");
    }
    // What comes behind the end does not matter.
    assert_eq!(translate(&format!("{whole}garbage\n\ndata: {{\n\n")).1, translate(&whole).1);
}

#[test]
fn azures_first_chunk_is_no_beginning() {
    let first = json!({"choices": [], "created": 0, "id": "", "model": "", "object": "",
        "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {}}]});
    let filtered = json!({"id": "x", "created": 5, "model": "m", "choices": [{"index": 0, "finish_reason": null,
        "content_filter_offsets": {}, "content_filter_results": {}}]});
    let chunks = [
        first,
        chunk(json!({"role": "assistant", "content": ""})),
        chunk(json!({"content": "x"})),
        filtered,
        finish("stop"),
    ];
    let (events, out) = translate(&stream(&chunks));
    let Some(Event::Start(start)) = events.first() else { panic!() };
    assert_eq!(
        (start.id.as_str(), start.created, start.model.as_deref()),
        ("x", Some(5), Some("m"))
    );
    let client = client(&out);
    assert_eq!((client.id.as_str(), client.choices[0].content.as_str()), ("chatcmpl-x", "x"));
}

#[test]
fn case_40_errors_of_every_shape_end_the_answer() {
    let text = format!("data: {}\n\n", chunk(json!({"content": "x"})));
    for (server, event, class, message) in [
        (
            "vllm",
            "data: {\"error\": {\"message\": \"died\", \"type\": \"InternalServerError\", \"code\": 500}}\n\ndata: [DONE]\n\n",
            Class::Server,
            "died",
        ),
        (
            "groq",
            "event: error\ndata: {\"error\": {\"message\": \"no call\", \"code\": \"tool_use_failed\", \"type\": \"invalid_request_error\"}}\n\n",
            Class::InvalidRequest,
            "no call",
        ),
        ("by its name alone", "event: error\ndata: {\"message\": \"m\"}\n\n", Class::Server, "m"),
        (
            "openrouter",
            "data: {\"id\": \"x\", \"error\": {\"code\": 429, \"message\": \"slow\"}, \"choices\": [{\"index\": 0, \"delta\": {\"content\": \"\"}, \"finish_reason\": \"error\"}]}\n\n",
            Class::RateLimit,
            "slow",
        ),
        (
            "in the choice",
            "data: {\"id\": \"x\", \"choices\": [{\"index\": 0, \"error\": {\"code\": 503, \"message\": \"full\"}, \"finish_reason\": \"error\"}]}\n\n",
            Class::Overloaded,
            "full",
        ),
        (
            "google",
            "data: [{\"error\": {\"code\": 400, \"message\": \"bad\", \"status\": \"INVALID_ARGUMENT\"}}]\n\n",
            Class::InvalidRequest,
            "bad",
        ),
        (
            "old vllm",
            "data: {\"object\": \"error\", \"message\": \"old\", \"code\": 400}\n\n",
            Class::InvalidRequest,
            "old",
        ),
        ("fastapi", "data: {\"detail\": \"d\"}\n\n", Class::Server, "d"),
        ("a string", "data: {\"error\": \"just text\"}\n\n", Class::Server, "just text"),
        (
            "abort",
            "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"abort\"}]}\n\ndata: [DONE]\n\n",
            Class::Server,
            "The engine broke the answer off",
        ),
        (
            "mistral",
            "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"error\"}]}\n\n",
            Class::Server,
            "The engine broke the answer off",
        ),
        (
            "no json",
            "data: {\"cho\n\n",
            Class::Server,
            "The backend's stream has an event that is no JSON object",
        ),
    ] {
        for begun in ["", &text] {
            let (events, out) = translate(&format!("{begun}{event}"));
            let Some(Event::Fault(fault)) = events.last() else { panic!("{server}: {events:?}") };
            assert_eq!((fault.class, fault.message.as_str()), (class, message), "{server}");
            assert_eq!(client(&out).error.unwrap()["message"], message, "{server}");
        }
    }
}

#[test]
fn answers_that_have_failed_are_errors() {
    for (body, class) in [
        ("{\"error\":{\"message\":\"m\",\"code\":503}}", Class::Overloaded),
        ("{\"choices\":[]}", Class::Server),
        ("[]", Class::Server),
        ("<html>", Class::Server),
        (
            "{\"choices\":[{\"index\":0,\"message\":{\"content\":\"x\"},\"finish_reason\":\"abort\"}]}",
            Class::Server,
        ),
    ] {
        let fault = translator::answer(&ChatCodec, body, &exchange()).unwrap_err();
        assert_eq!(fault.class, class, "{body}");
    }
    let plain = "{\"id\":\"x\",\"choices\":[{\"message\":{\"content\":\"x\"}}]}";
    let events = translator::answer(&ChatCodec, plain, &exchange()).unwrap();
    assert!(events.contains(&Event::Stop { choice: 0, reason: StopReason::EndTurn }));
}

#[test]
fn calls_of_a_plain_answer_are_apart_whatever_their_ids() {
    let one = |arguments: &str| json!({"id": "call_0", "type": "function", "function": {"name": "f", "arguments": arguments}});
    let body = json!({"id": "x", "choices": [{"index": 0, "finish_reason": "stop", "message": {
        "content": null, "reasoning_content": "hm", "tool_calls": [one("{}"), one("{\"a\":1}"), one("")],
        "function_call": {"name": "f", "arguments": "{}"},
    }}]});
    let events = translator::answer(&ChatCodec, &body.to_string(), &exchange()).unwrap();
    let out: Value =
        serde_json::from_str(&translator::document(&ChatCodec, &events, &exchange())).unwrap();
    let message = &out["choices"][0]["message"];
    assert_eq!(message["tool_calls"], json!([one("{}"), one("{\"a\":1}"), one("{}")]));
    assert_eq!((&message["content"], &message["reasoning"]), (&json!(null), &json!("hm")));
    assert_eq!(out["choices"][0]["finish_reason"], "tool_calls");
}

#[test]
fn everything_of_a_plain_answer_is_kept() {
    let body = json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 5, "model": "m",
        "service_tier": "default", "system_fingerprint": "fp",
        "choices": [
            {"index": 0, "finish_reason": "stop", "stop_reason": "END",
             "logprobs": {"content": [{"token": "a", "logprob": -0.10, "bytes": [97], "top_logprobs": []}], "refusal": null},
             "message": {"role": "assistant", "content": "a", "refusal": null,
                "annotations": [{"type": "url_citation", "url_citation": {"start_index": 0, "end_index": 1, "url": "https://example.org", "title": "t"}}],
                "reasoning_content": "r", "reasoning": "r",
                "audio": {"id": "audio_1", "data": "AAAA", "expires_at": 1, "transcript": "a"}}},
            {"index": 1, "finish_reason": "content_filter", "logprobs": null,
             "message": {"role": "assistant", "content": null, "refusal": "No."}},
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12,
            "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 2, "audio_tokens": 1},
            "completion_tokens_details": {"reasoning_tokens": 2, "audio_tokens": 0}}});
    let text = body.to_string();
    let events = translator::answer(&ChatCodec, &text, &exchange()).unwrap();
    let out = translator::document(&ChatCodec, &events, &exchange());
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), body);
    // Chunks of n answers: each with its own end.
    let all = client(&translator::stream(&ChatCodec, &events, &exchange()));
    assert_eq!(all.choices[1].refusal, "No.");
    assert_eq!(all.choices[0].annotations.len(), 1);
    assert_eq!(all.choices[0].tokens.len(), 1);
    assert_eq!(all.usage.unwrap(), body["usage"]);
}

#[test]
fn case_2_a_repeated_role_chunk_is_one_beginning() {
    let role = || chunk(json!({"role": "assistant", "content": ""}));
    let chunks = [
        role(),
        role(),
        chunk(json!({"role": "assistant", "content": "x"})),
        role(),
        finish("stop"),
        finish("stop"),
    ];
    let (events, out) = translate(&stream(&chunks));
    assert_eq!(events.iter().filter(|e| matches!(e, Event::Start(_))).count(), 1);
    assert_eq!(client(&out).choices[0].content, "x");
}

#[test]
fn case_4_an_answer_without_anything_is_an_empty_text() {
    for chunks in [
        vec![chunk(json!({"role": "assistant", "content": ""})), finish("stop")],
        vec![finish("stop")],
    ] {
        let (events, out) = translate(&stream(&chunks));
        assert!(!events.iter().any(|e| matches!(e, Event::PartStart { .. })), "{events:?}");
        let choice = &client(&out).choices[0];
        assert!(choice.role && choice.content.is_empty());
        let document: Value =
            serde_json::from_str(&translator::document(&ChatCodec, &events, &exchange())).unwrap();
        assert_eq!(document["choices"][0]["message"]["content"], "");
    }
}

#[test]
fn a_stop_text_of_vllm_is_kept() {
    let mut end = finish("stop");
    end["choices"][0]["stop_reason"] = json!("END");
    let (events, out) = translate(&stream(&[chunk(json!({"content": "x"})), end]));
    let reason = StopReason::StopSequence(Some("END".into()));
    assert!(events.contains(&Event::Stop { choice: 0, reason }));
    assert!(out.contains("\"finish_reason\":\"stop\",\"stop_reason\":\"END\""));
}

#[test]
fn what_came_before_the_content_is_held() {
    let mut translator = Translator::new(&ChatCodec, &ChatCodec, &exchange());
    let mut out = String::new();
    let role = chunk(json!({"role": "assistant", "content": ""}));
    translator.push(&Bytes::from(format!("data: {role}\n\n")), &mut out, |_| {});
    assert_eq!(out, "");
    let fault = StreamFault::new(Class::Timeout, "late");
    translator.fail(fault, &mut out, |_| {});
    assert_eq!(client(&out).error.unwrap()["code"], "timeout");
}

/// An answer of another language.
fn foreign() -> Vec<Event> {
    let part = |part, kind| Event::PartStart { choice: 0, part, kind };
    let stop = |part| Event::PartStop { choice: 0, part };
    let state = |value: &str| State {
        issuer: Some("acme".into()),
        language: "messages".into(),
        value: value.into(),
    };
    let thought =
        |part, text: &str| Event::Reasoning { choice: 0, part, text: text.into(), summary: None };
    let say = |part, text: &str| Event::Text { choice: 0, part, text: text.into(), logprobs: None };
    let cite = |url: Option<&str>| Event::Citation {
        choice: 0,
        part: 3,
        citation: Citation {
            language: "messages",
            json: Json::parse(
                &json!({"type": "web_search_result_location", "url": url, "title": "T"})
                    .to_string(),
            )
            .unwrap(),
            url: url.map(str::to_owned),
            title: Some("T".into()),
        },
    };
    let call = |id: &str| PartKind::ToolCall {
        id: id.into(),
        name: "f".into(),
        kind: ToolKind::Function,
        namespace: None,
    };
    vec![
        Event::Start(Start { id: "msg_1".into(), model: Some("m".into()), ..Start::default() }),
        part(0, PartKind::Reasoning { redacted: false }),
        thought(0, "one "),
        thought(0, "two"),
        Event::State { choice: 0, part: 0, state: state("sig") },
        stop(0),
        part(1, PartKind::Reasoning { redacted: true }),
        Event::State { choice: 0, part: 1, state: state("hidden") },
        stop(1),
        part(2, PartKind::Text { phase: None }),
        say(2, "é"),
        stop(2),
        part(3, PartKind::Text { phase: None }),
        say(3, "ab"),
        cite(Some("https://example.org")),
        cite(None),
        stop(3),
        part(4, call("a")),
        Event::State { choice: 0, part: 4, state: state("callsig") },
        Event::Arguments { choice: 0, part: 4, text: "{}".into() },
        stop(4),
        part(5, call("b")),
        stop(5),
        part(6, PartKind::Opaque { language: "messages", kind: "x".into(), json: Json::text("y") }),
        stop(6),
        Event::Opaque { language: "messages", name: "z".into(), json: Json::text("y") },
        Event::Usage(Usage { input: Some(9), output: Some(3), ..Usage::default() }),
        Event::Stop { choice: 0, reason: StopReason::ToolUse },
        Event::End,
    ]
}

#[test]
fn answers_of_other_languages_keep_their_state_and_their_sources() {
    let events = foreign();
    let streamed = client(&translator::stream(&ChatCodec, &events, &exchange()));
    let choice = &streamed.choices[0];
    assert_eq!(streamed.id, "chatcmpl-msg_1");
    assert_eq!((choice.reasoning.as_str(), choice.content.as_str()), ("one two", "éab"));
    assert_eq!(
        choice.annotations,
        [
            json!({"type": "url_citation", "url_citation": {"url": "https://example.org", "title": "T", "start_index": 1, "end_index": 3}})
        ]
    );
    let document: Value =
        serde_json::from_str(&translator::document(&ChatCodec, &events, &exchange())).unwrap();
    let message = &document["choices"][0]["message"];
    assert_eq!(json!(choice.details), message["reasoning_details"]);
    assert_eq!(json!(choice.annotations), message["annotations"]);
    assert_eq!(message["tool_calls"][1]["function"]["arguments"], "{}");
    assert_eq!(choice.signatures.len(), 1);
    // What the client sends back is what the issuer has said.
    let history = json!({"messages": [{"role": "user", "content": "x"}, message]});
    let request = ChatCodec.read(&history.to_string()).unwrap();
    let parts = &request.turns[1].parts;
    let reasoning: Vec<_> = parts
        .iter()
        .filter_map(|part| match part {
            Part::Reasoning(part) => {
                Some((part.text.as_deref(), part.redacted, part.state.clone().unwrap()))
            }
            _ => None,
        })
        .collect();
    let state = |value: &str| State {
        issuer: Some("acme".into()),
        language: "messages".into(),
        value: value.into(),
    };
    assert_eq!(reasoning, [(Some("one two"), false, state("sig")), (None, true, state("hidden"))]);
    let call = parts.iter().find_map(|part| match part {
        Part::ToolCall(call) => call.state.clone(),
        _ => None,
    });
    assert_eq!(call, Some(state("callsig")));
}

#[test]
fn summaries_are_paragraphs() {
    let part = PartKind::Reasoning { redacted: false };
    let summary = |text: &str, number| Event::Reasoning {
        choice: 0,
        part: 0,
        text: text.into(),
        summary: Some(number),
    };
    let events = [
        Event::Start(Start::default()),
        Event::PartStart { choice: 0, part: 0, kind: part },
        summary("a", 0),
        summary("b", 0),
        summary("c", 1),
        Event::PartStop { choice: 0, part: 0 },
        Event::Stop { choice: 0, reason: StopReason::EndTurn },
        Event::End,
    ];
    let streamed = client(&translator::stream(&ChatCodec, &events, &exchange()));
    assert_eq!(streamed.choices[0].reasoning, "ab\n\nc");
    let document = translator::document(&ChatCodec, &events, &exchange());
    assert!(document.contains(r#""reasoning":"ab\n\nc""#), "{document}");
}

#[test]
fn an_encoder_ends_once() {
    for last in [Event::End, Event::Fault(StreamFault::cut())] {
        let mut encoder = ChatCodec.encoder(&exchange());
        let mut out = String::new();
        for event in [
            Event::Start(Start::default()),
            Event::Ping,
            last.clone(),
            Event::Ping,
            Event::End,
            last,
        ] {
            encoder.event(&event, &mut out);
        }
        client(&out);
    }
}

#[test]
fn errors_have_their_bodies() {
    let fault = ChatCodec.read_error(
        400,
        "{\"error\":{\"message\":\"This model's maximum context length is 9 tokens\"}}",
    );
    let (status, body) = ChatCodec.write_error(&fault);
    assert_eq!(status, 400);
    assert!(body.contains("context_length_exceeded"));
}

/// The events of a captured stream.
fn events_of(capture: &'static str) -> Vec<&'static str> {
    body(capture).split_inclusive("\n\n").collect()
}

#[test]
fn an_answer_of_endless_calls_ends_with_an_error_and_soon() {
    const MANY: usize = 20_000;
    let began = Stopwatch::start();
    for (index, whole) in [(false, true), (true, true), (true, false)] {
        let calls: Vec<Value> = (0..MANY)
            .map(|at| {
                let arguments = if whole { "{}" } else { "{" };
                let function = json!({"name": format!("f{at}"), "arguments": arguments});
                let mut call = json!({"id": format!("c{at}"), "function": function});
                if index {
                    call["index"] = at.into();
                }
                call
            })
            .collect();
        let choice = json!({"index": 0, "delta": {"tool_calls": calls}});
        let stream = format!("data: {}\n\n", json!({"id": "x", "choices": [choice]}));
        let (events, _) = translate(&stream);
        assert!(matches!(events.last(), Some(Event::Fault(_))), "{:?}", events.last());
        let choice =
            json!({"message": {"content": null, "tool_calls": choice["delta"]["tool_calls"]}});
        let body = json!({"id": "x", "choices": [choice]}).to_string();
        assert!(translator::answer(&ChatCodec, &body, &exchange()).is_err());
    }
    assert!(began.time().as_secs() < 10, "{:?}", began.time());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_stream_that_is_damaged_has_exactly_one_end(
        which in 0..STREAMS.len(),
        damages in proptest::collection::vec((0..5u8, any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..4),
    ) {
        let mut events: Vec<String> = events_of(STREAMS[which].1).iter().map(|e| e.to_string()).collect();
        for (kind, first, second) in damages {
            if events.is_empty() {
                break;
            }
            let (a, b) = (first.index(events.len()), second.index(events.len()));
            match kind {
                0 => drop(events.remove(a)),
                1 => events.insert(b, events[a].clone()),
                2 => events.swap(a, b),
                3 => events.truncate(a),
                _ => {
                    let at = second.index(events[a].len());
                    let at = (0..=at).rfind(|at| events[a].is_char_boundary(*at)).unwrap();
                    events[a].truncate(at);
                }
            }
        }
        // `client` fails on anything that is no valid stream with one end.
        client(&translate(&events.concat()).1);
    }

    #[test]
    fn any_order_of_deltas_gives_dense_parts(
        deltas in proptest::collection::vec((0..9u8, 0..3u64, 0..3u8), 0..25),
        choices in 1..3u32,
    ) {
        let mut chunks = Vec::new();
        for (at, (kind, index, id)) in deltas.iter().enumerate() {
            let id = ["", "a", "b"][*id as usize];
            let delta = match kind {
                0 => json!({"content": format!("t{at}")}),
                1 => json!({"reasoning": format!("r{at}")}),
                2 => json!({"refusal": "n"}),
                3 => json!({"tool_calls": [{"index": index, "id": id, "function": {"name": "f", "arguments": "{"}}]}),
                4 => json!({"tool_calls": [{"index": index, "function": {"arguments": "}"}}]}),
                5 => json!({"tool_calls": [{"id": id, "function": {"name": "g", "arguments": {"x": at}}}]}),
                6 => json!({"tool_calls": [{"function": {"arguments": null}}]}),
                7 => json!({"reasoning_details": [{"type": "reasoning.encrypted", "data": id}]}),
                _ => json!({"content": [{"type": "text", "text": "l"}, {"type": "thinking", "thinking": "m"}]}),
            };
            let mut chunk = chunk(delta);
            chunk["choices"][0]["index"] = json!(at as u32 % choices);
            chunks.push(chunk);
        }
        for choice in 0..choices {
            let mut end = finish("stop");
            end["choices"][0]["index"] = json!(choice);
            chunks.push(end);
        }
        let mut decoder = ChatCodec.decoder(&exchange());
        let mut events = Vec::new();
        for chunk in &chunks {
            decoder.event(None, &chunk.to_string(), &mut events);
        }
        decoder.end(&mut events);
        let mut next = [0u32; 2];
        let mut open: Vec<(u32, u32)> = Vec::new();
        for event in &events {
            match event {
                Event::PartStart { choice, part, .. } => {
                    prop_assert_eq!(next[*choice as usize], *part);
                    next[*choice as usize] += 1;
                    open.push((*choice, *part));
                }
                Event::PartStop { choice, part } => {
                    let at = open.iter().position(|place| *place == (*choice, *part));
                    prop_assert!(at.is_some());
                    open.remove(at.unwrap());
                }
                Event::Text { choice, part, .. }
                | Event::Reasoning { choice, part, .. }
                | Event::Arguments { choice, part, .. }
                | Event::State { choice, part, .. } => {
                    prop_assert!(open.contains(&(*choice, *part)));
                }
                _ => {}
            }
        }
        prop_assert!(open.is_empty() || matches!(events.last(), Some(Event::Fault(_))));
        prop_assert!(matches!(events.last(), Some(Event::End | Event::Fault(_))));
        let (_, out) = translate(&stream(&chunks));
        client(&out);
    }
}
