//! Answers.

use serde_json::{Value, json};

use super::{
    super::{CODECS, exchange, stream},
    block, called, chat, delta, documents, messages, name, of_type, responses, sent, stop, turns,
    typed, understood,
};
use crate::dialect::{
    anthropic::codec::MessagesCodec,
    hub::{Codec, StreamFault, Translator},
    openai::codec::ChatCodec,
    responses::codec::ResponsesCodec,
};

#[test]
fn case_1_reasoning_behind_a_text_opens_a_block_of_its_own() {
    let text = chat(
        &[json!({"content": "A"}), json!({"reasoning": "why"}), json!({"content": "B"})],
        "stop",
    );
    let (out, _) = stream(&ChatCodec, &MessagesCodec, &[text.as_bytes()]);
    let all = documents(&out);
    let order: Vec<String> = all
        .iter()
        .filter_map(|event| {
            let index = event["index"].as_u64()?;
            let kind = event["content_block"]["type"].as_str();
            match (event["type"].as_str()?, kind) {
                ("content_block_start", Some(kind)) => Some(format!("{index} {kind}")),
                ("content_block_stop", _) => Some(format!("{index} end")),
                _ => None,
            }
        })
        .collect();
    assert_eq!(order, ["0 text", "0 end", "1 thinking", "1 end", "2 text", "2 end"], "{out}");
    for to in CODECS {
        let said = understood(&ChatCodec, to, &text);
        assert_eq!((&*said.text, &*said.reasoning), ("AB", "why"), "{}", name(to));
    }
}

#[test]
fn case_2_a_beginning_that_is_repeated_is_one() {
    let role = json!({"role": "assistant", "content": ""});
    let chats = chat(&[role.clone(), role.clone(), json!({"content": "A"}), role], "stop");
    let message = json!({"type": "message_start", "message": {"id": "m", "role": "assistant", "content": [], "model": "m", "usage": {"input_tokens": 3, "output_tokens": 0}}});
    let text = [
        message,
        block(0, json!({"type": "text", "text": ""})),
        delta(0, json!({"type": "text_delta", "text": "A"})),
        stop(0),
    ];
    let message = messages(&text, "end_turn");
    for (from, text) in [(&ChatCodec as &dyn Codec, chats), (&MessagesCodec, message)] {
        let (out, _) = stream(from, &MessagesCodec, &[text.as_bytes()]);
        assert_eq!(of_type(&documents(&out), "message_start").len(), 1, "{out}");
        let (out, _) = stream(from, &ResponsesCodec, &[text.as_bytes()]);
        assert_eq!(of_type(&documents(&out), "response.created").len(), 1, "{out}");
        let (out, _) = stream(from, &ChatCodec, &[text.as_bytes()]);
        assert_eq!(out.matches("\"role\"").count(), 1, "{out}");
    }
}

