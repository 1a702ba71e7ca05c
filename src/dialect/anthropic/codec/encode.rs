//! Writes a client's stream.

use super::{
    LANGUAGE, errors, usage,
    words::{self, Words},
};
use crate::dialect::hub::{
    Class, Encode, Event, Exchange, Json, PartKind, Start, StopReason, StreamFault, Usage, Writer,
    envelope,
    request::{State, ToolKind},
};

/// Writes a stream. The reason for the end waits for the usage, which stands in the same event.
pub struct Encoder {
    words: Words,
    model: Option<String>,
    started: bool,
    over: bool,
    /// The number of the next block.
    next: u32,
    open: Option<Open>,
    /// There is a block that clients can show, or act on.
    answered: bool,
    /// The model refused in words.
    refused: bool,
    /// A backend of this language has explained a refusal, beside the answer.
    explained: String,
    /// The arguments of a call are no whole object.
    broken: bool,
    usage: Usage,
    stop: Option<StopReason>,
}

/// A part that is open.
struct Open {
    part: u32,
    /// The number of its block, once that has begun.
    block: Option<u32>,
    kind: Kind,
}

enum Kind {
    Text,
    Thinking(Thinking),
    Call {
        custom: bool,
        arguments: String,
    },
    /// Written whole when it began.
    Whole,
    /// Written with the reason for the end.
    Explanation,
}

/// Reasoning that is open. Its block begins with its text: without one, it is of another kind.
#[derive(Default)]
struct Thinking {
    redacted: bool,
    state: Option<State>,
    /// What was shown first, a summary or the text: never both.
    summaries: Option<bool>,
    /// The summary that was shown last.
    summary: u32,
}

impl Encoder {
    /// For one answer.
    pub fn new(exchange: &Exchange) -> Self {
        Self {
            words: Words::new(exchange),
            model: exchange.model.clone(),
            started: false,
            over: false,
            next: 0,
            open: None,
            answered: false,
            refused: false,
            explained: String::new(),
            broken: false,
            usage: Usage::default(),
            stop: None,
        }
    }

    fn start(&mut self, start: &Start, out: &mut String) {
        if self.started {
            return;
        }
        self.started = true;
        self.usage = self.usage.updated(start.usage.unwrap_or_default());
        let id = self.words.id(&start.id);
        let model = self.model.as_deref().or(start.model.as_deref()).unwrap_or_default();
        frame(out, "message_start", |o| {
            o.object_at("message", |o| {
                o.text_at("id", &id);
                o.text_at("type", "message");
                o.text_at("role", "assistant");
                o.text_at("model", model);
                o.array_at("content", |_| {});
                o.raw_at("stop_reason", "null");
                o.raw_at("stop_sequence", "null");
                o.object_at("usage", |o| usage::write(o, &self.usage, true));
            });
        });
    }

    /// A block begins with this `content_block`.
    fn begin(&mut self, out: &mut String, block: impl FnOnce(&mut Writer)) -> u32 {
        let index = self.next;
        self.next += 1;
        frame(out, "content_block_start", |o| {
            o.raw_at("index", index);
            o.object_at("content_block", block);
        });
        index
    }

    fn open(&mut self, part: u32, kind: &PartKind, out: &mut String) {
        self.close(out);
        let (block, kind) = match kind {
            PartKind::Refusal if self.words.native => (None, Kind::Explanation),
            PartKind::Text { .. } | PartKind::Refusal => {
                self.refused |= matches!(kind, PartKind::Refusal);
                (Some(self.text_block(out)), Kind::Text)
            }
            PartKind::Reasoning { redacted } => {
                (None, Kind::Thinking(Thinking { redacted: *redacted, ..Thinking::default() }))
            }
            PartKind::ToolCall { id, name, kind, .. } => {
                self.answered = true;
                let block = self.begin(out, |o| {
                    o.text_at("type", "tool_use");
                    o.text_at("id", id);
                    o.text_at("name", name);
                    o.raw_at("input", "{}");
                });
                let custom = *kind == ToolKind::Custom;
                (Some(block), Kind::Call { custom, arguments: String::new() })
            }
            PartKind::Opaque { language, json, .. } if *language == LANGUAGE => {
                self.answered = true;
                (Some(self.whole(json, out)), Kind::Whole)
            }
            PartKind::Opaque { .. } => (None, Kind::Whole),
        };
        self.open = Some(Open { part, block, kind });
    }

    fn text_block(&mut self, out: &mut String) -> u32 {
        self.answered = true;
        self.begin(out, |o| {
            o.text_at("type", "text");
            o.text_at("text", "");
        })
    }

