//! The request body: read once, capped, and sent again with every attempt.
//!
//! Pingora sends upstream only what it reads while it proxies, or what its retry buffer holds,
//! and that buffer is void for good once more than 64 KiB went through it. A body that was read
//! beforehand would so never be sent. What makes Pingora ask for the body again (and
//! `outbound` then gives the whole of it, from here):
//!
//! - HTTP/1.1 with `Content-Length`: the retry buffer is switched on just before the first read
//!   at which no more than 64 KiB are left, so that it holds a tail of the body.
//! - HTTP/1.1 chunked: the buffer is on from the start, which is good for 64 KiB. Of a larger body
//!   reading stops when the JSON document is complete, before the last chunk; while that is unread,
//!   Pingora reads on when it proxies. A larger body whose last chunk was read cannot be sent again, but
//!   for requests of which heads are held back (`held`): their session has a buffer to tell of.
//! - HTTP/2: only the first frame goes through the buffer, the others are read around it.

use std::{
    collections::TryReserveError,
    future::poll_fn,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http::header;
use pingora::{Error, ErrorSource, ErrorType, Result, protocols::http::ServerSession};
use pingora_proxy::Session;

use super::ctx::Ctx;
use crate::{
    base::Rejection,
    config::choices::{Engine, StreamUsage},
    dialect::Kind,
    runtime::{buffers::Share, connections::ActiveRequest},
    wire::{
        edit::{self, Edit},
        engine,
        json::EndFinder,
        peek::{self, Peek},
        prefix,
    },
};

/// What Pingora's retry buffer holds at most (`BODY_BUF_LIMIT` in pingora-core).
const RETRY_BUFFER: u64 = 64 * 1024;

/// Room for the edits that lengthen a body, so that they need no new buffer.
const EDIT_ROOM: usize = 128;

/// Bytes for which there is room at once when the length of a body is known. For a longer one the
/// room grows with what has come: a length that is said costs its client nothing.
const ROOM_AT_ONCE: usize = 1 << 20;

/// What a body may take with any rate, where nothing else limits the time between its pieces.
const GRACE: Duration = Duration::from_secs(60);

/// Seconds after which a client may try again when there is no room for its body.
const RETRY_AFTER: u64 = 1;

/// How long a body that nobody wants is taken in.
pub const LINGER: Duration = Duration::from_secs(5);

/// The body of one request.
#[derive(Default)]
pub struct Body {
    /// As the client sent it, guarded fields apart.
    bytes: Bytes,
    /// What it says, with the places where edits go.
    found: Peek,
    /// Versions that have been made for backends.
    versions: Vec<(Shape, Bytes)>,
    /// What it and its versions take of the memory for bodies; `None` until it is read.
    share: Option<Share>,
    /// How it came.
    pub framing: Framing,
    /// The present attempt has been given it.
    pub given: bool,
    /// What the client still sends after its document.
    pub tail: Tail,
    /// How the present backend is asked for the usage of a stream.
    pub asked: StreamUsage,
    /// What engines are told beside it.
    pub extras: Extras,
}

/// What a backend's version of a body depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// How it is asked for the usage of a stream; `Off` for what is none.
    pub usage: StreamUsage,
    /// The model's name there; `None`: as the client says.
    pub model: Option<Arc<str>>,
    /// What it is told beside the client's words.
    pub engine: Engine,
}

