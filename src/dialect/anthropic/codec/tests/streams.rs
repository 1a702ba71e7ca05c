//! Streams, both ways.

use bytes::Bytes;
use proptest::{prelude::*, sample};
use serde_json::json;

use super::*;
use crate::dialect::hub::{
    Class, Part, PartKind, Start, StreamFault, Translator,
    event::Citation,
    request::{State, ToolKind},
};

/// A stream of the vendor with everything in it.
const VENDOR: &str = r#"event: message_start
data: {"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"claude","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":10,"cache_creation_input_tokens":5,"cache_read_input_tokens":7,"cache_creation":{"ephemeral_5m_input_tokens":5,"ephemeral_1h_input_tokens":0},"output_tokens":1,"service_tier":"standard"}}}

event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}

event: ping
data: {"type": "ping"}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"let me "}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"see"}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"c2ln"}}

event: content_block_stop
data: {"type":"content_block_stop","index":0}

event: content_block_start
data: {"type":"content_block_start","index":1,"content_block":{"type":"redacted_thinking","data":"aGlkZGVu"}}

event: content_block_stop
data: {"type":"content_block_stop","index":1}

event: content_block_start
data: {"type":"content_block_start","index":2,"content_block":{"type":"server_tool_use","id":"srvtoolu_1","name":"web_search","input":{}}}

event: content_block_delta
data: {"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":""}}

event: content_block_delta
data: {"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\"query\":"}}

event: content_block_delta
data: {"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"\"q\"}"}}

event: content_block_stop
data: {"type":"content_block_stop","index":2}

event: content_block_start
data: {"type":"content_block_start","index":3,"content_block":{"type":"web_search_tool_result","tool_use_id":"srvtoolu_1","content":[{"type":"web_search_result","url":"https://a","title":"A"}]}}

event: content_block_stop
data: {"type":"content_block_stop","index":3}

event: content_block_start
data: {"type":"content_block_start","index":4,"content_block":{"type":"text","text":""}}

event: content_block_delta
data: {"type":"content_block_delta","index":4,"delta":{"type":"text_delta","text":"Grüße \n🙂"}}

event: content_block_delta
data: {"type":"content_block_delta","index":4,"delta":{"type":"citations_delta","citation":{"type":"web_search_result_location","url":"https://a","title":"A","cited_text":"c"}}}

event: content_block_stop
data: {"type":"content_block_stop","index":4}

event: content_block_start
data: {"type":"content_block_start","index":5,"content_block":{"type":"tool_use","id":"toolu_1","name":"f","input":{}}}

event: content_block_delta
data: {"type":"content_block_delta","index":5,"delta":{"type":"input_json_delta","partial_json":""}}

event: content_block_delta
data: {"type":"content_block_delta","index":5,"delta":{"type":"input_json_delta","partial_json":"{\"a\": 1"}}

event: content_block_delta
data: {"type":"content_block_delta","index":5,"delta":{"type":"input_json_delta","partial_json":".50}"}}

event: content_block_stop
data: {"type":"content_block_stop","index":5}

event: content_block_start
data: {"type":"content_block_start","index":6,"content_block":{"type":"tool_use","id":"toolu_2","name":"g","input":{}}}

event: content_block_stop
data: {"type":"content_block_stop","index":6}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"input_tokens":20,"cache_creation_input_tokens":5,"cache_read_input_tokens":7,"output_tokens":90,"server_tool_use":{"web_search_requests":1}}}

event: message_stop
data: {"type":"message_stop"}

"#;

fn streams() -> [&'static str; 5] {
    [
        VENDOR,
        fixture!("vllm_messages_stream.answer.sse"),
        fixture!("vllm_tools_stream.answer.sse"),
        fixture!("llamacpp_messages_stream.answer.sse"),
        fixture!("llamacpp_tools_stream.answer.sse"),
    ]
}

/// Through decoder and encoder, cut as told.
fn through(stream: &[u8], mut cuts: impl FnMut() -> usize) -> (String, Vec<Event>) {
    let mut translator = Translator::new(&CODEC, &CODEC, &exchange(LANGUAGE));
    let (mut out, mut seen) = (String::new(), Vec::new());
    let mut rest = Bytes::copy_from_slice(stream);
    while !rest.is_empty() {
        let piece = rest.split_to(cuts().clamp(1, rest.len()));
        translator.push(&piece, &mut out, |event| seen.push(event.clone()));
    }
    translator.finish(&mut out, |event| seen.push(event.clone()));
    (out, seen)
}

