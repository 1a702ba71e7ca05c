//! Reads a backend's stream, and its plain answer as a delta that holds all of it.

use serde_json::value::RawValue;

use super::{
    calls::{Call, Calls, Piece},
    details::{self, Gathered},
    errors, tokens,
    words::{LANGUAGE, stop_reason},
};
use crate::dialect::hub::{
    Class, Decode, Event, Exchange, Json, Object, PartKind, Start, StopReason, StreamFault, Usage,
    event::Citation, request::State,
};

/// The highest number of a choice.
const LAST_CHOICE: u32 = 1023;

/// Reads a plain answer.
///
/// # Errors
/// If it cannot be read, or says that it has failed.
pub fn answer(body: &str, exchange: &Exchange) -> Result<Vec<Event>, StreamFault> {
    let Ok(object) = Object::parse(body) else {
        return Err(StreamFault::new(Class::Server, "The backend's answer is no JSON object"));
    };
    let mut decoder = Decoder { whole: true, ..Decoder::new(exchange) };
    let mut out = Vec::new();
    decoder.chunk(object, body, &mut out);
    if decoder.choices.is_empty() && !decoder.over {
        return Err(StreamFault::new(Class::Server, "The backend's answer has no choices"));
    }
    decoder.done(&mut out);
    match out.pop() {
        Some(Event::Fault(fault)) => Err(fault),
        last => {
            out.extend(last);
            Ok(out)
        }
    }
}

/// Reads a stream.
pub struct Decoder {
    issuer: String,
    started: bool,
    /// The answer has ended, well or not.
    over: bool,
    /// A plain answer is read.
    whole: bool,
    usage: Option<Usage>,
    choices: Vec<Choice>,
}

impl Decoder {
    /// For one answer.
    pub fn new(exchange: &Exchange) -> Self {
        Self {
            issuer: exchange.issuer.clone(),
            started: false,
            over: false,
            whole: false,
            usage: None,
            choices: Vec::new(),
        }
    }

    fn fault(&mut self, fault: StreamFault, out: &mut Vec<Event>) {
        self.over = true;
        out.push(Event::Fault(fault));
    }

    fn is_whole(&self) -> bool {
        !self.choices.is_empty() && self.choices.iter().all(|choice| choice.stopped)
    }

    /// The backend says that its answer is whole. Some servers give no reason for the end; an
    /// answer whose calls are cut off is none.
    fn done(&mut self, out: &mut Vec<Event>) {
        if self.over {
            return;
        }
        for at in 0..self.choices.len() {
            let choice = &mut self.choices[at];
            if choice.stopped {
                continue;
            }
            let result = match choice.calls.are_whole() {
                true => choice.finish(StopReason::EndTurn, &self.issuer, out),
                false => Err(StreamFault::cut()),
            };
            if let Err(fault) = result {
                return self.fault(fault, out);
            }
        }
        self.over = true;
        out.push(Event::End);
    }

    /// Takes a chunk, or a whole answer; `data` is its text.
    fn chunk(&mut self, mut from: Object<'_>, data: &str, out: &mut Vec<Event>) {
        if is_error(&from) {
            return self.fault(errors::read(0, data), out);
        }
        let choices: Vec<&RawValue> = from.read("choices").unwrap_or_default();
        let mut usage = from.take("usage").and_then(tokens::read).or_else(|| {
            let mut groq = Object::parse(from.take("x_groq")?.get()).ok()?;
            tokens::read(groq.take("usage")?)
        });
        let mut parsed = Vec::with_capacity(choices.len());
        for (at, raw) in (0u32..).zip(choices) {
            let Ok(mut choice) = Object::parse(raw.get()) else { continue };
            if let Some(error) = choice.get("error").filter(|error| says_something(error)) {
                let error = format!("{{\"error\":{}}}", error.get());
                return self.fault(errors::read(0, &error), out);
            }
            usage = usage.or_else(|| tokens::read(choice.take("usage")?));
            let number = choice.read("index").unwrap_or(if self.whole { at } else { 0 });
            parsed.push((number, choice));
        }
        let fresh = usage.filter(|usage| Some(*usage) != self.usage);
        if !self.started {
            let id: String = from.read("id").unwrap_or_default();
            // Azure's first chunk has neither, it tells of the prompt.
            if id.is_empty() && parsed.is_empty() && usage.is_none() {
                return;
            }
            self.started = true;
            let text = |from: &mut Object<'_>, name: &str| {
                from.read(name).filter(|text: &String| !text.is_empty())
            };
            out.push(Event::Start(Start {
                id,
                model: text(&mut from, "model"),
                created: from.read("created"),
                usage: if self.whole { None } else { usage },
                service_tier: text(&mut from, "service_tier"),
                fingerprint: text(&mut from, "system_fingerprint"),
            }));
        }
        for (number, choice) in parsed {
            if let Err(fault) = self.choice(number, choice, out) {
                return self.fault(fault, out);
            }
        }
        if let Some(usage) = fresh {
            self.usage = Some(usage);
            out.push(Event::Usage(usage));
        }
    }

    fn choice(
        &mut self,
        number: u32,
        mut from: Object<'_>,
        out: &mut Vec<Event>,
    ) -> Result<(), StreamFault> {
        if number > LAST_CHOICE {
            return Ok(());
        }
        let at = self.choices.iter().position(|choice| choice.number == number);
        let at = at.unwrap_or_else(|| {
            self.choices.push(Choice { number, ..Choice::default() });
            self.choices.len() - 1
        });
        let choice = &mut self.choices[at];
        if choice.stopped {
            return Ok(());
        }
        let delta = from.take("delta");
        // Some servers repeat the whole message at the end.
        let message = from.take("message").filter(|_| choice.next_part == 0);
        let delta = delta.filter(|delta| delta.get() != "{}").or(message);
        if let Some(delta) = delta.and_then(|delta| Object::parse(delta.get()).ok()) {
            let logprobs = from.take("logprobs").and_then(logprobs);
            choice.delta(delta, logprobs, self.whole, &self.issuer, out);
        }
        let finish: Option<String> = from.read("finish_reason");
        if let Some(finish) = finish.filter(|word| !word.is_empty()) {
            let reason = stop_reason(&finish, from.take("stop_reason"));
            choice.finish(reason, &self.issuer, out)?;
        }
        Ok(())
    }
}

