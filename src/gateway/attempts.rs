//! The present attempt has come to something: the policy is asked, and what follows is prepared.

use std::{sync::Arc, time::Instant};

use pingora_proxy::Session;

use super::{
    attempt::Attempt,
    ctx::{Attempts, Ctx},
    end::End,
    retry::{AttemptOutcome, Circumstances, Decision, PlannedAttempt},
    translate,
};
use crate::base::{Fault, Rejection, lock};

/// Asks the policy whether another attempt follows this outcome of the present one, and releases the
/// present one if so.
pub fn decide(session: &mut Session, ctx: &mut Ctx, outcome: AttemptOutcome<'_>) -> Decision {
    let at = Circumstances {
        replayable: ctx.body.is_replayable(ctx.deferred.is_some(), session.is_body_done()),
        over: ctx.watch.as_ref().and_then(|watch| watch.fired()),
    };
    let Attempts { policy, attempt, timeline, view } = ctx.attempts(session);
    let Some(attempt) = attempt else {
        return Decision::Last(super::retry::Reason::Final);
    };
    let decision = policy.decide(attempt, outcome, at, &view);
    if let Decision::Again(cause) | Decision::Wait(cause) = decision {
        attempt.answer.discarded = true;
        timeline.end(attempt.span, cause.result());
        // While the next one is waited for, no backend has the request.
        attempt.lease = None;
    } else if !decision.continues() && !matches!(outcome, AttemptOutcome::Whole) {
        log::debug!("request {}: no attempt follows: {decision:?}", ctx.request.id);
    }
    if let Decision::Again(_) = decision {
        if let Some(deferred) = &ctx.deferred {
            deferred.set_quiet(false);
            deferred.forget_heartbeat();
        }
        if let Some(watch) = &ctx.watch {
            watch.set_connection(None);
            watch.set_chunk(None);
            watch.rearm();
        }
    }
    decision
}

/// The attempt at a picked backend begins.
///
/// # Errors
/// If the backend's languages cannot say the request: it is not picked again.
pub fn start(session: &Session, ctx: &mut Ctx, picked: PlannedAttempt) -> Result<(), Rejection> {
    let translated = match translate::for_backend(ctx, &picked) {
        Ok(translated) => translated,
        Err(rejection) => {
            let client = ctx.request.language();
            let to = translate::language_of(client, &picked.choice.endpoint.plan);
            let labels = [client.name(), to.unwrap_or_default(), "refused"];
            ctx.carry.metrics.translations.with_label_values(&labels).inc();
            ctx.retry.pass_over(picked);
            return Err(rejection);
        }
    };
    if let Some(translated) = translated.as_ref().filter(|made| made.answer.is_some()) {
        let result = if translated.losses.is_empty() { "whole" } else { "lossy" };
        let labels = [ctx.request.language().name(), translated.language.name(), result];
        ctx.carry.metrics.translations.with_label_values(&labels).inc();
    }
    let Attempts { policy, timeline, view, .. } = ctx.attempts(session);
    let started = policy.start(picked, &view, timeline);
    if let Some(translated) = &translated {
        timeline.translated(started.span, translated);
    }
    let url = &started.endpoint.plan.url;
    if let Some(report) = ctx.hooks.as_ref().and_then(|state| state.report.as_ref()) {
        lock(report).backend_url = Some(Arc::clone(url));
    }
    ctx.attempt = Some(Attempt { translated, ..started });
    Ok(())
}

/// The first byte of the present attempt's answer came at this time.
pub fn first_byte(ctx: &mut Ctx, at: impl FnOnce() -> Instant) {
    if let Some(attempt) = &ctx.attempt {
        ctx.timeline.first_byte(attempt.span, at);
    }
}

/// What broke in the present attempt.
pub fn fault(ctx: &Ctx) -> Option<Fault> {
    ctx.attempt.as_ref().and_then(|attempt| attempt.fault)
}

/// How the request ends with the present attempt, if nothing else ends it.
pub fn end(ctx: &Ctx) -> End {
    let status = ctx.attempt.as_ref().and_then(Attempt::shown_status).unwrap_or(499);
    match fault(ctx) {
        Some(fault) => End::failed(status, fault),
        None => End::answered(status),
    }
}
