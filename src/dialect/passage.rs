//! A passage: how the body of a backend's answer goes to the client.

use bytes::Bytes;
use pingora::http::ResponseHeader;

use super::{
    hub::{Class, StreamFault},
    language::Dialect,
    meter::{Failure, Meter, Metering, Progress},
    preprocess::{self, Declared, Preprocessed, Preprocessor},
    translation::{TranslatedBody, Translation, Untranslatable},
};
use crate::{
    base::{TokenCounts, UsageSource},
    wire::{inflate::InflateError, sniff::Kind},
};

/// How the body of an answer goes to the client, and what is known of it.
#[derive(Default)]
pub struct Passage {
    form: Form,
    codec: Codec,
    preprocess: Preprocessor,
    progress: Progress,
    setup: Option<Setup>,
    /// The backend's body is taken for a stream of events.
    reads_events: bool,
}

/// What the body is for the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Form {
    /// Nothing is read from it.
    #[default]
    Off,
    /// One document.
    Document,
    /// A stream.
    Stream,
    /// One document that goes out as an event of a stream, because the client was promised a stream.
    Event,
}

/// What bytes go through on their codec.
#[derive(Default)]
enum Codec {
    /// Nothing.
    #[default]
    Off,
    /// Client and backend speak the same language.
    Same(Box<dyn Meter>),
    /// They do not.
    Translated(Box<TranslatedBody>),
}

/// What meters are made with.
struct Setup {
    language: &'static dyn Dialect,
    metering: Metering,
    /// The client has got the head of a stream.
    promised: bool,
    /// The backend speaks another language.
    translation: Option<Translation>,
}

impl Setup {
    fn document(&self) -> Codec {
        match &self.translation {
            Some(translation) => Codec::Translated(Box::new(translation.begin(false))),
            None => Codec::Same(self.language.document_meter()),
        }
    }

    fn stream(&self, by_line: bool) -> Codec {
        match &self.translation {
            Some(translation) => Codec::Translated(Box::new(translation.begin(true))),
            None => Codec::Same(self.language.stream_meter(&self.metering, by_line)),
        }
    }

    /// What a body is for the client, that is one document for the backend or a stream.
    fn form(&self, form: Form) -> Form {
        match (&self.translation, form) {
            (Some(translation), _) if translation.stream => Form::Stream,
            (Some(_), _) => Form::Document,
            (None, Form::Off | Form::Document) if self.promised => Form::Event,
            (None, form) => form,
        }
    }
}

/// What has come of a piece of a body.
pub struct Pushed {
    /// What goes to the client.
    pub bytes: Option<Bytes>,
    /// What it is.
    pub kind: PieceKind,
    /// It is known now what the body is: whether it is held back is to be decided again.
    pub reformed: bool,
    /// Events with data in it, if the stream has content.
    pub events: u64,
}

/// A body that cannot be decoded, or not translated.
#[derive(Debug)]
pub enum Unreadable {
    /// Its coding is broken; why.
    Coding(&'static str),
    /// It cannot be translated, or says that it has failed.
    Answer(StreamFault),
}

impl From<InflateError> for Unreadable {
    fn from(error: InflateError) -> Self {
        Self::Coding(error.word())
    }
}

impl From<Untranslatable> for Unreadable {
    fn from(error: Untranslatable) -> Self {
        Self::Answer(error.0)
    }
}

/// What a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceKind {
    /// A part of the answer, or nothing at all.
    Part,
    /// Comments alone.
    Heartbeat,
    /// White space before anything else.
    Blank,
}

impl Passage {
    /// For a successful answer with this head. `promised`: the client has got the head of a stream.
    /// `translation`: the backend speaks another language. If the body cannot be decoded it is passed
    /// on unread, and the name of its coding is given too.
    pub fn new(
        head: &ResponseHeader,
        language: &'static dyn Dialect,
        metering: Metering,
        promised: bool,
        translation: Option<Translation>,
    ) -> (Self, Option<String>) {
        let setup = Setup { language, metering, promised, translation };
        let declared = preprocess::declared(head);
        let unread = |setup| Self::with(Form::Off, Codec::Off, Preprocessor::default(), setup);
        if !head.status.is_success() || declared == Declared::Other && setup.translation.is_none() {
            return (unread(setup), None);
        }
        let coding = match preprocess::coding(head) {
            Ok(coding) => coding,
            // What is to be translated must be read: it fails as unreadable.
            Err(_) if setup.translation.is_some() => None,
            Err(name) => return (unread(setup), Some(name)),
        };
        let (form, codec) = match declared {
            Declared::Json => (Form::Document, setup.document()),
            Declared::Events => (Form::Stream, setup.stream(false)),
            Declared::Lines => (Form::Stream, setup.stream(true)),
            // A translation must read it, whatever it is.
            _ if setup.translation.is_some() => (Form::Document, setup.document()),
            Declared::Unclear | Declared::Other => (Form::Off, Codec::Off),
        };
        let preprocess = Preprocessor::new(coding, declared != Declared::Lines);
        (Self::with(form, codec, preprocess, setup), None)
    }

