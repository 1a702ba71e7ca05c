//! What must hold of every translation.

use proptest::prelude::*;
use serde_json::Value;

use super::{
    CODECS, ChatCodec, Fixture, MessagesCodec, ResponsesCodec, exchange, fixtures, others, stream,
    target,
};
use crate::dialect::hub::{
    Codec, Event, Json, Losses, Part, Request, Role, StreamFault, Target, Turn, prepare,
    request::{Function, Text, Tool, ToolCall, ToolKind, ToolResult},
    target::Quirks,
    translator,
};

/// A request as JSON without what says nothing: `null` and empty members.
fn told(value: &Value) -> Value {
    match value {
        Value::Object(members) => Value::Object(
            members
                .iter()
                .filter(|(_, v)| !v.is_null())
                .map(|(k, v)| (k.clone(), told(v)))
                .collect(),
        ),
        Value::Array(elements) => elements.iter().map(told).collect(),
        value => value.clone(),
    }
}

#[test]
fn a_request_is_restored_in_its_own_language() {
    for fixture in fixtures(".request.json") {
        let Ok(request) = fixture.codec.read(&fixture.text) else { continue };
        // A server that takes everything as it comes.
        let quirks = Quirks {
            max_completion_tokens: fixture.text.contains("max_completion_tokens"),
            developer: true,
            one_system: false,
            flat_text: false,
            cache_control: true,
            reasoning_field: Some("reasoning_content"),
            continues: false,
            ..Quirks::default()
        };
        let same = Target { model: request.model.clone(), quirks, ..target() };
        let mut losses = Losses::default();
        let written = fixture.codec.write(&request, &same, &mut losses).unwrap();
        let before: Value = serde_json::from_str(&fixture.text).unwrap();
        let after: Value = serde_json::from_str(&written).unwrap();
        let name = format!("{} {}", fixture.codec.traits().name, fixture.name);
        let (Value::Object(after), Value::Object(before)) = (told(&after), told(&before)) else {
            panic!("{name}");
        };
        // A stream always asks for its usage.
        let asked = |member: &&String| *member != "stream_options" || before.contains_key(*member);
        for member in before.keys().chain(after.keys()).filter(asked) {
            assert_eq!(after.get(member), before.get(member), "{name}: {member}");
        }
        assert!(losses.is_empty(), "{name}: {losses:?}");
    }
}

/// How many ends a stream has for its reader, and whether the last event is one.
fn ends(to: &dyn Codec, out: &str) -> (usize, bool) {
    let events: Vec<&str> = out.split("\n\n").filter(|event| !event.is_empty()).collect();
    let is_end = |event: &&str| match to.traits().name {
        "chat" => event.trim() == "data: [DONE]",
        "messages" => event.starts_with("event: message_stop") || event.starts_with("event: error"),
        _ => ["completed", "incomplete", "failed"]
            .iter()
            .any(|end| event.starts_with(&format!("event: response.{end}\n"))),
    };
    let count = events.iter().filter(|event| is_end(event)).count();
    (count, events.last().is_some_and(is_end))
}

fn assert_ends_once(to: &dyn Codec, out: &str, what: &str) {
    assert_eq!(ends(to, out), (1, true), "{what} to {}:\n{out}", to.traits().name);
}

#[test]
fn every_stream_ends_once_for_every_client() {
    for fixture in fixtures(".answer.sse") {
        for to in CODECS {
            let (out, _) = stream(fixture.codec, to, &[fixture.text.as_bytes()]);
            assert_ends_once(to, &out, &fixture.name);
        }
    }
    for fixture in fixtures(".answer.json") {
        let exchange = exchange(fixture.codec);
        let Ok(events) = translator::answer(fixture.codec, &fixture.text, &exchange) else {
            continue;
        };
        for to in CODECS {
            assert_ends_once(to, &translator::stream(to, &events, &exchange), &fixture.name);
        }
    }
}

/// No arguments are an empty object.
fn arguments(call: &ToolCall) -> &str {
    if call.arguments.trim().is_empty() { "{}" } else { &call.arguments }
}

