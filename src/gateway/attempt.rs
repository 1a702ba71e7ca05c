//! One attempt: a backend, and the result of sending the request to it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use pingora::http::ResponseHeader;

use super::translated::TranslatedRequest;
use crate::{
    balance::{Endpoint, Lease, PickedBackend},
    base::{Fault, TokenCounts, UsageSource},
    dialect::{Passage, Progress, Rewording, Translation, UsageRequest, hub::StreamFault},
};

/// One attempt. A retry replaces it whole.
pub struct Attempt {
    /// The backend.
    pub endpoint: Arc<Endpoint>,
    /// Its place at that backend; `None` once it was given back.
    pub lease: Option<Lease>,
    /// The model's name there; `None`: as the client says.
    pub model: Option<Arc<str>>,
    /// The request in its language, if that is not the client's.
    pub translated: Option<Arc<TranslatedRequest>>,
    /// Tiers of the route before the one that the backend was found in.
    pub tier: usize,
    /// When it began.
    pub began: Instant,
    /// The number of its span in the timeline, if there is one.
    pub span: Option<usize>,
    /// The request's body has been given to it.
    pub sent_body: bool,
    /// The body that scripts have made for it; `None`: its version of the client's.
    pub own_body: Option<Bytes>,
    /// The usage of a stream that the backend was asked for, beyond what the client asked.
    pub usage: Option<UsageRequest>,
    /// A kept-alive connection was dead: the attempt is repeated on a new connection.
    pub reconnects: bool,
    /// What came back.
    pub answer: Answer,
    /// What broke.
    pub fault: Option<Fault>,
}

/// What a backend has answered.
#[derive(Default)]
pub struct Answer {
    /// Its status, once its head has come.
    pub status: Option<u16>,
    /// When its head came, if that was not just now.
    pub head_at: Option<Instant>,
    /// The pause that its backend asks for, from `Retry-After`.
    pub retry_after: Option<Duration>,
    /// The head of an answer that is no success, whose body says whether the backend is at fault.
    pub error_head: Option<Box<ResponseHeader>>,
    /// How an error of an engine that speaks the client's language is worded anew, if that one has other
    /// words for it.
    pub rewording: Option<Rewording>,
    /// It is a stored answer, a document in which the model gets the client's name.
    pub renames: bool,
    /// How its body goes to the client.
    pub passage: Passage,
    /// A stream had been opened for the client before this answer came.
    pub promised: bool,
    /// It has a good status, and cannot be translated or says that it has failed.
    pub failed: Option<StreamFault>,
    /// Pieces that are held back; `None`: pieces pass.
    pub hold: Option<BodyHold>,
    /// The beginning of an error response that passes while it is read.
    pub inspected: BodyHold,
    /// What of a stream was held back when its connection broke.
    pub rest: Bytes,
    /// A chunk that goes out by itself at that time, if nothing comes before.
    pub pending: Option<(Bytes, Instant)>,
    /// The whole body has come.
    pub whole: bool,
    /// A piece of it has gone to the client.
    pub begun: bool,
    /// The client got the gateway's own wording: the rest of the answer is dropped.
    pub replaced: bool,
    /// The client gets what the retry policy keeps in its place.
    pub substituted: bool,
    /// It is not passed on: another attempt is made.
    pub discarded: bool,
    /// It is remembered which backend has stored it.
    pub remembered: bool,
    /// The retry policy has counted it for or against its backend.
    pub judged: bool,
    /// From the arrival of the request to the first event that had content.
    pub first_token: Option<Duration>,
    /// When the last event came.
    pub last_event: Option<Instant>,
}

impl Attempt {
    /// An attempt that begins now.
    pub fn new(
        choice: PickedBackend,
        model: Option<Arc<str>>,
        tier: usize,
        span: Option<usize>,
    ) -> Self {
        Self { lease: Some(choice.lease), model, tier, span, ..Self::answered(choice.endpoint) }
    }