/// What engines are told beside the client's words; the same for all backends of one kind.
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
    /// The bytes, for reading.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Edits the body for every backend.
    pub fn change(&mut self, edits: Vec<Edit>) {
        self.bytes = edited(std::mem::take(&mut self.bytes), edits);
    }

    /// Notes what it says, after the last change for all backends.
    pub fn note(&mut self, found: Peek) {
        self.found = found;
    }

    /// The version of this shape. `sole`: no other will be wanted, and the body may be edited in
    /// place.
    pub fn version(&mut self, shape: &Shape, sole: bool) -> Bytes {
        if let Some((_, bytes)) = self.versions.iter().find(|(s, _)| s == shape) {
            return bytes.clone();
        }
        let edits = self.edits(shape);
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

    fn edits(&self, shape: &Shape) -> Vec<Edit> {
        let mut edits = match shape.usage {
            StreamUsage::Off => Vec::new(),
            StreamUsage::Final => peek::usage_edits(&self.bytes, &self.found, peek::Ask::Final),
            StreamUsage::Continuous => {
                peek::usage_edits(&self.bytes, &self.found, peek::Ask::Continuous)
            }
        };
        if let Some(model) = &shape.model {
            edits.extend(peek::replace_model(&self.found, model));
        }
        let mut fields = Vec::new();
        match (shape.engine, &self.extras) {
            (Engine::Vllm, Extras { salt: Some(salt), .. }) => {
                fields.push(engine::vllm_cache_salt(salt.clone()));
            }
            (Engine::Sglang, Extras { priority: Some(priority), .. }) => {
                fields.push(engine::sglang_priority(*priority));
            }
            _ => {}
        }
        edits.extend(peek::insert_fields(&self.found, &fields));
        edits
    }

    /// How many choices belong to each prompt, if there are several prompts.
    pub fn choices_per_prompt(&self) -> Option<u64> {
        self.found.several_prompts.then(|| self.found.choices.unwrap_or(1).max(1))
    }

    /// Hashes of how the conversation begins, for requests that share a prefix cache.
    pub fn beginnings(&self, model: &str, block: usize, most: usize) -> Vec<u64> {
        let part = |range: &Option<Range<usize>>| {
            range.clone().and_then(|r| self.bytes.get(r)).unwrap_or_default()
        };
        let salt = self.extras.salt.as_deref().unwrap_or_default();
        let scope = [model.as_bytes(), salt.as_bytes(), part(&self.found.tools)];
        prefix::blocks(prefix::words(&scope), part(&self.found.prompt), block, most)
    }

    /// Frees the bytes: no further attempt will need them.
    pub fn forget(&mut self) {
        self.bytes = Bytes::new();
        self.versions.clear();
        self.share = None;
    }
}

/// Edits in place if nobody else holds the bytes, else in a copy.
fn edited(bytes: Bytes, edits: Vec<Edit>) -> Bytes {
    let mut bytes = bytes.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    edit::apply(&mut bytes, edits);
    bytes.freeze()
}

/// Reads the body into the context.
///
/// # Errors
/// If the client went away. A body that is refused is a value.
pub async fn read(session: &mut Session, ctx: &mut Ctx) -> Result<Result<(), Rejection>> {
    let cap = ctx.snapshot.plan.max_body_size;
    let wait = ctx.snapshot.plan.timeouts.client_read;
    let length = match content_length(session) {
        Ok(length) => length,
        Err(no) => return Ok(Err(no)),
    };
    if length.is_some_and(|n| n > cap) {
        return Ok(Err(Rejection::body_too_large(cap)));
    }
    if expects_continue(session) {
        session.write_continue_response().await?;
    }
    let plan = &ctx.snapshot.plan;
    let mut reader = Reader {
        session,
        pieces: Pieces::default(),
        length,
        cap,
        pace: Pace { begun: Instant::now(), wait, rate: plan.min_body_rate },
        share: ctx.carry.buffers.share(),
        memory: plan.max_buffered_bytes,
        connection: ctx.end.connection.as_ref(),
    };
    let read = match (reader.session.is_http2(), length) {
        (true, _) => reader.http2().await,
        (false, Some(length)) => reader.sized(length).await,
        (false, None) => reader.chunked().await,
    };
    reader.session.set_read_timeout(wait);
    ctx.body.bytes = reader.pieces.whole();
    ctx.body.share = Some(reader.share);
    match read {
        Ok(framing) => {
            ctx.body.framing = framing;
            Ok(Ok(()))
        }
        Err(Stop::Refuse(no)) => {
            // Nothing will be made of what has come.
            ctx.body.forget();
            Ok(Err(no))
        }
        Err(Stop::Broken(e)) => Err(e),
    }
}

