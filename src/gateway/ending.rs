//! The end of a stream that is complete: its end marker has come, and what its backend does then does
//! not matter to the client.

use std::time::Duration;

use pingora_proxy::Session;

use super::{attempts, ctx::Ctx, deferred_head, retry::AttemptOutcome};

/// How long a backend has to end a stream whose end marker has come. The client has all of it by
/// then; this is for the connection, which can be used again after a proper end.
const LAST_CHUNK: Duration = Duration::from_millis(200);

/// Ends the client's answer here: its stream is complete, and its backend has not ended it yet.
pub fn end(session: &mut Session, ctx: &mut Ctx) {
    if let Some(attempt) = &mut ctx.attempt {
        attempt.answer.whole = true;
    }
    ctx.deferred.get_or_insert_with(|| deferred_head::follow(session)).end();
    if let Some(watch) = &ctx.watch {
        watch.set_last(Ctx::after(Some(LAST_CHUNK)));
    }
}

/// A script has ended the client's answer: the backend need not go on.
pub fn cut(ctx: &mut Ctx) {
    if let Some(attempt) = &mut ctx.attempt {
        attempt.answer.whole = true;
    }
    if let Some(watch) = &ctx.watch {
        watch.set_last(Ctx::after(Some(LAST_CHUNK)));
    }
}

/// A connection broke. Returns whether the stream was already complete.
pub fn was_complete(session: &mut Session, ctx: &mut Ctx) -> bool {
    let Some(attempt) = &mut ctx.attempt else { return false };
    let answer = &mut attempt.answer;
    if answer.passage.is_stream() && answer.begun && !answer.progress().finished {
        answer.rest = answer.passage.abandon();
    }
    let complete = answer.is_complete();
    if complete {
        answer.whole = true;
        attempts::decide(session, ctx, AttemptOutcome::Whole);
        ctx.retry.ended();
    }
    complete
}
