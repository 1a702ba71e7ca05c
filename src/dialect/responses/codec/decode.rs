//! A backend's answer to the hub: vLLM's, llama.cpp's (which says neither indexes nor numbers),
//! OpenAI's and those of servers like them.

use serde_json::value::RawValue;

use super::lookup::{Items, Kind, Place, count, objects, text_or_json};
use crate::dialect::{
    hub::{
        Class, Decode, Event, Exchange, Json, Object, Start, StopReason, StreamFault, Usage,
        request::ToolKind,
    },
    openai::codec::errors,
};

/// Reads a stream.
pub(super) struct Decoder {
    items: Items,
    started: bool,
    over: bool,
}

impl Decoder {
    /// For one answer.
    pub fn new(exchange: &Exchange) -> Self {
        Self { items: Items::new(exchange.issuer.clone()), started: false, over: false }
    }
}

impl Decode for Decoder {
    fn event(&mut self, name: Option<&str>, data: &str, out: &mut Vec<Event>) {
        let data = data.trim();
        // Some servers end the stream as Chat ends.
        if self.over || data.is_empty() || data == "[DONE]" {
            return;
        }
        let Ok(event) = Object::parse(data) else {
            let message = "The backend's stream has an event that is no JSON object";
            return self.fail(StreamFault::new(Class::Server, message), out);
        };
        let kind = event.text("type").or_else(|| name.map(str::to_owned)).unwrap_or_default();
        match kind.strip_prefix("response.") {
            Some(kind) => self.take(kind, &event, out),
            None if kind == "error" || event.has("error") => {
                self.fail(fault(&errors::read(0, data)), out);
            }
            None => out.push(Event::Ping),
        }
    }

    fn end(&mut self, _: &mut Vec<Event>) {}
}

impl Decoder {
    fn fail(&mut self, fault: StreamFault, out: &mut Vec<Event>) {
        self.over = true;
        out.push(Event::Fault(fault));
    }

    fn take(&mut self, kind: &str, event: &Object<'_>, out: &mut Vec<Event>) {
        let inner = |name: &str| Object::parse(event.get(name)?.get()).ok();
        match kind {
            "created" | "queued" | "in_progress" => {
                self.start(&inner("response").unwrap_or_default(), out);
            }
            "output_item.added" => {
                if let Some(item) = inner("item") {
                    self.items.added(event, &item, out);
                }
            }
            "output_item.done" => {
                if let Some(item) = inner("item") {
                    self.items.done(event, &item, out);
                }
            }
            "content_part.added" | "content_part.done" => {
                if let Some(part) = inner("part") {
                    self.content(kind.ends_with("added"), event, &part, out);
                }
            }
            "reasoning_summary_part.done" => {
                let text = inner("part").and_then(|part| part.text("text")).unwrap_or_default();
                let at = self.items.locate(event, Kind::Reasoning);
                let place = Place::Summary(count(event, "summary_index").unwrap_or(0));
                self.items.whole(at, place, &text, out);
            }
            "output_text.annotation.added" => {
                if let Some(annotation) = event.get("annotation").filter(|raw| raw.get() != "null")
                {
                    let at = self.items.locate(event, Kind::Message);
                    let index = self.items.content_index(at, event);
                    let number = count(event, "annotation_index");
                    if number.is_none_or(|number| !self.items.has_citation(at, index, number)) {
                        self.items.citation(at, index, Json::of(annotation), out);
                    }
                }
            }
            "completed" | "incomplete" | "failed" | "cancelled" => {
                let response = inner("response").unwrap_or_default();
                self.finish(kind, &response, out);
            }
            _ => self.text(kind, event, out),
        }
    }

