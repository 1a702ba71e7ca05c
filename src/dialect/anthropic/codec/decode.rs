//! Reads a backend's stream.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{LANGUAGE, errors, usage::Counts, words};
use crate::dialect::hub::{
    Class, Decode, Event, Exchange, Json, Object, PartKind, Start, StopReason, StreamFault,
    event::Citation,
    request::{State, ToolKind},
};

/// Reads a stream: `message_start`, blocks, `message_delta`, `message_stop`.
pub struct Decoder {
    issuer: String,
    /// Blocks that have begun and not ended.
    open: Vec<Block>,
    /// The number of the next part.
    next: u32,
    counts: Counts,
    stopped: bool,
    /// The end was announced without a reason: vLLM has no word for an answer that it broke off.
    no_reason: bool,
    over: bool,
}

/// A block that has begun.
struct Block {
    index: u32,
    kind: Kind,
    /// Its part, once there is something of it.
    part: Option<u32>,
}

enum Kind {
    Text,
    Thinking {
        signature: String,
    },
    Redacted,
    Call {
        /// Arguments that stood in the beginning already, for a server that writes no deltas.
        whole: Option<Json>,
    },
    /// A block that has no word in the hub, with what its deltas add.
    Other {
        kind: String,
        json: Json,
        added: String,
    },
}

/// The data of an event.
#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(rename = "type", borrow, default)]
    kind: Cow<'a, str>,
    #[serde(default)]
    index: Option<u32>,
    #[serde(borrow, default)]
    delta: Option<&'a RawValue>,
    #[serde(borrow, default)]
    content_block: Option<&'a RawValue>,
    #[serde(borrow, default)]
    message: Option<&'a RawValue>,
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

/// What an event adds to a block.
#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(rename = "type", borrow, default)]
    kind: Cow<'a, str>,
    text: Option<String>,
    thinking: Option<String>,
    signature: Option<String>,
    partial_json: Option<String>,
    #[serde(borrow)]
    citation: Option<&'a RawValue>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

/// What the event behind the blocks says.
#[derive(Deserialize)]
struct Ending<'a> {
    stop_reason: Option<String>,
    stop_sequence: Option<String>,
    #[serde(borrow)]
    stop_details: Option<&'a RawValue>,
}

impl Decoder {
    /// For one answer.
    pub fn new(exchange: &Exchange) -> Self {
        Self {
            issuer: exchange.issuer.clone(),
            open: Vec::new(),
            next: 0,
            counts: Counts::default(),
            stopped: false,
            no_reason: false,
            over: false,
        }
    }

    /// Reads the head of a message: of a stream, or of a plain answer.
    pub fn start(&mut self, message: &str, out: &mut Vec<Event>) {
        let Ok(message) = Object::parse(message) else { return };
        let mut service_tier = None;
        if let Some(usage) = message.get("usage") {
            self.counts.take(usage.get());
            service_tier = Object::parse(usage.get()).ok().and_then(|u| u.text("service_tier"));
        }
        out.push(Event::Start(Start {
            id: message.text("id").unwrap_or_default(),
            model: message.text("model").filter(|model| !model.is_empty()),
            usage: Some(self.counts.usage()),
            service_tier,
            ..Start::default()
        }));
    }

