//! Plain answers, both ways.

use serde_json::json;

use super::*;
use crate::dialect::hub::{Class, Codec as _, Part, PartKind, Start, request::ToolKind};

fn events(body: &str) -> Vec<Event> {
    translator::answer(&CODEC, body, &exchange(LANGUAGE)).unwrap_or_else(|e| panic!("{e:?}"))
}

/// Out of this language and into it again.
fn back(body: &str) -> Value {
    let exchange = Exchange { model: None, ..exchange(LANGUAGE) };
    let events = translator::answer(&CODEC, body, &exchange).unwrap();
    let document = translator::document(&CODEC, &events, &exchange);
    let message = judge(&translator::stream(&CODEC, &events, &exchange));
    let document: Value = serde_json::from_str(&document).unwrap();
    agree(&message, &document, &events);
    document
}

#[test]
fn captured_answers_come_back() {
    for (body, known) in [
        (fixture!("vllm_messages.answer.json"), false),
        (fixture!("vllm_tools.answer.json"), false),
        (fixture!("llamacpp_messages.answer.json"), true),
        (fixture!("llamacpp_tools.answer.json"), true),
        (fixture!("llamacpp_err_nomaxtokens.answer.json"), true),
    ] {
        let mut expected: Value = serde_json::from_str(body).unwrap();
        expected["id"] = format!("msg_{}", expected["id"].as_str().unwrap()).into();
        if !known {
            expected["stop_sequence"] = Value::Null;
        }
        assert_eq!(back(body), expected);
    }
}

