//! The body of an answer on its way from a backend's language to a client's.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::{
    hub::{
        Class, Codec, Event, Exchange, Response, StopReason, StreamFault, Translator, Usage,
        codec::{Decode, Encode},
        normal::Normal,
        translator,
    },
    meter::{Blame, Progress},
};
use crate::base::TokenCounts;

/// Bytes of a plain answer that is translated, at most.
const LONGEST_DOCUMENT: usize = 64 << 20;

/// By how many bytes an event of one language is longer than that of another, usually at most.
const FRAME: usize = 160;

/// Both languages of an answer, and what is known of its request.
#[derive(Clone)]
pub struct Translation {
    /// The backend's language.
    pub from: &'static dyn Codec,
    /// The client's.
    pub to: &'static dyn Codec,
    /// What the answer's side has to know of the request.
    pub exchange: Arc<Exchange>,
    /// The client has asked for a stream.
    pub stream: bool,
}

impl Translation {
    /// A backend's error response as the client gets it: its status and body.
    pub fn error(&self, status: u16, body: &[u8]) -> (u16, Bytes) {
        self.failed(&self.fault(status, body))
    }

    /// What an answer with a good status says of its failure, as the status and the body of an error.
    pub fn failed(&self, fault: &StreamFault) -> (u16, Bytes) {
        let (status, body) = self.to.write_error(fault);
        (status, body.into())
    }

    fn fault(&self, status: u16, body: &[u8]) -> StreamFault {
        let fault = self.from.read_error(status, &String::from_utf8_lossy(body));
        if matches!(status, 401 | 403) { refused_key() } else { fault }
    }

    /// The status of an error response for the client, as far as it follows from the backend's.
    pub fn status(&self, status: u16) -> u16 {
        let fault = StreamFault::new(Class::of_status(status), "");
        match status {
            401 | 403 => self.to.write_error(&refused_key()).0,
            429 | 503 | 529 => self.to.write_error(&fault).0,
            _ => status,
        }
    }

    /// For a body that is a stream of events, or one document.
    pub fn begin(&self, events: bool) -> TranslatedBody {
        let form = match (events, self.stream) {
            (true, true) => {
                let translator = Translator::new(self.from, self.to, &self.exchange);
                Form::Stream(Box::new(translator))
            }
            (true, false) => Form::Fold(Box::new(Fold::new(self))),
            (false, _) => Form::Document(BytesMut::new()),
        };
        TranslatedBody {
            translation: self.clone(),
            form,
            usage: Usage::default(),
            spoken: String::new(),
        }
    }
}

/// A backend has refused the gateway's own key. Its words are not for the client, which would take
/// them for a word on its own key, and forget that.
fn refused_key() -> StreamFault {
    let message = "The backend refused the gateway's credentials";
    let code = Some("upstream_auth".to_owned());
    StreamFault { code, ..StreamFault::new(Class::Server, message) }
}

/// A body that is being translated.
pub struct TranslatedBody {
    translation: Translation,
    form: Form,
    usage: Usage,
    /// What goes out next.
    spoken: String,
}

enum Form {
    /// From stream to stream.
    Stream(Box<Translator>),
    /// A stream for a client that wants one document.
    Fold(Box<Fold>),
    /// A document, for a client that wants either.
    Document(BytesMut),
}

/// An answer that cannot be translated, or that says that it has failed.
#[derive(Debug, PartialEq, Eq)]
pub struct Untranslatable(pub StreamFault);

impl Untranslatable {
    fn because(message: &str) -> Self {
        Self(StreamFault::new(Class::Server, message))
    }
}

impl TranslatedBody {
    /// Takes the next piece of the body.
    ///
    /// # Errors
    /// If a plain answer cannot be read, or is an error: the client has got nothing of it.
    pub fn push(
        &mut self,
        piece: Option<Bytes>,
        end: bool,
        progress: &mut Progress,
    ) -> Result<Bytes, Untranslatable> {
        progress.ended |= end;
        let Self { form, usage, spoken, translation } = self;
        let mut seen = |event: &Event| note(event, usage, progress);
        match form {
            Form::Stream(translator) => {
                if let Some(piece) = piece {
                    // Once, and not at each part of an event.
                    spoken.reserve(piece.len() + FRAME);
                    translator.push(&piece, spoken, &mut seen);
                }
                if end {
                    translator.finish(spoken, &mut seen);
                }
            }
            Form::Fold(fold) => {
                if let Some(piece) = piece {
                    fold.push(&piece, &mut seen);
                }
                if end {
                    *spoken = fold.finish(translation, &mut seen)?;
                }
            }
            Form::Document(body) => {
                if let Some(piece) = piece {
                    if body.len() + piece.len() > LONGEST_DOCUMENT {
                        let message = "The backend's answer is too long to be translated";
                        return Err(Untranslatable::because(message));
                    }
                    body.extend_from_slice(&piece);
                }
                if end {
                    *spoken = whole(translation, body, &mut seen)?;
                }
            }
        }
        Ok(Bytes::from(std::mem::take(spoken)))
    }

