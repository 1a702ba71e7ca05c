//! Streams and documents, of backends and for clients.

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::{ResponsesCodec, traits::NAME};
use crate::dialect::hub::{
    Class, Codec, Event, Exchange, Json, Part, PartKind, Response, Start, StopReason, StreamFault,
    Translator, Usage,
    codec::{RenamedTool, Undo},
    event::Citation,
    request::{ClientWishes, State, ToolKind},
    translator,
};

const VLLM: &str = include_str!("../../../../../tests/fixtures/vllm/responses_stream.txt");
const LLAMACPP: &str = include_str!("../../../../../tests/fixtures/llamacpp/responses_stream.txt");
const EVERY_ITEM: &str =
    include_str!("../../../../../tests/fixtures/translate/responses/every-item.answer.sse");
const RAW: &str =
    include_str!("../../../../../tests/fixtures/translate/responses/raw-reasoning.answer.sse");

fn streams() -> Vec<&'static str> {
    vec![stream(VLLM), stream(LLAMACPP), EVERY_ITEM, RAW]
}

/// A capture's stream, behind its head.
fn stream(capture: &'static str) -> &'static str {
    &capture[capture.find("event: ").unwrap()..]
}

fn exchange() -> Exchange {
    Exchange {
        created: 7,
        issuer: "openai".into(),
        client: ClientWishes { encrypted_reasoning: true, ..ClientWishes::default() },
        ..Exchange::default()
    }
}

/// The events of a stream.
fn events(text: &str) -> Vec<&str> {
    text.split_inclusive("\n\n").filter(|event| !event.trim().is_empty()).collect()
}

fn data(event: &str) -> Option<Value> {
    serde_json::from_str(event.split_once("data: ")?.1).ok()
}

fn decode(text: &str) -> Vec<Event> {
    let (mut decoder, mut out) = (ResponsesCodec.decoder(&exchange()), Vec::new());
    for event in events(text) {
        let name = event.strip_prefix("event: ").and_then(|rest| rest.split('\n').next());
        let Some((_, data)) = event.split_once("data: ") else { continue };
        decoder.event(name, data, &mut out);
    }
    decoder.end(&mut out);
    out
}

fn translate(pieces: &[&[u8]], exchange: &Exchange) -> String {
    let mut translator = Translator::new(&ResponsesCodec, &ResponsesCodec, exchange);
    let mut out = String::new();
    for piece in pieces {
        translator.push(&Bytes::copy_from_slice(piece), &mut out, |_| {});
    }
    translator.finish(&mut out, |_| {});
    translator.finish(&mut out, |_| {});
    out
}

fn encode(events: &[Event], exchange: &Exchange) -> Vec<Value> {
    let text = translator::stream(&ResponsesCodec, events, exchange);
    let all: Vec<Value> = super::streams::events(&text).into_iter().filter_map(data).collect();
    check(&all);
    all
}

/// What the stream helper of openai-python (3.57) demands, and the numbers that the vendor's
/// documents promise. Gives the object of the last event.
fn check(events: &[Value]) -> Value {
    let (mut id, mut items, mut done) = (Value::Null, Vec::<Value>::new(), Vec::<Value>::new());
    let terminal = |kind: &str| {
        matches!(kind, "response.completed" | "response.incomplete" | "response.failed")
    };
    for (number, event) in events.iter().enumerate() {
        let kind = event["type"].as_str().unwrap();
        assert_eq!(event["sequence_number"], json!(number), "{event}");
        assert_eq!(kind == "response.created", number == 0, "{event}");
        assert_eq!(terminal(kind), number + 1 == events.len(), "{event}");
        if let Some(response) = event.get("response") {
            if number == 0 {
                id = response["id"].clone();
            }
            assert!(response["id"] == id && id.as_str().unwrap().starts_with("resp_"), "{event}");
            for member in ["created_at", "model", "tools", "tool_choice", "parallel_tool_calls"] {
                assert!(!response[member].is_null(), "{member} of {event}");
            }
            continue;
        }
        let index = event["output_index"].as_u64().unwrap() as usize;
        match kind {
            "response.output_item.added" => {
                assert_eq!(index, items.len(), "{event}");
                assert_eq!(items.len(), done.len(), "an item is open: {event}");
                items.push(event["item"].clone());
            }
            "response.output_item.done" => {
                for member in ["id", "type", "call_id"] {
                    assert_eq!(items[index][member], event["item"][member], "{event}");
                }
                assert_eq!(index, done.len(), "{event}");
                done.push(event["item"].clone());
            }
            _ => assert_eq!(event["item_id"], items[index]["id"], "{event}"),
        }
    }
    pieces(events);
    let last = &events[events.len() - 1]["response"];
    assert_eq!(last["output"], json!(done));
    last.clone()
}

/// Each text opens, comes in pieces, and closes with the whole.
fn pieces(events: &[Value]) {
    let mut open: Option<(Value, String)> = None;
    for event in events {
        let kind = event["type"].as_str().unwrap();
        let place = json!([event["output_index"], event["content_index"], event["summary_index"]]);
        let (head, tail) = kind.rsplit_once('.').unwrap();
        match (head, tail) {
            ("response.content_part" | "response.reasoning_summary_part", "added") => {
                assert!(open.is_none(), "{event}");
                open = Some((place, String::new()));
            }
            ("response.content_part" | "response.reasoning_summary_part", "done") => {
                let (at, text) = open.take().unwrap();
                let part = &event["part"];
                let whole = part.get("text").or_else(|| part.get("refusal")).unwrap();
                assert_eq!((at, json!(text)), (place, whole.clone()), "{event}");
            }
            ("response.output_item", "done") => assert!(open.is_none(), "{event}"),
            (_, "delta") if event.get("content_index").or(event.get("summary_index")).is_some() => {
                let (at, text) = open.as_mut().unwrap();
                assert_eq!(*at, place, "{event}");
                text.push_str(event["delta"].as_str().unwrap());
            }
            _ => {}
        }
    }
}

/// The stream with those events alone, and its end.
fn events_of_kind(text: &str, keep: impl Fn(&str) -> bool) -> String {
    let end = |event: &str| event.starts_with("event: response.completed");
    events(text).into_iter().filter(|event| end(event) || keep(event)).collect()
}

fn fold(text: &str) -> Response {
    Response::of(&decode(text))
}

#[test]
fn captured_streams_say_what_their_documents_say() {
    for capture in [VLLM, LLAMACPP] {
        let answer = fold(stream(capture));
        let [Part::Text(text)] = &answer.choices[0].parts[..] else { panic!("{answer:?}") };
        assert_eq!(text.text, "Hello! I am a tiny test");
        assert_eq!((answer.usage.input, answer.usage.output), (Some(17), Some(12)));
    }
    // vLLM 0.32 calls a cut answer completed; its status tells the truth.
    assert_eq!(fold(stream(VLLM)).choices[0].stop, Some(StopReason::MaxTokens));
    assert_eq!(fold(stream(LLAMACPP)).choices[0].stop, Some(StopReason::EndTurn));
}

#[test]
fn captured_documents_are_read() {
    for (capture, stop) in [
        (include_str!("../../../../../tests/fixtures/vllm/responses.txt"), StopReason::MaxTokens),
        (include_str!("../../../../../tests/fixtures/llamacpp/responses.txt"), StopReason::EndTurn),
    ] {
        let body = &capture[capture
            .find("\n{")
            .or_else(|| capture.find("\r\n\r\n{").map(|at| at + 3))
            .unwrap()
            + 1..];
        let events = ResponsesCodec.read_answer(body, &exchange()).unwrap();
        assert_eq!(events.last(), Some(&Event::End));
        let answer = Response::of(&events);
        assert_eq!(answer.choices[0].stop, Some(stop));
        let object = ResponsesCodec.write_answer(&answer, &exchange());
        let object: Value = serde_json::from_str(&object).unwrap();
        assert_eq!(object["output"][0]["content"][0]["text"], "Hello! I am a tiny test");
    }
}

#[test]
fn every_kind_of_item_becomes_parts_with_numbers_of_their_own() {
    let events = decode(EVERY_ITEM);
    let starts: Vec<u32> = events
        .iter()
        .filter_map(|event| match event {
            Event::PartStart { part, .. } => Some(*part),
            _ => None,
        })
        .collect();
    assert_eq!(starts, [0, 1, 2, 3, 4, 5, 6]);
    let answer = Response::of(&events);
    let [
        Part::Reasoning(hidden),
        Part::Opaque(search),
        Part::Reasoning(shown),
        Part::Text(text),
        Part::Refusal(refusal),
        Part::ToolCall(read),
        Part::ToolCall(patch),
    ] = &answer.choices[0].parts[..]
    else {
        panic!("{answer:?}")
    };
    let state = |value: &str| {
        Some(State { issuer: Some("openai".into()), language: NAME.into(), value: value.into() })
    };
    assert!(hidden.redacted && hidden.state == state("ENC0"));
    assert!(
        search.kind == "web_search_call" && search.json.as_str().contains("\"query\":\"rust\"")
    );
    assert_eq!(
        (&shown.summary[..], shown.text.as_deref()),
        (&["First, ök.".to_owned(), "Then.".into()][..], None)
    );
    assert_eq!(shown.state, state("ENC2"));
    assert_eq!((text.text.as_str(), text.phase.as_deref()), ("Look here…\"", Some("commentary")));
    assert!(text.citations.as_ref().unwrap().as_str().contains("https://example.com"));
    assert_eq!(refusal, "I cannot.");
    assert_eq!(
        (read.id.as_str(), read.namespace.as_deref(), read.arguments.as_str()),
        ("call_a", Some("fs"), "{\"path\": \"a\",\"n\":1.50}")
    );
    assert_eq!((patch.kind, patch.name.as_str()), (ToolKind::Custom, "apply_patch"));
    assert_eq!(answer.choices[0].logprobs.len(), 2);
    let usage = answer.usage;
    assert_eq!(
        (usage.cache_read, usage.cache_write, usage.reasoning),
        (Some(8), Some(4), Some(12))
    );
    // Calls were made beside the refusal: they count.
    assert_eq!(answer.choices[0].stop, Some(StopReason::EndTurn));
    let without: String = events_of_kind(EVERY_ITEM, |event| {
        !event.contains("_call_arg") && !event.contains("tool_call")
    })
    .replace("\"type\":\"function_call\"", "\"type\":\"other\"")
    .replace("\"type\":\"custom_tool_call\"", "\"type\":\"other\"");
    assert_eq!(fold(&without).choices[0].stop, Some(StopReason::Refusal));
}

#[test]
fn indexes_that_are_not_said_are_not_missed() {
    let answer = fold(RAW);
    let [Part::Reasoning(thought), Part::ToolCall(call)] = &answer.choices[0].parts[..] else {
        panic!("{answer:?}")
    };
    assert_eq!((thought.text.as_deref(), &thought.state), (Some("Let me see."), &None));
    assert_eq!(call.arguments, "{\"city\":\"Rome\"}");
}

#[test]
fn what_did_not_come_in_pieces_is_taken_from_what_is_whole_and_never_twice() {
    for text in streams() {
        let whole = fold(text);
        // Without any piece; without what closes texts; with nothing but the last event.
        let drops: [&dyn Fn(&str) -> bool; 6] = [
            &|kind| kind.ends_with(".delta"),
            &|kind| kind.ends_with(".delta") || kind.ends_with("_text.done"),
            &|kind| kind.ends_with(".done") && kind != "response.output_item.done",
            &|kind| kind.ends_with(".done"),
            &|kind| kind.ends_with(".added"),
            &|kind| !matches!(kind, "response.completed" | "response.created"),
        ];
        for drop in drops {
            let kept: String = events(text)
                .into_iter()
                .filter(|event| {
                    data(event).is_none_or(|data| !drop(data["type"].as_str().unwrap()))
                })
                .collect();
            same_parts(&fold(&kept), &whole);
        }
    }
}

/// Two answers have the same parts. What a lost event had said stands further behind.
fn same_parts(answer: &Response, whole: &Response) {
    let (parts, same) = (&answer.choices[0].parts, &whole.choices[0].parts);
    assert_eq!(parts.len(), same.len(), "{parts:?}");
    for part in same {
        // What is said of a message where it opens is not said again in each place.
        let found = parts.iter().any(|other| match (other, part) {
            (Part::Text(other), Part::Text(part)) => {
                (&other.text, &other.citations) == (&part.text, &part.citations)
            }
            (other, part) => other == part,
        });
        assert!(found, "{part:?} is not in {parts:?}");
    }
}

#[test]
fn a_document_is_the_same_as_its_stream() {
    for text in streams() {
        let last = events(text).into_iter().filter_map(data).next_back().unwrap();
        let whole = ResponsesCodec.read_answer(&last["response"].to_string(), &exchange()).unwrap();
        let (document, stream) = (Response::of(&whole), fold(text));
        assert_eq!(document.choices[0].stop, stream.choices[0].stop);
        assert_eq!(document.usage, stream.usage);
        assert_eq!(document.choices[0].parts.len(), stream.choices[0].parts.len());
    }
}

#[test]
fn the_inner_status_says_how_it_ended() {
    let end = |kind: &str, response: Value| {
        let data = json!({"type": format!("response.{kind}"), "response": response});
        let events = decode(&format!("data: {data}\n\n"));
        let ends = events.iter().filter(|e| matches!(e, Event::End | Event::Fault(_))).count();
        assert_eq!(ends, 1, "{events:?}");
        events.into_iter().find_map(|event| match event {
            Event::Stop { reason, .. } => Some(Ok(reason)),
            Event::Fault(fault) => Some(Err((fault.class, fault.retry_after))),
            _ => None,
        })
    };
    let incomplete =
        |reason: &str| json!({"status": "incomplete", "incomplete_details": {"reason": reason}});
    for (kind, response, meant) in [
        ("completed", json!({"status": "completed"}), Ok(StopReason::EndTurn)),
        ("completed", json!({}), Ok(StopReason::EndTurn)),
        ("completed", incomplete("max_output_tokens"), Ok(StopReason::MaxTokens)),
        ("incomplete", incomplete("content_filter"), Ok(StopReason::Filter)),
        ("incomplete", incomplete("steered"), Ok(StopReason::Other("steered".into()))),
        ("incomplete", json!({}), Ok(StopReason::MaxTokens)),
        ("completed", json!({"status": "cancelled"}), Err((Class::Server, None))),
        ("failed", json!({"error": null}), Err((Class::Server, None))),
        (
            "failed",
            json!({"status": "failed", "error": {"code": "rate_limit_exceeded", "message": "Please try again in 1.5s."}}),
            Err((Class::RateLimit, Some(2))),
        ),
        (
            "failed",
            json!({"error": {"code": "context_length_exceeded", "message": "too long"}}),
            Err((Class::ContextTooLong { prompt: None, limit: None }, None)),
        ),
        (
            "failed",
            json!({"error": {"code": "slow_down", "message": "m"}}),
            Err((Class::Overloaded, None)),
        ),
        (
            "failed",
            json!({"error": {"code": "bio_policy", "message": "m"}}),
            Err((Class::ContentBlocked, None)),
        ),
    ] {
        assert_eq!(end(kind, response.clone()), Some(meant), "{kind} {response}");
    }
}

#[test]
fn a_bare_error_is_a_fault() {
    for text in [
        "event: error\ndata: {\"type\":\"error\",\"code\":\"server_error\",\"message\":\"m\",\"param\":null}\n\n",
        "event: error\ndata: {\"message\":\"m\"}\n\n",
        "data: {\"error\":{\"message\":\"m\",\"type\":\"InternalServerError\",\"code\":500}}\n\n",
    ] {
        let events = decode(&format!("{text}{text}"));
        let [Event::Fault(fault)] = &events[..] else { panic!("{events:?}") };
        assert_eq!((fault.class, fault.message.as_str()), (Class::Server, "m"));
    }
    assert!(matches!(decode("data: {\"type\n\n")[..], [Event::Fault(_)]));
}

#[test]
fn a_document_that_has_failed_is_a_fault() {
    for (body, class) in [
        (
            json!({"status": "failed", "output": [], "error": {"code": "server_error", "message": "m"}}),
            Class::Server,
        ),
        (json!({"status": "in_progress", "output": []}), Class::Server),
        (json!({"status": "cancelled", "output": []}), Class::Server),
        (json!({"error": {"message": "m", "code": "rate_limit_exceeded"}}), Class::RateLimit),
        (json!({"object": "response"}), Class::Server),
        (json!([]), Class::Server),
    ] {
        let fault = ResponsesCodec.read_answer(&body.to_string(), &exchange()).unwrap_err();
        assert_eq!(fault.class, class, "{body}");
    }
}

#[test]
fn a_text_that_no_item_announced_is_not_lost() {
    let events = decode(
        "data: {\"type\":\"response.created\",\"response\":{\"id\":\"r\"}}\n\ndata: {\"type\":\"response.output_text.delta\",\"item_id\":\"m\",\"output_index\":0,\"content_index\":0,\"delta\":\"x\"}\n\nevent: response.output_text.delta\ndata: {\"item_id\":\"m\",\"output_index\":0,\"content_index\":0,\"delta\":\"y\"}\n\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":\"r\",\"output\":[{\"type\":\"message\",\"id\":\"other\",\"content\":[{\"type\":\"output_text\",\"text\":\"xy\"}]}]}}\n\n",
    );
    let answer = Response::of(&events);
    let [Part::Text(text)] = &answer.choices[0].parts[..] else { panic!("{answer:?}") };
    assert_eq!(text.text, "xy");
}

#[test]
fn a_text_may_begin_where_its_part_opens_and_what_is_lost_is_not_doubled() {
    let delta = |text: &str| {
        format!(
            "data: {{\"type\":\"response.output_text.delta\",\"item_id\":\"m\",\"output_index\":0,\"content_index\":0,\"delta\":\"{text}\"}}\n\n"
        )
    };
    let part = |kind: &str, text: &str| {
        format!(
            "data: {{\"type\":\"response.content_part.{kind}\",\"item_id\":\"m\",\"output_index\":0,\"content_index\":0,\"part\":{{\"type\":\"output_text\",\"text\":\"{text}\"}}}}\n\n"
        )
    };
    for (stream, said) in [
        ([part("added", "Hel"), delta("lo"), part("done", "Hello")], "Hello"),
        ([part("added", ""), delta("Hel"), part("done", "Hello")], "Hello"),
        // A piece before it was lost.
        ([part("added", ""), delta("lo"), part("done", "Hello")], "lo"),
    ] {
        let answer = fold(&stream.concat());
        let [Part::Text(text)] = &answer.choices[0].parts[..] else { panic!("{answer:?}") };
        assert_eq!(text.text, said);
    }
}

#[test]
fn arguments_wait_for_the_name_of_their_call() {
    let answer = fold(
        "data: {\"type\":\"response.output_item.added\",\"output_index\":0,\"item\":{\"type\":\"function_call\",\"id\":\"f\",\"name\":\"\"}}\n\ndata: {\"type\":\"response.function_call_arguments.delta\",\"output_index\":0,\"item_id\":\"f\",\"delta\":\"{}\"}\n\ndata: {\"type\":\"response.output_item.done\",\"output_index\":0,\"item\":{\"type\":\"function_call\",\"id\":\"f\",\"call_id\":\"c\",\"name\":\"g\",\"arguments\":{}}}\n\n",
    );
    let [Part::ToolCall(call)] = &answer.choices[0].parts[..] else { panic!("{answer:?}") };
    assert_eq!((call.id.as_str(), call.name.as_str(), call.arguments.as_str()), ("c", "g", "{}"));
}

#[test]
fn a_translated_stream_satisfies_the_vendors_reader() {
    for text in streams() {
        let out = translate(&[text.as_bytes()], &exchange());
        let all: Vec<Value> = events(&out).into_iter().filter_map(data).collect();
        let last = check(&all);
        let from = events(text).into_iter().filter_map(data).next_back().unwrap();
        assert_eq!(last["status"], from["response"]["status"]);
        assert_eq!(
            last["output"].as_array().map(Vec::len),
            from["response"]["output"].as_array().map(Vec::len)
        );
        assert_eq!(last["usage"]["total_tokens"], from["response"]["usage"]["total_tokens"]);
        assert_eq!(last["id"], from["response"]["id"]);
    }
}

#[test]
fn items_are_restored_but_for_their_ids() {
    let out = translate(&[EVERY_ITEM.as_bytes()], &exchange());
    let all: Vec<Value> = events(&out).into_iter().filter_map(data).collect();
    let from = events(EVERY_ITEM).into_iter().filter_map(data).next_back().unwrap();
    let without_ids = |output: &Value| {
        let mut items = output.as_array().unwrap().clone();
        items.iter_mut().for_each(|item| {
            item.as_object_mut().unwrap().remove("id");
        });
        items
    };
    assert_eq!(without_ids(&check(&all)["output"]), without_ids(&from["response"]["output"]));
    let ids: Vec<&str> = ["rs", "ws", "rs", "msg", "fc", "ctc"].into();
    let output = check(&all)["output"].clone();
    for (index, prefix) in ids.iter().enumerate() {
        let id = output[index]["id"].as_str().unwrap();
        let made = format!("{prefix}_0a1_{index}");
        assert!(*prefix == "ws" || id == made, "{id}");
    }
}

fn start(id: &str) -> Event {
    Event::Start(Start { id: id.into(), model: Some("m".into()), ..Start::default() })
}

fn opens(part: u32, kind: PartKind) -> Event {
    Event::PartStart { choice: 0, part, kind }
}

fn says(part: u32, text: &str) -> Event {
    Event::Text { choice: 0, part, text: text.into(), logprobs: None }
}

fn thinks(part: u32, text: &str, summary: Option<u32>) -> Event {
    Event::Reasoning { choice: 0, part, text: text.into(), summary }
}

fn closes(part: u32) -> Event {
    Event::PartStop { choice: 0, part }
}

fn stops(reason: StopReason) -> Event {
    Event::Stop { choice: 0, reason }
}

fn calls(part: u32, kind: ToolKind) -> Event {
    let (id, name) = (format!("call_{part}"), "f".to_owned());
    opens(part, PartKind::ToolCall { id, name, kind, namespace: None })
}

fn plain() -> PartKind {
    PartKind::Text { phase: None }
}

fn last(events: &[Value]) -> &Value {
    &events[events.len() - 1]
}

#[test]
fn an_empty_answer_is_completed_without_items() {
    let all = encode(&[start("chatcmpl-1"), stops(StopReason::EndTurn), Event::End], &exchange());
    let kinds: Vec<&str> = all.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["response.created", "response.in_progress", "response.completed"]);
    let response = &last(&all)["response"];
    assert_eq!((&response["id"], &response["output"]), (&json!("resp_chatcmpl-1"), &json!([])));
    assert_eq!(response["usage"], Value::Null);
}

