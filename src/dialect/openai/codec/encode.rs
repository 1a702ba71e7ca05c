//! Writes a client's stream.

use super::{
    details, errors, head, tokens,
    words::{LANGUAGE, finish_reason},
};
use crate::dialect::hub::{
    Class, Encode, Event, Exchange, Json, PartKind, Start, StopReason, StreamFault, Usage, Writer,
    event::Citation,
    request::{ReasoningPart, State, ToolKind},
};

const DONE: &str = "data: [DONE]\n\n";
const PING: &str = ": keep-alive\n\n";

/// Writes a stream.
pub struct Encoder {
    exchange: Exchange,
    start: Start,
    /// What each chunk begins with, up to its choices.
    prefix: Option<String>,
    usage: Usage,
    choices: Vec<Choice>,
    over: bool,
}

/// What is known of one choice.
#[derive(Default)]
struct Choice {
    number: u32,
    /// The role has been said.
    begun: bool,
    finished: bool,
    /// Words of a refusal have been said.
    refused: bool,
    /// Calls so far.
    calls: u32,
    /// Parts with reasoning so far.
    thoughts: u32,
    open: Open,
    /// Characters of text so far, and at the beginning of the open text.
    text: (usize, usize),
}

/// The open part.
#[derive(Default)]
enum Open {
    #[default]
    None,
    Text,
    Reasoning(Box<ReasoningPart>),
    Call {
        number: u32,
        kind: ToolKind,
        /// Its arguments have begun.
        begun: bool,
        /// The client knows one call at most.
        hidden: bool,
    },
}

impl Encoder {
    /// For one answer.
    pub fn new(exchange: &Exchange) -> Self {
        Self {
            exchange: exchange.clone(),
            start: Start::default(),
            prefix: None,
            usage: Usage::default(),
            choices: Vec::new(),
            over: false,
        }
    }

    fn choice(&mut self, number: u32) -> usize {
        let at = self.choices.iter().position(|choice| choice.number == number);
        at.unwrap_or_else(|| {
            self.choices.push(Choice { number, ..Choice::default() });
            self.choices.len() - 1
        })
    }

    /// What each chunk begins with.
    fn prefix(&mut self) -> &str {
        self.prefix.get_or_insert_with(|| {
            let mut out = Writer::default();
            out.object(|out| {
                head::write(out, "chat.completion.chunk", &self.start, &self.exchange);
            });
            let mut text = format!("data: {}", out.finish());
            text.pop();
            text
        })
    }

    /// Writes a chunk with one choice; before the first one, that the assistant speaks.
    fn chunk(
        &mut self,
        at: usize,
        out: &mut String,
        logprobs: Option<&Json>,
        delta: impl FnOnce(&mut Writer),
    ) {
        self.begin(at, out);
        let number = self.choices[at].number;
        self.write(out, |out| {
            out.raw_at("index", number);
            out.object_at("delta", delta);
            match logprobs {
                Some(logprobs) => out.object_at("logprobs", |out| {
                    content_logprobs(out, [logprobs]);
                }),
                None => out.raw_at("logprobs", "null"),
            }
            out.raw_at("finish_reason", "null");
        });
    }

    fn begin(&mut self, at: usize, out: &mut String) {
        if std::mem::replace(&mut self.choices[at].begun, true) {
            return;
        }
        let number = self.choices[at].number;
        self.write(out, |out| {
            out.raw_at("index", number);
            out.object_at("delta", |out| {
                out.text_at("role", "assistant");
                out.text_at("content", "");
            });
            out.raw_at("logprobs", "null");
            out.raw_at("finish_reason", "null");
        });
    }

    /// Writes a chunk with a choice that has these members.
    fn write(&mut self, out: &mut String, choice: impl FnOnce(&mut Writer)) {
        let mut writer = Writer::default();
        writer.array_at("choices", |out| out.object(choice));
        out.push_str(self.prefix());
        out.push(',');
        out.push_str(&writer.finish());
        out.push_str("}\n\n");
    }