    /// The connection broke. If the answer was over, as far as the engine has said, the client gets its
    /// end.
    pub fn abandon(&mut self, progress: &mut Progress) -> Bytes {
        let Self { form, usage, spoken, .. } = self;
        if let (Form::Stream(translator), true) = (form, progress.choice_ended) {
            translator.finish(spoken, |event| note(event, usage, progress));
        }
        Bytes::from(std::mem::take(spoken))
    }

    /// The answer broke: what the client gets as its end. Empty where it gets a document, or has its
    /// end already.
    pub fn fail(&mut self, fault: StreamFault, progress: &mut Progress) -> Bytes {
        let Self { form, usage, spoken, translation } = self;
        match form {
            Form::Stream(translator) => {
                translator.fail(fault, spoken, |event| note(event, usage, progress));
                Bytes::from(std::mem::take(spoken))
            }
            Form::Document(_) if translation.stream => {
                let events = [Event::Start(Default::default()), Event::Fault(fault)];
                translator::stream(translation.to, &events, &translation.exchange).into()
            }
            Form::Fold(_) | Form::Document(_) => Bytes::new(),
        }
    }

    /// It is one document, for the backend or for the client.
    pub fn comes_whole(&self) -> bool {
        matches!(self.form, Form::Document(_) | Form::Fold(_))
    }

    /// What the engine has reported so far.
    pub fn counts(&self) -> Option<TokenCounts> {
        self.usage.counts()
    }
}

/// A document, read and written again.
fn whole(
    translation: &Translation,
    body: &[u8],
    seen: &mut impl FnMut(&Event),
) -> Result<String, Untranslatable> {
    let Translation { from, to, exchange, stream } = translation;
    let text = std::str::from_utf8(body)
        .map_err(|_| Untranslatable::because("The backend's answer is not UTF-8"))?;
    let events = translator::answer(*from, text, exchange).map_err(Untranslatable)?;
    events.iter().for_each(seen);
    if *stream {
        return Ok(translator::stream(*to, &events, exchange));
    }
    written(*to, &Response::of(&events), exchange)
}

fn written(
    to: &dyn Codec,
    response: &Response,
    exchange: &Exchange,
) -> Result<String, Untranslatable> {
    match to.objection(response) {
        Some(fault) => Err(Untranslatable(fault)),
        None => Ok(to.write_answer(response, exchange)),
    }
}

/// A stream that becomes a document.
struct Fold {
    events: Translator,
    response: Response,
}

/// Writes nothing: what it is shown is folded.
struct Nothing;

impl Encode for Nothing {
    fn event(&mut self, _event: &Event, _out: &mut String) {}
}

impl Fold {
    fn new(translation: &Translation) -> Self {
        let decoder: Box<dyn Decode> = translation.from.decoder(&translation.exchange);
        let events = Translator::of(decoder, Normal::new(&translation.exchange), Box::new(Nothing));
        Self { events, response: Response::default() }
    }

    fn push(&mut self, piece: &Bytes, seen: &mut impl FnMut(&Event)) {
        let Self { events, response } = self;
        events.push(piece, &mut String::new(), |event| {
            response.take(event);
            seen(event);
        });
    }

    fn finish(
        &mut self,
        translation: &Translation,
        seen: &mut impl FnMut(&Event),
    ) -> Result<String, Untranslatable> {
        let Self { events, response } = self;
        events.finish(&mut String::new(), |event| {
            response.take(event);
            seen(event);
        });
        match response.fault.take() {
            Some(fault) => Err(Untranslatable(fault)),
            None => written(translation.to, response, &translation.exchange),
        }
    }
}

/// Notes what an event says of the answer.
fn note(event: &Event, usage: &mut Usage, progress: &mut Progress) {
    match event {
        Event::Start(start) => {
            progress.events += 1;
            // Counts that come before the end are those so far.
            (progress.running, progress.sparse) = (true, true);
            *usage = usage.updated(start.usage.unwrap_or_default());
            progress.model = start.model.clone().map(Into::into);
        }
        Event::Usage(more) => {
            *usage = usage.updated(*more);
            // What comes with the pieces is as new as they are.
            progress.sparse &= progress.choice_ended;
        }
        Event::Stop { reason, .. } => {
            progress.choice_ended = true;
            progress.aborted |= *reason == StopReason::Aborted;
        }
        Event::End => progress.finished = true,
        Event::Fault(fault) => {
            progress.finished = true;
            progress.events += 1;
            progress.error =
                Some(if fault.class.is_clients() { Blame::Client } else { Blame::Engine });
        }
        event if event.is_content() => {
            progress.content = true;
            progress.parts += 1;
            progress.events += 1;
        }
        _ => {}
    }
}
