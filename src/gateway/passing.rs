//! The body of an answer, piece by piece, as it passes.
//!
//! As long as another backend could take over, nothing of an answer is passed on before something
//! of its content has come: an engine that dies while it reads the prompt has then done no harm.

use std::time::Instant;

use bytes::Bytes;
use pingora::{Error, ErrorType, Result, http::ResponseHeader};
use pingora_proxy::Session;

use super::{
    attempt::{Answer, Attempt, BodyHold, KeptAnswer},
    attempts,
    ctx::Ctx,
    deferred_head, ending, heartbeat, pacing, reply,
    retry::{AttemptOutcome, Cause, LONGEST_INSPECTED},
    settlement, stored,
};
use crate::dialect::{Blame, PieceKind, Unreadable};

/// Bytes of a document that are held back at most; of a longer one the beginning goes out.
const LONGEST_DOCUMENT: usize = 256 * 1024;

/// The same where the name of the model has to be replaced.
const LONGEST_RENAMED: usize = 8 * 1024 * 1024;

/// Bytes of an error response that are held back at most; a longer one is passed on, and no other
/// backend is tried in its place.
const LONGEST_ERROR: usize = 1024 * 1024;

/// Bytes of a stream without content that are held back at most. A stream of Responses begins with all
/// of its request twice.
const LONGEST_SILENCE: usize = 512 * 1024;

/// Takes the next piece; what is put back goes to the client.
///
/// # Errors
/// If a deadline has cut the answer off: without a length or chunks its end looks like any other.
/// If the client was promised a stream and nothing came that could be an event of it. If the answer is
/// discarded because another attempt follows.
pub fn filter(
    session: &mut Session,
    body: &mut Option<Bytes>,
    end_of_stream: bool,
    ctx: &mut Ctx,
) -> Result<()> {
    push(session, body, end_of_stream, ctx)?;
    stored::remember(ctx);
    if ctx.attempt.as_ref().is_some_and(|attempt| attempt.answer.whole) {
        settlement::settle(ctx, None);
    }
    Ok(())
}

fn push(
    session: &mut Session,
    body: &mut Option<Bytes>,
    end_of_stream: bool,
    ctx: &mut Ctx,
) -> Result<()> {
    let Some(attempt) = &mut ctx.attempt else { return Ok(()) };
    let stopped = ctx.hooks.as_ref().is_some_and(|state| state.has_stopped());
    if stopped && !attempt.answer.whole {
        ending::cut(ctx);
        *body = Some(Bytes::new());
        return Ok(());
    }
    // The client has all of it, or was answered in other words.
    let over = attempt.answer.whole || attempt.answer.replaced;
    attempt.answer.whole |= end_of_stream;
    if over {
        *body = Some(Bytes::new());
        return Ok(());
    }
    if end_of_stream && ctx.watch.as_ref().is_some_and(|w| w.fired().is_some()) {
        return Err(Error::explain(ErrorType::ReadTimedout, "cut off by a deadline").into_up());
    }
    if attempt.span.is_some() && body.as_ref().is_some_and(|piece| !piece.is_empty()) {
        attempts::first_byte(ctx, Instant::now);
    }
    let heartbeat = match read(session, body, end_of_stream, ctx)? {
        PieceKind::Part => false,
        PieceKind::Heartbeat => true,
        PieceKind::Blank => {
            heartbeat::blank(session, body, ctx);
            return Ok(());
        }
    };
    pass(session, body, (end_of_stream, heartbeat), ctx)
}