fn whole(stream: &str) -> (Message, Vec<Event>) {
    let (out, seen) = through(stream.as_bytes(), || usize::MAX);
    (judge(&out), seen)
}

#[test]
fn the_vendors_stream_comes_back() {
    let (message, seen) = whole(VENDOR);
    assert_eq!(
        Value::Array(message.blocks),
        json!([
            {"type": "thinking", "thinking": "let me see", "signature": "c2ln"},
            {"type": "redacted_thinking", "data": "aGlkZGVu"},
            {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "q"}},
            {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [{"type": "web_search_result", "url": "https://a", "title": "A"}]},
            {"type": "text", "text": "Grüße \n🙂", "citations": [{"type": "web_search_result_location", "url": "https://a", "title": "A", "cited_text": "c"}]},
            {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1.5}},
            {"type": "tool_use", "id": "toolu_2", "name": "g", "input": {}},
        ])
    );
    assert_eq!((message.head["id"].as_str(), message.pings), (Some("msg_1"), 1));
    assert_eq!(message.head["model"], "alias");
    assert_eq!(message.head["usage"]["input_tokens"], 10);
    assert_eq!(message.stop, json!({"stop_reason": "tool_use", "stop_sequence": null}));
    // The input was restated, and the caches stay.
    let usage = folded(&seen).usage;
    assert_eq!((usage.input, usage.cache_read, usage.output), (Some(32), Some(7), Some(90)));
    assert_eq!(message.usage["input_tokens"], 20);
    let starts: Vec<_> = seen
        .iter()
        .filter_map(|event| match event {
            Event::State { state, .. } => {
                Some((state.issuer.clone().unwrap(), state.value.clone()))
            }
            _ => None,
        })
        .collect();
    let state = |value: &str| ("issuer.example".to_owned(), value.to_owned());
    assert_eq!(starts, [state("c2ln"), state("aGlkZGVu")]);
}

#[test]
fn captured_streams_are_read() {
    for (stream, text, input, output) in [
        (fixture!("vllm_messages_stream.answer.sse"), "Hello! I am a tiny test", 17, 12),
        (fixture!("llamacpp_messages_stream.answer.sse"), "Hello! I am a tiny test", 17, 12),
    ] {
        let (message, seen) = whole(stream);
        assert_eq!(Value::Array(message.blocks), json!([{"type": "text", "text": text}]));
        assert_eq!(message.stop["stop_reason"], "max_tokens");
        let usage = folded(&seen).usage;
        assert_eq!((usage.input, usage.output), (Some(input), Some(output)));
    }
    // llama.cpp's call begins without an input.
    for (stream, arguments) in [
        (fixture!("vllm_tools_stream.answer.sse"), json!({"city": "Paris", "unit": "c"})),
        (fixture!("llamacpp_tools_stream.answer.sse"), json!({"city": "Paris"})),
    ] {
        let (message, seen) = whole(stream);
        assert_eq!(message.blocks[0]["input"], arguments);
        assert_eq!(message.blocks[0]["name"], "get_weather");
        assert_eq!(message.stop["stop_reason"], "tool_use");
        let calls = |part: &Part| matches!(part, Part::ToolCall(_));
        assert!(folded(&seen).choices[0].parts.iter().all(calls));
    }
}

#[test]
fn any_cut_gives_the_same_output() {
    for stream in streams() {
        let (expected, events) = through(stream.as_bytes(), || usize::MAX);
        let by_byte = through(stream.as_bytes(), || 1);
        assert_eq!(by_byte, (expected.clone(), events));
        let crlf = stream.replace('\n', "\r\n");
        assert_eq!(through(crlf.as_bytes(), || 3).0, expected);
        for at in (0..stream.len()).step_by(2) {
            let mut first = true;
            let (out, _) = through(stream.as_bytes(), || {
                if std::mem::take(&mut first) { at } else { usize::MAX }
            });
            assert_eq!(out, expected, "cut at {at}");
        }
    }
}