/// A stream of Responses with reasoning, a call and a text, which have all the indexes that they may.
fn mixed() -> String {
    let reasoning = json!({"id": "rs_1", "type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "why"}]});
    let call = json!({"id": "fc_1", "type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{\"a\":1}", "status": "completed"});
    let message = json!({"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [{"type": "output_text", "text": "A", "annotations": []}]});
    let items = [reasoning, call, message];
    let events: Vec<Value> = items
        .iter()
        .enumerate()
        .flat_map(|(at, item)| {
            // All of them stand at the same place.
            let place = if at == 2 { 1 } else { 0 };
            [
                json!({"type": "response.output_item.added", "output_index": place, "item": item}),
                json!({"type": "response.output_item.done", "output_index": place, "item": item}),
            ]
        })
        .collect();
    responses(&events, "completed", json!(items), json!({}))
}

#[test]
fn case_3_blocks_are_numbered_over_all_kinds() {
    let (out, _) = stream(&ResponsesCodec, &MessagesCodec, &[mixed().as_bytes()]);
    let all = documents(&out);
    let starts: Vec<(u64, &str)> = of_type(&all, "content_block_start")
        .iter()
        .map(|event| {
            (event["index"].as_u64().unwrap(), event["content_block"]["type"].as_str().unwrap())
        })
        .collect();
    assert_eq!(starts, [(0, "thinking"), (1, "tool_use"), (2, "text")], "{out}");
    let stops = of_type(&all, "content_block_stop");
    let stops: Vec<u64> = stops.iter().map(|event| event["index"].as_u64().unwrap()).collect();
    assert_eq!(stops, [0, 1, 2], "{out}");
}

#[test]
fn case_4_an_answer_without_text_has_an_empty_one() {
    let empty = chat(&[json!({"role": "assistant", "content": ""})], "stop");
    let thought = chat(&[json!({"reasoning": "why"})], "stop");
    for (text, blocks) in [(empty, vec!["text"]), (thought, vec!["thinking", "text"])] {
        let (out, _) = stream(&ChatCodec, &MessagesCodec, &[text.as_bytes()]);
        let all = documents(&out);
        let starts = of_type(&all, "content_block_start");
        let kinds: Vec<&str> =
            starts.iter().map(|event| event["content_block"]["type"].as_str().unwrap()).collect();
        assert_eq!(kinds, blocks, "{out}");
        assert_eq!(of_type(&all, "message_delta")[0]["delta"]["stop_reason"], "end_turn");
        assert_eq!(all.last().unwrap()["type"], "message_stop");
        let (out, _) = stream(&ChatCodec, &ResponsesCodec, &[text.as_bytes()]);
        assert_eq!(documents(&out).last().unwrap()["type"], "response.completed", "{out}");
    }
}

#[test]
fn case_5_an_incomplete_response_has_a_reason_and_an_end() {
    for (why, messages, chat) in [
        ("max_output_tokens", "max_tokens", "length"),
        ("content_filter", "refusal", "content_filter"),
    ] {
        let item = json!({"id": "msg_1", "type": "message", "role": "assistant", "status": "incomplete", "content": [{"type": "output_text", "text": "A", "annotations": []}]});
        let more = json!({"incomplete_details": {"reason": why}});
        let text = responses(&[], "incomplete", json!([item]), more);
        let (out, _) = stream(&ResponsesCodec, &MessagesCodec, &[text.as_bytes()]);
        let all = documents(&out);
        assert_eq!(of_type(&all, "message_delta")[0]["delta"]["stop_reason"], messages, "{out}");
        assert_eq!(all.last().unwrap()["type"], "message_stop", "{out}");
        let (out, _) = stream(&ResponsesCodec, &ChatCodec, &[text.as_bytes()]);
        let all = documents(&out);
        let end = all.iter().find_map(|chunk| chunk["choices"][0]["finish_reason"].as_str());
        assert_eq!(end, Some(chat), "{out}");
        assert!(out.ends_with("data: [DONE]\n\n"));
    }
}

#[test]
fn case_6_a_call_without_arguments_has_an_empty_object() {
    for from in CODECS {
        for arguments in ["", "{}"] {
            let text = called(from, arguments, ["tool_calls", "tool_use", "completed"]);
            for to in CODECS {
                let said = understood(from, to, &text);
                let call = ("call_1".to_owned(), "f".to_owned(), "{}".to_owned());
                assert_eq!(said.calls, [call], "{} to {}", name(from), name(to));
                let (out, _) = stream(from, to, &[text.as_bytes()]);
                assert!(
                    !out.contains("\"arguments\":null") && !out.contains("\"input\":null"),
                    "{out}"
                );
            }
        }
    }
}

#[test]
fn case_7_arguments_that_alternate_are_two_whole_calls() {
    let piece = |index: u32, id: Option<&str>, text: &str| {
        let mut call = json!({"index": index, "function": {"arguments": text}});
        if let Some(id) = id {
            call["id"] = id.into();
            call["type"] = "function".into();
            call["function"]["name"] = format!("f{index}").into();
        }
        json!({"tool_calls": [call]})
    };
    let text = chat(
        &[
            piece(0, Some("a"), ""),
            piece(1, Some("b"), ""),
            piece(0, None, "{\"x\""),
            piece(1, None, "{\"y\""),
            piece(0, None, ":1}"),
            piece(1, None, ":2}"),
        ],
        "tool_calls",
    );
    for to in CODECS {
        let said = understood(&ChatCodec, to, &text);
        let names: Vec<_> = said.calls.iter().map(|(_, name, text)| (&**name, &**text)).collect();
        assert_eq!(names, [("f0", "{\"x\":1}"), ("f1", "{\"y\":2}")], "{}", name(to));
        // One is open at a time.
        let (out, _) = stream(&ChatCodec, to, &[text.as_bytes()]);
        let mut open = 0;
        for event in documents(&out) {
            match event["type"].as_str() {
                Some("content_block_start" | "response.output_item.added") => open += 1,
                Some("content_block_stop" | "response.output_item.done") => open -= 1,
                _ => {}
            }
            assert!(open <= 1, "{out}");
        }
    }
}

#[test]
fn case_15_calls_are_numbered_from_nothing() {
    let (out, _) = stream(&ResponsesCodec, &ChatCodec, &[mixed().as_bytes()]);
    let all = documents(&out);
    let mut calls =
        all.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].as_array());
    assert!(calls.all(|calls| calls[0]["index"] == 0), "{out}");
}

#[test]
fn case_17_a_call_and_its_end_in_one_chunk() {
    let call = json!({"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}});
    let chunk = json!({"id": "c", "created": 5, "model": "m", "choices": [{"index": 0, "delta": {"role": "assistant", "tool_calls": [call]}, "finish_reason": "tool_calls"}]});
    let text = format!("data: {chunk}\n\ndata: [DONE]\n\n");
    let (out, _) = stream(&ChatCodec, &MessagesCodec, &[text.as_bytes()]);
    let kinds: Vec<String> =
        documents(&out).iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect();
    let expected = [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ];
    assert_eq!(kinds, expected, "{out}");
    let (out, _) = stream(&ChatCodec, &ResponsesCodec, &[text.as_bytes()]);
    let all = documents(&out);
    let at = |kind: &str| all.iter().position(|event| event["type"] == kind).unwrap();
    assert!(
        at("response.output_item.added") < at("response.function_call_arguments.done"),
        "{out}"
    );
    assert!(at("response.output_item.done") < at("response.completed"), "{out}");
}

#[test]
fn case_18_a_call_is_the_reason_whatever_the_backend_says() {
    for from in CODECS {
        let text = called(from, "{}", ["stop", "end_turn", "completed"]);
        assert_eq!(understood(from, &ChatCodec, &text).end, "tool_calls", "{}", name(from));
        assert_eq!(understood(from, &MessagesCodec, &text).end, "tool_use", "{}", name(from));
    }
}

#[test]
fn case_19_a_call_that_was_cut_cannot_be_run() {
    for from in CODECS {
        let text = called(from, "{\"x\": \"unfin", ["length", "max_tokens", "incomplete"]);
        let said = understood(from, &ChatCodec, &text);
        assert_eq!(said.end, "length", "{}", name(from));
        let said = understood(from, &MessagesCodec, &text);
        assert_eq!((&*said.end, said.calls.len()), ("max_tokens", 0), "{}", name(from));
        let said = understood(from, &ResponsesCodec, &text);
        assert_eq!(said.end, "incomplete", "{}", name(from));
        let (out, _) = stream(from, &ResponsesCodec, &[text.as_bytes()]);
        let all = documents(&out);
        for done in of_type(&all, "response.output_item.done") {
            assert_ne!(done["item"]["status"], "completed", "{out}");
        }
    }
}

#[test]
fn case_27_reasoning_is_never_speech() {
    for from in CODECS {
        let text = match name(from) {
            "chat" => chat(&[json!({"reasoning_content": "why"}), json!({"content": "A"})], "stop"),
            "messages" => messages(
                &[
                    block(0, json!({"type": "thinking", "thinking": "", "signature": ""})),
                    delta(0, json!({"type": "thinking_delta", "thinking": "why"})),
                    stop(0),
                    block(1, json!({"type": "text", "text": ""})),
                    delta(1, json!({"type": "text_delta", "text": "A"})),
                    stop(1),
                ],
                "end_turn",
            ),
            _ => mixed(),
        };
        for to in CODECS {
            let said = understood(from, to, &text);
            assert_eq!(
                (&*said.text, &*said.reasoning),
                ("A", "why"),
                "{} to {}",
                name(from),
                name(to)
            );
        }
    }
    // Nor in the history.
    let message = json!({"role": "assistant", "content": "A", "reasoning_content": "why"});
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "go"}, message, {"role": "user", "content": "more"}]});
    let out = sent(&ChatCodec, &ResponsesCodec, &body);
    for turn in turns(&out).iter().filter(|turn| turn["role"] == "assistant") {
        assert!(!turn["content"].to_string().contains("why"), "{out:#}");
    }
}