/// Passes what was read, unless it is held back.
fn pass(
    session: &mut Session,
    body: &mut Option<Bytes>,
    (end_of_stream, heartbeat): (bool, bool),
    ctx: &mut Ctx,
) -> Result<()> {
    let Some(attempt) = &ctx.attempt else { return Ok(()) };
    // What follows the end marker is not waited for.
    let passage = &attempt.answer.passage;
    let finished = passage.is_stream() && passage.progress().finished;
    let held = attempt.answer.hold.is_some();
    let cut = finished && !end_of_stream;
    let end_of_stream = end_of_stream || finished;
    pacing::wait_for_more(end_of_stream, ctx);
    if !held {
        inspect(session, body.as_ref(), end_of_stream, ctx);
    } else {
        if heartbeat && !end_of_stream && heartbeat::pass(session, body, ctx) {
            return Ok(());
        }
        *body = hold(session, body.take().unwrap_or_default(), end_of_stream, ctx)?;
        if body.is_none() {
            *body = Some(Bytes::new());
            return Ok(());
        }
    }
    if let (Some(deferred), Some(attempt)) = (&ctx.deferred, &ctx.attempt) {
        let passage = &attempt.answer.passage;
        let silent = !passage.progress().content && !passage.progress().is_over();
        deferred.set_waits(passage.is_stream() && silent && !end_of_stream);
    }
    if cut {
        ending::end(session, ctx);
    }
    let first = !ctx.has_begun() && body.as_ref().is_some_and(|piece| !piece.is_empty());
    frame(body, first, end_of_stream, ctx)?;
    if first {
        pacing::begin(ctx);
        if let Some(deferred) = ctx.deferred.take_if(|held| deferred_head::dissolve(session, held))
        {
            drop(deferred);
        }
    }
    if end_of_stream {
        ended(session, ctx);
        return Ok(());
    }
    heartbeat::send_soon(session, ctx);
    let good = |attempt: &&mut Attempt| attempt.answer.status.is_some_and(|status| status < 300);
    if first && let Some(attempt) = ctx.attempt.as_mut().filter(good) {
        if !heartbeat {
            ctx.retry.succeeded();
        }
        if let Some(lease) = &mut attempt.lease {
            lease.began();
        }
    }
    Ok(())
}

/// Gives a piece the form that the client was promised.
fn frame(body: &mut Option<Bytes>, first: bool, last: bool, ctx: &mut Ctx) -> Result<()> {
    let Some(attempt) = &mut ctx.attempt else { return Ok(()) };
    let answer = &mut attempt.answer;
    if answer.is_error() {
        if first && answer.promised {
            answer.replaced = true;
            let status = answer.status.unwrap_or_default();
            let error = body.take().unwrap_or_default();
            *body = Some(reply::error_wording(ctx).error_event(status, &error));
        }
    } else if answer.passage.is_event() {
        if last && !answer.begun && !first {
            return Err(Error::explain(ErrorType::ConnectionClosed, "an empty answer").into_up());
        }
        *body = Some(answer.passage.framed(body.take(), first, last));
    }
    Ok(())
}

/// Decides whether an answer is held back, by its passage.
pub fn hold_back(session: &Session, ctx: &mut Ctx) {
    let may_follow = ctx.retry.may_follow();
    let Some(attempt) = &mut ctx.attempt else { return };
    let follows = may_follow && !attempt.answer.begun;
    let (answer, passage) = (&attempt.answer, &attempt.answer.passage);
    // Lines would have to be changed: it must be known that they are lines.
    let lines = ctx.request.stream && passage.changes_stream();
    let held = if answer.renames {
        true
    } else if answer.is_error() {
        // It can only become an event as a whole.
        let reworded = attempt.translation().is_some() || answer.rewording.is_some();
        follows || answer.promised || reworded
    } else if passage.is_off() {
        follows && passage.is_open()
    } else if passage.is_stream() {
        follows || passage.comes_whole()
    } else {
        follows || attempt.model.is_some() || lines || passage.comes_whole()
    };
    let stream = passage.is_stream();
    attempt.answer.hold = held.then(BodyHold::default);
    if let Some(deferred) = &ctx.deferred {
        // A comment would come between a document and its head.
        deferred.set_quiet(!stream && !reply::opened(session));
    }
}

/// The head says that no body follows, and there will be no piece to look at.
///
/// # Errors
/// If the answer is not to be passed on, because another attempt follows.
pub fn nothing_follows(session: &mut Session, ctx: &mut Ctx) -> Result<()> {
    let Some(attempt) = &mut ctx.attempt else { return Ok(()) };
    let answer = &mut attempt.answer;
    answer.whole = true;
    if answer.passage.is_stream() || answer.is_error() {
        answer.hold.get_or_insert_default();
        let own = hold(session, Bytes::new(), true, ctx)?.unwrap_or_default();
        let head = ctx.attempt.as_mut().and_then(|attempt| attempt.answer.error_head.take());
        // The backend's error says nothing, the client's language does.
        if let (Some(head), false) = (head, own.is_empty()) {
            return Err(substitute(ctx, head, own));
        }
    }
    if let Some(attempt) = &mut ctx.attempt {
        attempt.answer.hold = None;
    }
    ended(session, ctx);
    Ok(())
}