#[test]
fn a_stream_that_breaks_off_ends_in_an_error() {
    for stream in streams() {
        let stop = stream.find("event: message_delta").unwrap();
        for at in (0..stream.len()).step_by(5).filter(|at| stream.is_char_boundary(*at)) {
            let message = whole(&stream[..at]).0;
            if at <= stop {
                let error = message.error.expect("an error");
                assert_eq!(error["type"], "api_error", "{at}");
            }
        }
        // The last line end may be missing.
        assert!(whole(stream.trim_end()).0.error.is_none());
    }
}

#[test]
fn an_end_that_was_said_by_the_reason_alone_is_an_end() {
    let stream = fixture!("vllm_messages_stream.answer.sse");
    let at = stream.find("event: message_stop").unwrap();
    assert!(whole(&stream[..at]).0.error.is_none());
    let done = format!("{}data: [DONE]\n\n", &stream[..at]);
    assert!(whole(&done).0.error.is_none());
}

#[test]
fn an_end_without_a_reason_is_an_answer_that_was_broken_off() {
    let stream = fixture!("vllm_messages_stream.answer.sse");
    let (before, reason) = stream.rsplit_once("\"stop_reason\":\"").unwrap();
    let (_, behind) = reason.split_once('"').unwrap();
    let broken = whole(&format!("{before}\"stop_reason\":null{behind}")).0;
    assert_eq!(broken.error.unwrap()["type"], "api_error");
    // A server that says nothing of its end at all has ended well.
    let at = stream.find("event: message_delta").unwrap();
    let end = "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
    assert!(whole(&format!("{}{end}", &stream[..at])).0.error.is_none());
}

#[test]
fn errors_in_a_stream_keep_their_class() {
    let head = &VENDOR[..VENDOR.find("event: content_block_stop").unwrap()];
    for (event, kind) in [
        (
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"Overloaded\"}}\n\n",
            "overloaded_error",
        ),
        (
            "event: error\ndata: {\"error\":{\"message\":\"m\",\"code\":429}}\n\n",
            "rate_limit_error",
        ),
        (
            "data: {\"error\":{\"message\":\"m\",\"type\":\"InternalServerError\",\"code\":500}}\n\n",
            "api_error",
        ),
        ("data: {\"type\":\"content_block_delta\",\"delta\":7}\n\n", "api_error"),
        ("data: {\n\n", "api_error"),
    ] {
        let error = whole(&format!("{head}{event}")).0.error.unwrap();
        assert_eq!(error["type"], kind, "{event}");
    }
    let fault = StreamFault {
        class: Class::ContextTooLong { prompt: Some(9), limit: Some(4) },
        ..StreamFault::cut()
    };
    let events = [Event::Start(Start::default()), Event::Fault(fault)];
    let error = client(&events).error.unwrap();
    assert_eq!(
        error,
        json!({"type": "invalid_request_error", "message": "prompt is too long: 9 tokens > 4 maximum"})
    );
}