    /// A block begins. In a plain answer it is whole already.
    pub fn begin(&mut self, index: u32, raw: &RawValue, out: &mut Vec<Event>) {
        // A block that never ended has ended.
        self.end_block(index, out);
        let Ok(mut block) = Object::parse(raw.get()) else { return };
        let kind = block.text("type").unwrap_or_default();
        match kind.as_str() {
            "text" => {
                self.text(index, block.read("text").unwrap_or_default(), out);
                for citation in block.read::<Vec<&RawValue>>("citations").unwrap_or_default() {
                    self.cite(index, citation, out);
                }
            }
            "thinking" => {
                self.think(index, block.read("thinking").unwrap_or_default(), out);
                self.sign(index, block.read("signature").unwrap_or_default());
            }
            "redacted_thinking" => {
                let Some(value) = block.read::<String>("data") else { return };
                self.open.push(Block { index, kind: Kind::Redacted, part: None });
                let part = self.part(self.open.len() - 1, out);
                out.push(Event::State { choice: 0, part, state: self.state(value) });
            }
            "tool_use" => {
                let id = block.read("id").unwrap_or_default();
                let name = block.read("name").unwrap_or_default();
                let whole =
                    block.json("input").filter(|input| !matches!(input.as_str(), "{}" | "\"\""));
                let part = self.number();
                self.open.push(Block { index, kind: Kind::Call { whole }, part: Some(part) });
                let kind =
                    PartKind::ToolCall { id, name, kind: ToolKind::Function, namespace: None };
                out.push(Event::PartStart { choice: 0, part, kind });
            }
            "" => {}
            _ => {
                let kind = Kind::Other { kind, json: Json::of(raw), added: String::new() };
                self.open.push(Block { index, kind, part: None });
            }
        }
    }