    /// A piece of a text, or the whole of one.
    fn text(&mut self, kind: &str, event: &Object<'_>, out: &mut Vec<Event>) {
        let (of, member, whole) = match kind.rsplit_once('.') {
            Some((of, "delta")) => (of, "delta", false),
            Some((of, "done")) => (of, done_member(of), true),
            _ => return out.push(Event::Ping),
        };
        let kind = match of {
            "output_text" | "refusal" => Kind::Message,
            "reasoning_text" | "reasoning" | "reasoning_summary_text" | "reasoning_summary" => {
                Kind::Reasoning
            }
            "function_call_arguments" => Kind::Call(ToolKind::Function),
            "custom_tool_call_input" => Kind::Call(ToolKind::Custom),
            // Pieces of what the vendor's tools do; their items say it whole.
            _ => return out.push(Event::Ping),
        };
        let at = self.items.locate(event, kind);
        let summary = count(event, "summary_index").unwrap_or(0);
        let place = match of {
            "output_text" => Place::Text(self.items.content_index(at, event)),
            "refusal" => Place::Refusal(self.items.content_index(at, event)),
            "reasoning_summary_text" | "reasoning_summary" => Place::Summary(summary),
            "reasoning_text" | "reasoning" => {
                Place::Thought(count(event, "content_index").unwrap_or(0))
            }
            _ => Place::Arguments,
        };
        let text = text_or_json(event, member);
        if whole {
            return self.items.whole(at, place, &text, out);
        }
        let before = out.len();
        self.items.text(at, place, text, out);
        if let Some(raw) = event.get("logprobs") {
            attach(out, before, Json::of(raw).array().unwrap_or_default());
        }
    }

    fn content(
        &mut self,
        added: bool,
        event: &Object<'_>,
        part: &Object<'_>,
        out: &mut Vec<Event>,
    ) {
        let thought = part.text("type").as_deref() == Some("reasoning_text");
        let kind = if thought { Kind::Reasoning } else { Kind::Message };
        let at = self.items.locate(event, kind);
        let index = if thought {
            count(event, "content_index").unwrap_or(0)
        } else {
            self.items.content_index(at, event)
        };
        if added {
            self.items.content_added(at, index, part, out);
        } else {
            self.items.content(at, index, part, out);
        }
    }

    fn start(&mut self, response: &Object<'_>, out: &mut Vec<Event>) {
        if std::mem::replace(&mut self.started, true) {
            return;
        }
        // Seconds, of which some servers write parts.
        let seconds = |raw: &RawValue| raw.get().split('.').next()?.parse().ok();
        out.push(Event::Start(Start {
            id: response.text("id").unwrap_or_default(),
            model: response.text("model"),
            created: response.get("created_at").and_then(seconds),
            usage: None,
            service_tier: response.text("service_tier"),
            fingerprint: None,
        }));
    }

    /// The answer is over, as its status says; `kind` is the word of the event.
    fn finish(&mut self, kind: &str, response: &Object<'_>, out: &mut Vec<Event>) {
        self.start(response, out);
        let status = response.text("status").filter(|status| {
            !matches!(status.as_str(), "in_progress" | "queued") && !status.is_empty()
        });
        let status = status.as_deref().unwrap_or(kind);
        for (place, item) in objects(response, "output").iter().enumerate() {
            self.items.listed(place, item, out);
        }
        self.items.close_all(out);
        out.extend(usage(response).map(Event::Usage));
        match status {
            "failed" => self.fail(failure(response), out),
            "cancelled" => {
                let message = "The backend has cancelled the answer";
                self.fail(StreamFault::new(Class::Server, message), out);
            }
            _ => {
                let reason = self.reason(status, response);
                self.over = true;
                out.push(Event::Stop { choice: 0, reason });
                out.push(Event::End);
            }
        }
    }

    fn reason(&self, status: &str, response: &Object<'_>) -> StopReason {
        if status == "incomplete" {
            let details = response.get("incomplete_details");
            let details = details.and_then(|raw| Object::parse(raw.get()).ok());
            return match details.and_then(|details| details.text("reason")).as_deref() {
                Some("max_output_tokens" | "max_tokens") | None => StopReason::MaxTokens,
                Some("content_filter") => StopReason::Filter,
                Some(word) => StopReason::Other(word.to_owned()),
            };
        }
        if self.items.refused() { StopReason::Refusal } else { StopReason::EndTurn }
    }
}

/// The member that has the whole of a text.
fn done_member(of: &str) -> &'static str {
    match of {
        "refusal" => "refusal",
        "function_call_arguments" => "arguments",
        "custom_tool_call_input" => "input",
        _ => "text",
    }
}