/// The client gets this in place of the backend's answer, of which it has got nothing. No further
/// attempt is made. What is returned ends the present one.
pub fn substitute(ctx: &mut Ctx, head: Box<ResponseHeader>, body: Bytes) -> Box<Error> {
    if let Some(attempt) = &mut ctx.attempt {
        attempt.answer.substituted = true;
        let endpoint = attempt.endpoint.clone();
        ctx.retry.kept = Some(KeptAnswer { endpoint, head, body });
    }
    Error::explain(ErrorType::InternalError, "answered in other words").into_up()
}

/// Meters a piece, and takes out what the client did not ask for.
fn read(
    session: &mut Session,
    body: &mut Option<Bytes>,
    end_of_stream: bool,
    ctx: &mut Ctx,
) -> Result<PieceKind> {
    heartbeat::recall(ctx);
    let Some(attempt) = &mut ctx.attempt else { return Ok(PieceKind::Part) };
    let answer = &mut attempt.answer;
    let pushed = answer.passage.push(body.take(), end_of_stream).map_err(|error| match error {
        Unreadable::Coding(why) => Error::explain(ErrorType::InvalidHTTPHeader, why).into_up(),
        Unreadable::Answer(fault) => {
            let why = fault.message.clone();
            answer.failed = Some(fault);
            Error::explain(ErrorType::ReadError, why).into_up()
        }
    })?;
    *body = pushed.bytes;
    if pushed.reformed {
        hold_back(session, ctx);
    }
    if pushed.events > 0 {
        pacing::note(ctx, pushed.events);
    }
    Ok(pushed.kind)
}

/// Holds a piece back, or releases all that is held. `None`: nothing is sent yet.
fn hold(
    session: &mut Session,
    piece: Bytes,
    end_of_stream: bool,
    ctx: &mut Ctx,
) -> Result<Option<Bytes>> {
    let stream = ctx.request.stream;
    let Some(attempt) = &mut ctx.attempt else { return Ok(Some(piece)) };
    let answer = &mut attempt.answer;
    let Some(hold) = &mut answer.hold else {
        return Ok(Some(piece));
    };
    hold.push(piece);
    if stream && !answer.is_error() && answer.passage.turns_out_as_lines() {
        let held = answer.hold.take().unwrap_or_default().joined();
        return Ok(Some(answer.passage.turn_into_lines(held, end_of_stream)));
    }
    let mut error = Bytes::new();
    let renames = attempt.model.is_some() || answer.renames;
    let outcome = match decide_hold(answer, renames, end_of_stream) {
        HoldDecision::Wait => return Ok(None),
        HoldDecision::Pass => None,
        HoldDecision::NoContent(cause) => Some(AttemptOutcome::NoContent(cause)),
        HoldDecision::Judge => {
            // Joined once: it goes out, or is kept, as it is then.
            error = answer.hold.take().unwrap_or_default().joined();
            answer.hold.get_or_insert_default().push(error.clone());
            Some(AttemptOutcome::Error(&error))
        }
    };
    if let Some(outcome) = outcome
        && attempts::decide(session, ctx, outcome).discards()
    {
        drop(error);
        keep(ctx);
        return Err(Error::explain(ErrorType::HTTPStatus(503), "another attempt").into_up());
    }
    drop(error);
    let Some(attempt) = &mut ctx.attempt else { return Ok(None) };
    let all = attempt.answer.hold.take().unwrap_or_default().joined();
    if attempt.answer.is_error() && attempt.translation().is_some() {
        // The rest of a very long one says nothing more.
        attempt.answer.replaced = true;
        return Ok(Some(in_clients_words(attempt, all)));
    }
    let reword = attempt.answer.rewording.filter(|_| attempt.answer.is_error());
    if let Some(reworded) = reword.and_then(|reword| reword(&all)) {
        attempt.answer.replaced = true;
        return Ok(Some(reworded));
    }
    if let (true, Some(name)) = (attempt.answer.renames, &ctx.request.model) {
        return Ok(Some(ctx.request.language().rename_model(all, name)));
    }
    Ok(Some(match (&attempt.model, &ctx.request.model) {
        (Some(_), Some(name)) if !attempt.answer.is_error() => {
            attempt.answer.passage.rename_model(all, name)
        }
        _ => all,
    }))
}