impl Decode for Decoder {
    fn event(&mut self, name: Option<&str>, data: &str, out: &mut Vec<Event>) {
        let data = data.trim();
        if self.over || data.is_empty() {
            return;
        }
        if data == "[DONE]" {
            return self.done(out);
        }
        if name == Some("error") {
            return self.fault(errors::read(0, data), out);
        }
        match Object::parse(data) {
            Ok(chunk) => self.chunk(chunk, data, out),
            // The answer is whole, what comes behind it does not matter.
            Err(_) if self.is_whole() => {}
            // Google's endpoint with this language sends a list with one error.
            Err(_)
                if serde_json::from_str::<Vec<Object<'_>>>(data).is_ok_and(|l| !l.is_empty()) =>
            {
                self.fault(errors::read(0, data), out);
            }
            Err(_) => {
                let message = "The backend's stream has an event that is no JSON object";
                self.fault(StreamFault::new(Class::Server, message), out);
            }
        }
    }

    fn end(&mut self, out: &mut Vec<Event>) {
        if !self.over && self.is_whole() {
            self.over = true;
            out.push(Event::End);
        }
    }
}

fn says_something(value: &RawValue) -> bool {
    !matches!(value.get(), "null" | "false" | "\"\"")
}

/// An error of any of the shapes that servers write into a stream.
fn is_error(from: &Object<'_>) -> bool {
    if from.get("error").is_some_and(says_something) {
        return true;
    }
    if from.has("choices") {
        return false;
    }
    let kind = from.text("object");
    kind.as_deref() == Some("error")
        || from.has("detail")
        || (from.has("message") && (from.has("code") || from.has("type") || from.has("status")))
}

/// The probabilities of the text's tokens, if there are any.
fn logprobs(raw: &RawValue) -> Option<Json> {
    let mut all = Object::parse(raw.get()).ok()?;
    all.take("content").filter(|list| list.get() != "[]").map(Json::of)
}

/// One of the answers.
#[derive(Default)]
struct Choice {
    number: u32,
    next_part: u32,
    /// The open part that is no call.
    open: Option<(Kind, u32)>,
    calls: Calls,
    details: Gathered,
    /// The reasoning part that was open last, and its text.
    reasoned: (u32, String),
    stopped: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Text,
    Reasoning,
    Refusal,
}