/// How fast a body has to come.
struct Pace {
    begun: Instant,
    /// How long the next piece may take; `None`: any time.
    wait: Option<Duration>,
    /// Bytes a second; 0: any.
    rate: u64,
}

impl Pace {
    /// How long to wait for the next piece of a body of which `bytes` have come.
    fn wait(&self, bytes: usize, now: Instant) -> Option<Duration> {
        if self.rate == 0 {
            return self.wait;
        }
        let due = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        let due = due.saturating_add(self.wait.unwrap_or(GRACE));
        let left = due.saturating_sub(now.saturating_duration_since(self.begun));
        Some(self.wait.map_or(left, |wait| wait.min(left)))
    }
}

/// The pieces of a body as they come. Most bodies come in one, which is then not copied.
#[derive(Default)]
struct Pieces {
    first: Bytes,
    all: Option<Vec<u8>>,
}

impl Pieces {
    fn len(&self) -> usize {
        self.all.as_ref().map_or(self.first.len(), Vec::len)
    }

    /// Takes a piece; `expected` is the length of the whole, where it is known.
    ///
    /// # Errors
    /// If there is no memory for it.
    fn push(&mut self, piece: Bytes, expected: Option<u64>) -> Result<(), TryReserveError> {
        if self.all.is_none() && self.first.is_empty() {
            self.first = piece;
            return Ok(());
        }
        let mut all = self.all.take().unwrap_or_default();
        let length = self.len().max(all.len()) + piece.len();
        if all.capacity() < length + EDIT_ROOM {
            // Room for edits at the end, so that they need no new buffer.
            let room = match expected.map(|n| usize::try_from(n).unwrap_or(usize::MAX)) {
                Some(expected) => expected.min(ROOM_AT_ONCE.max(2 * length)),
                None => 2 * length,
            };
            let room = room.max(length) + EDIT_ROOM;
            if let Err(e) = all.try_reserve_exact(room - all.len()) {
                self.all = Some(all);
                return Err(e);
            }
        }
        all.extend_from_slice(&std::mem::take(&mut self.first));
        all.extend_from_slice(&piece);
        self.all = Some(all);
        Ok(())
    }

    fn whole(self) -> Bytes {
        self.all.map_or(self.first, Bytes::from)
    }
}

enum Stop {
    Refuse(Rejection),
    Broken(Box<Error>),
}

impl From<Box<Error>> for Stop {
    fn from(e: Box<Error>) -> Self {
        match e.etype() {
            ErrorType::ReadTimedout => Self::Refuse(Rejection::body_timeout()),
            _ if is_bad_chunk(&e) => Self::Refuse(Rejection::bad_chunk()),
            _ => Self::Broken(e.into_down()),
        }
    }
}

/// Whether the client broke the rules of chunks (`INVALID_CHUNK` and `INVALID_TRAILER_END` in
/// pingora-core).
fn is_bad_chunk(error: &Error) -> bool {
    matches!(error.etype().as_str(), "InvalidChunk" | "InvalidTrailerEnd")
}

/// Whether reading the rest of a body has failed because the client broke the rules of chunks.
pub fn has_bad_chunks(error: &Error, ctx: &Ctx) -> bool {
    let client = *error.esource() == ErrorSource::Downstream;
    client
        && (is_bad_chunk(error) || ctx.end.connection.as_ref().is_some_and(|c| c.has_bad_chunks()))
}

struct Reader<'a> {
    session: &'a mut Session,
    pieces: Pieces,
    length: Option<u64>,
    cap: u64,
    pace: Pace,
    share: Share,
    /// Bytes that all bodies together may take.
    memory: u64,
    connection: Option<&'a ActiveRequest>,
}

