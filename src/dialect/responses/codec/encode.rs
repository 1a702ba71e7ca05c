//! A stream for a client that speaks Responses.
//!
//! An item closes when the next one opens or the end is known, not with its last part: texts behind
//! each other are one message, and what the limit has cut off is marked so.

use super::{
    output::{self, Call, Content, Head, State, Thought},
    traits::NAME,
};
use crate::dialect::hub::{
    Encode, Event, Exchange, Json, PartKind, Start, StopReason, StreamFault, Usage, Writer,
    envelope, event::Citation, request::ToolKind,
};

/// Writes a stream, or, if `silent`, only what stands at its end.
pub(super) struct Encoder {
    exchange: Exchange,
    silent: bool,
    head: Option<Head>,
    sequence: u64,
    /// Items that are whole.
    items: Vec<String>,
    open: Option<Open>,
    usage: Usage,
    stop: Option<StopReason>,
    /// The response object at the end.
    last: Option<String>,
}

/// The item that is open.
enum Open {
    Message { item: String, phase: Option<String>, whole: Vec<String>, part: Option<Content> },
    Call(Call),
    Reasoning { thought: Thought, part: Option<ThoughtPart> },
    Opaque(Json),
}

/// A text of reasoning that is open.
#[derive(Clone, Copy, PartialEq)]
struct ThoughtPart {
    summary: bool,
    /// Its number at the backend.
    number: Option<u32>,
}

impl Encode for Encoder {
    fn event(&mut self, event: &Event, out: &mut String) {
        if self.last.is_some() {
            return;
        }
        match event {
            Event::Start(start) => self.start(start, out),
            Event::Ping if self.silent => {}
            Event::Ping => out.push_str(": ping\n\n"),
            Event::Usage(usage) => self.usage = self.usage.updated(*usage),
            Event::PartStart { choice: 0, kind, .. } => self.part(kind, out),
            Event::Text { choice: 0, text, logprobs, .. } => {
                self.text(text, logprobs.as_ref(), out);
            }
            Event::Refusal { choice: 0, text, .. } => self.refusal(text, out),
            Event::Citation { choice: 0, citation, .. } => self.citation(citation, out),
            Event::Reasoning { choice: 0, text, summary, .. } => {
                self.reasoning(text, *summary, out);
            }
            Event::Arguments { choice: 0, text, .. } => self.arguments(text, out),
            Event::State { choice: 0, state, .. } => {
                let wanted = self.exchange.client.encrypted_reasoning;
                if let Some(Open::Reasoning { thought, .. }) = self.open.as_mut().filter(|_| wanted)
                {
                    thought.sealed = Some(envelope::wrap(state, NAME));
                }
            }
            Event::PartStop { choice: 0, .. } => self.close_part(out),
            Event::Stop { choice: 0, reason } => self.stop = Some(reason.clone()),
            Event::End => self.finish(None, out),
            Event::Fault(fault) => self.finish(Some(fault), out),
            // Only one answer can be said, and what has no word is left out.
            _ => {}
        }
    }
}

impl Encoder {
    /// For one answer.
    pub fn new(exchange: &Exchange) -> Self {
        Self {
            exchange: exchange.clone(),
            silent: false,
            head: None,
            sequence: 0,
            items: Vec::new(),
            open: None,
            usage: Usage::default(),
            stop: None,
            last: None,
        }
    }

    /// One that writes no events.
    pub fn silent(exchange: &Exchange) -> Self {
        Self { silent: true, ..Self::new(exchange) }
    }

    /// The response object at the end.
    pub fn into_last(self) -> String {
        self.last.unwrap_or_default()
    }

    /// Writes an event; `write` writes its members.
    fn emit(&mut self, kind: &str, out: &mut String, write: impl FnOnce(&Self, &mut Writer)) {
        if self.silent {
            return;
        }
        let mut writer = Writer::default();
        writer.object(|o| {
            o.text_at("type", kind);
            o.raw_at("sequence_number", self.sequence);
            write(self, o);
        });
        let data = writer.finish();
        out.reserve(data.len() + kind.len() + 18);
        for piece in ["event: ", kind, "\ndata: ", &data, "\n\n"] {
            out.push_str(piece);
        }
        self.sequence += 1;
    }