    fn with(form: Form, codec: Codec, preprocess: Preprocessor, setup: Setup) -> Self {
        let events = form == Form::Stream;
        let form = setup.form(form);
        let (progress, reads_events) = (Progress::default(), events);
        Self { form, codec, preprocess, progress, setup: Some(setup), reads_events }
    }

    /// What is known so far.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The counts that the engine has reported so far, and what they are worth.
    pub fn usage(&self) -> (TokenCounts, UsageSource) {
        match &self.codec {
            Codec::Off => Default::default(),
            Codec::Same(meter) => self.progress.usage(meter.counts()),
            Codec::Translated(body) => self.progress.usage(body.counts()),
        }
    }

    /// The model as the engine named it; given once.
    pub fn take_model(&mut self) -> Option<Box<str>> {
        self.progress.model.take()
    }

    /// It is a stream.
    pub fn is_stream(&self) -> bool {
        self.form == Form::Stream
    }

    /// It is translated, and nothing of it can go out before it has come to its end.
    pub fn comes_whole(&self) -> bool {
        matches!(&self.codec, Codec::Translated(body) if body.comes_whole())
    }

    /// It is one document, as far as is known, that goes out as such.
    pub fn is_document(&self) -> bool {
        self.form == Form::Document
    }

    /// It is one document that goes out as an event.
    pub fn is_event(&self) -> bool {
        self.form == Form::Event
    }

    /// Nothing is read from it, as far as is known.
    pub fn is_off(&self) -> bool {
        self.form == Form::Off
    }

    /// It is not known yet what the body is.
    pub fn is_open(&self) -> bool {
        self.preprocess.is_open()
    }

    /// Its compression is undone.
    pub fn decodes(&self) -> bool {
        self.preprocess.decodes()
    }

    /// Its stream is changed on its codec, if it is one.
    pub fn changes_stream(&self) -> bool {
        self.setup.as_ref().is_some_and(|setup| {
            setup.translation.is_some() || setup.language.changes_stream(&setup.metering)
        })
    }

    /// Several documents have come where one was expected, to a client that asked for a stream:
    /// their lines are to be taken for one.
    pub fn turns_out_as_lines(&self) -> bool {
        self.form == Form::Document && self.progress.documents > 1
    }

    /// Takes the next piece.
    ///
    /// # Errors
    /// If it cannot be decoded or translated.
    pub fn push(
        &mut self,
        piece: Option<Bytes>,
        end_of_stream: bool,
    ) -> Result<Pushed, Unreadable> {
        let (piece, reformed) = match self.preprocess.take(piece, end_of_stream)? {
            Preprocessed::Piece(piece) => (piece, false),
            Preprocessed::Known(kind, piece) => {
                let before = self.form;
                self.reform(kind);
                (Some(piece), self.form != before || self.form == Form::Off)
            }
            Preprocessed::Blank(blank) => {
                let (bytes, kind) = (Some(blank), PieceKind::Blank);
                return Ok(Pushed { bytes, kind, reformed: false, events: 0 });
            }
        };
        let before = self.progress.events;
        let bytes = match &mut self.codec {
            Codec::Off => {
                return Ok(Pushed { bytes: piece, kind: PieceKind::Part, reformed, events: 0 });
            }
            Codec::Translated(body) => Some(
                body.push(piece, end_of_stream, &mut self.progress).map_err(Unreadable::from)?,
            ),
            Codec::Same(meter) => {
                let mut bytes = piece.map(|piece| meter.push(piece, &mut self.progress));
                if end_of_stream {
                    let rest = meter.finish(&mut self.progress);
                    if !rest.is_empty() {
                        bytes = Some(joined(bytes.unwrap_or_default(), &rest));
                    }
                }
                bytes
            }
        };
        if self.form != Form::Stream {
            return Ok(Pushed { bytes, kind: PieceKind::Part, reformed, events: 0 });
        }
        let bytes = bytes.unwrap_or_default();
        let events = self.progress.events - before;
        let heartbeat = events == 0 && !bytes.is_empty() && !self.progress.content;
        Ok(Pushed {
            bytes: Some(bytes),
            kind: if heartbeat { PieceKind::Heartbeat } else { PieceKind::Part },
            reformed,
            events: if self.progress.content { events } else { 0 },
        })
    }