#[test]
fn what_a_limit_has_cut_off_is_not_complete() {
    for (reason, status, word) in [
        (StopReason::MaxTokens, "incomplete", "max_output_tokens"),
        (StopReason::Context, "incomplete", "max_output_tokens"),
        (StopReason::Filter, "incomplete", "content_filter"),
        (StopReason::ToolUse, "completed", ""),
        (StopReason::Other("x".into()), "completed", ""),
    ] {
        let call = calls(0, ToolKind::Function);
        let arguments = Event::Arguments { choice: 0, part: 0, text: "{\"a".into() };
        let all = encode(
            &[start("a"), call, arguments, closes(0), stops(reason), Event::End],
            &exchange(),
        );
        assert_eq!(last(&all)["type"], format!("response.{status}"));
        let response = &last(&all)["response"];
        assert_eq!(
            (&response["status"], &response["output"][0]["status"]),
            (&json!(status), &json!(status))
        );
        let details = if word.is_empty() { Value::Null } else { json!({"reason": word}) };
        assert_eq!(response["incomplete_details"], details);
    }
}

#[test]
fn texts_behind_each_other_are_one_message_and_a_call_between_makes_two() {
    let phase = |phase: &str| PartKind::Text { phase: Some(phase.into()) };
    let events = [
        start("a"),
        opens(0, plain()),
        says(0, "a"),
        closes(0),
        opens(1, plain()),
        says(1, "b"),
        closes(1),
        opens(2, PartKind::Refusal),
        Event::Refusal { choice: 0, part: 2, text: "no".into() },
        closes(2),
        calls(3, ToolKind::Function),
        closes(3),
        opens(4, plain()),
        says(4, "c"),
        closes(4),
        opens(5, phase("final_answer")),
        says(5, "d"),
        closes(5),
        stops(StopReason::EndTurn),
        Event::End,
    ];
    let all = encode(&events, &exchange());
    let output = last(&all)["response"]["output"].clone();
    let kinds: Vec<(&str, usize)> = output
        .as_array()
        .unwrap()
        .iter()
        .map(|item| {
            (item["type"].as_str().unwrap(), item["content"].as_array().map_or(0, Vec::len))
        })
        .collect();
    assert_eq!(kinds, [("message", 3), ("function_call", 0), ("message", 1), ("message", 1)]);
    assert_eq!((&output[3]["phase"], &output[2]["phase"]), (&json!("final_answer"), &Value::Null));
    assert_eq!(output[1]["arguments"], "{}");
}

