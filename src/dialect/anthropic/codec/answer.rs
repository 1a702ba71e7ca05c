//! Reads a backend's plain answer, and writes a client's.

use serde_json::value::RawValue;

use super::{
    LANGUAGE,
    decode::Decoder,
    errors, usage,
    words::{self, Words},
};
use crate::dialect::hub::{
    Class, Event, Exchange, Json, Object, Part, Response, StopReason, StreamFault, Writer,
    envelope,
    request::{ReasoningPart, Text, ToolCall, ToolKind},
};

/// Reads an answer as the events of a stream: each block begins whole, and ends.
///
/// # Errors
/// If it is no message, or an error.
pub fn read(body: &str, exchange: &Exchange) -> Result<Vec<Event>, StreamFault> {
    let unreadable = || StreamFault::new(Class::Server, "The backend's answer cannot be read");
    let mut message = Object::parse(body).map_err(|_| unreadable())?;
    if message.text("type").as_deref() == Some("error") || message.get("error").is_some_and(said) {
        return Err(errors::read(0, body));
    }
    let content: Vec<&RawValue> = message.read("content").ok_or_else(unreadable)?;
    let (mut decoder, mut events) = (Decoder::new(exchange), Vec::new());
    decoder.start(body, &mut events);
    for (index, block) in (0..).zip(content) {
        decoder.begin(index, block, &mut events);
        decoder.end_block(index, &mut events);
    }
    let sequence = message.read("stop_sequence");
    let reason = message.read::<String>("stop_reason");
    // vLLM has no word for an answer that it broke off.
    let reason = reason.map_or(StopReason::Aborted, |reason| words::read(&reason, sequence));
    if let Some(Event::Start(start)) = events.first() {
        events.extend(start.usage.map(Event::Usage));
    }
    decoder.stop(reason, message.take("stop_details"), &mut events);
    events.push(Event::End);
    Ok(events)
}

fn said(error: &RawValue) -> bool {
    error.get() != "null"
}

/// A whole answer with a call whose arguments are no whole object, although it was not cut off:
/// there is no message that says it. [`write`] gives the body of an error then.
pub fn broken_call(response: &Response) -> Option<StreamFault> {
    let choice = response.choices.first()?;
    let broken =
        choice.parts.iter().any(|part| matches!(part, Part::ToolCall(call) if !runs(call)));
    let message = "The arguments of a tool call are not a JSON object";
    (broken && !words::was_cut(choice.stop.as_ref()))
        .then(|| StreamFault::new(Class::Server, message))
}

fn runs(call: &ToolCall) -> bool {
    call.kind == ToolKind::Custom || words::are_whole(&call.arguments)
}

/// Writes an answer.
pub fn write(response: &Response, exchange: &Exchange) -> String {
    let fault = response.fault.clone().or_else(|| broken_call(response));
    if let Some(fault) = fault {
        return errors::body(&fault);
    }
    let words = Words::new(exchange);
    let choice = response.choices.first();
    let parts = choice.map_or(&[][..], |choice| &choice.parts);
    let refused = parts.iter().any(|part| refusal(part).is_some());
    let reason = match choice.and_then(|choice| choice.stop.clone()) {
        None | Some(StopReason::EndTurn) if refused => StopReason::Refusal,
        reason => reason.unwrap_or(StopReason::EndTurn),
    };
    let explained: String = match words.native {
        true => parts.iter().filter_map(refusal).collect(),
        false => String::new(),
    };
    let model = exchange.model.as_deref().or(response.start.model.as_deref()).unwrap_or_default();
    let mut out = Writer::default();
    out.object(|o| {
        o.text_at("id", &words.id(&response.start.id));
        o.text_at("type", "message");
        o.text_at("role", "assistant");
        o.text_at("model", model);
        o.array_at("content", |list| content(list, parts, words.native));
        words::end(o, &reason, &explained, &words);
        o.object_at("usage", |o| usage::write(o, &response.usage, true));
    });
    out.finish()
}

fn refusal(part: &Part) -> Option<&str> {
    match part {
        Part::Refusal(text) => Some(text),
        _ => None,
    }
}

fn content(list: &mut Writer, parts: &[Part], native: bool) {
    let mut answered = false;
    for part in parts {
        match part {
            Part::Reasoning(part) => reasoning(list, part),
            Part::Text(part) => {
                answered = true;
                list.object(|o| text(o, part));
            }
            // A backend of this language has said it beside the content.
            Part::Refusal(_) if native => {}
            Part::Refusal(refusal) => {
                answered = true;
                list.object(|o| text(o, &Text::plain(refusal.as_str())));
            }
            // One that was cut off must not look as if it could be run.
            Part::ToolCall(call) if !runs(call) => {}
            Part::ToolCall(part) => {
                answered = true;
                list.object(|o| call(o, part));
            }
            Part::Opaque(part) if part.language == LANGUAGE => {
                answered = true;
                list.raw(part.json.as_str());
            }
            _ => {}
        }
    }
    if !answered {
        list.object(|o| text(o, &Text::default()));
    }
}

fn text(out: &mut Writer, part: &Text) {
    out.text_at("type", "text");
    out.text_at("text", &part.text);
    if part.ext.language == LANGUAGE {
        out.maybe_json_at("citations", part.citations.as_ref());
    }
}

fn reasoning(list: &mut Writer, part: &ReasoningPart) {
    let summary = || (!part.summary.is_empty()).then(|| part.summary.join("\n\n"));
    let text = part.text.clone().filter(|text| !text.is_empty()).or_else(summary);
    let state = part.state.as_ref().map(|state| envelope::wrap(state, LANGUAGE));
    let foreign = part.state.as_ref().is_some_and(|state| state.language != LANGUAGE);
    match (text, state) {
        (None, None) => {}
        (None, Some(data)) if part.redacted || foreign => list.object(|o| {
            o.text_at("type", "redacted_thinking");
            o.text_at("data", &data);
        }),
        (text, state) => list.object(|o| {
            o.text_at("type", "thinking");
            o.text_at("thinking", &text.unwrap_or_default());
            o.text_at("signature", &state.unwrap_or_default());
        }),
    }
}

fn call(out: &mut Writer, call: &ToolCall) {
    let empty = call.arguments.trim().is_empty();
    let input = match call.kind {
        ToolKind::Custom => {
            Some(Json::written(|out| out.object(|o| o.text_at("input", &call.arguments))))
        }
        ToolKind::Function if empty => None,
        ToolKind::Function => Json::parse(&call.arguments).ok(),
    };
    out.text_at("type", "tool_use");
    out.text_at("id", &call.id);
    out.text_at("name", &call.name);
    match input {
        Some(input) => out.json_at("input", &input),
        None => out.raw_at("input", "{}"),
    }
}
