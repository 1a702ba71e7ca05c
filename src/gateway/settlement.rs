//! What a request used is settled: with its limits, and with the quota and balance of its key.
//!
//! There are three exits: the end of an answer that Pingora writes (`passing`), the end of one that
//! the gateway writes itself (`reply`), and the end of the request for all others (`logging`). The
//! first two settle before the client sees the end: a client that asks again at once, on another
//! connection, finds its slot free.

use pingora::{Error, ErrorSource};

use super::{attempt::Answer, attempts, ctx::Ctx};
use crate::{
    base::{KeyUsage, Outcome, Side, TokenCounts, UsageSource},
    limit::{Consumption, CountSource},
};

/// How the request has ended, as far as is known. `error`: Pingora's, at its end.
pub fn outcome(ctx: &Ctx, error: Option<&Error>) -> Outcome {
    let present = attempts::end(ctx);
    let end = ctx.end().unwrap_or(&present);
    let answer = ctx.attempt.as_ref().map(|attempt| &attempt.answer);
    let answered = answer.and_then(|answer| answer.status);
    let gone = end.fault().is_some_and(|fault| fault.side == Side::Client)
        || error.is_some_and(|e| *e.esource() == ErrorSource::Downstream);
    let status = ctx.end().map(|end| end.status).or(answered);
    match status {
        _ if end.rejection().is_some() => Outcome::Rejected,
        _ if answer.is_some_and(|answer| answer.progress().is_broken_off()) => {
            Outcome::UpstreamError
        }
        _ if answer.is_some_and(|answer| answer.is_complete()) => Outcome::Complete,
        _ if gone => Outcome::ClientAborted,
        _ if end.fault().is_some() || error.is_some() => Outcome::UpstreamError,
        // What the gateway itself answers with 503, `/ready` for instance, is no failure.
        Some(500..) if answered.is_some() => Outcome::UpstreamError,
        Some(400..) => Outcome::Rejected,
        _ => Outcome::Complete,
    }
}

/// The counts of the request's answer, and what they are worth. Tokens that were only counted have
/// not been used.
pub fn usage(ctx: &Ctx) -> (TokenCounts, UsageSource) {
    let answer = ctx.attempt.as_ref().map(|attempt| &attempt.answer);
    let answer = answer.filter(|_| !ctx.request.counts_tokens());
    answer.map(Answer::usage).unwrap_or_default()
}

/// Settles what the request used; once.
pub fn settle(ctx: &mut Ctx, error: Option<&Error>) {
    if std::mem::replace(&mut ctx.limits.settled, true) {
        return;
    }
    let consumed = consumed(ctx, error);
    if let Consumption::Tokens { counts, credit, .. } = consumed {
        spend(ctx, &counts, credit);
    }
    if let Some(ticket) = ctx.limits.ticket.take() {
        ticket.settle(ctx.request.model.as_deref().unwrap_or_default(), consumed);
    }
}

fn consumed(ctx: &Ctx, error: Option<&Error>) -> Consumption {
    let limiter = &ctx.snapshot.limits;
    let model = ctx.request.model.as_deref().unwrap_or_default();
    let whole = outcome(ctx, error) == Outcome::Complete;
    let parts = ctx.attempt.as_ref().map_or(0, |attempt| attempt.answer.unmetered_parts());
    let (counts, source) = usage(ctx);
    let (counts, seen) = match (source, ctx.limits.asked) {
        (UsageSource::Final, _) if whole => (counts, CountSource::Complete),
        (UsageSource::Final | UsageSource::Partial, _) => (counts, CountSource::Partial),
        // What is not metered is not free.
        (UsageSource::None, Some((bytes, max_tokens))) if whole || parts > 0 => {
            (limiter.assume(model, bytes, max_tokens, parts), CountSource::Estimated)
        }
        (UsageSource::None, _) => return Consumption::Nothing,
    };
    let (cost, credit) = limiter.cost(model, counts);
    Consumption::Tokens { counts, cost, credit, source: seen }
}

/// Counts what was used against quota and balance of the key.
fn spend(ctx: &Ctx, counts: &TokenCounts, credit: f64) {
    let (Some(auth), Some(found)) = (&ctx.snapshot.auth, &ctx.caller.found) else {
        return;
    };
    // Embeddings report the prompt and the total.
    let tokens = counts.prompt.saturating_add(counts.completion).max(counts.total) as f64;
    if tokens > 0.0 {
        auth.count(found, ctx.caller.shown.as_ref(), KeyUsage { tokens, credit });
    }
}