impl Choice {
    fn delta(
        &mut self,
        mut from: Object<'_>,
        mut logprobs: Option<Json>,
        whole: bool,
        issuer: &str,
        out: &mut Vec<Event>,
    ) {
        self.reasoning(&mut from, issuer, out);
        if let Some(content) = from.take("content") {
            self.content(content, &mut logprobs, issuer, out);
        }
        // Tokens that have no text of their own.
        if let (Some(_), Some((Kind::Text, part))) = (&logprobs, self.open) {
            let choice = self.number;
            out.push(Event::Text { choice, part, text: String::new(), logprobs });
        }
        if let Some(list) = from.take("annotations") {
            self.annotations(list, out);
        }
        let refusal: Option<String> = from.read("refusal");
        if let Some(text) = refusal.filter(|text| !text.is_empty()) {
            let (choice, part) = (self.number, self.part(Kind::Refusal, issuer, out));
            out.push(Event::Refusal { choice, part, text });
        }
        for name in ["audio", "images"] {
            if let Some(value) = from.take(name).filter(|value| value.get() != "[]") {
                self.opaque(name, value, issuer, out);
            }
        }
        let calls: Vec<&RawValue> = from.read("tool_calls").unwrap_or_default();
        // Servers that write both mean the same call.
        let legacy = from.take("function_call").filter(|_| calls.is_empty());
        for piece in calls.into_iter().filter_map(Piece::read) {
            self.call(piece, whole, issuer, out);
        }
        if let Some(piece) = legacy.and_then(Piece::legacy) {
            self.call(piece.at(0), whole, issuer, out);
        }
    }

    fn reasoning(&mut self, from: &mut Object<'_>, issuer: &str, out: &mut Vec<Event>) {
        let mut text = |name: &str| from.read(name).filter(|text: &String| !text.is_empty());
        let content = text("reasoning_content");
        // Servers that give both say the same in both.
        let mut text = text("reasoning").filter(|_| content.is_none()).or(content);
        let mut summary = None;
        if let Some(list) = from.take("reasoning_details") {
            let (said, shown) = self.details.take(list);
            // With its signature a text may stand there once more, whole.
            let repeats = said == self.reasoned.1;
            text = text.or_else(|| (!said.is_empty() && !repeats).then_some(said));
            summary = Some(shown).filter(|shown| text.is_none() && !shown.is_empty());
        }
        let choice = self.number;
        let (text, number) = match (text, summary) {
            (Some(text), _) => (text, None),
            (None, Some(text)) => (text, Some(0)),
            (None, None) => return,
        };
        let part = self.part(Kind::Reasoning, issuer, out);
        if self.reasoned.0 != part {
            self.reasoned = (part, String::new());
        }
        self.reasoned.1 += &text;
        out.push(Event::Reasoning { choice, part, text, summary: number });
    }

    /// A text, or Mistral's list of chunks.
    fn content(
        &mut self,
        raw: &RawValue,
        logprobs: &mut Option<Json>,
        issuer: &str,
        out: &mut Vec<Event>,
    ) {
        if raw.get().starts_with('"') {
            let text: String = serde_json::from_str(raw.get()).unwrap_or_default();
            return self.text(text, logprobs, issuer, out);
        }
        let chunks: Vec<&RawValue> = serde_json::from_str(raw.get()).unwrap_or_default();
        for raw in chunks {
            let Ok(mut chunk) = Object::parse(raw.get()) else { continue };
            if let Some(thinking) = chunk.take("thinking") {
                let text = match thinking.get().starts_with('"') {
                    true => serde_json::from_str(thinking.get()).unwrap_or_default(),
                    false => details::chunk_text(thinking.get()),
                };
                let choice = self.number;
                if !text.is_empty() {
                    let part = self.part(Kind::Reasoning, issuer, out);
                    out.push(Event::Reasoning { choice, part, text, summary: None });
                }
                let signature: Option<String> = chunk.read("signature");
                if let Some(value) = signature.filter(|text| !text.is_empty()) {
                    let part = self.part(Kind::Reasoning, issuer, out);
                    out.push(Event::State { choice, part, state: state(issuer, value) });
                }
            } else if let Some(text) = chunk.read("text") {
                self.text(text, logprobs, issuer, out);
            }
        }
    }

    fn text(
        &mut self,
        text: String,
        logprobs: &mut Option<Json>,
        issuer: &str,
        out: &mut Vec<Event>,
    ) {
        if text.is_empty() {
            return;
        }
        let (choice, part) = (self.number, self.part(Kind::Text, issuer, out));
        out.push(Event::Text { choice, part, text, logprobs: logprobs.take() });
    }

    /// Citations of the open text.
    fn annotations(&mut self, raw: &RawValue, out: &mut Vec<Event>) {
        let Some((Kind::Text, part)) = self.open else { return };
        let list: Vec<&RawValue> = serde_json::from_str(raw.get()).unwrap_or_default();
        for raw in list {
            let inner = Object::parse(raw.get()).ok().and_then(|mut a| a.take("url_citation"));
            let inner = inner.and_then(|inner| Object::parse(inner.get()).ok()).unwrap_or_default();
            let citation = Citation {
                language: LANGUAGE,
                json: Json::of(raw),
                url: inner.text("url"),
                title: inner.text("title"),
            };
            out.push(Event::Citation { choice: self.number, part, citation });
        }
    }

