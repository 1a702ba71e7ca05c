//! The request body on its way to backends: read once, and sent again with every attempt, in a
//! version of its own for each kind of backend.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use pingora::{Error, ErrorType, Result};
use serde_json::Value;

use super::translated::Translations;
use crate::{
    config::choices::Engine,
    dialect::{Dialect, Glance, UsageRequest, Want},
    runtime::buffers::Share,
    wire::{
        edit::{self, Edit},
        engine, prefix,
    },
};

/// The body of one request.
#[derive(Default)]
pub struct Body {
    /// As the client sent it, guarded fields apart.
    bytes: Bytes,
    /// What it says, with the places where edits go.
    glance: Glance,
    /// For backends of other languages.
    pub translations: Translations,
    /// Versions that have been made for backends.
    versions: Vec<(Shape, Bytes)>,
    /// What it and its versions take of the memory for bodies; `None` until it is read.
    share: Option<Share>,
    /// How it came.
    pub framing: Framing,
    /// What the client still sends after its document.
    pub tail: Tail,
    /// Fields that only engines get.
    pub extras: Extras,
}

/// What a backend's version of a body depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// The usage of a stream that is asked for.
    pub usage: Option<UsageRequest>,
    /// The model's name there; `None`: as the client says.
    pub model: Option<Arc<str>>,
    /// Which engine fields it gets.
    pub engine: Engine,
}

/// Fields that only engines get, the same for all backends with one engine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extras {
    /// How important the request is, larger is more.
    pub priority: Option<i32>,
    /// Whose prefix cache it may share.
    pub salt: Option<String>,
}

/// How a body came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// There was none, or its length was said, or it came by HTTP/2: it can always be sent again.
    #[default]
    Sized,
    /// Chunked and within the retry buffer: likewise.
    SmallChunked,
    /// Chunked and larger: only while the last chunk is unread, or heads are held back.
    LargeChunked,
}

impl Body {
    /// One that was read.
    pub fn new(bytes: Bytes, share: Share, framing: Framing) -> Self {
        Self { bytes, share: Some(share), framing, ..Self::default() }
    }

    /// The bytes, for reading.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes, to be kept beside it.
    pub fn shared(&self) -> Bytes {
        self.bytes.clone()
    }

    /// Edits the body for every backend.
    pub fn change(&mut self, edits: Vec<Edit>) {
        self.bytes = edited(std::mem::take(&mut self.bytes), edits);
    }

    /// Notes what it says, after the last change for all backends.
    pub fn note(&mut self, glance: Glance) {
        self.glance = glance;
    }

    /// The version of this shape. `sole`: no other will be wanted, and the body may be edited in
    /// place.
    pub fn version(&mut self, language: &dyn Dialect, shape: &Shape, sole: bool) -> Bytes {
        if let Some((_, bytes)) = self.versions.iter().find(|(s, _)| s == shape) {
            return bytes.clone();
        }
        let edits = language.edits(&self.bytes, &self.glance, &self.want(shape));
        if edits.is_empty() {
            return self.bytes.clone();
        }
        let bytes = if sole { std::mem::take(&mut self.bytes) } else { self.bytes.clone() };
        let bytes = edited(bytes, edits);
        if !sole && let Some(share) = &mut self.share {
            share.take(bytes.len());
        }
        self.versions.push((shape.clone(), bytes.clone()));
        bytes
    }

    fn want<'a>(&self, shape: &'a Shape) -> Want<'a> {
        let fields = self.engine_fields(shape.engine);
        Want { usage: shape.usage, model: shape.model.as_deref(), fields }
    }

    /// The fields that only this engine gets.
    pub fn engine_fields(&self, engine: Engine) -> Vec<(&'static str, Value)> {
        match (engine, &self.extras) {
            (Engine::Vllm, Extras { salt: Some(salt), .. }) => {
                vec![engine::vllm_cache_salt(salt.clone())]
            }
            (Engine::Sglang, Extras { priority: Some(priority), .. }) => {
                vec![engine::sglang_priority(*priority)]
            }
            _ => Vec::new(),
        }
    }

    /// What the body says.
    pub fn glance(&self) -> &Glance {
        &self.glance
    }

    /// Takes so many bytes of the memory for bodies.
    pub fn take_share(&mut self, bytes: usize) {
        if let Some(share) = &mut self.share {
            share.take(bytes);
        }
    }

    /// How many choices belong to each prompt, if there are several prompts.
    pub fn choices_per_prompt(&self) -> Option<u64> {
        self.glance.several_prompts.then(|| self.glance.choices.unwrap_or(1).max(1))
    }

    /// Hashes of how the conversation begins, for requests that share a prefix cache.
    pub fn beginnings(&self, model: &str, block: usize, most: usize) -> Vec<u64> {
        let part = |range: &Option<Range<usize>>| {
            range.clone().and_then(|r| self.bytes.get(r)).unwrap_or_default()
        };
        let salt = self.extras.salt.as_deref().unwrap_or_default();
        let (tools, system) = (part(&self.glance.tools), part(&self.glance.system));
        let scope = [model.as_bytes(), salt.as_bytes(), tools, system];
        prefix::blocks(prefix::words(&scope), part(&self.glance.conversation), block, most)
    }

    /// Frees the bytes: no further attempt will need them.
    pub fn forget(&mut self) {
        self.bytes = Bytes::new();
        self.versions.clear();
        self.translations.forget();
        self.share = None;
    }

    /// Whether another attempt could be given it. `deferred`: the client's session is in a wrapper
    /// that has a buffer; `all_read`: the client's last byte has been read.
    pub fn is_replayable(&self, deferred: bool, all_read: bool) -> bool {
        self.framing != Framing::LargeChunked || deferred || !all_read
    }
}

/// Edits in place if the bytes are held by nothing else, else in a copy.
fn edited(bytes: Bytes, edits: Vec<Edit>) -> Bytes {
    let mut bytes = bytes.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    edit::apply(&mut bytes, edits);
    bytes.freeze()
}

/// Bytes of a tail, which is the end of a chunked body and perhaps some white space.
const LONGEST_TAIL: usize = 64 * 1024;

/// What comes of a chunked body after its document is complete: it is read while the request is with
/// its backend.
#[derive(Default)]
pub struct Tail {
    bytes: usize,
    since: Option<Instant>,
}

impl Tail {
    /// Takes a piece that comes at `now`; all of it may take so long.
    ///
    /// # Errors
    /// If there is no end to it.
    pub fn take(&mut self, bytes: usize, longest: Option<Duration>, now: Instant) -> Result<()> {
        self.bytes += bytes;
        let since = *self.since.get_or_insert(now);
        let late = longest.is_some_and(|longest| now.saturating_duration_since(since) > longest);
        if late || self.bytes > LONGEST_TAIL {
            let why = "a request's body goes on after its document";
            return Err(Error::explain(ErrorType::ReadTimedout, why).into_down());
        }
        Ok(())
    }
}