    fn part_start(&mut self, choice: u32, kind: &PartKind, out: &mut String) {
        let at = self.choice(choice);
        let functions = self.exchange.client.functions;
        let state = &mut self.choices[at];
        state.text.1 = state.text.0;
        let number = state.calls;
        let open = match kind {
            PartKind::Text { .. } => Open::Text,
            PartKind::Reasoning { redacted } => Open::Reasoning(Box::new(ReasoningPart {
                redacted: *redacted,
                ..ReasoningPart::default()
            })),
            PartKind::Refusal => Open::None,
            PartKind::Opaque { language, kind, json } => {
                if *language == LANGUAGE {
                    self.chunk(at, out, None, |out| out.json_at(kind, json));
                }
                Open::None
            }
            PartKind::ToolCall { id, name, kind, .. } => {
                self.choices[at].calls += 1;
                let hidden = functions && number > 0;
                match kind {
                    _ if hidden => {}
                    _ if functions => self.chunk(at, out, None, |out| {
                        out.object_at("function_call", |out| {
                            out.text_at("name", name);
                            out.text_at("arguments", "");
                        });
                    }),
                    _ => self.chunk(at, out, None, |out| {
                        out.array_at("tool_calls", |out| call(out, number, id, name, *kind));
                    }),
                }
                Open::Call { number, kind: *kind, begun: false, hidden }
            }
        };
        self.choices[at].open = open;
    }

    fn arguments(&mut self, choice: u32, text: &str, out: &mut String) {
        let at = self.choice(choice);
        let Open::Call { number, kind, begun, hidden } = &mut self.choices[at].open else { return };
        if text.is_empty() || *hidden {
            return;
        }
        *begun = true;
        let (number, kind) = (*number, *kind);
        if self.exchange.client.functions {
            return self.chunk(at, out, None, |out| {
                out.object_at("function_call", |out| out.text_at("arguments", text));
            });
        }
        self.chunk(at, out, None, |out| {
            out.array_at("tool_calls", |out| {
                out.object(|out| {
                    out.raw_at("index", number);
                    match kind {
                        ToolKind::Function => out.object_at("function", |out| {
                            out.text_at("arguments", text);
                        }),
                        ToolKind::Custom => out.object_at("custom", |out| {
                            out.text_at("input", text);
                        }),
                    }
                });
            });
        });
    }

    fn reasoning(&mut self, choice: u32, text: &str, summary: Option<u32>, out: &mut String) {
        let at = self.choice(choice);
        let Open::Reasoning(part) = &mut self.choices[at].open else { return };
        if text.is_empty() {
            return;
        }
        // Summaries are paragraphs.
        let mut shown = std::borrow::Cow::Borrowed(text);
        match summary {
            None => part.text.get_or_insert_default().push_str(text),
            Some(number) => {
                let number = (number as usize).min(1023);
                if part.summary.len() <= number {
                    if part.summary.iter().any(|summary| !summary.is_empty()) {
                        shown = format!("\n\n{text}").into();
                    }
                    part.summary.resize_with(number + 1, String::new);
                }
                part.summary[number] += text;
            }
        }
        self.chunk(at, out, None, |out| {
            out.text_at("reasoning_content", &shown);
            out.text_at("reasoning", &shown);
        });
    }

    fn state(&mut self, choice: u32, state: &State, out: &mut String) {
        if state.value.is_empty() {
            return;
        }
        let at = self.choice(choice);
        let thought = self.choices[at].thoughts;
        match std::mem::take(&mut self.choices[at].open) {
            Open::Reasoning(mut part) => {
                part.state = Some(state.clone());
                self.chunk(at, out, None, |out| {
                    out.array_at("reasoning_details", |out| details::write(out, thought, &part));
                });
                self.choices[at].open = Open::Reasoning(part);
            }
            Open::Call { number, kind, begun, hidden } => {
                if !hidden && !self.exchange.client.functions {
                    self.chunk(at, out, None, |out| {
                        out.array_at("tool_calls", |out| {
                            out.object(|out| {
                                out.raw_at("index", number);
                                head::signature(out, state);
                            });
                        });
                    });
                }
                self.choices[at].open = Open::Call { number, kind, begun, hidden };
            }
            open => self.choices[at].open = open,
        }
    }

    fn citation(&mut self, choice: u32, citation: &Citation, out: &mut String) {
        if head::is_shown(citation) {
            let at = self.choice(choice);
            let (end, from) = self.choices[at].text;
            self.chunk(at, out, None, |out| {
                out.array_at("annotations", |out| head::annotation(out, citation, (from, end)));
            });
        }
    }

    fn part_stop(&mut self, choice: u32, out: &mut String) {
        let at = self.choice(choice);
        match &self.choices[at].open {
            // Clients parse them.
            Open::Call { kind: ToolKind::Function, begun: false, .. } => {
                self.arguments(choice, "{}", out);
            }
            Open::Reasoning(_) => self.choices[at].thoughts += 1,
            _ => {}
        }
        self.choices[at].open = Open::None;
    }

