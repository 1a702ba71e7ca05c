//! Anthropic's streams: `message_start`, blocks with their deltas, `message_delta`, `message_stop`.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::errors;
use crate::{
    base::TokenCounts,
    dialect::{
        Progress, blame,
        counts::Said,
        document::{JsonTap, Shape},
        event::is_empty,
        model_name,
        typed_stream::{self, Events, is_filled, text},
    },
    wire::json,
};

/// What is read of the events of one message.
#[derive(Default)]
pub struct MessageEvents {
    usage: Said,
    /// The number of the block that has begun and has not ended, as it is written.
    open: Option<Box<str>>,
    /// The reason why the message ended was there, and `null`.
    no_reason: bool,
    named: bool,
}

/// Members of deltas and blocks that are not their content.
const ABOUT: [&str; 3] = ["type", "index", "caller"];

impl Events for MessageEvents {
    const KEEP_ALIVE: &'static [u8] = b"ping";

    fn is_part(name: &[u8]) -> bool {
        name == b"content_block_delta"
    }

    fn is_end(name: &[u8]) -> bool {
        name == b"message_stop"
    }

    fn read(&mut self, name: &[u8], document: &[u8], seen: &mut Progress) -> Option<Range<usize>> {
        match name {
            b"content_block_delta" => {
                seen.parts += 1;
                seen.content = seen.content || has_content(document, "delta");
            }
            b"content_block_start" => {
                let index = json::find(document, "index").map(|m| &document[m.value]);
                let index = index.and_then(|index| std::str::from_utf8(index).ok());
                self.open = Some(index.unwrap_or("0").into());
                seen.content = seen.content || has_content(document, "content_block");
            }
            b"content_block_stop" => self.open = None,
            b"message_start" => return self.begin(document, seen),
            b"message_delta" => self.end(document, seen),
            b"message_stop" => {
                seen.finished = true;
                seen.aborted |= self.no_reason && !seen.choice_ended;
            }
            _ if name == b"error" || is_filled(document, "error") => {
                seen.error.get_or_insert_with(|| blame::of(document));
            }
            // It is not known to be without content.
            _ => seen.content = true,
        }
        None
    }

    fn tap(_name: &[u8]) -> JsonTap {
        JsonTap::new(Shape::Choices, false)
    }

    /// A block whose content came at once, the result of a server's tool for instance.
    fn read_large(&mut self, name: &[u8], _tap: &mut JsonTap, seen: &mut Progress) {
        match name {
            b"content_block_stop" => self.open = None,
            _ => seen.parts += 1,
        }
    }

    fn counts(&self) -> Option<TokenCounts> {
        self.usage.counts()
    }

    /// The reason for the end and the counts have come: nothing of the message is missing.
    fn missing_end(&self, seen: &Progress) -> Option<Bytes> {
        let complete = seen.choice_ended && !seen.is_broken_off() && self.open.is_none();
        complete.then(|| typed_stream::named("message_stop", br#"{"type":"message_stop"}"#))
    }

    /// Readers take an error event for the end; an open block is closed before it.
    fn failure(&self, document: Option<&[u8]>, message: &str, code: &str) -> Bytes {
        let own = || errors::event(&errors::failure(message, code));
        let error = document.map_or_else(own, errors::event);
        let Some(index) = &self.open else { return error };
        let stop = format!(r#"{{"type":"content_block_stop","index":{index}}}"#);
        let mut all =
            BytesMut::from(&typed_stream::named("content_block_stop", stop.as_bytes())[..]);
        all.extend_from_slice(&error);
        all.freeze()
    }
}

impl MessageEvents {
    /// The beginning of the message: its model, and what is known of its usage.
    fn begin(&mut self, document: &[u8], seen: &mut Progress) -> Option<Range<usize>> {
        let message = json::find(document, "message")?.value;
        let inner = &document[message.clone()];
        self.count(inner);
        let model = json::find(inner, "model")?.value;
        if !std::mem::replace(&mut self.named, true) {
            seen.model = model_name::read(&inner[model.clone()]);
        }
        Some(message.start + model.start..message.start + model.end)
    }

    /// The end of the message: why, and the counts so far.
    fn end(&mut self, document: &[u8], seen: &mut Progress) {
        self.count(document);
        let Some(delta) = json::find(document, "delta").map(|m| &document[m.value]) else { return };
        match text(delta, "stop_reason") {
            b"" => {}
            b"null" => self.no_reason = true,
            b"abort" | b"error" => seen.aborted = true,
            _ => seen.choice_ended = true,
        }
    }

    fn count(&mut self, object: &[u8]) {
        if let Some(usage) = json::find(object, "usage").map(|m| &object[m.value]) {
            self.usage.take(usage);
        }
    }
}

/// Whether something stands in a delta, or in a block that begins.
fn has_content(document: &[u8], name: &str) -> bool {
    let Some(part) = json::find(document, name).map(|m| &document[m.value]) else {
        return true;
    };
    // A call is known by its name: its arguments follow.
    json::members(part, 0).map_while(Result::ok).any(|member| {
        let about = ABOUT.iter().any(|about| member.is(part, about));
        !about && !is_empty(&part[member.value])
    })
}

#[cfg(test)]
mod tests;
