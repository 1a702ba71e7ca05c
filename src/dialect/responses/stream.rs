//! Streams of OpenAI's Responses: `response.created`, the items with their parts, and one terminal event,
//! which has the usage and repeats all of the response.

use std::{ops::Range, sync::LazyLock};

use bytes::Bytes;
use memchr::memmem::Finder;
use serde_json::Value;

use super::failure::{self, Identity};
use crate::{
    base::{TokenCounts, UsageSource},
    dialect::{
        Progress, blame,
        body::number,
        counts,
        document::{JsonTap, Shape, is_failure},
        event::is_empty,
        model_name,
        typed_stream::{Events, is_filled, text},
    },
    wire::json,
};

/// What is read of the events of one response.
#[derive(Default)]
pub struct ResponseEvents {
    counts: Option<TokenCounts>,
    /// What was said of the response; `None` until it was.
    begun: Option<Identity>,
    /// The name of the model that the client knows, if it is another one than the engine's.
    model: Option<Box<str>>,
    /// The number of the next event; `None` until one had a number.
    next: Option<u64>,
    named: bool,
    /// The items that have begun and have not ended, as they were announced.
    open: Vec<Value>,
}

/// Bytes of an announced item that is kept; of a longer one only what it is.
const LONGEST_ITEM: usize = 2048;

impl Events for ResponseEvents {
    const KEEP_ALIVE: &'static [u8] = b"keepalive";

    fn is_part(name: &[u8]) -> bool {
        name.starts_with(b"response.") && name.ends_with(b".delta")
    }

    fn is_end(name: &[u8]) -> bool {
        let lifecycle = name.strip_prefix(b"response.").unwrap_or_default();
        matches!(lifecycle, b"completed" | b"incomplete" | b"failed" | b"cancelled")
    }

    fn naming(&mut self, model: &str) {
        self.model = Some(model.into());
    }

    /// The numbers of events rise by one.
    fn passed(&mut self) {
        self.next = self.next.map(|next| next + 1);
    }

    fn read(&mut self, name: &[u8], document: &[u8], seen: &mut Progress) -> Option<Range<usize>> {
        match sequence_number(document) {
            Some(number) => self.next = Some(number.saturating_add(1)),
            None => self.passed(),
        }
        match name {
            name if Self::is_part(name) => {
                seen.parts += 1;
                seen.content = seen.content || is_filled(document, "delta");
            }
            b"response.created" | b"response.queued" | b"response.in_progress" => {
                return self.begin(document, seen);
            }
            name if Self::is_end(name) => return self.end(name, document, seen),
            b"response.output_item.added" => {
                let item = json::find(document, "item").map_or(&b""[..], |m| &document[m.value]);
                // A call has a name; a message and reasoning are empty until their first part.
                let empty = matches!(text(item, "type"), b"message" | b"reasoning");
                seen.content |= !empty || is_filled(item, "content") || is_filled(item, "summary");
                self.announce(item);
            }
            b"response.output_item.done" => {
                let item = json::find(document, "item").map_or(&b""[..], |m| &document[m.value]);
                let id = text(item, "id");
                self.open.retain(|open| open["id"].as_str().map(str::as_bytes) != Some(id));
                seen.content = true;
            }
            b"response.content_part.added" | b"response.reasoning_summary_part.added" => {
                let part = json::find(document, "part").map_or(&b""[..], |m| &document[m.value]);
                seen.content |= is_filled(part, "text") || is_filled(part, "refusal");
            }
            _ if name == b"error"
                || !name.starts_with(b"response.") && is_filled(document, "error") =>
            {
                seen.error.get_or_insert_with(|| blame::of(document));
            }
            // It is not known to be without content.
            _ => seen.content = true,
        }
        None
    }

    /// The answer of a lifecycle event is a member of it.
    fn tap(_name: &[u8]) -> JsonTap {
        JsonTap::new(Shape::Response, true)
    }