    fn finish(&mut self, choice: u32, reason: &StopReason, out: &mut String) {
        let at = self.choice(choice);
        if self.choices[at].finished {
            return;
        }
        // An empty answer is an empty text.
        self.begin(at, out);
        self.choices[at].finished = true;
        let word = finish_reason(reason, self.exchange.client.functions, self.choices[at].refused);
        self.write(out, |out| {
            out.raw_at("index", choice);
            out.object_at("delta", |_| {});
            out.raw_at("logprobs", "null");
            out.text_at("finish_reason", word);
            if let StopReason::StopSequence(Some(text)) = reason {
                out.text_at("stop_reason", text);
            }
        });
    }

    fn end(&mut self, out: &mut String) {
        self.over = true;
        if self.choices.is_empty() {
            self.choice(0);
        }
        for at in 0..self.choices.len() {
            self.finish(self.choices[at].number, &StopReason::EndTurn, out);
        }
        if self.exchange.client.usage && self.usage != Usage::default() {
            out.push_str(self.prefix());
            let mut writer = Writer::default();
            writer.array_at("choices", |_| {});
            tokens::write(writer.name("usage"), &self.usage);
            out.push(',');
            out.push_str(&writer.finish());
            out.push_str("}\n\n");
        }
        out.push_str(DONE);
    }

    fn fault(&mut self, fault: &StreamFault, out: &mut String) {
        self.over = true;
        out.push_str("data: ");
        out.push_str(&errors::body(fault));
        out.push_str("\n\n");
        out.push_str(DONE);
    }
}

impl Encode for Encoder {
    fn event(&mut self, event: &Event, out: &mut String) {
        if self.over {
            return;
        }
        match event {
            Event::Start(start) => {
                self.usage = self.usage.updated(start.usage.unwrap_or_default());
                self.start = start.clone();
            }
            Event::PartStart { choice, kind, .. } => self.part_start(*choice, kind, out),
            Event::Text { choice, text, logprobs, .. } => {
                if text.is_empty() && logprobs.is_none() {
                    return;
                }
                let at = self.choice(*choice);
                self.choices[at].text.0 += text.chars().count();
                self.chunk(at, out, logprobs.as_ref(), |out| out.text_at("content", text));
            }
            Event::Reasoning { choice, text, summary, .. } => {
                self.reasoning(*choice, text, *summary, out);
            }
            Event::Arguments { choice, text, .. } => self.arguments(*choice, text, out),
            Event::State { choice, state, .. } => self.state(*choice, state, out),
            Event::Citation { choice, citation, .. } => self.citation(*choice, citation, out),
            Event::Refusal { choice, text, .. } => {
                let at = self.choice(*choice);
                if !text.is_empty() {
                    self.choices[at].refused = true;
                    self.chunk(at, out, None, |out| out.text_at("refusal", text));
                }
            }
            Event::PartStop { choice, .. } => self.part_stop(*choice, out),
            Event::Usage(usage) => self.usage = self.usage.updated(*usage),
            Event::Stop { reason: StopReason::Aborted, .. } => {
                let message = "The engine broke the answer off";
                self.fault(&StreamFault::new(Class::Server, message), out);
            }
            Event::Stop { choice, reason } => self.finish(*choice, reason, out),
            Event::End => self.end(out),
            Event::Fault(fault) => self.fault(fault, out),
            Event::Ping => out.push_str(PING),
            Event::Opaque { .. } => {}
        }
    }
}

/// The first entry of a call.
fn call(out: &mut Writer, number: u32, id: &str, name: &str, kind: ToolKind) {
    let (kind, member) = match kind {
        ToolKind::Function => ("function", "arguments"),
        ToolKind::Custom => ("custom", "input"),
    };
    out.object(|out| {
        out.raw_at("index", number);
        out.text_at("id", id);
        out.text_at("type", kind);
        out.object_at(kind, |out| {
            out.text_at("name", name);
            out.text_at(member, "");
        });
    });
}

/// Writes the probabilities of tokens, which come as lists or one by one.
pub fn content_logprobs<'a>(out: &mut Writer, all: impl IntoIterator<Item = &'a Json>) {
    out.array_at("content", |out| {
        for json in all {
            match json.array() {
                Some(list) => list.into_iter().for_each(|token| out.raw(token.get())),
                None => out.raw(json.as_str()),
            }
        }
    });
    out.raw_at("refusal", "null");
}
