//! The end of a stream that is complete: `[DONE]` has come, and what its backend does then is of no
//! interest to the client.

use std::time::Duration;

use pingora_proxy::Session;

use super::{
    ctx::Ctx,
    held,
    stream::{self, Reading},
};

/// How long a backend has to end a stream of which `[DONE]` has come. The client has all of it by then;
/// this is for the connection, which can be used again after a proper end.
const LAST_CHUNK: Duration = Duration::from_millis(200);

/// Ends the client's answer here: its stream is complete, and its backend has not ended it yet.
pub fn end(session: &mut Session, ctx: &mut Ctx) {
    ctx.answer.whole = true;
    ctx.way.held.get_or_insert_with(|| held::follow(session)).end();
    if let Some(watch) = &ctx.way.watch {
        watch.set_last(Ctx::after(Some(LAST_CHUNK)));
    }
}

/// A connection broke. Whether the stream was complete all the same.
pub fn was_complete(ctx: &mut Ctx) -> bool {
    if let Reading::Stream(meter) = &mut ctx.answer.reading
        && ctx.answer.begun
        && !meter.done()
    {
        ctx.answer.rest = meter.abandon();
    }
    let complete = ctx.answer.complete();
    if complete {
        ctx.answer.whole = true;
        stream::ended(ctx);
    }
    complete
}