    fn read_large(&mut self, name: &[u8], tap: &mut JsonTap, seen: &mut Progress) {
        self.passed();
        if Self::is_part(name) {
            seen.parts += 1;
            return;
        }
        if !Self::is_end(name) {
            return;
        }
        if let (counts, UsageSource::Final) = tap.usage() {
            self.counts = Some(counts);
        }
        if !std::mem::replace(&mut self.named, true) {
            seen.model = tap.take_model();
        }
        self.finish(tap.aborted() || name == b"response.failed", seen);
    }

    fn counts(&self) -> Option<TokenCounts> {
        self.counts
    }

    /// The terminal event has the answer itself.
    fn missing_end(&self, _seen: &Progress) -> Option<Bytes> {
        None
    }

    /// The error's own words are those of `document`, which is in OpenAI's form.
    fn failure(&self, document: Option<&[u8]>, message: &str, code: &str) -> Bytes {
        let (message, code) = document
            .and_then(failure::said)
            .unwrap_or_else(|| (message.to_owned(), code.to_owned()));
        match &self.begun {
            Some(begun) => begun.failed(self.next, &self.open, &message, &code),
            None => failure::from_nothing(&message, &code),
        }
    }
}

impl ResponseEvents {
    /// The response has begun: its id, and perhaps its model.
    fn begin(&mut self, document: &[u8], seen: &mut Progress) -> Option<Range<usize>> {
        let response = json::find(document, "response")?.value;
        let inner = &document[response.clone()];
        let model = json::find(inner, "model").map(|member| member.value);
        if self.begun.is_none() {
            let id: Box<str> = String::from_utf8_lossy(text(inner, "id")).into();
            seen.stored = Some(id.clone());
            let created = json::find(inner, "created_at").and_then(|m| number(&inner[m.value]));
            let said = model.clone().and_then(|model| model_name::read(&inner[model]));
            let model = self.model.clone().or(said);
            self.begun = Some(Identity { id, created_at: created.unwrap_or_default(), model });
        }
        let model = model?;
        if !std::mem::replace(&mut self.named, true) {
            seen.model = model_name::read(&inner[model.clone()]);
        }
        Some(response.start + model.start..response.start + model.end)
    }

    /// The terminal event. What it says of the response itself is more exact than its name: vLLM ends
    /// an answer that was cut by `response.completed`.
    fn end(&mut self, name: &[u8], document: &[u8], seen: &mut Progress) -> Option<Range<usize>> {
        let response = json::find(document, "response").map(|m| &document[m.value]);
        let response = response.unwrap_or_default();
        if let Some(usage) = json::find(response, "usage")
            && let Some(counts) = counts::read(&response[usage.value])
        {
            self.counts = Some(counts::after(self.counts, counts));
        }
        let failed = name == b"response.failed" || text(response, "status") == b"failed";
        if failed {
            seen.error.get_or_insert_with(|| blame::of(response));
        }
        let cancelled = name == b"response.cancelled" || is_failure(text(response, "status"));
        self.finish(failed || cancelled, seen);
        self.begin(document, seen)
    }

    fn finish(&mut self, broken_off: bool, seen: &mut Progress) {
        seen.finished = true;
        seen.aborted |= broken_off;
        seen.choice_ended |= !broken_off;
        self.open.clear();
    }

    /// Keeps an item that has begun: a failure repeats it.
    fn announce(&mut self, item: &[u8]) {
        let short = Some(item).filter(|item| item.len() <= LONGEST_ITEM && !is_empty(item));
        self.open.extend(short.and_then(|item| serde_json::from_slice(item).ok()));
    }
}

/// The number of an event. The key cannot stand in a text: there its quotes are escaped.
fn sequence_number(document: &[u8]) -> Option<u64> {
    static KEY: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"sequence_number\":"));
    let at = KEY.find(document)? + KEY.needle().len();
    let rest = document[at..].trim_ascii_start();
    let end = rest.iter().position(|b| !b.is_ascii_digit()).unwrap_or(rest.len());
    number(&rest[..end])
}

#[cfg(test)]
mod tests;
