//! Answers: whole ones, and streams under any cut.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::dialect::texts::Part;

fn chat(delta: &Value) -> String {
    let chunk =
        json!({"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": null}]});
    format!("data: {chunk}\n\n")
}

const CHAT_END: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";

/// A stream of a language whose content comes in these pieces.
fn stream(name: &str, pieces: &[&str]) -> String {
    let mut out = String::new();
    let event = |kind: &str, value: Value| format!("event: {kind}\ndata: {value}\n\n");
    match name {
        "chat" => {
            for piece in pieces {
                out += &chat(&json!({"content": piece}));
            }
            out += CHAT_END;
        }
        "messages" => {
            for piece in pieces {
                let delta = json!({"type": "text_delta", "text": piece});
                let value = json!({"type": "content_block_delta", "index": 0, "delta": delta});
                out += &event("content_block_delta", value);
            }
            out += &event("content_block_stop", json!({"type": "content_block_stop", "index": 0}));
        }
        _ => {
            for piece in pieces {
                let kind = "response.output_text.delta";
                out += &event(
                    kind,
                    json!({"type": kind, "item_id": "i", "content_index": 0, "delta": piece}),
                );
            }
            let kind = "response.output_text.done";
            let whole = pieces.concat();
            out += &event(
                kind,
                json!({"type": kind, "item_id": "i", "content_index": 0, "text": whole}),
            );
        }
    }
    out
}

const LANGUAGES: [&str; 3] = ["chat", "messages", "responses"];

fn content(name: &str, stream: &[u8]) -> String {
    let found = joined(name, stream);
    found.into_iter().filter(|(part, _)| *part == Part::Content).map(|(_, text)| text).collect()
}

#[test]
fn placeholders_become_values_across_events() {
    for name in LANGUAGES {
        let stream =
            stream(name, &["Dear [EM", "AIL", "_1], and [EMAIL_2", "], not [EMAIL_3] [", "x"]);
        let mut filter = filter_for(name, "", &["a@b.de", "c@d.de"]);
        let out = streamed(&mut filter, stream.as_bytes(), &[]).unwrap();
        assert_eq!(content(name, &out), "Dear a@b.de, and c@d.de, not [EMAIL_3] [x");
        let text = String::from_utf8(out).unwrap();
        assert!(
            name != "responses" || text.contains("\"text\":\"Dear a@b.de, and c@d.de, not"),
            "{text}"
        );
        assert!(filter.findings().is_some_and(|found| found.count >= 2));
    }
}

#[test]
fn an_event_waits_only_for_a_beginning() {
    let mut filter = filter_for("chat", "", &["a@b.de"]);
    let mut push = |text: &str| {
        let event = Bytes::from(chat(&json!({"content": text})));
        (filter.push(&event, false).unwrap(), event)
    };
    let (out, event) = push("Hello");
    assert_eq!(out, event);
    let (out, first) = push(" [");
    assert!(out.is_empty());
    // It was none: both go on as they came.
    let (out, second) = push("x]");
    assert_eq!(out, [first, second].concat());
    let (out, waiting) = push("[EMAIL");
    assert!(out.is_empty());
    let end = Bytes::from_static(CHAT_END.as_bytes());
    assert_eq!(filter.push(&end, true).unwrap(), [waiting, end].concat());
}