    /// Output that has no word in the hub, as a part of its own.
    fn opaque(&mut self, name: &str, value: &RawValue, issuer: &str, out: &mut Vec<Event>) {
        self.close(issuer, out);
        let kind =
            PartKind::Opaque { language: LANGUAGE, kind: name.to_owned(), json: Json::of(value) };
        let (choice, part) = (self.number, self.next_part);
        self.next_part += 1;
        out.push(Event::PartStart { choice, part, kind });
        out.push(Event::PartStop { choice, part });
    }

    fn call(&mut self, piece: Piece, whole: bool, issuer: &str, out: &mut Vec<Event>) {
        let (at, from) = self.calls.take(piece, whole);
        let choice = self.number;
        let last = self.next_part;
        let call = self.calls.get(at);
        if call.closed || (call.part.is_none() && call.name.is_empty()) {
            return;
        }
        let opens = call.part.is_none();
        if opens {
            self.close(issuer, out);
            let part = self.next_part;
            self.next_part += 1;
            let call = self.calls.get(at);
            call.part = Some(part);
            let kind = PartKind::ToolCall {
                id: call.id.clone(),
                name: call.name.clone(),
                kind: call.kind,
                namespace: None,
            };
            out.push(Event::PartStart { choice, part, kind });
        }
        let call = self.calls.get(at);
        let Some(part) = call.part else { return };
        let text = call.text(if opens { 0 } else { from });
        if !text.is_empty() {
            out.push(Event::Arguments { choice, part, text: text.to_owned() });
        }
        if let Some(mut state) = call.state.take() {
            state.issuer = Some(issuer.to_owned());
            out.push(Event::State { choice, part, state });
        }
        // Another part waits for it.
        if !opens && part + 1 < last && call.is_whole() {
            close_call(call, choice, part, out);
        }
    }

    /// The open part of a kind, which is opened if there is none.
    fn part(&mut self, kind: Kind, issuer: &str, out: &mut Vec<Event>) -> u32 {
        if let Some((_, part)) = self.open.filter(|(open, _)| *open == kind) {
            return part;
        }
        let waiting = !self.details.is_empty() && kind == Kind::Reasoning;
        let details = waiting.then(|| std::mem::take(&mut self.details));
        self.close(issuer, out);
        self.details = details.unwrap_or_default();
        let new = match kind {
            Kind::Text => PartKind::Text { phase: None },
            Kind::Reasoning => PartKind::Reasoning { redacted: false },
            Kind::Refusal => PartKind::Refusal,
        };
        let part = self.start(new, out);
        self.open = Some((kind, part));
        part
    }

    fn start(&mut self, kind: PartKind, out: &mut Vec<Event>) -> u32 {
        let part = self.next_part;
        self.next_part += 1;
        out.push(Event::PartStart { choice: self.number, part, kind });
        part
    }

    /// Closes what is open before another part begins: a call only if it is whole. Details that
    /// came without any text are a part of their own.
    fn close(&mut self, issuer: &str, out: &mut Vec<Event>) {
        let choice = self.number;
        let details = self.details.finish();
        let mut value = details;
        if let Some((kind, part)) = self.open.take() {
            if let Some(value) = value.take_if(|_| kind == Kind::Reasoning) {
                out.push(Event::State { choice, part, state: state(issuer, value) });
            }
            out.push(Event::PartStop { choice, part });
        }
        for call in self.calls.iter_mut().filter(|call| !call.closed && call.is_whole()) {
            if let Some(part) = call.part {
                close_call(call, choice, part, out);
            }
        }
        if let Some(value) = value {
            let part = self.start(PartKind::Reasoning { redacted: true }, out);
            out.push(Event::State { choice, part, state: state(issuer, value) });
            out.push(Event::PartStop { choice, part });
        }
    }

    fn finish(
        &mut self,
        reason: StopReason,
        issuer: &str,
        out: &mut Vec<Event>,
    ) -> Result<(), StreamFault> {
        self.close(issuer, out);
        let choice = self.number;
        for call in self.calls.iter_mut().filter(|call| !call.closed) {
            match call.part {
                Some(part) => close_call(call, choice, part, out),
                None if call.arguments.is_empty() => {}
                None => {
                    let message = "The backend calls a tool without its name";
                    return Err(StreamFault::new(Class::Server, message));
                }
            }
        }
        self.stopped = true;
        out.push(Event::Stop { choice, reason });
        Ok(())
    }
}

fn close_call(call: &mut Call, choice: u32, part: u32, out: &mut Vec<Event>) {
    if let Some(text) = call.close() {
        out.push(Event::Arguments { choice, part, text });
    }
    out.push(Event::PartStop { choice, part });
}

fn state(issuer: &str, value: String) -> State {
    State { issuer: Some(issuer.to_owned()), language: LANGUAGE.to_owned(), value }
}
