//! Keep-alives from an engine before its answer, and chunks that must not be delayed.

use std::time::{Duration, Instant};

use bytes::Bytes;
use pingora_proxy::Session;

use super::{ctx::Ctx, deferred_head, pacing, reply};

/// How long a chunk that ends a choice waits for what belongs to it.
const LONGEST_PENDING: Duration = Duration::from_millis(100);

/// White space before a document, or an event: a keep-alive from the engine.
pub fn blank(session: &mut Session, body: &mut Option<Bytes>, ctx: &mut Ctx) {
    pacing::wait_for_more(false, ctx);
    let Some(attempt) = &mut ctx.attempt else { return };
    let passage = &attempt.answer.passage;
    if attempt.answer.hold.is_none() && !passage.is_event() {
        begin(ctx);
    } else if passage.is_event() {
        // The gateway's own comments keep this connection alive.
        *body = Some(Bytes::new());
    } else if passage.is_stream() {
        let passed = pass(session, body, ctx);
        // Else it goes where what follows goes.
        let hold = ctx.attempt.as_mut().and_then(|attempt| attempt.answer.hold.as_mut());
        if let (Some(hold), Some(piece), false) = (hold, body.take(), passed) {
            hold.push(piece);
        }
        *body = Some(Bytes::new());
    } else {
        // With it goes the head: no other backend is asked any more.
        if attempt.model.is_none() && !passage.changes_stream() {
            attempt.answer.hold = None;
        }
        begin(ctx);
    }
}

/// Passes an engine's own comment on while the answer is held back. Another backend can still take
/// over.
pub fn pass(session: &mut Session, body: &mut Option<Bytes>, ctx: &mut Ctx) -> bool {
    let (Some(deferred), Some(piece)) =
        (&ctx.deferred, body.as_ref().filter(|piece| !piece.is_empty()))
    else {
        return false;
    };
    if !reply::can_open(session, ctx) {
        return false;
    }
    let standings = ctx.limits.standings.as_ref();
    let Ok(head) = reply::head_of_stream(session, ctx, standings) else {
        return false;
    };
    deferred.pass_heartbeat(head, piece.clone());
    *body = Some(Bytes::new());
    true
}

/// A chunk that ends a choice does not wait for longer than a moment for what belongs to it.
pub fn send_soon(session: &mut Session, ctx: &mut Ctx) {
    let filtered = ctx.hooks.as_ref().is_some_and(|state| state.report.is_some());
    let Some(attempt) = &mut ctx.attempt else { return };
    let answer = &mut attempt.answer;
    if filtered {
        // Scripts see it together with what it waits for.
        return;
    }
    let pending = answer.progress().pending.clone().filter(|_| answer.begun);
    let Some(pending) = pending else {
        answer.pending = None;
        return;
    };
    // What has waited before goes on with its time.
    let since = answer.pending.take().filter(|(piece, _)| piece.as_ptr() == pending.as_ptr());
    let at = since.map_or_else(|| Instant::now() + LONGEST_PENDING, |(_, at)| at);
    let deferred = ctx.deferred.get_or_insert_with(|| deferred_head::follow(session));
    if deferred.send_at(at, pending.clone()) {
        answer.pending = Some((pending, at));
    }
}

/// Takes such a chunk back, to look at what has come; or notes that it has gone out.
pub fn recall(ctx: &mut Ctx) {
    if let Some(attempt) = &mut ctx.attempt
        && attempt.answer.pending.is_some()
        && let Some(deferred) = &ctx.deferred
        && !deferred.recall()
    {
        attempt.answer.passage.sent_pending();
        attempt.answer.pending = None;
    }
}

/// As [`pacing::begin`], and more is to come.
fn begin(ctx: &mut Ctx) {
    if let Some(attempt) = &mut ctx.attempt
        && !attempt.answer.begun
        && let Some(lease) = &mut attempt.lease
    {
        lease.began();
    }
    pacing::begin(ctx);
}