/// Case 1, from a backend of this language whose deltas are of another kind than their block.
#[test]
fn deltas_of_another_kind_open_a_block_of_theirs() {
    let delta = |kind: &str, name: &str, text: &str| {
        format!(
            "data: {{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{{\"type\":\"{kind}\",\"{name}\":\"{text}\"}}}}\n\n"
        )
    };
    let stream = [
        "data: {\"type\":\"message_start\",\"message\":{}}\n\n".to_owned(),
        "data: {\"type\":\"message_start\",\"message\":{}}\n\n".to_owned(),
        "data: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n".to_owned(),
        delta("text_delta", "text", "a"),
        delta("thinking_delta", "thinking", "b"),
        delta("text_delta", "text", "c"),
        "data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"}}\n\n".to_owned(),
    ]
    .concat();
    let blocks = whole(&stream).0.blocks;
    let kinds: Vec<_> = blocks.iter().map(|block| block["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["text", "thinking", "text"]);
}

#[test]
fn a_call_whose_input_stands_in_its_beginning_is_whole() {
    let stream = VENDOR
        .replace(r#""name":"g","input":{}"#, r#""name":"g","input":{"whole":[1]}"#)
        .replace(r#""name":"f","input":{}"#, r#""name":"f","input":{"other":1}"#);
    let blocks = whole(&stream).0.blocks;
    assert_eq!(blocks[6]["input"], json!({"whole": [1]}));
    // Deltas are the truth where there are any.
    assert_eq!(blocks[5]["input"], json!({"a": 1.5}));
}

#[test]
fn an_empty_signature_does_not_replace_the_true_one() {
    let again = r#"event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":""}}

event: content_block_stop
data: {"type":"content_block_stop","index":0}
"#;
    let stop = &again[again.find("event: content_block_stop").unwrap()..];
    let blocks = whole(&VENDOR.replacen(stop, again, 1)).0.blocks;
    assert_eq!(blocks[0]["signature"], "c2ln");
}

#[test]
fn a_compaction_keeps_its_text() {
    let stream = VENDOR.replace(
        r#"{"type":"redacted_thinking","data":"aGlkZGVu"}}

"#,
        r#"{"type":"compaction","content":""}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"compaction_delta","content":"so far"}}

"#,
    );
    assert_eq!(whole(&stream).0.blocks[1], json!({"type": "compaction", "content": "so far"}));
}

fn part(part: u32, kind: PartKind) -> Event {
    Event::PartStart { choice: 0, part, kind }
}

fn said(part: u32, text: &str) -> Event {
    Event::Text { choice: 0, part, text: text.into(), logprobs: None }
}

fn thought(part: u32, text: &str, summary: Option<u32>) -> Event {
    Event::Reasoning { choice: 0, part, text: text.into(), summary }
}

fn closed(part: u32) -> Event {
    Event::PartStop { choice: 0, part }
}

fn state(part: u32, language: &str) -> Event {
    let state =
        State { issuer: Some("i".into()), language: language.into(), value: "value".into() };
    Event::State { choice: 0, part, state }
}

fn call(id: &str) -> PartKind {
    PartKind::ToolCall {
        id: id.into(),
        name: "f".into(),
        kind: ToolKind::Function,
        namespace: None,
    }
}

const TEXT: PartKind = PartKind::Text { phase: None };
const REASONING: PartKind = PartKind::Reasoning { redacted: false };

fn begun(usage: Option<Usage>) -> Event {
    Event::Start(Start { id: "x".into(), usage, ..Start::default() })
}

/// Cases 1, 2, 3 and 18: repeated beginnings, blocks of all kinds in one count, and a call that the
/// reason does not speak of.
#[test]
fn blocks_are_counted_over_all_kinds() {
    let message = client(&[
        begun(Some(usage(5, 1))),
        begun(None),
        part(0, TEXT),
        said(0, "a"),
        closed(0),
        part(1, REASONING),
        thought(1, "b", None),
        closed(1),
        Event::Ping,
        part(2, call("c1")),
        Event::Arguments { choice: 0, part: 2, text: "{\"a\"".into() },
        Event::Arguments { choice: 0, part: 2, text: ":1}".into() },
        closed(2),
        part(3, TEXT),
        said(3, "c"),
        closed(3),
        stop(StopReason::EndTurn),
        Event::Usage(usage(7, 9)),
        Event::End,
    ]);
    assert_eq!(
        Value::Array(message.blocks),
        json!([
            {"type": "text", "text": "a"},
            {"type": "thinking", "thinking": "b", "signature": ""},
            {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
            {"type": "text", "text": "c"},
        ])
    );
    assert_eq!(message.stop["stop_reason"], "tool_use");
    // Usage that comes behind the reason is not lost.
    assert_eq!(message.usage, json!({"input_tokens": 7, "output_tokens": 9}));
    assert_eq!(message.pings, 1);
}

/// Case 4.
#[test]
fn an_answer_without_text_gets_an_empty_one() {
    let empty = json!({"type": "text", "text": ""});
    let message = client(&[begun(None), stop(StopReason::EndTurn), Event::End]);
    assert_eq!(message.blocks[0], empty);
    assert_eq!(message.usage, json!({"output_tokens": 0}));
    let reasoned = [
        begun(None),
        part(0, REASONING),
        thought(0, "x", None),
        closed(0),
        stop(StopReason::MaxTokens),
        Event::End,
    ];
    let message = client(&reasoned);
    assert_eq!(message.blocks[1..], [empty]);
    assert_eq!(message.stop["stop_reason"], "max_tokens");
}

/// Case 5: an end that is not a good one is still an end.
#[test]
fn an_answer_that_was_cut_ends() {
    for reason in [StopReason::MaxTokens, StopReason::Filter, StopReason::Context] {
        let message = client(&[begun(None), part(0, TEXT), said(0, "a"), stop(reason), Event::End]);
        assert!(message.error.is_none());
    }
    let message = client(&[begun(None), part(0, TEXT), said(0, "a")]);
    assert_eq!(message.error.unwrap()["type"], "api_error");
}

/// Case 7: two calls in turn, one behind the other for the client.
#[test]
fn calls_that_alternate_are_both_whole() {
    let arguments = |part, text: &str| Event::Arguments { choice: 0, part, text: text.into() };
    let message = client(&[
        begun(None),
        part(0, call("a")),
        part(1, call("b")),
        arguments(0, "{\"x\":"),
        arguments(1, "{\"y\":"),
        arguments(0, "1}"),
        arguments(1, "2}"),
        stop(StopReason::ToolUse),
        Event::End,
    ]);
    assert_eq!(message.blocks[0]["input"], json!({"x": 1}));
    assert_eq!(message.blocks[1]["input"], json!({"y": 2}));
}

/// Custody: state of every kind has its slot.
#[test]
fn states_are_signatures_or_hidden_blocks() {
    let envelope = {
        let Event::State { state, .. } = state(0, "responses") else { unreachable!() };
        crate::dialect::hub::envelope::wrap(&state, LANGUAGE)
    };
    let run = |redacted, text: Option<&str>, language: &str| {
        let mut events = vec![begun(None), part(0, PartKind::Reasoning { redacted })];
        events.extend(text.map(|text| thought(0, text, None)));
        events.extend([state(0, language), closed(0), part(1, TEXT), said(1, "x"), closed(1)]);
        events.extend([stop(StopReason::EndTurn), Event::End]);
        client(&events).blocks[0].clone()
    };
    let thinking = |text: &str, signature: &str| json!({"type": "thinking", "thinking": text, "signature": signature});
    let hidden = |data: &str| json!({"type": "redacted_thinking", "data": data});
    assert_eq!(run(false, Some("t"), LANGUAGE), thinking("t", "value"));
    assert_eq!(run(false, None, LANGUAGE), thinking("", "value"));
    assert_eq!(run(true, None, LANGUAGE), hidden("value"));
    assert_eq!(run(false, Some("t"), "responses"), thinking("t", &envelope));
    assert_eq!(run(false, None, "responses"), hidden(&envelope));
    // Neither text nor state: no block.
    let nothing = [
        begun(None),
        part(0, REASONING),
        closed(0),
        part(1, TEXT),
        said(1, "x"),
        stop(StopReason::EndTurn),
        Event::End,
    ];
    assert_eq!(client(&nothing).blocks, [json!({"type": "text", "text": "x"})]);
}

#[test]
fn summaries_are_set_apart() {
    let message = client(&[
        begun(None),
        part(0, REASONING),
        thought(0, "a", Some(0)),
        thought(0, "b", Some(0)),
        thought(0, "c", Some(1)),
        closed(0),
        stop(StopReason::EndTurn),
        Event::End,
    ]);
    assert_eq!(message.blocks[0]["thinking"], "ab\n\nc");
}

#[test]
fn pings_before_the_beginning_are_comments() {
    let mut encoder = CODEC.encoder(&exchange("chat"));
    let mut out = String::new();
    for event in [
        Event::Ping,
        begun(None),
        Event::Ping,
        stop(StopReason::EndTurn),
        Event::End,
        Event::Ping,
        Event::End,
    ] {
        encoder.event(&event, &mut out);
    }
    assert!(out.starts_with(":\n\nevent: message_start\n"), "{out}");
    assert!(out.ends_with("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"), "{out}");
    assert_eq!(judge(&out).pings, 1);
}

#[test]
fn free_text_for_a_tool_is_an_object_here() {
    let kind = PartKind::ToolCall {
        id: "c".into(),
        name: "p".into(),
        kind: ToolKind::Custom,
        namespace: None,
    };
    let message = client(&[
        begun(None),
        part(0, kind),
        Event::Arguments { choice: 0, part: 0, text: "a\"b".into() },
        closed(0),
        stop(StopReason::ToolUse),
        Event::End,
    ]);
    assert_eq!(message.blocks[0]["input"], json!({"input": "a\"b"}));
}

/// Events of a decoder, in any order and number.
fn any_event() -> impl Strategy<Value = Event> {
    let part = 0..3_u32;
    let words = sample::select(&["", "a", "{", "}", "{\"a\":1}", "\n\u{2028}"][..]);
    let kinds = sample::select(vec![
        TEXT,
        REASONING,
        PartKind::Reasoning { redacted: true },
        PartKind::Refusal,
        call("c"),
        call(""),
        PartKind::Opaque {
            language: LANGUAGE,
            kind: "server_tool_use".into(),
            json: json(r#"{"type":"server_tool_use","id":"s","name":"n","input":{"q":1}}"#),
        },
        PartKind::Opaque { language: "chat", kind: "x".into(), json: json("{}") },
    ]);
    let reasons = sample::select(vec![
        StopReason::EndTurn,
        StopReason::MaxTokens,
        StopReason::ToolUse,
        StopReason::StopSequence(None),
        StopReason::Aborted,
    ]);
    let citation = Citation {
        language: LANGUAGE,
        json: json(r#"{"type":"char_location"}"#),
        url: None,
        title: None,
    };
    (part, words, kinds, reasons, 0..16_u8).prop_map(move |(part, word, kind, reason, choose)| {
        let text = word.to_owned();
        match choose {
            0 => begun(None),
            1..=3 => Event::PartStart { choice: 0, part, kind },
            4 | 5 => said(part, &text),
            6 => thought(part, &text, (word.len() > 1).then_some(part)),
            7 => Event::Arguments { choice: 0, part, text },
            8 => state(part, if word.is_empty() { LANGUAGE } else { "responses" }),
            9 => Event::Citation { choice: 0, part, citation: citation.clone() },
            10 => Event::Refusal { choice: 0, part, text },
            11 => closed(part),
            12 => Event::Usage(usage(1, 2)),
            13 => Event::Stop { choice: part / 2, reason },
            14 => {
                if word.is_empty() {
                    Event::End
                } else {
                    Event::Ping
                }
            }
            _ => {
                if word == "{" {
                    Event::Fault(StreamFault::cut())
                } else {
                    said(part, &text)
                }
            }
        }
    })
}

/// A stream as its events.
fn events_of(stream: &str) -> Vec<String> {
    stream.split_inclusive("\n\n").map(str::to_owned).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn every_run_of_events_ends_once(events in prop::collection::vec(any_event(), 0..24)) {
        // Only the stream: a document of parts that were never opened in order is not asked for.
        let exchange = exchange("chat");
        let (mut normal, mut ready) = (Normal::new(&exchange), Vec::new());
        for event in events {
            normal.take(event, &mut ready);
        }
        normal.finish(&mut ready);
        judge(&translator::stream(&CODEC, &ready, &exchange));
    }

    #[test]
    fn mutated_streams_end_once(
        which in 0..5_usize,
        changes in prop::collection::vec((0..4_u8, any::<sample::Index>(), any::<sample::Index>()), 1..5),
    ) {
        let mut events = events_of(streams()[which]);
        for (change, a, b) in changes {
            let (a, b) = (a.index(events.len()), b.index(events.len()));
            match change {
                0 => drop(events.remove(a)),
                1 => events.insert(a, events[b].clone()),
                2 => events.swap(a, b),
                _ => events.truncate(a.max(1)),
            }
            if events.is_empty() {
                break;
            }
        }
        let (out, seen) = through(events.concat().as_bytes(), || usize::MAX);
        judge(&out);
        let ends = seen.iter().filter(|event| matches!(event, Event::End | Event::Fault(_)));
        prop_assert_eq!(ends.count(), 1);
        // The parts are dense, or the fold says so.
        let _ = folded(&seen);
    }

    #[test]
    fn mutated_bytes_end_once(
        which in 0..5_usize,
        at in any::<sample::Index>(),
        byte in sample::select(&b"\n{}\"[],:0x\x80"[..]),
        cut in 1..50_usize,
    ) {
        let mut stream = streams()[which].as_bytes().to_vec();
        let at = at.index(stream.len());
        stream[at] = byte;
        judge(&through(&stream, || cut).0);
    }
}