#[test]
fn a_stream_and_its_document_say_the_same() {
    for fixture in fixtures(".answer.sse") {
        let exchange = exchange(fixture.codec);
        for to in others(fixture.codec) {
            let (out, events) = stream(fixture.codec, to, &[fixture.text.as_bytes()]);
            if events.iter().any(|event| matches!(event, Event::Fault(_))) {
                continue;
            }
            // What the client's own language says of the translated stream is what it says of the
            // document.
            let (_, read) = stream(to, fixture.codec, &[out.as_bytes()]);
            let document = translator::document(to, &events, &exchange);
            let again = translator::answer(to, &document, &exchange).unwrap();
            let said = |events: &[Event]| {
                let response = crate::dialect::hub::Response::of(events);
                let texts = |part: &Part| match part {
                    // Messages leaves a call that was cut off out of a document.
                    Part::ToolCall(call) if call.kind == ToolKind::Custom => {
                        Some(format!("custom {} {}", call.name, call.arguments))
                    }
                    Part::ToolCall(call) if Json::parse(arguments(call)).is_err() => None,
                    Part::Text(text) if text.text.is_empty() => None,
                    Part::Text(text) => Some(format!("text {}", text.text)),
                    // Summaries beside a text repeat it.
                    Part::Reasoning(r) if r.text.is_some() => {
                        Some(format!("reasoning {:?}", r.text))
                    }
                    Part::Reasoning(r) => Some(format!("reasoning {:?}", r.summary)),
                    Part::ToolCall(call) => {
                        let arguments = Json::parse(arguments(call)).ok();
                        Some(format!("call {} {} {arguments:?}", call.id, call.name))
                    }
                    Part::Refusal(text) => Some(format!("refusal {text}")),
                    other => Some(format!("{other:?}")),
                };
                let choices = response.choices.iter().map(|choice| {
                    (choice.parts.iter().filter_map(texts).collect::<Vec<_>>(), choice.stop.clone())
                });
                (choices.collect::<Vec<_>>(), response.usage)
            };
            assert_eq!(said(&read), said(&again), "{} to {}", fixture.name, to.traits().name);
        }
    }
}

/// Cuts of a text, anywhere in its bytes.
fn pieces<'a>(text: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut at = 0;
    let mut pieces = Vec::new();
    for cut in cuts.iter().copied().filter(|cut| *cut <= text.len()) {
        if cut >= at {
            pieces.push(&text[at..cut]);
            at = cut;
        }
    }
    pieces.push(&text[at..]);
    pieces
}

#[test]
fn any_cut_of_the_bytes_gives_the_same() {
    for fixture in fixtures(".answer.sse") {
        let text = fixture.text.as_bytes();
        for to in CODECS {
            let (whole, _) = stream(fixture.codec, to, &[text]);
            let step = (text.len() / 97).max(1);
            for cut in (0..text.len()).step_by(step) {
                let (parted, _) = stream(fixture.codec, to, &pieces(text, &[cut]));
                assert_eq!(parted, whole, "{} cut at {cut}", fixture.name);
            }
            let single: Vec<&[u8]> = text.chunks(1).collect();
            assert_eq!(stream(fixture.codec, to, &single).0, whole, "{}", fixture.name);
        }
    }
}

/// The events of a stream, each with its blank line.
fn events_of(text: &str) -> Vec<String> {
    text.split_inclusive("\n\n").map(str::to_owned).collect()
}

fn any_stream() -> impl Strategy<Value = (usize, Vec<(u8, usize, usize)>)> {
    (any::<usize>(), prop::collection::vec((0u8..5, any::<usize>(), any::<usize>()), 1..4))
}

proptest! {
    /// Events that are dropped, repeated, exchanged or cut: what comes out is a stream with one end.
    #[test]
    fn a_damaged_stream_still_ends_once((which, changes) in any_stream()) {
        let all = fixtures(".answer.sse");
        let fixture: &Fixture = &all[which % all.len()];
        let mut events = events_of(&fixture.text);
        for (kind, a, b) in changes {
            if events.is_empty() {
                break;
            }
            let (a, b) = (a % events.len(), b % events.len());
            match kind {
                0 => drop(events.remove(a)),
                1 => events.insert(b, events[a].clone()),
                2 => events.swap(a, b),
                3 => events.truncate(a),
                _ => {
                    let cut = events[a].floor_char_boundary(b % (events[a].len() + 1));
                    events[a].truncate(cut);
                }
            }
        }
        let text = events.concat();
        for to in CODECS {
            let (out, _) = stream(fixture.codec, to, &[text.as_bytes()]);
            let what = format!("{}:\n{text}", fixture.name);
            prop_assert_eq!(ends(to, &out), (1, true), "{} to {}:\n{}", what, to.traits().name, out);
        }
    }

    /// A connection that breaks anywhere: the client gets one end, which says so.
    #[test]
    fn a_broken_stream_ends_with_an_error(which in any::<usize>(), at in any::<usize>()) {
        let all = fixtures(".answer.sse");
        let fixture = &all[which % all.len()];
        let cut = at % (fixture.text.len() + 1);
        for to in CODECS {
            let exchange = exchange(fixture.codec);
            let mut translator =
                crate::dialect::hub::Translator::new(fixture.codec, to, &exchange);
            let mut out = String::new();
            let piece = bytes::Bytes::copy_from_slice(&fixture.text.as_bytes()[..cut]);
            translator.push(&piece, &mut out, |_| {});
            translator.fail(StreamFault::cut(), &mut out, |_| {});
            translator.fail(StreamFault::cut(), &mut out, |_| {});
            translator.finish(&mut out, |_| {});
            prop_assert_eq!(ends(to, &out), (1, true), "{}", out);
        }
    }

    /// The same history gives the same bytes, and a longer one begins with those of the shorter.
    #[test]
    fn translation_is_append_only(turns in prop::collection::vec(any_round(), 1..6)) {
        for to in CODECS {
            let from = CODECS.into_iter().find(|c| c.traits().name != to.traits().name).unwrap();
            let mut before: Vec<String> = Vec::new();
            for length in 1..=turns.len() {
                let request = conversation(&turns[..length]);
                let once = written(&request, from, to);
                prop_assert_eq!(&once, &written(&request, from, to));
                let now = once.unwrap();
                prop_assert_eq!(&now[..before.len().min(now.len())], &before[..], "{}", to.traits().name);
                before = now;
            }
        }
    }
}