#[test]
fn reasoning_is_a_summary_or_a_text_as_the_exchange_says() {
    let state = |value: &str, language: &str| {
        let state =
            State { issuer: Some("i".into()), language: language.into(), value: value.into() };
        Event::State { choice: 0, part: 0, state }
    };
    let events = [
        start("a"),
        opens(0, PartKind::Reasoning { redacted: false }),
        thinks(0, "x", None),
        thinks(0, "y", None),
        state("sig", "messages"),
        closes(0),
        stops(StopReason::EndTurn),
        Event::End,
    ];
    let item = |exchange: &Exchange| {
        let all = encode(&events, exchange);
        last(&all)["response"]["output"][0].clone()
    };
    let mut exchange = exchange();
    let raw = item(&exchange);
    assert_eq!(
        (&raw["summary"], &raw["content"]),
        (&json!([]), &json!([{"type": "reasoning_text", "text": "xy"}]))
    );
    // State of another language is in an envelope.
    assert!(raw["encrypted_content"].as_str().unwrap().starts_with("lp1.i.messages."));
    exchange.summaries = true;
    let summary = item(&exchange);
    assert_eq!(
        (&summary["summary"], summary.get("content")),
        (&json!([{"type": "summary_text", "text": "xy"}]), None)
    );
    exchange.client.encrypted_reasoning = false;
    assert!(item(&exchange).get("encrypted_content").is_none());
}