    /// An event of the open item.
    fn emit_inner(&mut self, kind: &str, out: &mut String, write: impl FnOnce(&Open, &mut Writer)) {
        let index = self.items.len();
        self.emit(kind, out, |this, o| {
            let Some(open) = &this.open else { return };
            let id = match open {
                Open::Message { item, .. } => item,
                Open::Call(call) => &call.item,
                Open::Reasoning { thought, .. } => &thought.item,
                Open::Opaque(_) => return,
            };
            o.text_at("item_id", id);
            o.raw_at("output_index", index);
            write(open, o);
        });
    }

    fn head(&mut self) -> &Head {
        let exchange = &self.exchange;
        self.head.get_or_insert_with(|| Head::new(&Start::default(), exchange))
    }

    fn start(&mut self, start: &Start, out: &mut String) {
        if self.head.is_some() {
            return;
        }
        self.usage = self.usage.updated(start.usage.unwrap_or_default());
        self.head = Some(Head::new(start, &self.exchange));
        for kind in ["response.created", "response.in_progress"] {
            self.emit(kind, out, |this, o| {
                let state = State { status: "in_progress", ..State::default() };
                if let Some(head) = &this.head {
                    head.object(&state, o.name("response"));
                }
            });
        }
    }

    fn item_id(&mut self, prefix: &str) -> String {
        let index = self.items.len();
        self.head().item_id(prefix, index)
    }

    /// A part opens: a new item, or one more content of the message that is open.
    fn part(&mut self, kind: &PartKind, out: &mut String) {
        let text = matches!(kind, PartKind::Text { .. } | PartKind::Refusal);
        self.close_part(out);
        match kind {
            PartKind::Text { phase } if self.continues(phase.as_deref()) => {}
            PartKind::Refusal if matches!(self.open, Some(Open::Message { .. })) => {}
            PartKind::Opaque { language, .. } if *language != NAME => return,
            _ => {
                self.close("completed", out);
                let open = self.opened(kind);
                self.open = Some(open);
                self.item_event("response.output_item.added", "in_progress", out);
            }
        }
        if text {
            let refusal = matches!(kind, PartKind::Refusal);
            self.open_content(refusal, out);
        }
    }

    /// The open message is of this phase.
    fn continues(&self, of: Option<&str>) -> bool {
        matches!(&self.open, Some(Open::Message { phase, .. }) if phase.as_deref() == of)
    }

    fn opened(&mut self, kind: &PartKind) -> Open {
        match kind {
            PartKind::Text { phase } => self.opened_message(phase.clone()),
            PartKind::Refusal => self.opened_message(None),
            PartKind::Reasoning { .. } => {
                let thought = Thought { item: self.item_id("rs"), ..Thought::default() };
                Open::Reasoning { thought, part: None }
            }
            PartKind::ToolCall { id, name, kind, namespace } => {
                let custom = *kind == ToolKind::Custom;
                Open::Call(Call {
                    item: self.item_id(if custom { "ctc" } else { "fc" }),
                    id: id.clone(),
                    name: name.clone(),
                    kind: *kind,
                    namespace: namespace.clone(),
                    arguments: String::new(),
                })
            }
            PartKind::Opaque { json, .. } => Open::Opaque(json.clone()),
        }
    }

    fn opened_message(&mut self, phase: Option<String>) -> Open {
        Open::Message { item: self.item_id("msg"), phase, whole: Vec::new(), part: None }
    }

    /// The open item as it is by now; one in progress is empty.
    fn item(&self, status: &str) -> String {
        let mut writer = Writer::default();
        let begins = status == "in_progress";
        match &self.open {
            Some(Open::Message { item, phase, whole, .. }) => {
                output::message(item, status, phase.as_deref(), whole, &mut writer);
            }
            Some(Open::Call(call)) => {
                let arguments = if begins { "" } else { call.arguments.as_str() };
                call.write(status, arguments, &mut writer);
            }
            Some(Open::Reasoning { thought, .. }) => {
                thought.write((status == "incomplete").then_some(status), &mut writer);
            }
            Some(Open::Opaque(json)) => writer.raw(json.as_str()),
            None => {}
        }
        writer.finish()
    }