    /// One whose answer was kept, and which holds no place at its backend any more.
    pub fn answered(endpoint: Arc<Endpoint>) -> Self {
        Self {
            endpoint,
            lease: None,
            model: None,
            translated: None,
            tier: 0,
            began: Instant::now(),
            span: None,
            sent_body: false,
            own_body: None,
            usage: None,
            reconnects: false,
            answer: Answer::default(),
            fault: None,
        }
    }

    /// The same again, on a connection of its own.
    pub fn restart(&mut self) {
        self.answer = Answer::default();
        self.fault = None;
        self.reconnects = false;
        self.sent_body = false;
        self.own_body = None;
    }

    /// The status that the client sees.
    pub fn shown_status(&self) -> Option<u16> {
        let status = self.answer.status?;
        Some(match self.translation() {
            Some(translation) if status >= 400 => translation.status(status),
            _ => status,
        })
    }

    /// How its answer is translated; `None`: it is in the client's language.
    pub fn translation(&self) -> Option<&Translation> {
        self.translated.as_ref()?.answer.as_ref()
    }

    /// What a failed answer with a good status says, for the client: its status, the body of an
    /// error, and the message.
    pub fn said(&self) -> Option<(u16, Bytes, String)> {
        let (failed, translation) = (self.answer.failed.as_ref()?, self.translation()?);
        let (status, body) = translation.failed(failed);
        Some((status, body, failed.message.clone()))
    }

    /// The first token of a stream has come at `now`, or the head of another answer.
    pub fn first_token(&mut self, now: Instant, stream: bool) {
        if let Some(lease) = &mut self.lease {
            lease.first_token(now.saturating_duration_since(self.began), stream);
        }
    }
}

impl Answer {
    /// What is known of its body.
    pub fn progress(&self) -> &Progress {
        self.passage.progress()
    }

    /// It is no success, and its body says whether the backend is at fault.
    pub fn is_error(&self) -> bool {
        self.error_head.is_some()
    }

    /// A stream whose end has come, and which is with the client except for that end: whatever
    /// happens to the connections afterwards does not matter.
    pub fn is_complete(&self) -> bool {
        self.begun && self.passage.is_stream() && self.progress().finished
    }

    /// The counts of its tokens, and what they are worth. Where counts come at the beginning and at the
    /// end alone, as many tokens as pieces have come at least.
    pub fn usage(&self) -> (TokenCounts, UsageSource) {
        let (mut counts, source) = self.passage.usage();
        let parts = self.progress().parts;
        let stale = self.progress().sparse && source == UsageSource::Partial;
        if stale && counts.completion < parts {
            counts.total = counts.total.saturating_add(parts - counts.completion);
            counts.completion = parts;
        }
        (counts, source)
    }

    /// How many events of a stream have carried a part of the answer, if no usage was reported: a
    /// client that leaves before the usage chunk has got about so many tokens. Otherwise 0.
    pub fn unmetered_parts(&self) -> u64 {
        match self.passage.usage() {
            (_, UsageSource::None) if self.passage.is_stream() => self.progress().parts,
            _ => 0,
        }
    }
}

/// An answer that was not passed on because another attempt might do better, for the case that
/// none does.
pub struct KeptAnswer {
    /// The backend that gave it.
    pub endpoint: Arc<Endpoint>,
    /// Its head, as the client would have got it.
    pub head: Box<ResponseHeader>,
    /// Its body.
    pub body: Bytes,
}

/// Pieces of a body that are held back.
#[derive(Default)]
pub struct BodyHold {
    pieces: Vec<Bytes>,
    len: usize,
}

impl BodyHold {
    /// Adds a piece.
    pub fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.len += piece.len();
            self.pieces.push(piece);
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// All of it. A single piece is not copied.
    pub fn joined(mut self) -> Bytes {
        match self.pieces.len() {
            0 | 1 => self.pieces.pop().unwrap_or_default(),
            _ => {
                let mut all = BytesMut::with_capacity(self.len);
                self.pieces.iter().for_each(|piece| all.extend_from_slice(piece));
                all.freeze()
            }
        }
    }
}