#[test]
fn an_answer_with_everything_comes_back() {
    let body = json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude",
        "content": [
            {"type": "thinking", "thinking": "t", "signature": "sig"},
            {"type": "thinking", "thinking": "", "signature": "alone"},
            {"type": "redacted_thinking", "data": "hidden"},
            {"type": "text", "text": "a"},
            {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "q"}},
            {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [{"type": "web_search_result", "url": "https://a", "title": "A"}]},
            {"type": "text", "text": "b", "citations": [{"type": "web_search_result_location", "url": "https://a", "title": "A", "cited_text": "c"}]},
            {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"z": 1, "a": [1.5]}},
            {"type": "tool_use", "id": "toolu_2", "name": "g", "input": {}},
        ],
        "stop_reason": "tool_use", "stop_sequence": null,
        "usage": {"input_tokens": 3, "cache_creation_input_tokens": 2, "cache_read_input_tokens": 1, "output_tokens": 9},
    });
    let mut out = back(&body.to_string());
    assert_eq!(out, body);
    assert!(out["content"][7]["input"].to_string().starts_with(r#"{"z""#));
    out["content"].take();
    let usage = events(&body.to_string()).iter().rev().find_map(|event| match event {
        Event::Usage(usage) => Some(*usage),
        _ => None,
    });
    assert_eq!(usage.unwrap().input, Some(6));
}

#[test]
fn errors_and_nonsense_are_no_answers() {
    let fault = |body: &str| CODEC.read_answer(body, &exchange(LANGUAGE)).unwrap_err();
    let error = r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#;
    assert_eq!(fault(error).class, Class::Overloaded);
    assert_eq!(fault(r#"{"error":{"message":"m","code":429}}"#).class, Class::RateLimit);
    for body in ["", "[]", "{}", r#"{"content":"x"}"#, r#"{"type":"message","content":{}}"#] {
        assert_eq!(fault(body).class, Class::Server, "{body}");
    }
}

#[test]
fn words_for_the_end_are_those_of_the_language() {
    for (reason, word, sequence) in [
        (StopReason::EndTurn, "end_turn", Value::Null),
        (StopReason::StopSequence(Some("X".into())), "stop_sequence", "X".into()),
        (StopReason::MaxTokens, "max_tokens", Value::Null),
        (StopReason::Context, "model_context_window_exceeded", Value::Null),
        // There is no call.
        (StopReason::ToolUse, "end_turn", Value::Null),
        (StopReason::Filter, "refusal", Value::Null),
        (StopReason::Refusal, "refusal", Value::Null),
        (StopReason::Pause, "pause_turn", Value::Null),
        (StopReason::BadToolCall, "end_turn", Value::Null),
        (StopReason::Other("novel".into()), "end_turn", Value::Null),
    ] {
        let message = client(&[Event::Start(Start::default()), stop(reason), Event::End]);
        assert_eq!(message.stop, json!({"stop_reason": word, "stop_sequence": sequence}));
    }
    // A backend's own word that is newer than this passes to clients of the same language.
    let events =
        [Event::Start(Start::default()), stop(StopReason::Other("novel".into())), Event::End];
    assert_eq!(client_of(&events, &exchange(LANGUAGE)).stop["stop_reason"], "novel");
    // vLLM leaves the reason out.
    for aborted in [r#""stop_reason":"abort""#, r#""stop_reason":null"#, r#""model":"m""#] {
        let aborted = format!(r#"{{"type":"message","content":[],{aborted}}}"#);
        assert!(translator::answer(&CODEC, &aborted, &exchange(LANGUAGE)).is_err(), "{aborted}");
    }
}

#[test]
fn ids_have_the_languages_form() {
    let id = |id: &str| {
        let start = Event::Start(Start { id: id.into(), ..Start::default() });
        client(&[start, stop(StopReason::EndTurn), Event::End]).head["id"].clone()
    };
    assert_eq!(id("chatcmpl-1"), "msg_chatcmpl-1");
    assert_eq!(id("msg_1"), "msg_1");
    assert_eq!(id(""), "msg_10");
}

/// Case 19, and arguments that nobody could parse.
#[test]
fn a_call_that_is_not_whole_is_never_run() {
    let call = |text: &str, reason: StopReason| {
        let kind = PartKind::ToolCall {
            id: "c".into(),
            name: "f".into(),
            kind: ToolKind::Function,
            namespace: None,
        };
        [
            Event::Start(Start::default()),
            Event::PartStart { choice: 0, part: 0, kind },
            Event::Arguments { choice: 0, part: 0, text: text.into() },
            Event::PartStop { choice: 0, part: 0 },
            stop(reason),
            Event::End,
        ]
    };
    for text in ["{\"a\":", "[1]", "\"x\"", "{} {}", "nonsense"] {
        let events = call(text, StopReason::EndTurn);
        let error = client(&events).error.unwrap();
        assert_eq!(error["type"], "api_error", "{text}");
        assert!(CODEC.objection(&folded(&events)).is_some());
        let cut = call(text, StopReason::MaxTokens);
        let message = client(&cut);
        assert_eq!((message.error, &message.stop["stop_reason"]), (None, &"max_tokens".into()));
        assert!(CODEC.objection(&folded(&cut)).is_none());
        let document = translator::document(&CODEC, &cut, &exchange("chat"));
        let document: Value = serde_json::from_str(&document).unwrap();
        assert_eq!(document["content"], json!([{"type": "text", "text": ""}]));
    }
    // Case 6.
    for text in ["", " ", "{}"] {
        let message = client(&call(text, StopReason::EndTurn));
        assert_eq!(message.blocks[0]["input"], json!({}), "{text}");
        assert_eq!(message.stop["stop_reason"], "tool_use");
    }
}

#[test]
fn a_hidden_part_is_dropped_and_a_refusal_is_text() {
    let events = [
        Event::Start(Start::default()),
        Event::PartStart {
            choice: 0,
            part: 0,
            kind: PartKind::Opaque { language: "responses", kind: "x".into(), json: json("{}") },
        },
        Event::PartStop { choice: 0, part: 0 },
        Event::PartStart { choice: 0, part: 1, kind: PartKind::Refusal },
        Event::Refusal { choice: 0, part: 1, text: "No.".into() },
        Event::PartStop { choice: 0, part: 1 },
        stop(StopReason::EndTurn),
        Event::End,
    ];
    let message = client(&events);
    assert_eq!(message.blocks, [json!({"type": "text", "text": "No."})]);
    assert_eq!(message.stop["stop_reason"], "refusal");
    assert!(matches!(folded(&events).choices[0].parts[1], Part::Refusal(_)));
}

/// The vendor explains a refusal beside its content: others get it as the text of a refusal.
#[test]
fn an_explained_refusal_has_its_words_in_every_language() {
    let body = json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude",
        "content": [{"type": "text", "text": "I"}],
        "stop_reason": "refusal", "stop_sequence": null,
        "stop_details": {"type": "refusal", "category": null, "explanation": "It is against policy."},
        "usage": {"input_tokens": 1, "output_tokens": 1},
    });
    assert_eq!(back(&body.to_string()), body);
    let events = events(&body.to_string());
    let parts = &folded(&events).choices[0].parts;
    assert_eq!(parts[1], Part::Refusal("It is against policy.".into()));
    let translated = client(&events);
    assert_eq!(translated.blocks.len(), 2);
    assert!(translated.stop["stop_details"].is_null());
}
