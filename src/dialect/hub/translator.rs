//! A stream on its way from one language to another, and a plain answer on the same way.

use bytes::Bytes;

use super::{
    codec::{Codec, Decode, Encode, Exchange},
    event::Event,
    fault::{Class, StreamFault},
    normal::Normal,
    response::Response,
};
use crate::wire::sse::{self, Data, Piece, Splitter};

/// Translates a stream of server-sent events.
pub struct Translator {
    splitter: Splitter,
    decoder: Box<dyn Decode>,
    normal: Normal,
    encoder: Box<dyn Encode>,
    raw: Vec<Event>,
    ready: Vec<Event>,
}

impl Translator {
    /// From a backend's language to a client's.
    pub fn new(from: &dyn Codec, to: &dyn Codec, exchange: &Exchange) -> Self {
        Self::of(from.decoder(exchange), Normal::new(exchange), to.encoder(exchange))
    }

    /// Of its parts.
    pub fn of(decoder: Box<dyn Decode>, normal: Normal, encoder: Box<dyn Encode>) -> Self {
        let (raw, ready) = (Vec::new(), Vec::new());
        Self { splitter: Splitter::default(), decoder, normal, encoder, raw, ready }
    }

    /// The answer has ended, well or not: nothing more goes out.
    pub fn is_over(&self) -> bool {
        self.normal.is_over()
    }

    /// Takes the next bytes; `seen` is shown every event that goes to the client.
    pub fn push(&mut self, piece: &Bytes, out: &mut String, mut seen: impl FnMut(&Event)) {
        let mut pieces = std::mem::take(&mut self.splitter);
        pieces.push(piece, |piece| self.piece(&piece));
        self.splitter = pieces;
        self.drain(out, &mut seen);
    }

    /// The body has ended.
    pub fn finish(&mut self, out: &mut String, mut seen: impl FnMut(&Event)) {
        // A last event without its blank line counts: the body has ended cleanly.
        if let Some(rest) = self.splitter.finish() {
            self.piece(&rest);
        }
        self.decoder.end(&mut self.raw);
        self.normalise();
        self.normal.finish(&mut self.ready);
        self.drain(out, &mut seen);
    }

    /// The answer broke: the client gets its end, unless it has it already.
    pub fn fail(&mut self, fault: StreamFault, out: &mut String, mut seen: impl FnMut(&Event)) {
        self.normal.take(Event::Fault(fault), &mut self.ready);
        self.drain(out, &mut seen);
    }

    fn piece(&mut self, piece: &Piece) {
        let event = match piece {
            Piece::Event(event) | Piece::Unfinished(event) => event,
            Piece::Raw(_) | Piece::RawEnd(_) => {
                let message = "An event of the backend's stream is too large to be translated";
                self.raw.push(Event::Fault(StreamFault::new(Class::Server, message)));
                self.normalise();
                return;
            }
        };
        let joined;
        let data = match sse::data(event) {
            // A comment.
            Data::None => return self.raw.push(Event::Ping),
            Data::One(range) => &event[range],
            Data::Many(all) => {
                joined = all;
                &joined[..]
            }
        };
        let Ok(data) = std::str::from_utf8(data) else {
            let message = "The backend's stream is not UTF-8";
            self.raw.push(Event::Fault(StreamFault::new(Class::Server, message)));
            return self.normalise();
        };
        let name = sse::kind(event).and_then(|name| std::str::from_utf8(name).ok());
        self.decoder.event(name, data, &mut self.raw);
        self.normalise();
    }

    fn normalise(&mut self) {
        for event in self.raw.drain(..) {
            self.normal.take(event, &mut self.ready);
        }
    }

    fn drain(&mut self, out: &mut String, seen: &mut impl FnMut(&Event)) {
        self.normalise();
        for event in self.ready.drain(..) {
            seen(&event);
            self.encoder.event(&event, out);
        }
    }
}

/// The events of a plain answer, as they go to an encoder or are folded.
///
/// # Errors
/// If it cannot be read, or says that it has failed.
pub fn answer(
    from: &dyn Codec,
    body: &str,
    exchange: &Exchange,
) -> Result<Vec<Event>, StreamFault> {
    let (mut normal, mut events) = (Normal::new(exchange), Vec::new());
    for event in from.read_answer(body, exchange)? {
        normal.take(event, &mut events);
    }
    normal.finish(&mut events);
    match events.pop() {
        Some(Event::Fault(fault)) => Err(fault),
        last => {
            events.extend(last);
            Ok(events)
        }
    }
}

/// Events as a plain answer in a client's language.
pub fn document(to: &dyn Codec, events: &[Event], exchange: &Exchange) -> String {
    to.write_answer(&Response::of(events), exchange)
}

/// Events as a stream in a client's language: for a client that was promised one.
pub fn stream(to: &dyn Codec, events: &[Event], exchange: &Exchange) -> String {
    let (mut encoder, mut out) = (to.encoder(exchange), String::new());
    events.iter().for_each(|event| encoder.event(event, &mut out));
    out
}