    fn item_event(&mut self, kind: &str, status: &str, out: &mut String) -> String {
        let item = self.item(status);
        let index = self.items.len();
        self.emit(kind, out, |_, o| {
            o.raw_at("output_index", index);
            o.name("item").raw(&item);
        });
        item
    }

    fn open_content(&mut self, refusal: bool, out: &mut String) {
        let Some(Open::Message { part, .. }) = &mut self.open else { return };
        *part = Some(Content { refusal, ..Content::default() });
        self.content_event("response.content_part.added", out, |content, o| {
            content.write(o.name("part"));
        });
    }

    /// An event of the content that is open.
    fn content_event(
        &mut self,
        kind: &str,
        out: &mut String,
        write: impl FnOnce(&Content, &mut Writer),
    ) {
        self.emit_inner(kind, out, |open, o| {
            if let Open::Message { whole, part: Some(part), .. } = open {
                o.raw_at("content_index", whole.len());
                write(part, o);
            }
        });
    }

    fn content(&mut self) -> Option<&mut Content> {
        match &mut self.open {
            Some(Open::Message { part, .. }) => part.as_mut(),
            _ => None,
        }
    }

    fn text(&mut self, text: &str, logprobs: Option<&Json>, out: &mut String) {
        let Some(content) = self.content() else { return };
        let logprobs = logprobs.map(output::logprobs).unwrap_or_default();
        content.text += text;
        content.logprobs.extend(logprobs.iter().cloned());
        self.content_event("response.output_text.delta", out, |_, o| {
            o.text_at("delta", text);
            output::list_at("logprobs", &logprobs, o);
        });
    }

    fn refusal(&mut self, text: &str, out: &mut String) {
        let Some(content) = self.content() else { return };
        content.text += text;
        self.content_event("response.refusal.delta", out, |_, o| o.text_at("delta", text));
    }

    fn citation(&mut self, citation: &Citation, out: &mut String) {
        let Some(content) = self.content() else { return };
        let Some(annotation) = output::annotation(citation, content.text.chars().count()) else {
            return;
        };
        let number = content.annotations.len();
        content.annotations.push(annotation.clone());
        self.content_event("response.output_text.annotation.added", out, |_, o| {
            o.raw_at("annotation_index", number);
            o.json_at("annotation", &annotation);
        });
    }

    fn arguments(&mut self, text: &str, out: &mut String) {
        let Some(Open::Call(call)) = &mut self.open else { return };
        if text.is_empty() {
            return;
        }
        call.arguments += text;
        let kind = match call.member() {
            "input" => "response.custom_tool_call_input.delta",
            _ => "response.function_call_arguments.delta",
        };
        self.emit_inner(kind, out, |_, o| o.text_at("delta", text));
    }

    fn reasoning(&mut self, text: &str, number: Option<u32>, out: &mut String) {
        let summary = number.is_some() || self.exchange.summaries;
        let wanted = ThoughtPart { summary, number };
        let Some(Open::Reasoning { part, .. }) = &self.open else { return };
        if *part != Some(wanted) {
            self.close_part(out);
            self.open_thought(wanted, out);
        }
        let Some(Open::Reasoning { thought, .. }) = &mut self.open else { return };
        let list = if summary { &mut thought.summary } else { &mut thought.content };
        if let Some(open) = list.last_mut() {
            open.push_str(text);
        }
        let kind = match summary {
            true => "response.reasoning_summary_text.delta",
            false => "response.reasoning_text.delta",
        };
        self.thought_event(kind, out, |_, o| o.text_at("delta", text));
    }

    fn open_thought(&mut self, wanted: ThoughtPart, out: &mut String) {
        let Some(Open::Reasoning { thought, part }) = &mut self.open else { return };
        *part = Some(wanted);
        let (list, kind) = match wanted.summary {
            true => (&mut thought.summary, "response.reasoning_summary_part.added"),
            false => (&mut thought.content, "response.content_part.added"),
        };
        list.push(String::new());
        self.thought_event(kind, out, |_, o| thought_part(wanted.summary, "", o.name("part")));
    }