#[test]
fn another_text_of_the_choice_ends_the_wait() {
    let mut filter = filter_for("chat", "", &["a@b.de"]);
    let first = Bytes::from(chat(&json!({"content": "["})));
    assert!(filter.push(&first, false).unwrap().is_empty());
    let call =
        |arguments| json!({"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]});
    let second = Bytes::from(chat(&call("{\"a")));
    assert_eq!(filter.push(&second, false).unwrap(), [first, second].concat());
}

#[test]
fn signed_reasoning_stays() {
    let delta = json!({"type": "thinking_delta", "thinking": "to [EMAIL_1]"});
    let value = json!({"type": "content_block_delta", "index": 0, "delta": delta});
    let stream = format!("event: content_block_delta\ndata: {value}\n\n");
    let mut filter = filter_for("messages", "", &["a@b.de"]);
    assert_eq!(streamed(&mut filter, stream.as_bytes(), &[]).unwrap(), stream.as_bytes());
}

#[test]
fn comments_and_unknown_events_pass() {
    let stream = ": hi\n\nevent: ping\ndata: {\"type\": \"ping\"}\n\ndata: no json [EMAIL_1]\n\ndata: {\"a\":\"[EMAIL_1]\"}\r\n\r\nrest";
    for name in LANGUAGES {
        let mut filter = filter_for(name, "", &["a@b.de"]);
        assert_eq!(streamed(&mut filter, stream.as_bytes(), &[5, 50]).unwrap(), stream.as_bytes());
    }
}

#[test]
fn arguments_are_json_within_json() {
    let guards = guards("{redact: [{kinds: [], patterns: [{name: v, pattern: '<[^>]*>'}]}]}");
    let body = json!({"messages": [{"role": "user", "content": "<a\"\\\n>"}]}).to_string();
    let (_, outcome) = request(&guards, "chat", &body).unwrap();
    let vault = outcome.vault.unwrap();
    let call = |arguments: &str| json!({"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]});
    let stream = [chat(&call("{\"to\":\"[V_")), chat(&call("1]\"}")), CHAT_END.to_owned()].concat();
    let out = streamed(&mut filter(&guards, "chat", Some(vault.clone())), stream.as_bytes(), &[]);
    let (_, arguments) = joined("chat", &out.unwrap()).remove(0);
    assert_eq!(serde_json::from_str::<Value>(&arguments).unwrap()["to"], "<a\"\\\n>");
    // Messages have objects in whole answers, and pieces of JSON in streams.
    let whole =
        json!({"type": "message", "content": [{"type": "tool_use", "input": {"to": "[V_1]"}}]});
    let mut filter = filter(&guards, "messages", Some(vault));
    let out = filter.document(&Bytes::from(whole.to_string())).unwrap();
    let out: Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(out["content"][0]["input"]["to"], "<a\"\\\n>");
}

#[test]
fn content_that_is_json_stays_json() {
    let guards = guards("{redact: [{kinds: [], patterns: [{name: v, pattern: '<[^>]*>'}]}]}");
    let body = json!({"messages": [{"role": "user", "content": "<\"\n>"}],
        "response_format": {"type": "json_object"}});
    let (_, outcome) = request(&guards, "chat", &body.to_string()).unwrap();
    let out = streamed(
        &mut filter(&guards, "chat", outcome.vault),
        stream("chat", &["{\"a\":\"[V_1", "]\"}"]).as_bytes(),
        &[],
    );
    let said: Value = serde_json::from_str(&content("chat", &out.unwrap())).unwrap();
    assert_eq!(said["a"], "<\"\n>");
}

#[test]
fn a_denied_word_ends_the_answer_before_any_of_it() {
    for name in LANGUAGES {
        let deny = "{on: [answer], words: [secret], patterns: ['x.{0,6}y'], message: No.}";
        let stream_of = |pieces: &[&str]| stream(name, pieces);
        for pieces in [
            &["The se", "cret", " is"][..],
            &["The ", "SECRET"],
            &["The secret"],
            &["a x1", "2", "3", "y"],
        ] {
            let mut filter = filter_for(name, deny, &[]);
            let (sent, rejection) =
                streamed(&mut filter, stream_of(pieces).as_bytes(), &[]).unwrap_err();
            assert_eq!(
                (rejection.code.as_deref(), &*rejection.message),
                (Some("content_blocked"), "No.")
            );
            let sent = content(name, &sent);
            assert!(!sent.contains("se") && !sent.contains('x'), "{sent}");
            assert!(filter.push(&Bytes::from_static(b"data: x\n\n"), true).unwrap().is_empty());
        }
        for pieces in [&["The se", "creta", "ry"][..], &["secret", "s"], &["a x1", "23", "4567y"]] {
            let stream = stream_of(pieces);
            let mut filter = filter_for(name, deny, &[]);
            assert_eq!(streamed(&mut filter, stream.as_bytes(), &[]).unwrap(), stream.as_bytes());
        }
    }
    let mut filter = filter_for("chat", "{on: [answer], words: [secret]}", &[]);
    let answer = json!({"choices": [{"message": {"content": "a secret"}}]}).to_string();
    assert_eq!(filter.document(&answer.into()).unwrap_err().finding.action, "end");
}

#[test]
fn what_a_client_writes_leads_to_no_value() {
    let guards = guards("{redact: [{}]}");
    let body =
        json!({"messages": [{"role": "user", "content": "say [EMAIL_1] to a@b.de [EMAIL_2]"}]});
    let (sent, outcome) = request(&guards, "chat", &body.to_string()).unwrap();
    assert!(sent.contains("say [EMAIL_1] to [EMAIL_2] [EMAIL_3]"), "{sent}");
    let out = streamed(
        &mut filter(&guards, "chat", outcome.vault),
        stream("chat", &["[EMAIL_1] [EMAIL_2] [EMAIL_3]"]).as_bytes(),
        &[],
    );
    assert_eq!(content("chat", &out.unwrap()), "[EMAIL_1] a@b.de [EMAIL_2]");
    // Another request has none of these values.
    let body = json!({"messages": [{"role": "user", "content": "[EMAIL_2] c@d.de"}]}).to_string();
    let (_, other) = request(&guards, "chat", &body).unwrap();
    let whole = json!({"choices": [{"message": {"content": "[EMAIL_1] [EMAIL_2] [EMAIL_3]"}}]});
    let out = filter(&guards, "chat", other.vault).document(&whole.to_string().into()).unwrap();
    let out: Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(out["choices"][0]["message"]["content"], "[EMAIL_2] c@d.de [EMAIL_3]");
}

#[test]
fn captured_streams_pass_byte_for_byte() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    let deny = r"{on: [answer], words: [neverword], patterns: ['zq.{0,40}qz', '\bqq\b']}";
    let mut seen = 0;
    for engine in ["vllm", "llamacpp"] {
        for entry in std::fs::read_dir(format!("{folder}/{engine}")).unwrap() {
            let path = entry.unwrap().path();
            let file = path.file_name().unwrap().to_str().unwrap().to_owned();
            if !file.ends_with("stream.txt") {
                continue;
            }
            let name = match &file {
                file if file.starts_with("anthropic") => "messages",
                file if file.starts_with("responses") => "responses",
                _ => "chat",
            };
            let body = dialect_capture(&path);
            for cuts in [&[][..], &[7, 100, 101, 555, 1200]] {
                let mut filter = filter_for(name, deny, &["a@b.de"]);
                assert_eq!(streamed(&mut filter, &body, cuts).unwrap(), body, "{file}");
            }
            seen += 1;
        }
    }
    assert!(seen > 10, "{seen}");
}

/// The body of a captured answer.
fn dialect_capture(path: &std::path::Path) -> Vec<u8> {
    let raw = std::fs::read(path).unwrap();
    raw[memchr::memmem::find(&raw, b"\r\n\r\n").unwrap() + 4..].to_vec()
}

/// A text, and where it is cut into events.
fn texts() -> impl Strategy<Value = (String, Vec<usize>)> {
    let part = prop_oneof![
        Just("a@b.de".to_owned()),
        Just("c.d@e.org".to_owned()),
        Just("4111 1111 1111 1111".to_owned()),
        Just("[EMAIL_1]".to_owned()),
        Just("[EMAIL_2".to_owned()),
        Just("[".to_owned()),
        Just("]".to_owned()),
        Just("sk-abcdefghijklmnopqrstuvwx".to_owned()),
        "[a-zA-Z0-9 \\[\\]_\"\\\\\n\u{e4}\u{1f600}]{0,6}",
    ];
    let text = proptest::collection::vec(part, 0..10).prop_map(|parts| parts.concat());
    (text, proptest::collection::vec(0usize..200, 0..12))
}

fn pieces<'a>(text: &'a str, cuts: &[usize]) -> Vec<&'a str> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut % (text.len() + 1)).collect();
    places.retain(|place| text.is_char_boundary(*place));
    places.sort_unstable();
    let mut found = Vec::new();
    let mut from = 0;
    for place in places {
        found.push(&text[from..place]);
        from = place;
    }
    found.push(&text[from..]);
    found
}

/// What a chunk of Chat adds, and to what: a choice, and which of its texts.
fn chunk((choice, which, text): &(u64, u64, String)) -> String {
    let delta = match which {
        0 => json!({"content": text}),
        1 => json!({"reasoning_content": text, "reasoning": text}),
        call => json!({"tool_calls": [{"index": call, "function": {"arguments": text}}]}),
    };
    let chunk = json!({"choices": [{"index": choice, "delta": delta}], "usage": null});
    format!("data: {chunk}\n\n")
}

proptest! {
    /// Several choices, each with several texts: no text is lost, no order is changed, and placeholders are
    /// found as long as a text is not interrupted by another one of its choice.
    #[test]
    fn texts_beside_each_other_do_not_mix(
        chunks in proptest::collection::vec((0u64..3, 0u64..4, "(\\[|\\[EM|\\[EMAIL_1\\]|AIL_1\\]|x|)"), 0..24),
        bytes in proptest::collection::vec(0usize..5000, 0..6),
    ) {
        let stream: String = chunks.iter().map(chunk).chain([CHAT_END.to_owned()]).collect();
        let deny = "{on: [answer], words: [neverword]}";
        let out = streamed(&mut filter_for("chat", deny, &["a@b.de"]), stream.as_bytes(), &[]).unwrap();
        let cut = streamed(&mut filter_for("chat", deny, &["a@b.de"]), stream.as_bytes(), &bytes).unwrap();
        prop_assert_eq!(&out, &cut);
        // The same number of events, each about the same text.
        let count = |stream: &[u8]| memchr::memmem::find_iter(stream, b"data: ").count();
        prop_assert_eq!(count(&out), count(stream.as_bytes()));
        let (before, after) = (joined("chat", stream.as_bytes()), joined("chat", &out));
        prop_assert_eq!(before.len(), after.len());
        for ((part, said), (other, shown)) in before.iter().zip(&after) {
            prop_assert_eq!(part, other);
            // Where nothing interrupts it every placeholder is its value; otherwise it stays as it was.
            prop_assert_eq!(&shown.replace("a@b.de", "[EMAIL_1]"), said);
            let alone = chunks.windows(2).all(|two| two[0].1 == two[1].1 || two[0].0 != two[1].0);
            let one = chunks.iter().all(|(choice, _, _)| *choice == chunks[0].0);
            prop_assert!(!(alone && one && shown.contains("[EMAIL_1]")), "{}", shown);
        }
    }

    #[test]
    fn what_was_masked_comes_back((text, cuts) in texts(), bytes in proptest::collection::vec(0usize..5000, 0..8)) {
        let guards = guards("{redact: [{}]}");
        let body = json!({"messages": [{"role": "user", "content": text}]}).to_string();
        let (sent, outcome) = request(&guards, "chat", &body).unwrap();
        let sent: Value = serde_json::from_str(&sent).unwrap();
        let masked = sent["messages"][0]["content"].as_str().unwrap();
        let Some(vault) = outcome.vault else {
            prop_assert_eq!(masked, text);
            return Ok(());
        };
        for name in LANGUAGES {
            let stream = stream(name, &pieces(masked, &cuts));
            let mut whole = filter(&guards, name, Some(vault.clone()));
            let out = streamed(&mut whole, stream.as_bytes(), &[]).unwrap();
            prop_assert_eq!(content(name, &out), &*text);
            let mut cut = filter(&guards, name, Some(vault.clone()));
            prop_assert_eq!(&streamed(&mut cut, stream.as_bytes(), &bytes).unwrap(), &out);
        }
        let answer = json!({"choices": [{"message": {"content": masked}}]}).to_string();
        let out = filter(&guards, "chat", Some(vault)).document(&answer.into()).unwrap();
        let out: Value = serde_json::from_slice(&out).unwrap();
        prop_assert_eq!(out["choices"][0]["message"]["content"].as_str().unwrap(), text);
    }

    /// However a text is cut into events, a pattern is found if the whole text has it, and otherwise the
    /// stream stays as it is.
    #[test]
    fn denied_patterns_are_found_under_any_cut(
        text in "[abc \u{e4}]{0,24}",
        cuts in proptest::collection::vec(0usize..40, 0..10),
        bytes in proptest::collection::vec(0usize..5000, 0..6),
    ) {
        let deny = r"{on: [answer], words: [ab], patterns: ['b{2,4}c', 'ca\b', '\xe4+a']}";
        let section = format!("{{deny: [{deny}]}}");
        let patterns = plan(&section).deny[0].patterns.clone();
        let guards = guards(&section);
        for name in LANGUAGES {
            let stream = stream(name, &pieces(&text, &cuts));
            let whole = streamed(&mut filter(&guards, name, None), stream.as_bytes(), &[]);
            let cut = streamed(&mut filter(&guards, name, None), stream.as_bytes(), &bytes);
            prop_assert_eq!(&whole, &cut);
            match (patterns.find(&text, 0), whole) {
                (None, Ok(out)) => prop_assert_eq!(out, stream.as_bytes()),
                (Some((_, range)), Err((sent, _))) => {
                    prop_assert!(content(name, &sent).len() <= range.start);
                }
                (found, out) => prop_assert!(false, "{:?} in {:?}: {:?}", found, text, out),
            }
        }
    }
}
