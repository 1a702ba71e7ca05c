//! Signs of life from an engine before its answer, and chunks that must not wait for one.

use std::time::{Duration, Instant};

use bytes::Bytes;
use pingora_proxy::Session;

use super::{
    ctx::Ctx,
    held, limits, reading,
    stream::{self, Reading},
};
use crate::dialect::openai::Strip;

/// How long a chunk that ends a choice waits for what belongs to it.
const LONGEST_PENDING: Duration = Duration::from_millis(100);

/// White space before a document, or an event: a sign of life from the engine.
pub fn blank(session: &mut Session, body: &mut Option<Bytes>, ctx: &mut Ctx) {
    stream::wait_for_more(false, ctx);
    if ctx.answer.held.is_none() && !matches!(ctx.answer.reading, Reading::Event(_)) {
        begin_early(ctx);
        return;
    }
    match ctx.answer.reading {
        // Comments of ours keep such a client.
        Reading::Event(_) => *body = Some(Bytes::new()),
        Reading::Stream(_) => {
            let passed = pass(session, body, ctx);
            // Else it goes where what follows goes.
            if let (Some(held), Some(piece), false) = (&mut ctx.answer.held, body.take(), passed) {
                held.push(piece);
            }
            *body = Some(Bytes::new());
        }
        // With it goes the head: no other backend is asked any more.
        _ => {
            if ctx.way.tries.model.is_none() && reading::strip(ctx) == Strip::Nothing {
                ctx.answer.held = None;
            }
            begin_early(ctx);
        }
    }
}

/// Passes an engine's own comment on while the answer is held back. Another backend can take over
/// all the same.
pub fn pass(session: &mut Session, body: &mut Option<Bytes>, ctx: &mut Ctx) -> bool {
    let (Some(home), Some(piece)) =
        (&ctx.way.held, body.as_ref().filter(|piece| !piece.is_empty()))
    else {
        return false;
    };
    if !limits::can_open(session, ctx) {
        return false;
    }
    let standings = ctx.limits.standings.as_ref();
    let Ok(head) = limits::head_of_stream(session, ctx, standings) else {
        return false;
    };
    home.pass_heartbeat(head, piece.clone());
    *body = Some(Bytes::new());
    true
}

/// A chunk that ends a choice does not wait for longer than a moment for what belongs to it.
pub fn send_soon(session: &mut Session, ctx: &mut Ctx) {
    let Reading::Stream(meter) = &ctx.answer.reading else { return };
    let Some(pending) = meter.pending().filter(|_| ctx.answer.begun) else {
        ctx.answer.pending = None;
        return;
    };
    // What has waited before goes on with its time.
    let since = ctx.answer.pending.take().filter(|(piece, _)| piece.as_ptr() == pending.as_ptr());
    let at = since.map_or_else(|| Instant::now() + LONGEST_PENDING, |(_, at)| at);
    let home = ctx.way.held.get_or_insert_with(|| held::follow(session));
    if home.send_at(at, pending.clone()) {
        ctx.answer.pending = Some((pending.clone(), at));
    }
}

/// Takes such a chunk back, to look at what has come; or notes that it has gone out.
pub fn recall(ctx: &mut Ctx) {
    if ctx.answer.pending.is_some()
        && let (Some(home), Reading::Stream(meter)) = (&ctx.way.held, &mut ctx.answer.reading)
        && !home.recall()
    {
        meter.let_go();
        ctx.answer.pending = None;
    }
}

/// As [`stream::begin`], and more is to come.
fn begin_early(ctx: &mut Ctx) {
    if !ctx.answer.begun
        && let Some(lease) = ctx.way.lease()
    {
        lease.began();
    }
    stream::begin(ctx);
}
