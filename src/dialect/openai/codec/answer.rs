//! Writes a client's plain answer.

use super::{
    details,
    encode::content_logprobs,
    head, tokens,
    words::{LANGUAGE, finish_reason},
};
use crate::dialect::hub::{
    Exchange, Json, Part, Response, StopReason, Usage, Writer,
    event::Citation,
    request::{ReasoningPart, ToolCall, ToolKind},
    response::Choice,
};

/// The document.
pub fn document(response: &Response, exchange: &Exchange) -> String {
    let mut out = Writer::default();
    out.object(|out| {
        head::write(out, "chat.completion", &response.start, exchange);
        out.array_at("choices", |out| {
            let empty = [Choice::default()];
            let choices = if response.choices.is_empty() { &empty } else { &response.choices[..] };
            for (number, one) in choices.iter().enumerate() {
                choice(out, number, one, exchange);
            }
        });
        if response.usage != Usage::default() {
            tokens::write(out.name("usage"), &response.usage);
        }
    });
    out.finish()
}

fn choice(out: &mut Writer, number: usize, choice: &Choice, exchange: &Exchange) {
    let functions = exchange.client.functions;
    let refused = |part: &Part| matches!(part, Part::Refusal(text) if !text.is_empty());
    let refused = choice.parts.iter().any(refused);
    out.object(|out| {
        out.raw_at("index", number);
        out.object_at("message", |out| message(out, choice, functions));
        if choice.logprobs.is_empty() {
            out.raw_at("logprobs", "null");
        } else {
            out.object_at("logprobs", |out| content_logprobs(out, &choice.logprobs));
        }
        let reason = choice.stop.as_ref().unwrap_or(&StopReason::EndTurn);
        out.text_at("finish_reason", finish_reason(reason, functions, refused));
        if let StopReason::StopSequence(Some(text)) = reason {
            out.text_at("stop_reason", text);
        }
    });
}

/// A message's content, put together from its parts.
#[derive(Default)]
struct Content<'a> {
    text: Option<String>,
    refusal: String,
    reasoning: Vec<&'a ReasoningPart>,
    calls: Vec<&'a ToolCall>,
    /// With the characters of the text that each is about.
    citations: Vec<(Citation, (usize, usize))>,
    others: Vec<(&'a str, &'a Json)>,
}

impl<'a> Content<'a> {
    fn of(parts: &'a [Part]) -> Self {
        let mut all = Self::default();
        let mut end = 0;
        for part in parts {
            match part {
                Part::Text(text) => {
                    let from = end;
                    end += text.text.chars().count();
                    all.text.get_or_insert_default().push_str(&text.text);
                    let list = text.citations.as_ref().and_then(Json::array).unwrap_or_default();
                    for raw in list {
                        let citation = head::citation(text.ext.language, raw.get());
                        all.citations.extend(citation.map(|citation| (citation, (from, end))));
                    }
                }
                Part::Refusal(text) => all.refusal += text,
                Part::Reasoning(part) => all.reasoning.push(part),
                Part::ToolCall(call) => all.calls.push(call),
                Part::Opaque(opaque) if opaque.language == LANGUAGE => {
                    all.others.push((&opaque.kind, &opaque.json));
                }
                _ => {}
            }
        }
        all.citations.retain(|(citation, _)| head::is_shown(citation));
        all
    }
}

fn message(out: &mut Writer, choice: &Choice, functions: bool) {
    let all = Content::of(&choice.parts);
    out.text_at("role", "assistant");
    match &all.text {
        Some(text) => out.text_at("content", text),
        None if all.calls.is_empty() && all.refusal.is_empty() => out.text_at("content", ""),
        None => out.raw_at("content", "null"),
    }
    match all.refusal.is_empty() {
        true => out.raw_at("refusal", "null"),
        false => out.text_at("refusal", &all.refusal),
    }
    if !all.citations.is_empty() {
        out.array_at("annotations", |out| {
            for (citation, text) in &all.citations {
                head::annotation(out, citation, *text);
            }
        });
    }
    reasoning(out, &all.reasoning);
    for (at, (name, json)) in all.others.iter().enumerate() {
        if !all.others[..at].iter().any(|(known, _)| known == name) {
            out.json_at(name, json);
        }
    }
    match (functions, all.calls.first()) {
        (_, None) => {}
        (true, Some(call)) => out.object_at("function_call", |out| {
            out.text_at("name", &call.name);
            out.text_at("arguments", arguments(call));
        }),
        (false, Some(_)) => out.array_at("tool_calls", |out| {
            all.calls.iter().for_each(|call| tool_call(out, call));
        }),
    }
}

fn reasoning(out: &mut Writer, parts: &[&ReasoningPart]) {
    let texts = parts.iter().filter_map(|part| match &part.text {
        Some(text) => Some(text.clone()).filter(|text| !text.is_empty()),
        None => {
            let all: Vec<_> =
                part.summary.iter().filter(|text| !text.is_empty()).cloned().collect();
            (!all.is_empty()).then(|| all.join("\n\n"))
        }
    });
    let text: String = texts.collect();
    if !text.is_empty() {
        out.text_at("reasoning_content", &text);
        out.text_at("reasoning", &text);
    }
    if parts.iter().any(|part| part.state.as_ref().is_some_and(|state| !state.value.is_empty())) {
        out.array_at("reasoning_details", |out| {
            for (number, part) in (0..).zip(parts) {
                details::write(out, number, part);
            }
        });
    }
}

/// Clients parse them: none are an empty object.
fn arguments(call: &ToolCall) -> &str {
    match call.kind {
        ToolKind::Function if call.arguments.is_empty() => "{}",
        _ => &call.arguments,
    }
}

fn tool_call(out: &mut Writer, call: &ToolCall) {
    let (kind, member) = match call.kind {
        ToolKind::Function => ("function", "arguments"),
        ToolKind::Custom => ("custom", "input"),
    };
    out.object(|out| {
        out.text_at("id", &call.id);
        out.text_at("type", kind);
        out.object_at(kind, |out| {
            out.text_at("name", &call.name);
            out.text_at(member, arguments(call));
        });
        if let Some(state) = call.state.as_ref().filter(|state| !state.value.is_empty()) {
            head::signature(out, state);
        }
    });
}
