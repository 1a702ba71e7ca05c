//! A whole answer, folded from its events: one set of rules for plain answers and streams.

use std::collections::HashMap;

use super::{
    event::{Event, PartKind, Start, StopReason},
    fault::StreamFault,
    json::Json,
    request::{Opaque, Part, ReasoningPart, Text, ToolCall},
    usage::Usage,
};

/// A whole answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Response {
    pub start: Start,
    /// By their numbers.
    pub choices: Vec<Choice>,
    pub usage: Usage,
    /// The answer broke.
    pub fault: Option<StreamFault>,
    /// Citations of texts that are not closed, by choice and part.
    citations: HashMap<(u32, u32), Citations>,
}

/// The elements of a list, and their language.
type Citations = (&'static str, Vec<Json>);

/// One of the answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    pub parts: Vec<Part>,
    pub stop: Option<StopReason>,
    /// Log probabilities of its text, in the words of Chat: the elements of `content`.
    pub logprobs: Vec<Json>,
}

impl Response {
    /// Folds events.
    pub fn of<'a>(events: impl IntoIterator<Item = &'a Event>) -> Self {
        let mut response = Self::default();
        events.into_iter().for_each(|event| response.take(event));
        response.cite_all();
        response
    }

    /// Takes the next event.
    pub fn take(&mut self, event: &Event) {
        match event {
            Event::Start(start) => {
                self.usage = self.usage.updated(start.usage.unwrap_or_default());
                self.start = start.clone();
            }
            Event::PartStart { choice, part, kind } => self.open(*choice, *part, kind),
            Event::Text { choice, part, text, logprobs } => {
                if let Some(Part::Text(open)) = self.part(*choice, *part) {
                    open.text += text;
                }
                if let Some(logprobs) = logprobs {
                    self.choice(*choice).logprobs.push(logprobs.clone());
                }
            }
            Event::Reasoning { choice, part, text, summary } => {
                if let Some(Part::Reasoning(open)) = self.part(*choice, *part) {
                    reason(open, text, *summary);
                }
            }
            Event::Arguments { choice, part, text } => {
                if let Some(Part::ToolCall(open)) = self.part(*choice, *part) {
                    open.arguments += text;
                }
            }
            Event::State { choice, part, state } => match self.part(*choice, *part) {
                Some(Part::Reasoning(open)) => open.state = Some(state.clone()),
                Some(Part::ToolCall(open)) => open.state = Some(state.clone()),
                _ => {}
            },
            Event::Citation { choice, part, citation } => {
                let list = self.citations.entry((*choice, *part)).or_default();
                list.0 = citation.language;
                list.1.push(citation.json.clone());
            }
            Event::Refusal { choice, part, text } => {
                if let Some(Part::Refusal(open)) = self.part(*choice, *part) {
                    *open += text;
                }
            }
            Event::Usage(usage) => self.usage = self.usage.updated(*usage),
            Event::Stop { choice, reason } => self.choice(*choice).stop = Some(reason.clone()),
            Event::PartStop { choice, part } => self.cite(*choice, *part),
            Event::Fault(fault) => {
                self.cite_all();
                self.fault = Some(fault.clone());
            }
            Event::End => self.cite_all(),
            Event::Ping | Event::Opaque { .. } => {}
        }
    }

    /// A text that closes has its citations, which are of one language.
    fn cite(&mut self, choice: u32, part: u32) {
        let Some((language, list)) = self.citations.remove(&(choice, part)) else { return };
        let Some(Part::Text(text)) = self.part(choice, part) else { return };
        // Some may have come before it was opened again.
        let before = text.citations.take();
        let before = before.as_ref().and_then(Json::array).unwrap_or_default();
        text.citations = Some(Json::written(|out| {
            out.array(|out| {
                before.iter().for_each(|citation| out.raw(citation.get()));
                list.iter().for_each(|citation| out.raw(citation.as_str()));
            });
        }));
        text.ext.language = language;
    }

    fn cite_all(&mut self) {
        let mut open: Vec<_> = self.citations.keys().copied().collect();
        open.sort_unstable();
        open.into_iter().for_each(|(choice, part)| self.cite(choice, part));
    }

    fn choice(&mut self, number: u32) -> &mut Choice {
        let number = (number as usize).min(MOST_CHOICES);
        if self.choices.len() <= number {
            self.choices.resize_with(number + 1, Choice::default);
        }
        &mut self.choices[number]
    }

    fn part(&mut self, choice: u32, part: u32) -> Option<&mut Part> {
        self.choice(choice).parts.get_mut(part as usize)
    }

    fn open(&mut self, choice: u32, part: u32, kind: &PartKind) {
        let new = match kind {
            PartKind::Text { phase } => {
                Part::Text(Text { phase: phase.clone(), ..Text::default() })
            }
            PartKind::Reasoning { redacted } => {
                Part::Reasoning(ReasoningPart { redacted: *redacted, ..ReasoningPart::default() })
            }
            PartKind::Refusal => Part::Refusal(String::new()),
            PartKind::ToolCall { id, name, kind, namespace } => Part::ToolCall(ToolCall {
                id: id.clone(),
                name: name.clone(),
                kind: *kind,
                namespace: namespace.clone(),
                ..ToolCall::default()
            }),
            PartKind::Opaque { language, kind, json } => Part::Opaque(Opaque {
                language,
                kind: kind.clone(),
                json: json.clone(),
                readable: String::new(),
            }),
        };
        let parts = &mut self.choice(choice).parts;
        debug_assert_eq!(parts.len(), part as usize, "parts are dense");
        parts.push(new);
    }
}