/// A question, and the answer with perhaps calls and their results.
#[derive(Clone, Debug)]
struct Round {
    question: String,
    calls: Vec<String>,
    answer: String,
}

fn any_round() -> impl Strategy<Value = Round> {
    let text = "[a-z \"\\\\\n]{1,20}".prop_map(|text| format!("q{text}q"));
    (text.clone(), prop::collection::vec("[a-z.]{1,9}", 0..3), text)
        .prop_map(|(question, calls, answer)| Round { question, calls, answer })
}

/// A conversation that ends with a question.
fn conversation(rounds: &[Round]) -> Request {
    let mut turns: Vec<Turn> = Vec::new();
    let turn = |role, parts| Turn { role, parts, ..Turn::default() };
    let text = |text: &str| Part::Text(Text::plain(text));
    for (number, round) in rounds.iter().enumerate() {
        turns.push(turn(Role::User, vec![text(&round.question)]));
        if number + 1 == rounds.len() {
            break;
        }
        if !round.calls.is_empty() {
            let call = |(at, name): (usize, &String)| {
                Part::ToolCall(ToolCall {
                    // Engines repeat ids.
                    id: format!("call:{at}"),
                    name: name.clone(),
                    arguments: r#"{"b":1.50,"a":[]}"#.to_owned(),
                    ..ToolCall::default()
                })
            };
            turns.push(turn(Role::Assistant, round.calls.iter().enumerate().map(call).collect()));
            let result = |at: usize| {
                Part::ToolResult(ToolResult {
                    call: format!("call:{at}"),
                    parts: vec![text("ok")],
                    plain: true,
                    ..ToolResult::default()
                })
            };
            // In another order than the calls.
            turns.push(turn(Role::User, (0..round.calls.len()).rev().map(result).collect()));
        }
        turns.push(turn(Role::Assistant, vec![text(&round.answer)]));
    }
    let tool =
        |name: &str| Tool::Function(Function { name: name.to_owned(), ..Function::default() });
    Request {
        model: Some("m".to_owned()),
        max_output: Some(100),
        turns,
        tools: vec![tool("a.b"), tool("a_b")],
        ..Request::default()
    }
}

/// The messages or items of a translated request, each as text.
fn written(request: &Request, from: &dyn Codec, to: &dyn Codec) -> Result<Vec<String>, String> {
    let outgoing = prepare::translate(request.clone(), from.traits(), to, &target())
        .map_err(|refused| refused.to_string())?;
    let body = Json::parse(&outgoing.body).map_err(|e| e.to_string())?;
    let object = body.object().ok_or("no object")?;
    let list = object.get("messages").or_else(|| object.get("input")).ok_or("no list")?;
    let list = Json::of(list);
    Ok(list.array().ok_or("no array")?.iter().map(|raw| raw.get().to_owned()).collect())
}

/// A model that is to call a tool which its vendor runs would answer without it.
#[test]
fn a_choice_of_a_tool_that_is_dropped_is_refused() {
    let translate = |choice: &str, more: &str, to: &dyn Codec| {
        let body = format!(
            r#"{{"model":"m","input":"x","background":false,"tool_choice":{choice},"tools":[{{"type":"web_search"}}{more}]}}"#
        );
        let request = ResponsesCodec.read(&body).unwrap();
        prepare::translate(request, ResponsesCodec.traits(), to, &target())
    };
    let function = r#",{"type":"function","name":"f","parameters":{}}"#;
    for to in [&ChatCodec as &dyn Codec, &MessagesCodec] {
        for more in ["", function] {
            for choice in [r#"{"type":"web_search"}"#, r#"{"type":"mcp","server_label":"s"}"#] {
                let refused = translate(choice, more, to).unwrap_err();
                assert_eq!(refused.path, "tool_choice", "{choice} {more}");
            }
            let lost = translate(r#""auto""#, more, to).unwrap().losses;
            assert_eq!(lost.paths(), ["tools[0]:web_search"], "{more}");
        }
        assert!(translate(r#""required""#, "", to).is_err());
        assert!(translate(r#""required""#, function, to).is_ok());
    }
}