#[test]
fn summaries_are_numbered_densely() {
    let events = [
        start("a"),
        opens(0, PartKind::Reasoning { redacted: false }),
        thinks(0, "a", Some(3)),
        thinks(0, "b", Some(3)),
        thinks(0, "c", Some(7)),
        thinks(0, "d", None),
        closes(0),
        stops(StopReason::EndTurn),
        Event::End,
    ];
    let all = encode(&events, &exchange());
    let item = &last(&all)["response"]["output"][0];
    assert_eq!(
        item["summary"],
        json!([{"type": "summary_text", "text": "ab"}, {"type": "summary_text", "text": "c"}])
    );
    assert_eq!(item["content"][0]["text"], "d");
}

#[test]
fn a_custom_tool_that_was_sent_as_a_function_comes_back_as_itself() {
    let tool = RenamedTool {
        sent: "get_weather".into(),
        name: "patch".into(),
        namespace: None,
        custom: true,
    };
    let exchange = Exchange { undo: Undo { tools: vec![tool] }, ..exchange() };
    let text = RAW
        .replace(r#"{\"city\":\"Rome\"}"#, r#"{\"input\":\"+x\"}"#)
        .replace(r#""{\"city\":""#, r#""{\"input\":""#)
        .replace(r#""\"Rome\"}""#, r#""\"+x\"}""#);
    let out = translate(&[text.as_bytes()], &exchange);
    let all: Vec<Value> = events(&out).into_iter().filter_map(data).collect();
    let item = check(&all)["output"][1].clone();
    assert_eq!(
        (&item["type"], &item["name"], &item["input"]),
        (&json!("custom_tool_call"), &json!("patch"), &json!("+x"))
    );
    assert!(all.iter().any(|event| event["type"] == "response.custom_tool_call_input.delta"));
}

#[test]
fn a_fault_closes_what_is_open_and_says_why_in_words_that_codex_reads() {
    for (class, code) in [
        (Class::ContextTooLong { prompt: None, limit: None }, "context_length_exceeded"),
        (Class::NoCredit, "insufficient_quota"),
        (Class::RateLimit, "rate_limit_exceeded"),
        (Class::Overloaded, "server_is_overloaded"),
        (Class::InvalidRequest, "invalid_prompt"),
        (Class::Server, "server_error"),
        (Class::Timeout, "server_error"),
    ] {
        let mut fault = StreamFault::new(class, "Broken");
        fault.retry_after = Some(3);
        let usage = Usage { input: Some(4), ..Usage::default() };
        let events = [
            start("a"),
            opens(0, plain()),
            says(0, "half"),
            Event::Usage(usage),
            Event::Fault(fault.clone()),
            Event::Fault(fault.clone()),
            Event::End,
        ];
        let all = encode(&events, &exchange());
        let response = &last(&all)["response"];
        assert_eq!(last(&all)["type"], "response.failed");
        assert_eq!(
            (&response["status"], &response["error"]["code"]),
            (&json!("failed"), &json!(code))
        );
        assert_eq!(response["output"][0]["status"], "incomplete");
        assert_eq!(response["usage"]["input_tokens"], 4);
        let waits = response["error"]["message"].as_str().unwrap().contains("try again in 3s");
        assert_eq!(waits, class == Class::RateLimit);
        // A reader that has seen nothing yet wants the beginning, too.
        encode(&[Event::Fault(fault)], &exchange());
    }
}

#[test]
fn citations_of_others_become_annotations() {
    let cite = |language, json: &str, url: Option<&str>| {
        let json = Json::parse(json).unwrap();
        let citation = Citation { language, json, url: url.map(str::to_owned), title: None };
        Event::Citation { choice: 0, part: 0, citation }
    };
    let events = [
        start("a"),
        opens(0, plain()),
        says(0, "héllo"),
        cite("messages", r#"{"type":"web_search_result_location","title":"t"}"#, Some("u")),
        cite(
            "chat",
            r#"{"type":"url_citation","url_citation":{"url":"v","title":"w","start_index":1,"end_index":2}}"#,
            None,
        ),
        cite("messages", r#"{"type":"char_location"}"#, None),
        closes(0),
        stops(StopReason::EndTurn),
        Event::End,
    ];
    let all = encode(&events, &exchange());
    assert_eq!(
        last(&all)["response"]["output"][0]["content"][0]["annotations"],
        json!([
            {"type": "url_citation", "start_index": 0, "end_index": 5, "url": "u", "title": "t"},
            {"type": "url_citation", "start_index": 1, "end_index": 2, "url": "v", "title": "w"},
        ])
    );
}

#[test]
fn a_document_is_the_object_at_the_end_of_the_stream() {
    for text in streams() {
        let raw = decode(text);
        let all = encode(&raw, &exchange());
        let document = ResponsesCodec.write_answer(&Response::of(&raw), &exchange());
        let document: Value = serde_json::from_str(&document).unwrap();
        assert_eq!(document, last(&all)["response"]);
    }
}

#[test]
fn the_object_repeats_the_request_and_what_it_leaves_open() {
    let request = json!({"model": "m", "input": "x", "temperature": 0.25, "text": {"verbosity": "low"},
        "tools": [{"type": "function", "name": "f"}], "metadata": {"a": "b"}, "instructions": "i"});
    let request = ResponsesCodec.read(&request.to_string()).unwrap();
    let exchange = Exchange { client: request.client, model: Some("alias".into()), ..exchange() };
    let mut begin =
        Start { id: "x y".into(), service_tier: Some("flex".into()), ..Start::default() };
    begin.model = Some("real".into());
    let all = encode(&[Event::Start(begin), stops(StopReason::EndTurn), Event::End], &exchange);
    for response in [&all[0]["response"], &last(&all)["response"]] {
        assert_eq!((&response["model"], &response["created_at"]), (&json!("alias"), &json!(7)));
        assert_eq!(response["text"], json!({"verbosity": "low", "format": {"type": "text"}}));
        assert_eq!((&response["temperature"], &response["top_p"]), (&json!(0.25), &json!(1.0)));
        assert_eq!(
            (&response["service_tier"], &response["truncation"]),
            (&json!("flex"), &json!("disabled"))
        );
        assert_eq!(response["tools"], json!([{"type": "function", "name": "f"}]));
        assert_eq!(
            (&response["instructions"], &response["metadata"]),
            (&json!("i"), &json!({"a": "b"}))
        );
        // Ids of items must be of letters and digits.
        assert!(
            response["id"]
                .as_str()
                .unwrap()
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_')
        );
    }
}

#[test]
fn a_sign_of_life_is_a_comment() {
    let mut encoder = ResponsesCodec.encoder(&exchange());
    let mut out = String::new();
    encoder.event(&Event::Ping, &mut out);
    assert_eq!(out, ": ping\n\n");
}

/// A stream after some events were dropped, repeated, swapped, or the rest was cut off.
fn mutated(text: &str, changes: &[(u8, prop::sample::Index)]) -> String {
    let mut all: Vec<String> = events(text).into_iter().map(str::to_owned).collect();
    for (change, at) in changes {
        if all.is_empty() {
            break;
        }
        let at = at.index(all.len());
        match change % 5 {
            0 => drop(all.remove(at)),
            1 => all.insert(at, all[at].clone()),
            2 => {
                let other = (at + 1) % all.len();
                all.swap(at, other);
            }
            3 => all.truncate(at + 1),
            _ => {
                let half = all[at].len() / 2;
                let half = (0..=half).rev().find(|n| all[at].is_char_boundary(*n)).unwrap_or(0);
                all[at].truncate(half);
                all[at].push_str("\n\n");
            }
        }
    }
    all.concat()
}

proptest! {
    #[test]
    fn any_cut_of_the_bytes_gives_the_same(
        which in 0usize..4,
        mut cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let text = streams()[which].as_bytes();
        let whole = translate(&[text], &exchange());
        cuts.sort_unstable_by_key(|cut| cut.index(text.len()));
        let (mut pieces, mut from) = (Vec::new(), 0);
        for cut in cuts.iter().map(|cut| cut.index(text.len())) {
            pieces.push(&text[from..cut]);
            from = cut;
        }
        pieces.push(&text[from..]);
        prop_assert_eq!(translate(&pieces, &exchange()), whole);
    }

    #[test]
    fn whatever_the_backend_does_the_client_has_one_valid_stream(
        which in 0usize..4,
        changes in prop::collection::vec((any::<u8>(), any::<prop::sample::Index>()), 0..6),
        summaries: bool,
    ) {
        let text = mutated(streams()[which], &changes);
        let exchange = Exchange { summaries, ..exchange() };
        let out = translate(&[text.as_bytes()], &exchange);
        let all: Vec<Value> = events(&out).into_iter().filter_map(data).collect();
        check(&all);
    }

    #[test]
    fn whole_texts_are_never_said_twice(
        changes in prop::collection::vec((0u8..2, any::<prop::sample::Index>()), 0..4),
    ) {
        // Dropped or repeated events that close something change no text.
        let closing: String = events(EVERY_ITEM)
            .into_iter()
            .enumerate()
            .flat_map(|(at, event)| {
                let kind = data(event).map(|data| data["type"].as_str().unwrap().to_owned()).unwrap();
                let many = events(EVERY_ITEM).len();
                let change = changes.iter().find(|(_, index)| index.index(many) == at);
                match change {
                    Some((0, _)) if kind.ends_with(".done") => vec![],
                    Some((1, _)) if kind.ends_with(".done") || kind.ends_with(".added") => vec![event, event],
                    _ => vec![event],
                }
            })
            .collect();
        same_parts(&fold(&closing), &fold(EVERY_ITEM));
    }
}
