//! When pieces of an answer come, and when the next one has to.

use std::time::{Duration, Instant};

use super::ctx::Ctx;

/// How long the end marker of a stream is waited for once its answer is over: then the client gets its
/// end without it.
const LONGEST_END: Duration = Duration::from_secs(2);

/// The client is about to get bytes of this answer: no other backend will be asked.
pub fn begin(ctx: &mut Ctx) {
    if let Some(attempt) = &mut ctx.attempt {
        attempt.answer.begun = true;
        attempt.own_body = None;
    }
    ctx.body.forget();
    if let Some(state) = &mut ctx.hooks {
        state.parsed = None;
    }
    if let Some(watch) = &ctx.watch {
        watch.set_backend(None);
    }
}

/// Sets the deadline for what comes next.
pub fn wait_for_more(end_of_stream: bool, ctx: &Ctx) {
    let (Some(watch), Some(attempt)) = (&ctx.watch, &ctx.attempt) else { return };
    let timeouts = &ctx.snapshot.plan.timeouts;
    let passage = &attempt.answer.passage;
    let progress = passage.progress();
    // In another language an answer has one choice, after whose end only counts and the end marker come.
    let over = attempt.translation().is_some() && progress.choice_ended && !progress.finished;
    let between = match timeouts.between_chunks {
        between if !over => between,
        between => Some(between.map_or(LONGEST_END, |between| between.min(LONGEST_END))),
    };
    let chunk = Ctx::after(between.filter(|_| !end_of_stream));
    let silent = passage.is_stream() && !passage.progress().content;
    let token = match timeouts.first_token {
        Some(wait) if silent && !end_of_stream => Some(attempt.began + wait),
        _ => None,
    };
    match token {
        // The first token is still waited for, whatever else has come.
        Some(token) if chunk.is_none_or(|chunk| token < chunk) => watch.set_first_byte(Some(token)),
        _ => watch.set_chunk(chunk),
    }
}

/// Notes when events came.
pub fn note(ctx: &mut Ctx, events: u64) {
    let Some(attempt) = &mut ctx.attempt else { return };
    let now = Instant::now();
    let metrics = &ctx.carry.metrics;
    match attempt.answer.last_event.replace(now) {
        None => {
            let wait = now - ctx.request.arrived;
            attempt.answer.first_token = Some(wait);
            metrics.first_token.observe(wait.as_secs_f64());
            attempt.first_token(now, true);
        }
        Some(last) => {
            // Events that came together share the time since the last ones.
            let each = (now - last).as_secs_f64() / events as f64;
            for _ in 0..events {
                metrics.inter_token.observe(each);
            }
        }
    }
}
