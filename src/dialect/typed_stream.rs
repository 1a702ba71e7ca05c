//! Metering a stream whose events have the names of their types, as Anthropic's and that of OpenAI's
//! Responses: `event: T`, then `data: {"type":T,...}`. Such a stream says itself how it ends; one that
//! ends in another way was cut off, and its client is told so by the language's own failure.

#[cfg(test)]
pub mod watched;

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use memchr::{memchr, memchr2};

use super::{
    document::JsonTap,
    event::{self, Form},
    meter::{Failure, Meter, Metering, Progress},
    output::Output,
};
use crate::{
    base::TokenCounts,
    wire::{
        edit::Edit,
        json,
        sse::{self, Piece, Splitter},
    },
};

/// What is read of the events of one language.
pub trait Events: Send + Sync {
    /// The name of the events that keep a connection alive. They say nothing.
    const KEEP_ALIVE: &'static [u8];

    /// Whether events of this name carry a part of the answer, and nothing but their content is of
    /// interest.
    fn is_part(name: &[u8]) -> bool;

    /// Whether an event of this name is the last of a stream.
    fn is_end(name: &[u8]) -> bool;

    /// The client knows the model by this name.
    fn naming(&mut self, _model: &str) {}

    /// An event has passed unread, because nothing of interest is in it.
    fn passed(&mut self) {}

    /// Reads an event, and writes into `seen` what it says; all but [`Progress::events`]. Returns
    /// where the name of the model stands, if it does.
    fn read(&mut self, name: &[u8], document: &[u8], seen: &mut Progress) -> Option<Range<usize>>;

    /// A tap for an event of this name that is too large to be read at once.
    fn tap(name: &[u8]) -> JsonTap;

    /// Reads what a tap has found.
    fn read_large(&mut self, name: &[u8], tap: &mut JsonTap, seen: &mut Progress);

    /// The counts so far.
    fn counts(&self) -> Option<TokenCounts>;

    /// What is missing at the end of a stream whose answer is complete; `None` if it is not.
    fn missing_end(&self, seen: &Progress) -> Option<Bytes>;

    /// The events with which a stream ends that broke. `document`: the error as it is worded for the
    /// client; `None`: as the language words it.
    fn failure(&self, document: Option<&[u8]>, message: &str, code: &str) -> Bytes;
}

/// Watches one stream.
#[derive(Default)]
pub struct TypedMeter<E> {
    events: E,
    splitter: Splitter,
    /// The name of the model that the client knows, as a JSON string; `None`: what the engine says.
    model: Option<Bytes>,
    /// An event that is too large to be held.
    large: Option<Box<Large>>,
}

struct Large {
    name: Vec<u8>,
    tap: JsonTap,
}

/// Bytes at the beginning of a large event in which its name is looked for.
const LONGEST_NAME: usize = 256;

impl<E: Events + Default> TypedMeter<E> {
    /// A meter for one stream. Nothing was added to it: in these languages all streams have usage.
    pub fn new(metering: &Metering) -> Self {
        let mut meter = Self::default();
        if let Some(name) = metering.model.as_deref() {
            meter.model = Some(json::quoted(name).into());
            meter.events.naming(name);
        }
        meter
    }
}

impl<E: Events> Meter for TypedMeter<E> {
    /// A chunk of whole events in which nothing is to change is returned as it is, without a copy.
    /// What follows the end is dropped.
    fn push(&mut self, chunk: Bytes, seen: &mut Progress) -> Bytes {
        if seen.finished {
            return Bytes::new();
        }
        seen.running = true;
        seen.sparse = true;
        if seen.content
            && self.splitter.is_between()
            && self.large.is_none()
            && let Some(parts) = parts::<E>(&chunk)
        {
            seen.events += parts;
            seen.parts += parts;
            (0..parts).for_each(|_| self.events.passed());
            return chunk;
        }
        let mut pieces = Vec::new();
        self.splitter.push(&chunk, |piece| pieces.push(piece));
        let mut out = Output::new(chunk);
        for piece in pieces {
            match piece {
                Piece::Event(event) | Piece::Unfinished(event) => {
                    let bytes = self.event(&event, seen);
                    out.put(bytes);
                }
                Piece::Raw(part) => self.part(part, false, &mut out, seen),
                Piece::RawEnd(part) => self.part(part, true, &mut out, seen),
            }
            if seen.finished {
                self.splitter = Splitter::default();
                break;
            }
        }
        out.finish()
    }

    fn finish(&mut self, seen: &mut Progress) -> Bytes {
        seen.ended = true;
        let mut out = self.last(seen, |_| true);
        if !seen.finished && seen.error.is_none() {
            // Without its end it is no success, however properly the connection has ended.
            seen.aborted = true;
            let why = "The backend ended the stream before its answer was complete";
            out.put(self.events.failure(None, why, "backend_failed"));
        }
        out.freeze()
    }

    /// The end of the stream counts even if its blank line is missing.
    fn abandon(&mut self, seen: &mut Progress) -> Bytes {
        self.last(seen, E::is_end).freeze()
    }

    fn sent_pending(&mut self, _seen: &mut Progress) {}

    fn counts(&self) -> Option<TokenCounts> {
        self.events.counts()
    }