/// Gives a text its log probabilities: one for each event. Where they are of several tokens, the
/// text is cut into these, or the others come with empty texts.
fn attach(out: &mut Vec<Event>, from: usize, list: Vec<&RawValue>) {
    let Some(Event::Text { choice, part, text, .. }) = out.get(from..).and_then(<[Event]>::last)
    else {
        return;
    };
    let (choice, part, text) = (*choice, *part, text.clone());
    let token = |raw: &RawValue| Object::parse(raw.get()).ok()?.text("token");
    let tokens: Option<Vec<String>> = list.iter().map(|raw| token(raw)).collect();
    let tokens = tokens.filter(|tokens| tokens.concat() == text);
    if list.is_empty() {
        return;
    }
    out.pop();
    for (at, raw) in list.iter().enumerate() {
        let text = match &tokens {
            Some(tokens) => tokens[at].clone(),
            None if at == 0 => text.clone(),
            None => String::new(),
        };
        let logprobs = Some(Json::of(raw));
        out.push(Event::Text { choice, part, text, logprobs });
    }
}

/// Counts of tokens, if there are any.
fn usage(response: &Object<'_>) -> Option<Usage> {
    let usage = Object::parse(response.get("usage")?.get()).ok()?;
    let detail = |of: &str, name: &str| {
        let details = Object::parse(usage.get(of)?.get()).ok()?;
        count(&details, name)
    };
    Some(Usage {
        input: count(&usage, "input_tokens"),
        cache_read: detail("input_tokens_details", "cached_tokens"),
        cache_write: detail("input_tokens_details", "cache_write_tokens"),
        output: count(&usage, "output_tokens"),
        reasoning: detail("output_tokens_details", "reasoning_tokens"),
        total: count(&usage, "total_tokens"),
        ..Usage::default()
    })
}

/// Why an answer has failed.
fn failure(response: &Object<'_>) -> StreamFault {
    match response.get("error").filter(|raw| raw.get() != "null") {
        Some(error) => fault(&errors::read(0, error.get())),
        None => StreamFault::new(Class::Server, "The backend says that its answer has failed"),
    }
}

/// By words that only this language has.
fn fault(read: &StreamFault) -> StreamFault {
    let mut fault = read.clone();
    match fault.code.as_deref() {
        Some("slow_down") => fault.class = Class::Overloaded,
        Some(code) if code.ends_with("_policy") || code.contains("policy_violation") => {
            fault.class = Class::ContentBlocked;
        }
        _ => {}
    }
    fault.retry_after = fault.retry_after.or_else(|| wait(&fault.message));
    fault
}

/// The seconds of "try again in 1.5s" or "250ms", rounded up.
fn wait(message: &str) -> Option<u64> {
    let lower = message.to_ascii_lowercase();
    let (_, rest) = lower.split_once("try again in ")?;
    let digits = rest.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let (number, unit) = rest.split_at(digits);
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let seconds: u64 = whole.parse().ok()?;
    if unit.trim_start().starts_with("ms") {
        return Some(seconds.div_ceil(1000));
    }
    Some(seconds + u64::from(part.bytes().any(|b| (b'1'..=b'9').contains(&b))))
}

/// Reads a plain answer.
pub(super) fn answer(body: &str, exchange: &Exchange) -> Result<Vec<Event>, StreamFault> {
    let Ok(response) = Object::parse(body) else {
        let message = "The backend's answer is no JSON object";
        return Err(StreamFault::new(Class::Server, message));
    };
    let status = response.text("status").unwrap_or_default();
    match status.as_str() {
        "failed" => return Err(failure(&response)),
        "queued" | "in_progress" => {
            let message = format!("The backend's answer is not whole: its status is `{status}`");
            return Err(StreamFault::new(Class::Server, message));
        }
        _ if response.get("output").is_none_or(|raw| !raw.get().starts_with('[')) => {
            return Err(match response.has("error") || response.has("message") {
                true => fault(&errors::read(0, body)),
                false => StreamFault::new(Class::Server, "The backend's answer has no output"),
            });
        }
        _ => {}
    }
    let (mut decoder, mut events) = (Decoder::new(exchange), Vec::new());
    decoder.finish("completed", &response, &mut events);
    match events.pop() {
        Some(Event::Fault(fault)) => Err(fault),
        last => {
            events.extend(last);
            Ok(events)
        }
    }
}
