//! A whole answer, folded from its events: one set of rules for plain answers and streams.

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
}

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
                if let Some(Part::Text(open)) = self.part(*choice, *part) {
                    cite(open, citation.language, &citation.json);
                }
            }
            Event::Refusal { choice, part, text } => {
                if let Some(Part::Refusal(open)) = self.part(*choice, *part) {
                    *open += text;
                }
            }
            Event::Usage(usage) => self.usage = self.usage.updated(*usage),
            Event::Stop { choice, reason } => self.choice(*choice).stop = Some(reason.clone()),
            Event::Fault(fault) => self.fault = Some(fault.clone()),
            Event::PartStop { .. } | Event::End | Event::Ping | Event::Opaque { .. } => {}
        }
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

/// Adds to the list of citations, which are of one language.
fn cite(open: &mut Text, language: &'static str, citation: &Json) {
    let before =
        open.citations.as_ref().map_or("", |list| &list.as_str()[1..list.as_str().len() - 1]);
    let comma = if before.is_empty() { "" } else { "," };
    let all = format!("[{before}{comma}{}]", citation.as_str());
    open.citations = Json::parse(&all).ok();
    open.ext.language = language;
}

#[cfg(test)]
mod tests {
    use super::*;

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
