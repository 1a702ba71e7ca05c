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

/// The largest event that is translated.
const LARGEST_EVENT: usize = 64 << 20;

fn bytes_of(piece: Piece) -> Bytes {
    match piece {
        Piece::Event(bytes)
        | Piece::Raw(bytes)
        | Piece::RawEnd(bytes)
        | Piece::Unfinished(bytes) => bytes,
    }
}

/// Translates a stream of server-sent events.
pub struct Translator {
    splitter: Splitter,
    decoder: Box<dyn Decode>,
    normal: Normal,
    encoder: Box<dyn Encode>,
    /// What has come of an event that is larger than [`sse::MAX_EVENT`].
    large: Vec<u8>,
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
        let (large, raw, ready) = (Vec::new(), Vec::new(), Vec::new());
        Self { splitter: Splitter::default(), decoder, normal, encoder, large, raw, ready }
    }

    /// The answer has ended, well or not: nothing more goes out.
    pub fn is_over(&self) -> bool {
        self.normal.is_over()
    }

    /// Takes the next bytes; `seen` is shown every event that goes to the client.
    pub fn push(&mut self, piece: &Bytes, out: &mut String, mut seen: impl FnMut(&Event)) {
        let mut pieces = std::mem::take(&mut self.splitter);
        pieces.push(piece, |piece| self.piece(piece));
        self.splitter = pieces;
        self.drain(out, &mut seen);
    }

    /// The body has ended.
    pub fn finish(&mut self, out: &mut String, mut seen: impl FnMut(&Event)) {
        // A last event without its blank line counts: the body has ended cleanly.
        let rest = self.splitter.finish();
        match (rest, self.large.is_empty()) {
            (Some(rest), true) => self.piece(rest),
            (None, true) => {}
            (rest, false) => self.piece(Piece::RawEnd(rest.map(bytes_of).unwrap_or_default())),
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

    fn piece(&mut self, piece: Piece) {
        // Nothing more goes out, and a backend may go on for long.
        if self.is_over() {
            return;
        }
        match piece {
            Piece::Event(event) | Piece::Unfinished(event) => self.event(&event),
            Piece::Raw(part) => {
                self.join(&part);
            }
            Piece::RawEnd(part) => {
                if self.join(&part) {
                    let event = std::mem::take(&mut self.large);
                    self.event(&event);
                }
            }
        }
    }

    /// Joins the pieces of a large event: the last one of OpenAI's Responses repeats the answer with
    /// all its images. False if it has become too large, and the answer has ended.
    fn join(&mut self, part: &[u8]) -> bool {
        if self.large.len() + part.len() <= LARGEST_EVENT {
            self.large.extend_from_slice(part);
            return true;
        }
        self.large = Vec::new();
        let message = "An event of the backend's stream is too large to be translated";
        self.raw.push(Event::Fault(StreamFault::new(Class::Server, message)));
        self.normalise();
        false
    }

    fn event(&mut self, event: &[u8]) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::hub::event::{PartKind, Start, StopReason};

    /// Each event's data is text.
    #[derive(Default)]
    struct Texts(u32);

    impl Decode for Texts {
        fn event(&mut self, name: Option<&str>, data: &str, out: &mut Vec<Event>) {
            if name == Some("end") {
                let reason = StopReason::EndTurn;
                return out.extend([Event::Stop { choice: 0, reason }, Event::End]);
            }
            let (choice, part) = (0, self.0);
            self.0 += 1;
            out.push(Event::Start(Start::default()));
            out.push(Event::PartStart { choice, part, kind: PartKind::Text { phase: None } });
            out.push(Event::Text { choice, part, text: data.to_owned(), logprobs: None });
            out.push(Event::PartStop { choice, part });
        }

        fn end(&mut self, _out: &mut Vec<Event>) {}
    }

    impl Encode for Texts {
        fn event(&mut self, event: &Event, out: &mut String) {
            match event {
                Event::Text { text, .. } => *out += &format!("{} ", text.len()),
                Event::End => *out += "end",
                Event::Fault(_) => *out += "fault",
                _ => {}
            }
        }
    }

    /// What comes out.
    fn run(stream: &[u8], cut: usize) -> String {
        let normal = Normal::new(&Exchange::default());
        let texts = || Box::new(Texts::default());
        let mut translator = Translator::of(texts(), normal, texts());
        let mut out = String::new();
        for piece in stream.chunks(cut) {
            translator.push(&Bytes::copy_from_slice(piece), &mut out, |_| {});
        }
        translator.finish(&mut out, |_| {});
        out
    }

    #[test]
    fn a_large_event_is_translated_however_it_is_cut() {
        let large = sse::MAX_EVENT * 2;
        let stream = format!(
            "data: a\n\ndata: {}\n\ndata: bc\n\nevent: end\ndata: -\n\n",
            "x".repeat(large)
        );
        for cut in [16 << 10, 3_000_001, sse::MAX_EVENT + 7, stream.len()] {
            assert_eq!(run(stream.as_bytes(), cut), format!("1 {large} 2 end"), "{cut}");
        }
        // One that has no blank line behind it.
        let last = format!("data: a\n\nevent: end\ndata: {}", "x".repeat(large));
        assert_eq!(run(last.as_bytes(), 1 << 20), "1 end");
    }

    #[test]
    fn an_event_that_is_too_large_ends_the_answer_once() {
        let stream = format!("data: a\n\ndata: {}\n\ndata: b\n\n", "x".repeat(LARGEST_EVENT));
        assert_eq!(run(stream.as_bytes(), 1 << 20), "1 fault");
    }
}
