//! A plain answer for a client that speaks Responses: the object at the end of the stream that
//! would say the same.

use serde_json::value::RawValue;

use super::encode::Encoder;
use crate::dialect::hub::{
    Encode, Event, Exchange, Json, Part, PartKind, Response,
    event::Citation,
    request::{Opaque, ReasoningPart, Text, ToolCall},
};

/// The document.
pub(super) fn document(response: &Response, exchange: &Exchange) -> String {
    let (mut encoder, mut out) = (Encoder::silent(exchange), String::new());
    events(response, &mut |event| encoder.event(&event, &mut out));
    encoder.into_last()
}

/// The events that a whole answer would be folded from.
fn events(response: &Response, to: &mut impl FnMut(Event)) {
    to(Event::Start(response.start.clone()));
    to(Event::Usage(response.usage));
    if let Some(choice) = response.choices.first() {
        let mut logprobs = match &choice.logprobs[..] {
            [] => None,
            list => Some(Json::written(|out| {
                out.array(|l| list.iter().for_each(|json| l.raw(json.as_str())));
            })),
        };
        for (number, part) in (0..).zip(&choice.parts) {
            // They are of all texts, which are mostly one.
            let logprobs = match part {
                Part::Text(_) => logprobs.take(),
                _ => None,
            };
            events_of(part, number, logprobs, to);
        }
        if let Some(reason) = &choice.stop {
            to(Event::Stop { choice: 0, reason: reason.clone() });
        }
    }
    to(response.fault.clone().map_or(Event::End, Event::Fault));
}

fn events_of(part: &Part, number: u32, logprobs: Option<Json>, to: &mut impl FnMut(Event)) {
    let choice = 0;
    let start = |kind| Event::PartStart { choice, part: number, kind };
    match part {
        Part::Text(Text { text, phase, citations, ext, .. }) => {
            to(start(PartKind::Text { phase: phase.clone() }));
            to(Event::Text { choice, part: number, text: text.clone(), logprobs });
            let list = citations.as_ref().and_then(Json::array).unwrap_or_default();
            list.into_iter().for_each(|raw| {
                let citation = cited(raw, ext.language);
                to(Event::Citation { choice, part: number, citation });
            });
        }
        Part::Refusal(text) => {
            to(start(PartKind::Refusal));
            to(Event::Refusal { choice, part: number, text: text.clone() });
        }
        Part::Reasoning(ReasoningPart { text, summary, state, redacted, .. }) => {
            to(start(PartKind::Reasoning { redacted: *redacted }));
            for (at, text) in (0..).zip(summary) {
                let (text, summary) = (text.clone(), Some(at));
                to(Event::Reasoning { choice, part: number, text, summary });
            }
            if let Some(text) = text.clone() {
                to(Event::Reasoning { choice, part: number, text, summary: None });
            }
            if let Some(state) = state.clone() {
                to(Event::State { choice, part: number, state });
            }
        }
        Part::ToolCall(ToolCall { id, name, arguments, kind, namespace, .. }) => {
            let (id, name, namespace) = (id.clone(), name.clone(), namespace.clone());
            to(start(PartKind::ToolCall { id, name, kind: *kind, namespace }));
            to(Event::Arguments { choice, part: number, text: arguments.clone() });
        }
        Part::Opaque(Opaque { language, kind, json, .. }) => {
            let (kind, json) = (kind.clone(), json.clone());
            to(start(PartKind::Opaque { language, kind, json }));
        }
        _ => return,
    }
    to(Event::PartStop { choice, part: number });
}

fn cited(raw: &RawValue, language: &'static str) -> Citation {
    Citation { language, json: Json::of(raw), url: None, title: None }
}