    /// A block that the hub has no word for. The input of a call follows its beginning, as clients
    /// expect it.
    fn whole(&mut self, json: &Json, out: &mut String) -> u32 {
        let Some(mut block) = json.object() else { return self.begin(out, |_| {}) };
        let calls = block.text("type").is_some_and(|kind| kind.ends_with("tool_use"));
        let input = if calls { block.json("input") } else { None };
        let members = block.rest();
        let index = self.begin(out, |o| {
            o.members(&members);
            if calls {
                o.raw_at("input", "{}");
            }
        });
        if let Some(input) = input.filter(|input| input.as_str() != "{}") {
            delta(out, index, "input_json_delta", "partial_json", input.as_str());
        }
        index
    }

    /// The open part, if it is this one.
    fn current(&mut self, part: u32) -> Option<&mut Open> {
        self.open.as_mut().filter(|open| open.part == part)
    }

    fn text(&mut self, part: u32, text: &str, out: &mut String) {
        if let Some(Open { block: Some(block), kind: Kind::Text, .. }) = self.current(part)
            && !text.is_empty()
        {
            delta(out, *block, "text_delta", "text", text);
        }
    }

    fn refuse(&mut self, part: u32, text: &str, out: &mut String) {
        match self.current(part) {
            Some(Open { kind: Kind::Explanation, .. }) => self.explained.push_str(text),
            _ => self.text(part, text, out),
        }
    }

    fn think(&mut self, part: u32, text: &str, summary: Option<u32>, out: &mut String) {
        let Some(Open { block, kind: Kind::Thinking(thinking), .. }) = self.current(part) else {
            return;
        };
        if text.is_empty()
            || *thinking.summaries.get_or_insert(summary.is_some()) != summary.is_some()
        {
            return;
        }
        let number = summary.unwrap_or_default();
        let apart = block.is_some() && number != thinking.summary;
        thinking.summary = number;
        let known = *block;
        let block = known.unwrap_or_else(|| {
            let index = self.begin(out, thinking_start);
            if let Some(open) = &mut self.open {
                open.block = Some(index);
            }
            index
        });
        if apart {
            delta(out, block, "thinking_delta", "thinking", "\n\n");
        }
        delta(out, block, "thinking_delta", "thinking", text);
    }

    fn arguments(&mut self, part: u32, text: &str, out: &mut String) {
        let Some(Open { block: Some(block), kind: Kind::Call { custom, arguments }, .. }) =
            self.current(part)
        else {
            return;
        };
        // Blanks alone are no arguments; before others they are.
        let waits = arguments.trim_start().is_empty();
        arguments.push_str(text);
        if *custom || text.is_empty() || arguments.trim_start().is_empty() {
            return;
        }
        let text = if waits { arguments } else { text };
        delta(out, *block, "input_json_delta", "partial_json", text);
    }

    fn cite(&mut self, part: u32, citation: &Json, out: &mut String) {
        if let Some(Open { block: Some(block), kind: Kind::Text, .. }) = self.current(part) {
            let block = *block;
            frame(out, "content_block_delta", |o| {
                o.raw_at("index", block);
                o.object_at("delta", |o| {
                    o.text_at("type", "citations_delta");
                    o.json_at("citation", citation);
                });
            });
        }
    }

    /// The open part ends.
    fn close(&mut self, out: &mut String) {
        let Some(Open { block, kind, .. }) = self.open.take() else { return };
        let block = match kind {
            Kind::Text | Kind::Whole | Kind::Explanation => block,
            Kind::Thinking(thinking) => self.sign(block, thinking, out),
            Kind::Call { custom: true, arguments } => {
                let input = Json::written(|out| out.object(|o| o.text_at("input", &arguments)));
                if let Some(block) = block {
                    delta(out, block, "input_json_delta", "partial_json", input.as_str());
                }
                block
            }
            Kind::Call { arguments, .. } => {
                self.broken |= !words::are_whole(&arguments);
                block
            }
        };
        if let Some(block) = block {
            end_block(out, block);
        }
    }

    /// The state of reasoning: the signature of its text. Without a text it stands alone, as the
    /// vendor's own does in a block of thinking or of hidden thinking; another's is always hidden.
    fn sign(&mut self, block: Option<u32>, thinking: Thinking, out: &mut String) -> Option<u32> {
        let Some(state) = thinking.state else { return block };
        let value = envelope::wrap(&state, LANGUAGE);
        let hidden = thinking.redacted || state.language != LANGUAGE;
        let block = match block {
            None if hidden => {
                return Some(self.begin(out, |o| {
                    o.text_at("type", "redacted_thinking");
                    o.text_at("data", &value);
                }));
            }
            None => self.begin(out, thinking_start),
            Some(block) => block,
        };
        delta(out, block, "signature_delta", "signature", &value);
        Some(block)
    }