#[test]
fn case_31_what_was_not_announced_is_announced() {
    // A text without its item, and an event without its type.
    let text = json!({"type": "response.output_text.delta", "item_id": "msg_1", "output_index": 0, "content_index": 0, "delta": "A"});
    let mut nameless = text.clone();
    nameless.as_object_mut().unwrap().remove("type");
    let created = json!({"type": "response.created", "response": {"id": "resp_1", "object": "response", "created_at": 5, "model": "m", "status": "in_progress", "output": []}});
    let completed = json!({"type": "response.completed", "response": {"id": "resp_1", "object": "response", "created_at": 5, "model": "m", "status": "completed", "output": []}});
    let all = typed(&[created, text])
        + &format!("event: response.output_text.delta\ndata: {nameless}\n\n")
        + &typed(&[completed]);
    for to in CODECS {
        let said = understood(&ResponsesCodec, to, &all);
        assert_eq!(said.text, "AA", "{}", name(to));
    }
    let (out, _) = stream(&ResponsesCodec, &ResponsesCodec, &[all.as_bytes()]);
    let events = documents(&out);
    let at = |kind: &str| events.iter().position(|event| event["type"] == kind).unwrap();
    let order = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert!(order.windows(2).all(|pair| at(pair[0]) < at(pair[1])), "{out}");
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number, "{out}");
    }
}

#[test]
fn case_32_a_break_has_a_code_for_codex() {
    for from in CODECS {
        let whole = called(from, "{\"x\":1}", ["tool_calls", "tool_use", "completed"]);
        for cut in 0..whole.len() {
            let exchange = exchange(from);
            let (mut translator, mut out) =
                (Translator::new(from, &ResponsesCodec, &exchange), String::new());
            translator.push(
                &bytes::Bytes::copy_from_slice(&whole.as_bytes()[..cut]),
                &mut out,
                |_| {},
            );
            if translator.is_over() {
                continue;
            }
            translator.fail(StreamFault::cut(), &mut out, |_| {});
            let all = documents(&out);
            let last = all.last().unwrap();
            assert_eq!(last["type"], "response.failed", "{cut}: {out}");
            assert!(last["response"]["error"]["code"].is_string(), "{out}");
            for item in last["response"]["output"].as_array().unwrap() {
                assert_ne!(item["status"], "in_progress", "{out}");
            }
        }
    }
}