impl Reader<'_> {
    /// How long the next piece may take.
    fn wait(&self) -> Option<Duration> {
        self.pace.wait(self.pieces.len(), Instant::now())
    }

    /// Reads the next piece by HTTP/1.1.
    async fn next(&mut self) -> Result<Option<Bytes>, Stop> {
        let wait = self.wait();
        self.session.set_read_timeout(wait);
        let read = self.session.read_request_body().await;
        if self.connection.is_some_and(ActiveRequest::has_bad_chunks) {
            return Err(Stop::Refuse(Rejection::bad_chunk()));
        }
        Ok(read?)
    }

    fn take(&mut self, piece: Bytes) -> Result<(), Stop> {
        if (self.pieces.len() + piece.len()) as u64 > self.cap {
            return Err(Stop::Refuse(Rejection::body_too_large(self.cap)));
        }
        if !self.share.try_take(piece.len(), self.memory) {
            return Err(Stop::Refuse(Rejection::buffers_full(RETRY_AFTER)));
        }
        self.pieces.push(piece, self.length).map_err(|e| {
            log::error!("no memory for the body of a request: {e}");
            Stop::Refuse(Rejection::buffers_full(RETRY_AFTER))
        })
    }

    async fn sized(&mut self, length: u64) -> Result<Framing, Stop> {
        loop {
            let left = length.saturating_sub(self.pieces.len() as u64);
            if left <= RETRY_BUFFER {
                self.session.enable_retry_buffering();
            }
            match self.next().await? {
                Some(piece) => self.take(piece)?,
                None => return Ok(Framing::Sized),
            }
            // Known to be over: spare the read that would only say so.
            if self.session.is_body_done() {
                return Ok(Framing::Sized);
            }
        }
    }

    async fn chunked(&mut self) -> Result<Framing, Stop> {
        self.session.enable_retry_buffering();
        let mut end = EndFinder::default();
        let mut over = false;
        // A body that the buffer holds is read to its last chunk, so that a broken one is refused.
        while let Some(piece) = self.next().await? {
            over = over || end.push(&piece);
            self.take(piece)?;
            if over && self.session.retry_buffer_truncated() {
                break;
            }
        }
        match (self.session.retry_buffer_truncated(), self.session.is_body_done()) {
            (false, _) => Ok(Framing::SmallChunked),
            (true, false) => Ok(Framing::LargeChunked),
            // It could not be sent even once.
            (true, true) => {
                Err(Stop::Refuse(Rejection::not_json("it ends before its document does")))
            }
        }
    }

    async fn http2(&mut self) -> Result<Framing, Stop> {
        self.session.enable_retry_buffering();
        while self.pieces.len() == 0 {
            match self.timed_first().await? {
                Some(piece) => self.take(piece)?,
                None => return Ok(Framing::Sized),
            }
        }
        while let Some(piece) = self.timed_next().await? {
            self.take(piece)?;
        }
        Ok(Framing::Sized)
    }

    async fn timed_first(&mut self) -> Result<Option<Bytes>, Stop> {
        match timed(self.wait(), self.session.read_request_body()).await {
            Some(read) => Ok(read?),
            None => Err(Stop::Refuse(Rejection::body_timeout())),
        }
    }

    /// Reads a frame of HTTP/2 past the retry buffer.
    async fn timed_next(&mut self) -> Result<Option<Bytes>, Stop> {
        let wait = self.wait();
        let ServerSession::H2(h2) = &mut *self.session.downstream_session else {
            return Ok(None);
        };
        match timed(wait, poll_fn(|cx| h2.poll_read_body_bytes(cx))).await {
            Some(None) => Ok(None),
            Some(Some(Ok(piece))) => Ok(Some(piece)),
            Some(Some(Err(e))) => {
                let why = "while reading the request body";
                Err(Stop::Broken(Error::because(ErrorType::ReadError, why, e).into_down()))
            }
            None => Err(Stop::Refuse(Rejection::body_timeout())),
        }
    }
}