    fn failure(&self, failure: &Failure<'_>) -> Option<Bytes> {
        Some(self.events.failure(Some(failure.document), failure.message, failure.code))
    }
}

impl<E: Events> TypedMeter<E> {
    /// Reads an event; returns what goes out.
    fn event(&mut self, event: &Bytes, seen: &mut Progress) -> Bytes {
        let Some((document, place)) = event::document(Form::Events, event) else {
            return event.clone();
        };
        if document.trim_ascii() == b"[DONE]" {
            // The end of other languages, which some servers add.
            return event.clone();
        }
        let name = sse::kind(event).unwrap_or_else(|| text(&document, "type"));
        if name == E::KEEP_ALIVE {
            self.events.passed();
            return event.clone();
        }
        seen.events += 1;
        let model = self.events.read(name, &document, seen);
        match (&self.model, model) {
            (Some(with), Some(range)) => {
                let edit = Edit { range, with: with.to_vec().into() };
                event::edited(event, &document, place, vec![edit])
            }
            _ => event.clone(),
        }
    }

    /// A part of an event that is too large to be changed. It is read anyway.
    fn part(&mut self, part: Bytes, last: bool, out: &mut Output, seen: &mut Progress) {
        let large = self.large.get_or_insert_with(|| {
            let name = sse::kind(&part[..part.len().min(LONGEST_NAME)]).unwrap_or_default();
            Box::new(Large { name: name.to_vec(), tap: E::tap(name) })
        });
        large.tap.push(&part);
        out.put(part);
        seen.content = true;
        if last && let Some(mut large) = self.large.take() {
            seen.events += 1;
            self.events.read_large(&large.name, &mut large.tap, seen);
        }
    }

    /// The end of what has come: the last event, if only its blank line is missing, and what is missing
    /// of an answer that is complete.
    fn last(&mut self, seen: &mut Progress, wanted: fn(&[u8]) -> bool) -> BytesMut {
        if seen.finished {
            return BytesMut::new();
        }
        if self.large.take().is_some() {
            // Parts of an event have gone out: what follows is none of it.
            self.splitter = Splitter::default();
            return BytesMut::from(&b"\n\n"[..]);
        }
        let mut out = self.last_event(seen, wanted).unwrap_or_default();
        if !seen.finished
            && let Some(end) = self.events.missing_end(seen)
        {
            seen.finished = true;
            out.put(end);
        }
        out
    }

    /// The last event, if only its blank line is missing; what is less, and what is not `wanted` by its
    /// name, is dropped.
    fn last_event(&mut self, seen: &mut Progress, wanted: fn(&[u8]) -> bool) -> Option<BytesMut> {
        let rest = std::mem::take(&mut self.splitter).finish()?;
        let (event, ended) = match rest {
            Piece::Event(event) => (event, true),
            Piece::Unfinished(event) => (event, false),
            Piece::Raw(_) | Piece::RawEnd(_) => return None,
        };
        let wanted = wanted(sse::kind(&event).unwrap_or_default());
        if !wanted || !ended && !is_whole(&event) {
            return None;
        }
        let mut out = BytesMut::from(&self.event(&event, seen)[..]);
        if !ended {
            let lines = if out.ends_with(b"\n") { &b"\n"[..] } else { b"\n\n" };
            out.put_slice(lines);
        }
        Some(out)
    }
}

/// How many events are in a chunk, if it consists of parts of the answer alone, as nearly all chunks of
/// a stream do. It passes without a look at its documents, and without an allocation.
fn parts<E: Events>(chunk: &[u8]) -> Option<u64> {
    let (mut rest, mut count) = (chunk, 0);
    while !rest.is_empty() {
        let named = rest.strip_prefix(b"event: ")?;
        let (name, data) = named.split_at(memchr(b'\n', named)?);
        if !E::is_part(name) {
            return None;
        }
        let document = data.strip_prefix(b"\ndata: {")?;
        let (document, after) = document.split_at(memchr2(b'\n', b'\r', document)?);
        rest = after.strip_prefix(b"\n\n").filter(|_| document.ends_with(b"}"))?;
        count += 1;
    }
    Some(count)
}

/// Whether the document of an event has come as a whole.
fn is_whole(event: &Bytes) -> bool {
    event::document(Form::Events, event).is_some_and(|(document, _)| {
        let mut members = json::members(&document, 0);
        let valid = members.by_ref().all(|member| member.is_ok());
        valid && document[members.position()..].trim_ascii().is_empty()
    })
}

/// The inside of a JSON string without escapes; anything else as it is.
pub fn unquoted(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")).unwrap_or(value)
}

/// A string member of an object, without its quotes; empty if there is none.
pub fn text<'a>(object: &'a [u8], name: &str) -> &'a [u8] {
    json::find(object, name).map_or(&b""[..], |member| unquoted(&object[member.value]))
}

/// Whether a member of an object has something in it.
pub fn is_filled(object: &[u8], name: &str) -> bool {
    json::find(object, name).is_some_and(|member| !event::is_empty(&object[member.value]))
}

/// An event of this name.
pub fn named(name: &str, document: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(name.len() + document.len() + 20);
    out.put_slice(b"event: ");
    out.put_slice(name.as_bytes());
    out.put_u8(b'\n');
    out.put_slice(&sse::event_part(document, true, true));
    out.freeze()
}
