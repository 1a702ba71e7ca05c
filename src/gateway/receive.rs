//! Receiving the request body: read once, with a cap on its size, its memory and its time.
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
//!   for requests of which heads are deferred (`deferred_head`): their session has a buffer to tell of.
//! - HTTP/2: only the first frame goes through the buffer, the others are read around it.

use std::{
    collections::TryReserveError,
    future::poll_fn,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::header;
use pingora::{Error, ErrorSource, ErrorType, protocols::http::ServerSession};
use pingora_proxy::Session;

use super::{
    body::{Body, Framing},
    ctx::Ctx,
    stop::Stop,
};
use crate::{
    base::Rejection,
    runtime::{buffers::Share, connections::ActiveRequest},
    wire::json::EndFinder,
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

/// How long the rest of a rejected body is read and dropped.
pub const LINGER: Duration = Duration::from_secs(5);

/// Reads the body into the context.
///
/// # Errors
/// If it is refused, or the client went away.
pub async fn read(session: &mut Session, ctx: &mut Ctx) -> Result<(), Stop> {
    let plan = &ctx.snapshot.plan;
    let (cap, wait) = (plan.max_body_size, plan.timeouts.client_read);
    let length = content_length(session)?;
    if length.is_some_and(|n| n > cap) {
        return Err(Rejection::body_too_large(cap).into());
    }
    if expects_continue(session) {
        session.write_continue_response().await?;
    }
    let mut reader = Reader {
        session,
        pieces: Pieces::default(),
        length,
        cap,
        pace: Pace { begun: Instant::now(), wait, rate: plan.min_body_rate },
        share: ctx.carry.buffers.share(),
        memory: plan.max_buffered_bytes,
        connection: ctx.connection.as_ref(),
    };
    let read = match (reader.session.is_http2(), length) {
        (true, _) => reader.http2().await,
        (false, Some(length)) => reader.sized(length).await,
        (false, None) => reader.chunked().await,
    };
    reader.session.set_read_timeout(wait);
    ctx.body = Body::new(reader.pieces.whole(), reader.share, read?);
    Ok(())
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

/// Why reading a body ends. A client that is too slow, or breaks the rules of chunks, is refused.
fn stopped(error: Box<Error>) -> Stop {
    match error.etype() {
        ErrorType::ReadTimedout => Stop::Refuse(Rejection::body_timeout()),
        _ if is_bad_chunk(&error) => Stop::Refuse(Rejection::bad_chunk()),
        _ => Stop::Broken(error.into_down()),
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
    client && (is_bad_chunk(error) || ctx.connection.as_ref().is_some_and(|c| c.has_bad_chunks()))
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
        read.map_err(stopped)
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
            Some(read) => read.map_err(stopped),
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