    fn state(&self, value: String) -> State {
        State { issuer: Some(self.issuer.clone()), language: LANGUAGE.to_owned(), value }
    }

    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }

    /// The open block of this number, if it is of this kind. One of another kind ends.
    fn block(
        &mut self,
        index: u32,
        fits: impl FnOnce(&Kind) -> bool,
        make: impl FnOnce() -> Kind,
        out: &mut Vec<Event>,
    ) -> usize {
        if let Some(at) = self.open.iter().position(|block| block.index == index) {
            if fits(&self.open[at].kind) {
                return at;
            }
            self.end_block(index, out);
        }
        self.open.push(Block { index, kind: make(), part: None });
        self.open.len() - 1
    }

    /// The part of a block, which opens with the first thing that is said of it.
    fn part(&mut self, at: usize, out: &mut Vec<Event>) -> u32 {
        if let Some(part) = self.open[at].part {
            return part;
        }
        let part = self.number();
        let block = &mut self.open[at];
        block.part = Some(part);
        let kind = match &block.kind {
            Kind::Thinking { .. } => PartKind::Reasoning { redacted: false },
            Kind::Redacted => PartKind::Reasoning { redacted: true },
            _ => PartKind::Text { phase: None },
        };
        out.push(Event::PartStart { choice: 0, part, kind });
        part
    }

    fn text_block(&mut self, index: u32, out: &mut Vec<Event>) -> u32 {
        let at = self.block(index, |kind| matches!(kind, Kind::Text), || Kind::Text, out);
        self.part(at, out)
    }

    fn text(&mut self, index: u32, text: String, out: &mut Vec<Event>) {
        if !text.is_empty() {
            let part = self.text_block(index, out);
            out.push(Event::Text { choice: 0, part, text, logprobs: None });
        }
    }

    fn cite(&mut self, index: u32, raw: &RawValue, out: &mut Vec<Event>) {
        let Ok(citation) = Object::parse(raw.get()) else { return };
        let address = |name: &str| citation.text(name).filter(|url| url.starts_with("http"));
        let citation = Citation {
            language: LANGUAGE,
            json: Json::of(raw),
            url: address("url").or_else(|| address("source")),
            title: citation.text("title").or_else(|| citation.text("document_title")),
        };
        let part = self.text_block(index, out);
        out.push(Event::Citation { choice: 0, part, citation });
    }

    fn thinking(&mut self, index: u32, out: &mut Vec<Event>) -> usize {
        let make = || Kind::Thinking { signature: String::new() };
        self.block(index, |kind| matches!(kind, Kind::Thinking { .. }), make, out)
    }

    fn think(&mut self, index: u32, text: String, out: &mut Vec<Event>) {
        let at = self.thinking(index, out);
        if !text.is_empty() {
            let part = self.part(at, out);
            out.push(Event::Reasoning { choice: 0, part, text, summary: None });
        }
    }

    fn sign(&mut self, index: u32, value: String) {
        let mut open = self.open.iter_mut().filter(|block| block.index == index);
        if let Some(Kind::Thinking { signature }) = open.next().map(|block| &mut block.kind)
            && !value.is_empty()
        {
            *signature = value;
        }
    }

    fn add(&mut self, index: u32, raw: &str, out: &mut Vec<Event>) {
        let Ok(delta) = serde_json::from_str::<Delta<'_>>(raw) else { return self.broken(out) };
        match &*delta.kind {
            "text_delta" => self.text(index, delta.text.unwrap_or_default(), out),
            "input_json_delta" => {
                self.arguments(index, delta.partial_json.unwrap_or_default(), out);
            }
            "thinking_delta" => self.think(index, delta.thinking.unwrap_or_default(), out),
            "signature_delta" => {
                self.thinking(index, out);
                self.sign(index, delta.signature.unwrap_or_default());
            }
            "citations_delta" => {
                if let Some(citation) = delta.citation {
                    self.cite(index, citation, out);
                }
            }
            "compaction_delta" => {
                let text =
                    delta.content.and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
                if let Some(Kind::Other { added, .. }) = self.kind(index) {
                    added.push_str(&text.unwrap_or_default());
                }
            }
            _ => {}
        }
    }

    fn kind(&mut self, index: u32) -> Option<&mut Kind> {
        let block = self.open.iter_mut().find(|block| block.index == index)?;
        Some(&mut block.kind)
    }

    fn arguments(&mut self, index: u32, text: String, out: &mut Vec<Event>) {
        let Some(block) = self.open.iter_mut().find(|block| block.index == index) else { return };
        match &mut block.kind {
            Kind::Call { whole } if !text.is_empty() => {
                *whole = None;
                let part = block.part.unwrap_or_default();
                out.push(Event::Arguments { choice: 0, part, text });
            }
            Kind::Other { added, .. } => added.push_str(&text),
            _ => {}
        }
    }

    /// A block has ended; none of this number: nothing happens.
    pub fn end_block(&mut self, index: u32, out: &mut Vec<Event>) {
        let Some(at) = self.open.iter().position(|block| block.index == index) else { return };
        let Block { kind, mut part, .. } = self.open.remove(at);
        match kind {
            Kind::Text | Kind::Redacted => {}
            Kind::Thinking { signature } => {
                if !signature.is_empty() {
                    let part = *part.get_or_insert_with(|| {
                        let part = self.number();
                        let kind = PartKind::Reasoning { redacted: false };
                        out.push(Event::PartStart { choice: 0, part, kind });
                        part
                    });
                    out.push(Event::State { choice: 0, part, state: self.state(signature) });
                }
            }
            Kind::Call { whole } => {
                if let (Some(part), Some(whole)) = (part, whole) {
                    let text = whole.as_str().to_owned();
                    out.push(Event::Arguments { choice: 0, part, text });
                }
            }
            Kind::Other { kind, json, added } => {
                let json = completed(&kind, json, &added);
                let number = self.number();
                part = Some(number);
                let kind = PartKind::Opaque { language: LANGUAGE, kind, json };
                out.push(Event::PartStart { choice: 0, part: number, kind });
            }
        }
        if let Some(part) = part {
            out.push(Event::PartStop { choice: 0, part });
        }
    }

    /// Why the answer ended: all of its blocks have ended, too. `details`: of a refusal, what the
    /// vendor explains.
    pub fn stop(&mut self, reason: StopReason, details: Option<&RawValue>, out: &mut Vec<Event>) {
        while let Some(index) = self.open.first().map(|block| block.index) {
            self.end_block(index, out);
        }
        let details = details.and_then(|details| Object::parse(details.get()).ok());
        let explained = details.and_then(|details| details.text("explanation"));
        if let (StopReason::Refusal, Some(text), false) = (&reason, explained, self.stopped) {
            let part = self.number();
            out.push(Event::PartStart { choice: 0, part, kind: PartKind::Refusal });
            out.push(Event::Refusal { choice: 0, part, text });
            out.push(Event::PartStop { choice: 0, part });
        }
        self.stopped = true;
        out.push(Event::Stop { choice: 0, reason });
    }

    fn ending(&mut self, frame: &Frame<'_>, out: &mut Vec<Event>) {
        if let Some(usage) = frame.usage {
            self.counts.take(usage.get());
            out.push(Event::Usage(self.counts.usage()));
        }
        let Some(delta) = frame.delta else { return };
        let Ok(ending) = serde_json::from_str::<Ending<'_>>(delta.get()) else {
            return self.broken(out);
        };
        match ending.stop_reason {
            Some(reason) => {
                let reason = words::read(&reason, ending.stop_sequence);
                self.stop(reason, ending.stop_details, out);
            }
            None => self.no_reason = true,
        }
    }

    fn finish(&mut self, out: &mut Vec<Event>) {
        if !self.stopped {
            let reason = if self.no_reason { StopReason::Aborted } else { StopReason::EndTurn };
            self.stop(reason, None, out);
        }
        self.over = true;
        out.push(Event::End);
    }

    fn broken(&mut self, out: &mut Vec<Event>) {
        self.over = true;
        let message = "The backend's stream cannot be read";
        out.push(Event::Fault(StreamFault::new(Class::Server, message)));
    }
}

