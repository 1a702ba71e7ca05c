//! The scripts of a stage, one after the other.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use pingora_proxy::Session;

use super::{state::RequestHooks, trace};
use crate::{
    base::{Rejection, Stage},
    config::plan::Subject,
    gateway::{ctx::Ctx, stop::Stop},
    hooks::{Global, Hook, HookFailure, Refusal, Unusable, Verdict},
    usage::Draft,
};

/// What scripts have left in a request, made where there is nothing yet.
pub fn state(ctx: &mut Ctx) -> &mut RequestHooks {
    ctx.hooks.get_or_insert_default()
}

/// What conditions are asked about.
pub fn subject(ctx: &Ctx) -> Subject<'_> {
    Subject {
        model: ctx.request.model.as_deref().unwrap_or_default(),
        principal: ctx.caller.principal.as_deref(),
        tags: ctx.hooks.as_deref().map_or(&[], |state| &state.tags),
    }
}

/// What conditions are asked about when the record has taken what the request had.
pub fn subject_of<'a>(draft: &'a Draft, ctx: &'a Ctx) -> Subject<'a> {
    Subject {
        model: draft.model.as_deref().unwrap_or_default(),
        principal: draft.who.as_deref(),
        tags: ctx.hooks.as_deref().map_or(&[], |state| &state.tags),
    }
}

/// Runs the scripts of a stage that apply to the request. `view` makes what a script sees, `apply` does
/// what it wants, and names what has changed.
///
/// # Errors
/// If a script refuses the request, or one that must not fail has failed.
pub async fn run(
    session: &mut Session,
    ctx: &mut Ctx,
    stage: Stage,
    mut view: impl FnMut(&Hook, &Session, &mut Ctx) -> Vec<Global>,
    mut apply: impl FnMut(&mut Session, &mut Ctx, Verdict) -> Result<Vec<String>, Unusable>,
) -> Result<(), Stop> {
    let snapshot = Arc::clone(&ctx.snapshot);
    for hook in snapshot.hooks.at(stage) {
        if !hook.applies(&subject(ctx)) {
            continue;
        }
        let globals = view(hook, session, ctx);
        let began = Instant::now();
        let returned = hook.run(globals).await;
        let took = began.elapsed();
        let verdict = returned.and_then(|returned| match returned {
            None => Ok(Verdict::default()),
            Some(value) => Verdict::read(stage, value).map_err(|why| hook.unusable(why.0)),
        });
        let outcome = verdict.and_then(|mut verdict| {
            hook.warn_of_unknown(&verdict.unknown);
            let refusal = verdict.refusal.take();
            let nothing = verdict.is_nothing();
            let changed = if nothing {
                Vec::new()
            } else {
                apply(session, ctx, verdict).map_err(|why| hook.unusable(why.0))?
            };
            Ok((refusal, changed))
        });
        settle(ctx, hook, took, outcome)?;
    }
    Ok(())
}

/// Counts and notes what a run came to.
fn settle(
    ctx: &mut Ctx,
    hook: &Hook,
    took: Duration,
    outcome: Result<(Option<Refusal>, Vec<String>), HookFailure>,
) -> Result<(), Stop> {
    let (word, changed, stop) = match outcome {
        Ok((Some(refusal), changed)) => {
            ctx.limits.refused |= hook.stage() == Stage::RateLimit;
            let rejection = refused(hook.stage(), refusal);
            ("refused", changed, Some(rejection))
        }
        Ok((None, changed)) if changed.is_empty() => ("nothing", changed, None),
        Ok((None, changed)) => ("changed", changed, None),
        Err(failure) => {
            let stop = failure.closed.then(|| Rejection::hook_failed(failure.stage));
            note(ctx, hook, took, "failed", vec![failure.why]);
            return stop.map_or(Ok(()), |rejection| Err(Stop::Refuse(rejection)));
        }
    };
    hook.count(word);
    note(ctx, hook, took, word, changed);
    stop.map_or(Ok(()), |rejection| Err(Stop::Refuse(rejection)))
}

fn refused(stage: Stage, refusal: Refusal) -> Rejection {
    let usual = if stage == Stage::RateLimit { 429 } else { 403 };
    let limited = stage == Stage::RateLimit;
    let status = refusal.status.unwrap_or(usual);
    let message = refusal.message.unwrap_or_else(|| match limited {
        true => "Too many requests".to_owned(),
        false => "The request was refused".to_owned(),
    });
    let retry_after = refusal.retry_after.or(limited.then_some(60));
    Rejection::by_script(status, message, refusal.code, retry_after)
}

/// Notes a run for `/admin/v1/explain`.
pub fn note(
    ctx: &mut Ctx,
    hook: &Hook,
    took: Duration,
    result: &'static str,
    changed: Vec<String>,
) {
    if ctx.carry.explains.capacity() > 0 {
        let kept = trace::of_run(hook, took, result, changed);
        state(ctx).trace.push(kept);
    }
}