    fn end(&mut self, out: &mut String) {
        self.close(out);
        if self.broken && !words::was_cut(self.stop.as_ref()) {
            let message = "The arguments of a tool call are not a JSON object";
            return self.fail(&StreamFault::new(Class::Server, message), out);
        }
        self.over = true;
        // Clients read the text of an answer; there has to be one, if nothing else is.
        if !self.answered {
            let block = self.text_block(out);
            end_block(out, block);
        }
        let reason = match self.stop.take() {
            None | Some(StopReason::EndTurn) if self.refused => StopReason::Refusal,
            reason => reason.unwrap_or(StopReason::EndTurn),
        };
        frame(out, "message_delta", |o| {
            o.object_at("delta", |o| words::end(o, &reason, &self.explained, &self.words));
            o.object_at("usage", |o| usage::write(o, &self.usage, false));
        });
        frame(out, "message_stop", |_| {});
    }

    fn fail(&mut self, fault: &StreamFault, out: &mut String) {
        self.over = true;
        // What it was to be signed with is not known.
        if let Some(block) = self.open.take().and_then(|open| open.block) {
            end_block(out, block);
        }
        frame(out, "error", |o| o.json_at("error", &errors::object(fault)));
    }
}

impl Encode for Encoder {
    fn event(&mut self, event: &Event, out: &mut String) {
        if self.over {
            return;
        }
        match event {
            Event::Start(start) => self.start(start, out),
            Event::Fault(fault) => self.fail(fault, out),
            // Nothing may stand before the message's start, except a comment.
            Event::Ping if !self.started => out.push_str(":\n\n"),
            Event::Ping => frame(out, "ping", |_| {}),
            _ if !self.started => {
                self.start(&Start::default(), out);
                self.event(event, out);
            }
            Event::PartStart { choice: 0, part, kind } => self.open(*part, kind, out),
            Event::Text { choice: 0, part, text, .. } => self.text(*part, text, out),
            Event::Refusal { choice: 0, part, text } => self.refuse(*part, text, out),
            Event::Reasoning { choice: 0, part, text, summary } => {
                self.think(*part, text, *summary, out);
            }
            Event::Arguments { choice: 0, part, text } => self.arguments(*part, text, out),
            Event::State { choice: 0, part, state } => {
                if let Some(Open { kind: Kind::Thinking(thinking), .. }) = self.current(*part) {
                    thinking.state = Some(state.clone());
                }
            }
            Event::Citation { choice: 0, part, citation } if citation.language == LANGUAGE => {
                self.cite(*part, &citation.json, out);
            }
            Event::PartStop { choice: 0, part } if self.current(*part).is_some() => self.close(out),
            Event::Usage(usage) => self.usage = self.usage.updated(*usage),
            Event::Stop { choice: 0, reason } => self.stop = Some(reason.clone()),
            Event::End => self.end(out),
            Event::Opaque { language, name, json }
                if *language == LANGUAGE && passes(name, json) =>
            {
                write_frame(out, name, json.as_str());
            }
            // Another choice, or what this language has no word for.
            _ => {}
        }
    }
}

/// An event that is newer than this: its name is a word, and it does not speak of a block, whose
/// number may be another here.
fn passes(name: &str, json: &Json) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    !name.is_empty()
        && name.bytes().all(word)
        && json.object().is_some_and(|members| members.has("type") && !members.has("index"))
}

fn thinking_start(out: &mut Writer) {
    out.text_at("type", "thinking");
    out.text_at("thinking", "");
    out.text_at("signature", "");
}

fn end_block(out: &mut String, block: u32) {
    frame(out, "content_block_stop", |o| o.raw_at("index", block));
}

fn delta(out: &mut String, block: u32, kind: &str, name: &str, text: &str) {
    frame(out, "content_block_delta", |o| {
        o.raw_at("index", block);
        o.object_at("delta", |o| {
            o.text_at("type", kind);
            o.text_at(name, text);
        });
    });
}

/// An event whose data begin with its name as `type`.
fn frame(out: &mut String, name: &str, write: impl FnOnce(&mut Writer)) {
    let mut data = Writer::default();
    data.object(|o| {
        o.text_at("type", name);
        write(o);
    });
    write_frame(out, name, &data.finish());
}

fn write_frame(out: &mut String, name: &str, data: &str) {
    out.push_str("event: ");
    out.push_str(name);
    out.push_str("\ndata: ");
    out.push_str(data);
    out.push_str("\n\n");
}