    /// The first bytes say what the body is.
    fn reform(&mut self, kind: Kind) {
        let Some(setup) = &self.setup else { return };
        if setup.translation.is_some() {
            // What the body is for the client does not depend on it.
            let events = kind == Kind::Events;
            if events != self.reads_events {
                self.reads_events = events;
                self.codec = if events { setup.stream(false) } else { setup.document() };
            }
            return;
        }
        match (kind, self.form) {
            (Kind::Events, Form::Stream) | (Kind::Other, _) => {}
            (Kind::Events, _) => (self.form, self.codec) = (Form::Stream, setup.stream(false)),
            (Kind::Json, Form::Document) => {}
            (Kind::Json, Form::Event) if matches!(self.codec, Codec::Same(_)) => {}
            // The client has got the head of a stream, perhaps because the backend sent one.
            (Kind::Json, _) => {
                let form = if setup.promised { Form::Event } else { Form::Document };
                (self.form, self.codec) = (form, setup.document());
            }
        }
    }

    /// Reads what was held back as a stream of lines, from here on. What goes out is returned.
    pub fn turn_into_lines(&mut self, held: Bytes, end_of_stream: bool) -> Bytes {
        let Some(setup) = &self.setup else { return held };
        (self.form, self.codec, self.progress) =
            (Form::Stream, setup.stream(true), Progress::default());
        let Codec::Same(meter) = &mut self.codec else { return held };
        let out = meter.push(held, &mut self.progress);
        let rest = if end_of_stream { meter.finish(&mut self.progress) } else { Bytes::new() };
        joined(out, &rest)
    }

    /// The body broke: whole events that were held back.
    pub fn abandon(&mut self) -> Bytes {
        match &mut self.codec {
            Codec::Same(meter) => meter.abandon(&mut self.progress),
            Codec::Translated(body) => body.abandon(&mut self.progress),
            Codec::Off => Bytes::new(),
        }
    }

    /// The events with which the body ends that broke; `None` if the language's own error event does.
    pub fn failure(&mut self, failure: &Failure<'_>) -> Option<Bytes> {
        match &mut self.codec {
            Codec::Same(meter) if self.form == Form::Stream => meter.failure(failure),
            Codec::Translated(body) if self.form == Form::Stream => {
                let class = Class::of_status(failure.status);
                let mut fault = StreamFault::new(class, failure.message);
                fault.code = Some(failure.code.to_owned());
                Some(body.fail(fault, &mut self.progress))
            }
            _ => None,
        }
    }

    /// [`Progress::pending`] has gone out.
    pub fn sent_pending(&mut self) {
        if let Codec::Same(meter) = &mut self.codec {
            meter.sent_pending(&mut self.progress);
        }
    }

    /// A whole body in which the model has the name that the client knows. A stream has it
    /// already.
    pub fn rename_model(&self, body: Bytes, name: &str) -> Bytes {
        match &self.setup {
            Some(setup) if self.form != Form::Stream && setup.translation.is_none() => {
                setup.language.rename_model(body, name)
            }
            _ => body,
        }
    }

    /// A piece of a document as a piece of an event.
    pub fn framed(&self, piece: Option<Bytes>, first: bool, last: bool) -> Bytes {
        match &self.setup {
            Some(setup) => setup.language.event_part(piece.unwrap_or_default(), first, last),
            None => piece.unwrap_or_default(),
        }
    }
}

fn joined(first: Bytes, second: &Bytes) -> Bytes {
    if second.is_empty() {
        return first;
    }
    let mut all = Vec::with_capacity(first.len() + second.len());
    all.extend_from_slice(&first);
    all.extend_from_slice(second);
    all.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::DIALECTS;

    /// A passage of the body of an answer with this content type, in this language.
    fn passage(language: &'static dyn Dialect, content_type: &str) -> Passage {
        let mut head = ResponseHeader::build(200, None).unwrap();
        head.insert_header("content-type", content_type).unwrap();
        let (passage, unread) = Passage::new(&head, language, Metering::default(), false, None);
        assert_eq!(unread, None);
        passage
    }

    #[test]
    fn unchanged_chunks_of_every_language_pass_without_a_copy() {
        for language in DIALECTS {
            let stream_type = language.stream_type();
            for content_type in [stream_type.to_str().unwrap(), "application/json"] {
                let mut passage = passage(*language, content_type);
                for number in 0..3 {
                    let chunk = language.event(format!("{{\"number\":{number}}}\n").as_bytes());
                    let at = chunk.as_ptr();
                    let out = passage.push(Some(chunk.clone()), false).unwrap().bytes.unwrap();
                    let name = language.name();
                    assert_eq!((out.as_ptr(), out.len()), (at, chunk.len()), "{name}");
                }
            }
        }
    }
}