    /// An event of the text of reasoning that is open.
    fn thought_event(
        &mut self,
        kind: &str,
        out: &mut String,
        write: impl FnOnce(&str, &mut Writer),
    ) {
        self.emit_inner(kind, out, |open, o| {
            let Open::Reasoning { thought, part: Some(part) } = open else { return };
            let (name, list) = match part.summary {
                true => ("summary_index", &thought.summary),
                false => ("content_index", &thought.content),
            };
            o.raw_at(name, list.len().saturating_sub(1));
            write(list.last().map_or("", String::as_str), o);
        });
    }

    /// Closes what is open within the item.
    fn close_part(&mut self, out: &mut String) {
        match &self.open {
            Some(Open::Message { part: Some(content), .. }) => {
                let refusal = content.refusal;
                let kind = match refusal {
                    true => "response.refusal.done",
                    false => "response.output_text.done",
                };
                self.content_event(kind, out, |content, o| {
                    let name = if refusal { "refusal" } else { "text" };
                    o.text_at(name, &content.text);
                    if !refusal {
                        output::list_at("logprobs", &content.logprobs, o);
                    }
                });
                self.content_event("response.content_part.done", out, |content, o| {
                    content.write(o.name("part"));
                });
                if let Some(Open::Message { whole, part, .. }) = &mut self.open {
                    whole.extend(part.take().map(|content| {
                        let mut writer = Writer::default();
                        content.write(&mut writer);
                        writer.finish()
                    }));
                }
            }
            Some(Open::Reasoning { part: Some(part), .. }) => {
                let summary = part.summary;
                let (text, whole) = match summary {
                    true => (
                        "response.reasoning_summary_text.done",
                        "response.reasoning_summary_part.done",
                    ),
                    false => ("response.reasoning_text.done", "response.content_part.done"),
                };
                self.thought_event(text, out, |text, o| o.text_at("text", text));
                self.thought_event(whole, out, |text, o| {
                    thought_part(summary, text, o.name("part"));
                });
                if let Some(Open::Reasoning { part, .. }) = &mut self.open {
                    *part = None;
                }
            }
            _ => {}
        }
    }

    /// Closes the open item.
    fn close(&mut self, status: &str, out: &mut String) {
        self.close_part(out);
        if let Some(Open::Call(call)) = &self.open
            && status == "completed"
            && call.member() == "arguments"
            && call.arguments.is_empty()
        {
            // Clients parse them: a call without any has an empty object, as the vendor writes it.
            self.arguments("{}", out);
        }
        let Some(open) = &self.open else { return };
        if let Open::Call(call) = open {
            let kind = match call.member() {
                "input" => "response.custom_tool_call_input.done",
                _ => "response.function_call_arguments.done",
            };
            self.emit_inner(kind, out, |open, o| {
                if let Open::Call(call) = open {
                    if call.member() == "arguments" {
                        o.text_at("name", &call.name);
                    }
                    o.text_at(call.member(), &call.arguments);
                }
            });
        }
        let item = self.item_event("response.output_item.done", status, out);
        self.items.push(item);
        self.open = None;
    }

    /// The last event, once.
    fn finish(&mut self, fault: Option<&StreamFault>, out: &mut String) {
        if self.head.is_none() {
            self.start(&Start::default(), out);
        }
        let (mut status, mut reason) = output::status(self.stop.as_ref());
        if fault.is_some() {
            (status, reason) = ("failed", None);
        }
        self.close(if status == "completed" { status } else { "incomplete" }, out);
        let mut writer = Writer::default();
        if let Some(head) = &self.head {
            let usage = Some(self.usage);
            let state = State { status, error: fault, reason, output: &self.items, usage };
            head.object(&state, &mut writer);
        }
        let object = writer.finish();
        self.emit(&format!("response.{status}"), out, |_, o| o.name("response").raw(&object));
        self.last = Some(object);
    }
}

/// A text of reasoning.
fn thought_part(summary: bool, text: &str, out: &mut Writer) {
    out.object(|o| {
        o.text_at("type", if summary { "summary_text" } else { "reasoning_text" });
        o.text_at("text", text);
    });
}