/// What is to be done with what is held.
enum HoldDecision {
    /// More must come.
    Wait,
    /// It goes out.
    Pass,
    /// It shows that the backend has failed before there was any content.
    NoContent(Cause),
    /// It is an answer that is no success, as far as it will be read.
    Judge,
}

fn decide_hold(answer: &Answer, renames: bool, end_of_stream: bool) -> HoldDecision {
    let len = answer.hold.as_ref().map_or(0, BodyHold::len);
    // The name of the model may stand at the end.
    let longest = if renames { LONGEST_RENAMED } else { LONGEST_DOCUMENT };
    let progress = answer.progress();
    if answer.renames {
        let all = end_of_stream || len > longest;
        return if all { HoldDecision::Pass } else { HoldDecision::Wait };
    }
    if answer.is_error() {
        return if end_of_stream || len > LONGEST_ERROR {
            HoldDecision::Judge
        } else {
            HoldDecision::Wait
        };
    }
    if answer.passage.is_stream() {
        return match progress.error {
            _ if progress.content => HoldDecision::Pass,
            Some(Blame::Client) => HoldDecision::Pass,
            Some(_) => HoldDecision::NoContent(Cause::ErrorEvent),
            None if progress.aborted => HoldDecision::NoContent(Cause::Aborted),
            None if progress.is_over() || len > LONGEST_SILENCE => HoldDecision::Pass,
            None if end_of_stream => HoldDecision::NoContent(Cause::Empty),
            None => HoldDecision::Wait,
        };
    }
    match () {
        // It is known now that nothing is read.
        () if answer.passage.is_off() && !answer.passage.is_open() => HoldDecision::Pass,
        () if end_of_stream && progress.is_broken_off() => HoldDecision::NoContent(Cause::Aborted),
        () if end_of_stream || len > longest => HoldDecision::Pass,
        () => HoldDecision::Wait,
    }
}

/// Reads an error response that passes as it comes, because no other backend can be tried.
fn inspect(session: &mut Session, piece: Option<&Bytes>, end_of_stream: bool, ctx: &mut Ctx) {
    let Some(attempt) = &mut ctx.attempt else { return };
    let answer = &mut attempt.answer;
    if answer.judged || !answer.is_error() {
        return;
    }
    if let Some(piece) = piece {
        answer.inspected.push(piece.clone());
    }
    if end_of_stream || answer.inspected.len() > LONGEST_INSPECTED {
        let body = std::mem::take(&mut answer.inspected).joined();
        attempts::decide(session, ctx, AttemptOutcome::Error(&body));
    }
}

/// Keeps an answer that is no success, in case that no other is given.
fn keep(ctx: &mut Ctx) {
    if let Some(attempt) = &mut ctx.attempt
        && let Some(head) = attempt.answer.error_head.take()
    {
        let body = attempt.answer.hold.take().unwrap_or_default().joined();
        let body = in_clients_words(attempt, body);
        let endpoint = attempt.endpoint.clone();
        ctx.retry.kept = Some(KeptAnswer { endpoint, head, body });
    }
}

/// A backend's error response in the client's language.
fn in_clients_words(attempt: &Attempt, body: Bytes) -> Bytes {
    let status = attempt.answer.status.unwrap_or_default();
    match attempt.translation() {
        Some(translation) => translation.error(status, &body).1,
        None => attempt.answer.rewording.and_then(|reword| reword(&body)).unwrap_or(body),
    }
}

/// The backend has answered to the end.
fn ended(session: &mut Session, ctx: &mut Ctx) {
    attempts::decide(session, ctx, AttemptOutcome::Whole);
    ctx.retry.ended();
}
