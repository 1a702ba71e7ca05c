//! Metering: what is learned of an answer from its passing bytes.

use std::sync::Arc;

use bytes::Bytes;

use super::glance::UsageRequest;
use crate::base::{TokenCounts, UsageSource};

/// Watches an answer in one language. It is given every piece, and what it returns goes to the
/// client.
pub trait Meter: Send + Sync {
    /// Takes the next piece, and writes what it says into `seen`. A piece in which nothing changes
    /// is returned as it is, without a copy.
    fn push(&mut self, piece: Bytes, seen: &mut Progress) -> Bytes;

    /// The backend has ended the answer; returns what was still held back.
    fn finish(&mut self, seen: &mut Progress) -> Bytes;

    /// The answer broke: returns whole events that were held back. The beginning of an event that
    /// never ended is dropped, so that an error event can follow.
    fn abandon(&mut self, seen: &mut Progress) -> Bytes;

    /// [`Progress::pending`] has gone out.
    fn sent_pending(&mut self, seen: &mut Progress);

    /// The counts that the engine has reported so far. Asked at the end: it may cost more than to
    /// read them.
    fn counts(&self) -> Option<TokenCounts>;

    /// The events with which an answer ends that has begun and broke, in a language whose error event
    /// depends on what came before. `None`: its error event is the same everywhere
    /// ([`super::Dialect::event`]).
    fn failure(&self, _failure: &Failure<'_>) -> Option<Bytes> {
        None
    }
}

/// Why an answer that has begun is not continued.
pub struct Failure<'a> {
    /// The body of an error in the client's language, as the configuration wants it worded.
    pub document: &'a [u8],
    /// One sentence.
    pub message: &'a str,
    /// One of the gateway's error codes.
    pub code: &'a str,
    /// The status that the answer would have had, had it not begun.
    pub status: u16,
}

/// What a meter is made for.
#[derive(Clone, Default)]
pub struct Metering {
    /// The usage that the backend was asked for; `None` if only what the client asked for.
    pub added: Option<UsageRequest>,
    /// The usage that the client asked for.
    pub asked: UsageRequest,
    /// The model's name for the client, if the backend knows it by another one.
    pub model: Option<Arc<str>>,
    /// How many choices belong to each prompt, if there are several prompts.
    pub choices_per_prompt: Option<u64>,
}

/// What is known of an answer so far.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The engine's counts may be running figures, which are final once the answer is.
    pub running: bool,
    /// Those figures come at the beginning and at the end alone.
    pub sparse: bool,
    /// Events with data that have come, the end marker and usage events included.
    pub events: u64,
    /// Events that have carried a part of the answer: about one token each.
    pub parts: u64,
    /// Something of the answer itself has come: text, a tool call, or anything that is not known
    /// to be without content. An event with only a role, or with an empty text, has none.
    pub content: bool,
    /// The end marker has come: the answer is complete, whatever happens to the connection.
    pub finished: bool,
    /// The backend has ended the answer.
    pub ended: bool,
    /// A choice has been ended, and not broken off.
    pub choice_ended: bool,
    /// The engine broke the generation off.
    pub aborted: bool,
    /// The engine reported an error, which is this one's fault.
    pub error: Option<Blame>,
    /// The model as the engine named it, if that is a name to keep.
    pub model: Option<Box<str>>,
    /// The id of the answer, if its language lets backends store answers.
    pub stored: Option<Box<str>>,
    /// Whole or begun documents of a plain answer.
    pub documents: u32,
    /// A chunk that is held back for what may belong to it, as it goes out if nothing does.
    pub pending: Option<Bytes>,
}

impl Progress {
    /// What the engine's counts are worth.
    pub fn usage(&self, counts: Option<TokenCounts>) -> (TokenCounts, UsageSource) {
        match counts {
            None => (TokenCounts::default(), UsageSource::None),
            Some(counts) if !self.running => (counts, UsageSource::Final),
            Some(counts) if (self.finished || self.ended) && !self.is_broken_off() => {
                (counts, UsageSource::Final)
            }
            Some(counts) => (counts, UsageSource::Partial),
        }
    }

    /// The engine broke the generation off, or reported an error.
    pub fn is_broken_off(&self) -> bool {
        self.aborted || self.error.is_some()
    }

    /// The engine has said that the answer is over, and did not break it off.
    pub fn is_over(&self) -> bool {
        self.choice_ended || self.finished && !self.is_broken_off()
    }
}

/// Whose fault an engine's error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The client's: its request cannot be served anywhere.
    Client,
    /// The engine's.
    Engine,
    /// The error does not say.
    Unknown,
}
