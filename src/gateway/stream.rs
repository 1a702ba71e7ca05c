//! The body of an answer, piece by piece, as it passes.
//!
//! As long as another backend could take over, nothing of an answer is passed on before something
//! of its content has come: an engine that dies while it reads the prompt has then done no harm.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use pingora::{Error, ErrorType, Result, http::ResponseHeader};
use pingora_proxy::Session;

use super::{
    answer,
    cause::Cause,
    ctx::Ctx,
    ending, heartbeat,
    reading::{self, Front, Piece},
    tries::{self, Told},
    verdict::{self, Verdict},
};
use crate::{
    base::{TokenCounts, UsageSource},
    dialect::openai::{Blame, JsonTap, StreamMeter, Strip},
    wire::{edit, json},
};

/// Bytes of a document that are held back at most; of a longer one the beginning goes out.
const LONGEST_DOCUMENT: usize = 256 * 1024;

/// The same where the name of the model has to be replaced.
const LONGEST_RENAMED: usize = 8 * 1024 * 1024;

/// Bytes of an error response that are held back at most; a longer one is passed on, and no other
/// backend is tried in its place.
const LONGEST_REFUSAL: usize = 1024 * 1024;

/// Bytes of a stream without content that are held back at most.
const LONGEST_SILENCE: usize = 64 * 1024;

/// An answer.
#[derive(Default)]
pub struct Answer {
    /// Its status, once its head has come.
    pub status: Option<u16>,
    /// What is done to its body before it is read.
    pub front: Front,
    /// How its body is read.
    pub reading: Reading,
    /// From the arrival of the request to the first event of a stream that has content.
    pub first_token: Option<Duration>,
    /// The whole body has come.
    pub whole: bool,
    /// A piece of the body has gone to the client.
    pub begun: bool,
    /// Why it is not passed on, but another backend tried.
    pub refused: Option<Cause>,
    /// When its head came, if that was not just now.
    pub head_at: Option<Instant>,
    /// How long its backend wants to be left alone.
    pub retry_after: Option<Duration>,
    /// A stream had been opened for the client before this answer came. Written by `response`.
    pub opened: bool,
    /// The client has been told in other words: what still comes is not passed on.
    told_otherwise: bool,
    /// Pieces that are held back; `None`: pieces pass.
    pub held: Option<Held>,
    /// The beginning of an error response that passes while it is read.
    inspected: Held,
    /// What of a stream was held back when its connection broke.
    pub rest: Bytes,
    /// A chunk of the stream that goes to the client by itself, if nothing comes before that time.
    pub pending: Option<(Bytes, Instant)>,
    last: Option<Instant>,
    /// Its backend's state has been told of it.
    judged: bool,
}

/// Pieces that are held back.
#[derive(Default)]
pub struct Held {
    pieces: Vec<Bytes>,
    len: usize,
}