/// Numbers of choices that an engine can mean.
const MOST_CHOICES: usize = 1023;

fn reason(open: &mut ReasoningPart, text: &str, summary: Option<u32>) {
    let Some(number) = summary else {
        open.text.get_or_insert_default().push_str(text);
        return;
    };
    let number = (number as usize).min(MOST_CHOICES);
    if open.summary.len() <= number {
        open.summary.resize_with(number + 1, String::new);
    }
    open.summary[number] += text;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::hub::{event::Citation, stopwatch::Stopwatch};

    #[test]
    fn many_citations_are_a_list() {
        const MANY: usize = 20_000;
        let began = Stopwatch::start();
        let cite = |at: usize| Event::Citation {
            choice: 0,
            part: 0,
            citation: Citation {
                language: "chat",
                json: Json::text(&format!("{at} {}", "x".repeat(100))),
                url: None,
                title: None,
            },
        };
        let open = Event::PartStart { choice: 0, part: 0, kind: PartKind::Text { phase: None } };
        for last in
            [vec![Event::PartStop { choice: 0, part: 0 }, Event::End], vec![Event::End], vec![]]
        {
            let mut events = vec![open.clone()];
            events.extend((0..MANY).map(cite));
            events.extend(last);
            let whole = Response::of(&events);
            let Part::Text(text) = &whole.choices[0].parts[0] else { panic!() };
            let list = text.citations.as_ref().unwrap();
            let list = list.array().unwrap();
            assert_eq!((list.len(), text.ext.language), (MANY, "chat"));
            assert!(list[MANY - 1].get().starts_with("\"19999 "));
        }
        assert!(began.time().as_secs() < 4, "{:?}", began.time());
    }

    #[test]
    fn events_are_folded() {
        let text =
            |part, text: &str| Event::Text { choice: 0, part, text: text.into(), logprobs: None };
        let events = [
            Event::Start(Start { id: "x".into(), ..Start::default() }),
            Event::PartStart { choice: 0, part: 0, kind: PartKind::Reasoning { redacted: false } },
            Event::Reasoning { choice: 0, part: 0, text: "a".into(), summary: Some(1) },
            Event::PartStop { choice: 0, part: 0 },
            Event::PartStart { choice: 0, part: 1, kind: PartKind::Text { phase: None } },
            text(1, "b"),
            text(1, "c"),
            Event::PartStop { choice: 0, part: 1 },
            Event::Stop { choice: 0, reason: StopReason::EndTurn },
            Event::Usage(Usage { output: Some(2), ..Usage::default() }),
            Event::End,
        ];
        let whole = Response::of(&events);
        assert_eq!(whole.usage.output, Some(2));
        let [Part::Reasoning(first), Part::Text(second)] = &whole.choices[0].parts[..] else {
            panic!("{whole:?}");
        };
        assert_eq!((first.summary.len(), first.text.as_deref()), (2, None));
        assert_eq!(second.text, "bc");
    }
}