impl Decode for Decoder {
    fn event(&mut self, name: Option<&str>, data: &str, out: &mut Vec<Event>) {
        if self.over {
            return;
        }
        if data.trim() == "[DONE]" {
            return self.end(out);
        }
        let Ok(frame) = serde_json::from_str::<Frame<'_>>(data) else {
            return match name {
                Some("ping") => out.push(Event::Ping),
                _ => self.broken(out),
            };
        };
        let kind = if frame.kind.is_empty() { name.unwrap_or_default() } else { &frame.kind };
        let index = frame.index.unwrap_or_default();
        match kind {
            "content_block_delta" => {
                if let Some(delta) = frame.delta {
                    self.add(index, delta.get(), out);
                }
            }
            "content_block_start" => {
                if let Some(block) = frame.content_block {
                    self.begin(index, block, out);
                }
            }
            "content_block_stop" => self.end_block(index, out),
            "message_start" => {
                if let Some(message) = frame.message {
                    self.start(message.get(), out);
                }
            }
            "message_delta" => self.ending(&frame, out),
            "message_stop" => self.finish(out),
            "ping" => out.push(Event::Ping),
            "error" => {
                self.over = true;
                out.push(Event::Fault(errors::read(0, data)));
            }
            _ if frame.error.is_some() => {
                self.over = true;
                out.push(Event::Fault(errors::read(0, data)));
            }
            _ => {
                if let Ok(json) = Json::parse(data) {
                    let name = kind.to_owned();
                    out.push(Event::Opaque { language: LANGUAGE, name, json });
                }
            }
        }
    }

    fn end(&mut self, out: &mut Vec<Event>) {
        if self.stopped && !self.over {
            self.finish(out);
        }
    }
}

/// A block with what its deltas have added: the input of a call, the text of a compaction.
fn completed(kind: &str, json: Json, added: &str) -> Json {
    if added.is_empty() {
        return json;
    }
    let (name, value) = match kind {
        "compaction" => ("content", Json::text(added)),
        _ => match Json::parse(added) {
            Ok(input) => ("input", input),
            Err(_) => return json,
        },
    };
    let Some(mut block) = json.object() else { return json };
    block.take(name);
    let members = block.rest();
    Json::written(|out| {
        out.object(|o| {
            o.members(&members);
            o.json_at(name, &value);
        });
    })
}