impl Held {
    /// Adds a piece.
    pub fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.len += piece.len();
            self.pieces.push(piece);
        }
    }

    /// All of it. A single piece is not copied.
    fn joined(mut self) -> Bytes {
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

/// How a body is read.
#[derive(Default)]
pub enum Reading {
    /// Not at all.
    #[default]
    Nothing,
    /// As one JSON document.
    Json(Box<JsonTap>),
    /// As events.
    Stream(Box<StreamMeter>),
    /// As a document that is passed on as one event; it is also read, if it is JSON.
    Event(Option<Box<JsonTap>>),
    /// As the reason of an answer that is no success; with its head.
    Refusal(Box<ResponseHeader>),
}

impl Answer {
    /// Forgets what a backend has answered, for another one to answer.
    pub fn renew(&mut self) {
        *self = Self::default();
    }

    /// The counts, and what they are worth.
    pub fn usage(&self) -> (TokenCounts, UsageSource) {
        match &self.reading {
            Reading::Nothing | Reading::Event(None) | Reading::Refusal(_) => Default::default(),
            Reading::Json(tap) | Reading::Event(Some(tap)) => tap.usage(),
            Reading::Stream(meter) => meter.usage(),
        }
    }

    /// The model as the backend named it; told once.
    pub fn take_model(&mut self) -> Option<Box<str>> {
        match &mut self.reading {
            Reading::Nothing | Reading::Event(None) | Reading::Refusal(_) => None,
            Reading::Json(tap) | Reading::Event(Some(tap)) => tap.take_model(),
            Reading::Stream(meter) => meter.take_model(),
        }
    }

    /// How many events of a stream have carried a part of the answer, if no usage was reported: a
    /// client that leaves before the usage chunk has got about so many tokens. Otherwise 0.
    pub fn streamed(&self) -> u64 {
        match &self.reading {
            Reading::Stream(meter) if meter.usage().1 == UsageSource::None => meter.content(),
            _ => 0,
        }
    }

    /// A stream whose end has come, and which is with the client but for that: whatever happens to
    /// the connections afterwards is of no interest.
    pub fn complete(&self) -> bool {
        self.begun && matches!(&self.reading, Reading::Stream(meter) if meter.done())
    }

    /// The engine broke the generation off, or said that it failed.
    pub fn broken_off(&self) -> bool {
        match &self.reading {
            Reading::Nothing | Reading::Event(None) | Reading::Refusal(_) => false,
            Reading::Json(tap) | Reading::Event(Some(tap)) => tap.aborted(),
            Reading::Stream(meter) => meter.aborted() || meter.failed(),
        }
    }
}

/// Reads the next piece; what is put back goes to the client.
///
/// # Errors
/// If a deadline has cut the answer off: without a length or chunks its end looks like any other.
/// If nothing came that could be an event of the stream that the client was told of. If the answer
/// is not to be passed on, because another backend can be tried.
pub fn filter(
    session: &mut Session,
    body: &mut Option<Bytes>,
    end_of_stream: bool,
    ctx: &mut Ctx,
) -> Result<()> {
    // The client has all of it, or has been told otherwise.
    let over = ctx.answer.whole || ctx.answer.told_otherwise;
    ctx.answer.whole |= end_of_stream;
    if over {
        *body = Some(Bytes::new());
        return Ok(());
    }
    if end_of_stream && ctx.way.watch.as_ref().is_some_and(|w| w.fired().is_some()) {
        return Err(Error::explain(ErrorType::ReadTimedout, "cut off by a deadline").into_up());
    }
    if body.as_ref().is_some_and(|piece| !piece.is_empty()) {
        ctx.way.story.first_byte();
    }
    let sign = match read(session, body, end_of_stream, ctx)? {
        Came::Part => false,
        Came::Heartbeat => true,
        Came::Blank => {
            heartbeat::blank(session, body, ctx);
            return Ok(());
        }
    };
    // What follows `[DONE]` is not waited for.
    let done = matches!(&ctx.answer.reading, Reading::Stream(meter) if meter.done());
    let cut = done && !end_of_stream;
    let end_of_stream = end_of_stream || done;
    wait_for_more(end_of_stream, ctx);
    if ctx.answer.held.is_none() {
        inspect(body.as_ref(), end_of_stream, ctx);
    } else {
        if sign && !end_of_stream && heartbeat::pass(session, body, ctx) {
            return Ok(());
        }
        *body = hold(session, body.take().unwrap_or_default(), end_of_stream, ctx)?;
        if body.is_none() {
            *body = Some(Bytes::new());
            return Ok(());
        }
    }
    if cut {
        ending::end(session, ctx);
    }
    let first = !ctx.answer.begun && body.as_ref().is_some_and(|piece| !piece.is_empty());
    match ctx.answer.reading {
        Reading::Event(_) if end_of_stream && !ctx.answer.begun && !first => {
            return Err(Error::explain(ErrorType::ConnectionClosed, "an empty answer").into_up());
        }
        Reading::Event(_) => *body = Some(part_of_event(body.take(), first, end_of_stream)),
        Reading::Refusal(_) if first && ctx.answer.opened => {
            let status = ctx.answer.status.unwrap_or_default();
            *body = Some(answer::error_event(ctx, status, &body.take().unwrap_or_default()));
            ctx.answer.told_otherwise = true;
        }
        _ => {}
    }
    if first {
        begin(ctx);
    }
    if end_of_stream {
        ended(ctx);
    } else {
        heartbeat::send_soon(session, ctx);
        let good = ctx.answer.status.is_some_and(|status| status < 300);
        if first && good {
            if !sign {
                tries::succeeded(ctx);
            }
            if let Some(lease) = ctx.way.lease() {
                lease.began();
            }
        }
    }
    Ok(())
}

/// Decides whether an answer is held back, by how it is read.
pub fn hold_back(session: &Session, ctx: &mut Ctx) {
    let tries = &ctx.way.tries;
    let (renamed, follows) = (tries.model.is_some(), tries.may_follow() && !ctx.answer.begun);
    // Lines would have to be changed: it must be known that they are lines.
    let lines = ctx.call.stream && reading::strip(ctx) != Strip::Nothing;
    let held = match ctx.answer.reading {
        // It can only become an event as a whole.
        Reading::Refusal(_) => follows || ctx.answer.opened,
        Reading::Nothing => follows && ctx.answer.front.is_open(),
        Reading::Stream(_) => follows,
        Reading::Json(_) | Reading::Event(_) => follows || renamed || lines,
    };
    ctx.answer.held = held.then(Held::default);
    let stream = matches!(ctx.answer.reading, Reading::Stream(_));
    if let Some(home) = &ctx.way.held {
        // A comment would come between a document and its head.
        home.set_quiet(!stream && !answer::opened(session));
    }
}

/// The client is about to get bytes of this answer: no other backend will be asked.
pub fn begin(ctx: &mut Ctx) {
    ctx.answer.begun = true;
    ctx.body.forget();
    if let Some(watch) = &ctx.way.watch {
        watch.set_backend(None);
    }
}

/// The head says that no body follows, and there will be no piece to look at.
///
/// # Errors
/// If the answer is not to be passed on, because another backend can be tried.
pub fn nothing_follows(session: &mut Session, ctx: &mut Ctx) -> Result<()> {
    ctx.answer.whole = true;
    if let Reading::Stream(_) | Reading::Refusal(_) = ctx.answer.reading {
        ctx.answer.held.get_or_insert_default();
        hold(session, Bytes::new(), true, ctx)?;
    }
    ctx.answer.held = None;
    ended(ctx);
    Ok(())
}

/// What a piece is.
enum Came {
    /// A part of the answer, or nothing at all.
    Part,
    /// Comments alone.
    Heartbeat,
    /// White space before anything else.
    Blank,
}

/// Meters a piece, and takes out what the client did not ask for.
fn read(
    session: &mut Session,
    body: &mut Option<Bytes>,
    end_of_stream: bool,
    ctx: &mut Ctx,
) -> Result<Came> {
    match ctx.answer.front.take(body.take(), end_of_stream)? {
        Piece::Read(piece) => *body = piece,
        Piece::Blank(piece) => {
            *body = Some(piece);
            return Ok(Came::Blank);
        }
        Piece::Known(kind, piece) => {
            *body = piece;
            let before = std::mem::take(&mut ctx.answer.reading);
            let same = std::mem::discriminant(&before);
            ctx.answer.reading = reading::known(kind, before, ctx);
            if std::mem::discriminant(&ctx.answer.reading) != same
                || matches!(ctx.answer.reading, Reading::Nothing)
            {
                hold_back(session, ctx);
            }
        }
    }
    heartbeat::recall(ctx);
    match &mut ctx.answer.reading {
        Reading::Nothing | Reading::Refusal(_) | Reading::Event(None) => {}
        Reading::Json(tap) | Reading::Event(Some(tap)) => {
            if let Some(piece) = body {
                tap.push(piece);
            }
        }
        Reading::Stream(meter) => {
            let before = meter.events();
            let mut out = match body.take() {
                Some(piece) => meter.push(piece),
                None => Bytes::new(),
            };
            let (events, substance) = (meter.events() - before, meter.substance());
            if end_of_stream {
                let rest = meter.finish();
                out = if out.is_empty() { rest } else { joined(out, &rest) };
            }
            let heartbeat = events == 0 && !out.is_empty() && !substance;
            *body = Some(out);
            if events > 0 && substance {
                pace(ctx, events);
            }
            return Ok(if heartbeat { Came::Heartbeat } else { Came::Part });
        }
    }
    Ok(Came::Part)
}

/// Sets the deadline for what comes next.
pub fn wait_for_more(end_of_stream: bool, ctx: &Ctx) {
    let Some(watch) = &ctx.way.watch else { return };
    let timeouts = &ctx.snapshot.plan.timeouts;
    let chunk = Ctx::after(timeouts.between_chunks.filter(|_| !end_of_stream));
    let silent = matches!(&ctx.answer.reading, Reading::Stream(meter) if !meter.substance());
    let token = match (timeouts.first_token, ctx.way.tries.since) {
        (Some(wait), Some(since)) if silent && !end_of_stream => Some(since + wait),
        _ => None,
    };
    match token {
        // The first token is still waited for, whatever else has come.
        Some(token) if chunk.is_none_or(|chunk| token < chunk) => watch.set_first_byte(Some(token)),
        _ => watch.set_chunk(chunk),
    }
}

/// Holds a piece back, or lets go of all that is held. `None`: nothing goes out yet.
fn hold(
    session: &mut Session,
    piece: Bytes,
    end_of_stream: bool,
    ctx: &mut Ctx,
) -> Result<Option<Bytes>> {
    let Some(held) = &mut ctx.answer.held else {
        return Ok(Some(piece));
    };
    held.push(piece);
    let renames = ctx.way.tries.model.is_some();
    if matches!(&ctx.answer.reading, Reading::Json(tap) if ctx.call.stream && tap.documents() > 1) {
        return Ok(Some(by_line(end_of_stream, ctx)));
    }
    let cause = match look(&ctx.answer, renames, end_of_stream) {
        Look::Wait => return Ok(None),
        Look::Pass => None,
        Look::Refuse(cause) => Some(cause),
        Look::Judge => {
            // Joined once: it goes out, or is kept, as it is then.
            let body = ctx.answer.held.take().unwrap_or_default().joined();
            // Of one that is not all here, another backend's answer could not take the place.
            let cause = judge(&body, ctx).filter(|_| end_of_stream);
            ctx.answer.held.get_or_insert_default().push(body);
            cause
        }
    };
    if let Some(cause) = cause {
        tell_backend(ctx, cause);
        if tries::can_follow(session, ctx, cause) {
            keep(ctx);
            ctx.answer.refused = Some(cause);
            return Err(Error::explain(ErrorType::HTTPStatus(503), cause.word()).into_up());
        }
    }
    let document = !matches!(ctx.answer.reading, Reading::Stream(_) | Reading::Refusal(_));
    let all = ctx.answer.held.take().unwrap_or_default().joined();
    Ok(Some(match (&ctx.way.tries.model, &ctx.call.model) {
        (Some(_), Some(name)) if document => renamed(all, name),
        _ => all,
    }))
}

/// A document on each line, which no header has told of: they are read as a stream from here on.
fn by_line(end_of_stream: bool, ctx: &mut Ctx) -> Bytes {
    let all = ctx.answer.held.take().unwrap_or_default().joined();
    let mut meter = reading::meter(ctx).by_line();
    let mut out = meter.push(all);
    if end_of_stream {
        let rest = meter.finish();
        out = joined(out, &rest);
    }
    ctx.answer.reading = Reading::Stream(Box::new(meter));
    out
}

/// What is to be done with what is held.
enum Look {
    /// More must come.
    Wait,
    /// It goes out.
    Pass,
    /// It shows that the backend has failed.
    Refuse(Cause),
    /// It is an answer that is no success, as far as it will be read.
    Judge,
}

fn look(answer: &Answer, renames: bool, end_of_stream: bool) -> Look {
    let len = answer.held.as_ref().map_or(0, |held| held.len);
    // The name of the model may stand at the end.
    let longest = if renames { LONGEST_RENAMED } else { LONGEST_DOCUMENT };
    match &answer.reading {
        Reading::Refusal(_) if end_of_stream || len > LONGEST_REFUSAL => Look::Judge,
        Reading::Refusal(_) => Look::Wait,
        // It is known now that nothing is read.
        Reading::Nothing if !answer.front.is_open() => Look::Pass,
        Reading::Stream(meter) => match () {
            () if meter.substance() || meter.blame() == Some(Blame::Client) => Look::Pass,
            () if meter.failed() => Look::Refuse(Cause::ErrorEvent),
            () if meter.aborted() => Look::Refuse(Cause::Aborted),
            () if meter.over() || len > LONGEST_SILENCE => Look::Pass,
            () if end_of_stream => Look::Refuse(Cause::Empty),
            () => Look::Wait,
        },
        _ if end_of_stream && answer.broken_off() => Look::Refuse(Cause::Aborted),
        _ if end_of_stream || len > longest => Look::Pass,
        _ => Look::Wait,
    }
}

/// Reads an error response that passes as it comes, because no other backend can be tried.
fn inspect(piece: Option<&Bytes>, end_of_stream: bool, ctx: &mut Ctx) {
    if ctx.answer.judged || !matches!(ctx.answer.reading, Reading::Refusal(_)) {
        return;
    }
    if let Some(piece) = piece {
        ctx.answer.inspected.push(piece.clone());
    }
    if end_of_stream || ctx.answer.inspected.len > verdict::MOST {
        let body = std::mem::take(&mut ctx.answer.inspected).joined();
        judge(&body, ctx);
    }
}

/// Judges an error response by its body; says if another backend might do better.
fn judge(body: &[u8], ctx: &mut Ctx) -> Option<Cause> {
    let status = ctx.answer.status.unwrap_or_default();
    let plan = &ctx.snapshot.plan.routing;
    let start = &body[..body.len().min(verdict::MOST)];
    let (verdict, cause) = verdict::judge(status, start, ctx.answer.retry_after, plan);
    ctx.answer.judged = true;
    tries::tell(ctx, verdict);
    cause
}

/// Tells the backend's state of an answer that has failed before its content.
fn tell_backend(ctx: &mut Ctx, cause: Cause) {
    if matches!(cause, Cause::ErrorEvent | Cause::Aborted | Cause::Empty) && !ctx.answer.judged {
        ctx.answer.judged = true;
        let verdict = match &ctx.answer.reading {
            Reading::Stream(meter) if meter.blame() == Some(Blame::Nobody) => Verdict::Neutral,
            _ => Verdict::Failed,
        };
        tries::tell(ctx, verdict);
    }
}

/// Keeps an answer that is no success, in case that no other is given.
fn keep(ctx: &mut Ctx) {
    if let Reading::Refusal(_) = ctx.answer.reading
        && let Reading::Refusal(head) = std::mem::take(&mut ctx.answer.reading)
        && let Some(endpoint) = ctx.way.endpoint.clone()
    {
        let body = ctx.answer.held.take().unwrap_or_default().joined();
        ctx.way.tries.told = Some(Told { endpoint, head, body });
    }
}

/// The backend has answered. It may have said that it failed, when nobody could take over any more.
pub fn ended(ctx: &mut Ctx) {
    if !std::mem::replace(&mut ctx.answer.judged, true) {
        let verdict = match &ctx.answer.reading {
            Reading::Stream(meter) if meter.blame().is_some_and(|b| b != Blame::Engine) => {
                Verdict::Neutral
            }
            _ if ctx.answer.broken_off() => Verdict::Failed,
            _ if ctx.answer.status.is_some_and(|status| status < 400) => Verdict::Good,
            _ => Verdict::Neutral,
        };
        tries::tell(ctx, verdict);
    }
    tries::ended(ctx);
}

/// A document with the name of the model that the client knows.
fn renamed(document: Bytes, name: &str) -> Bytes {
    let Some(member) = json::find(&document, "model") else {
        return document;
    };
    let edit = edit::Edit { range: member.value, with: json::quoted(name).into() };
    let mut all = document.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    edit::apply(&mut all, vec![edit]);
    all.freeze()
}

/// A piece of a document, as a piece of an event: in JSON a line break is a space.
fn part_of_event(piece: Option<Bytes>, first: bool, last: bool) -> Bytes {
    let mut out = if first { b"data: ".to_vec() } else { Vec::new() };
    let line = |b: &u8| if matches!(b, b'\n' | b'\r') { b' ' } else { *b };
    out.extend(piece.iter().flat_map(|p| p.iter().map(line)));
    if last {
        out.extend_from_slice(b"\n\n");
    }
    out.into()
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

/// Notes when events came.
fn pace(ctx: &mut Ctx, events: u64) {
    let now = Instant::now();
    let metrics = &ctx.carry.metrics;
    match ctx.answer.last {
        None => {
            let wait = now - ctx.call.arrived;
            ctx.answer.first_token = Some(wait);
            metrics.first_token.observe(wait.as_secs_f64());
            ctx.way.first_token(now, true);
        }
        Some(last) => {
            // Events that came together share the time since the last ones.
            let each = (now - last).as_secs_f64() / events as f64;
            for _ in 0..events {
                metrics.inter_token.observe(each);
            }
        }
    }
    ctx.answer.last = Some(now);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::openai::Strip;

    fn answer(events: &[&str]) -> Answer {
        let mut meter = StreamMeter::new(Strip::All { nulls: true });
        events.iter().for_each(|e| drop(meter.push(Bytes::from(format!("data: {e}\n\n")))));
        Answer { reading: Reading::Stream(Box::new(meter)), ..Answer::default() }
    }

    #[test]
    fn events_count_where_no_usage_is_reported() {
        let part = r#"{"choices":[{"delta":{"content":"a"}}],"usage":null}"#;
        let usage = r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":9}}"#;
        assert_eq!(answer(&[part, part]).streamed(), 2);
        assert_eq!(answer(&[part, part, "[DONE]"]).streamed(), 2);
        assert_eq!(answer(&[part, part, usage, "[DONE]"]).streamed(), 0);
        assert_eq!(answer(&[]).streamed(), 0);
        assert_eq!(Answer::default().streamed(), 0);
    }

    #[test]
    fn a_document_becomes_one_event() {
        let mut all = Vec::new();
        for (piece, first, last) in [("{\n ", true, false), ("\"a\":\r\n1}", false, true)] {
            all.extend(part_of_event(Some(Bytes::from(piece)), first, last));
        }
        assert_eq!(all, b"data: {  \"a\":  1}\n\n");
    }
}