async fn timed<T>(wait: Option<Duration>, read: impl Future<Output = T>) -> Option<T> {
    match wait {
        Some(wait) => tokio::time::timeout(wait, read).await.ok(),
        None => Some(read.await),
    }
}

/// The length that the client says; `None` for a chunked body, or by HTTP/2 if it says none.
fn content_length(session: &Session) -> Result<Option<u64>, Rejection> {
    let headers = &session.req_header().headers;
    if headers.contains_key(header::TRANSFER_ENCODING) {
        return Ok(None);
    }
    let mut lengths = headers
        .get_all(header::CONTENT_LENGTH)
        .iter()
        // RFC 9110, section 8.6: the same length may be repeated in a list.
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .map(|text| std::str::from_utf8(text.trim_ascii()).ok()?.parse::<u64>().ok());
    match lengths.next() {
        None if session.is_http2() => Ok(None),
        None => Ok(Some(0)),
        Some(Some(first)) if lengths.all(|other| other == Some(first)) => Ok(Some(first)),
        Some(_) => Err(Rejection::bad_length()),
    }
}

fn expects_continue(session: &Session) -> bool {
    let expect = session.req_header().headers.get(header::EXPECT);
    expect.is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Takes in and throws away what a client still sends after it was refused, for a while. Closing
/// at once would reset the connection, and the client would see that instead of the refusal.
pub async fn linger(session: &mut Session) {
    let rest = async { while let Ok(Some(_)) = session.read_request_body().await {} };
    tokio::time::timeout(LINGER, rest).await.ok();
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

/// Whether another attempt could be given the body.
pub fn replayable(session: &mut Session, ctx: &Ctx) -> bool {
    ctx.body.framing != Framing::LargeChunked || ctx.way.held.is_some() || !session.is_body_done()
}

/// The body for the present backend.
pub fn for_backend(ctx: &mut Ctx) -> Bytes {
    let streamed = ctx.call.stream
        && ctx.call.route.is_some_and(|r| r.kind == Kind::Inference { streams: true });
    let usage = match &ctx.way.endpoint {
        Some(endpoint) if streamed => endpoint.plan.stream_usage,
        _ => StreamUsage::Off,
    };
    ctx.body.asked = usage;
    let engine = ctx.way.endpoint.as_ref().map_or(Engine::Other, |e| e.plan.engine);
    let shape = Shape { usage, model: ctx.way.tries.model.clone(), engine };
    ctx.body.version(&shape, !ctx.way.tries.may_follow())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_that_is_said_makes_no_room() {
        for expected in [Some(u64::MAX), Some(1 << 40), Some(300), None] {
            let mut pieces = Pieces::default();
            for _ in 0..3 {
                pieces.push(Bytes::from_static(&[7; 100]), expected).unwrap();
            }
            let room = pieces.all.as_ref().unwrap().capacity();
            assert!(room <= ROOM_AT_ONCE + EDIT_ROOM, "{room} bytes for {expected:?}");
            assert_eq!(&pieces.whole()[..], &[7; 300]);
        }
    }

    #[test]
    fn a_body_has_to_keep_its_pace() {
        let begun = Instant::now();
        let at = |seconds: u64| begun + Duration::from_secs(seconds);
        let ten = Some(Duration::from_secs(10));
        let pace = Pace { begun, wait: ten, rate: 100 };
        assert_eq!(pace.wait(0, at(0)), ten);
        assert_eq!(pace.wait(0, at(7)), Some(Duration::from_secs(3)));
        // 500 bytes are worth five seconds.
        assert_eq!(pace.wait(500, at(7)), Some(Duration::from_secs(8)));
        assert_eq!(pace.wait(5_000, at(7)), ten);
        assert_eq!(pace.wait(500, at(70)), Some(Duration::ZERO));
        let any = Pace { begun, wait: None, rate: 0 };
        assert_eq!(any.wait(0, at(10_000)), None);
        let paced = Pace { begun, wait: None, rate: 1 };
        assert_eq!(paced.wait(0, at(0)), Some(GRACE));
    }
}
