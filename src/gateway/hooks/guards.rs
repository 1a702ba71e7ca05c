//! Guards and the operator's prompts: what is configuration, not script, of what a request goes through.

use std::time::Duration;

use super::{
    run::{state, subject},
    state::{Asked, GuardState},
    trace,
};
use crate::{
    gateway::{ctx::Ctx, stop::Stop},
    guards::{Finding, Moderation, Verdict},
    prompts::Target,
    runtime::explain::KeptHook,
};

/// Chooses the guards of an answer to a request without a body: one that was stored.
pub fn select(ctx: &mut Ctx) {
    let guards = ctx.snapshot.guards.clone();
    if !guards.is_empty() {
        state(ctx).guards.selected = guards.applies(&subject(ctx));
    }
}

/// Judges the request, and masks what has to be masked. `true`: the body has changed.
///
/// # Errors
/// If the request does not pass.
pub async fn judge(ctx: &mut Ctx) -> Result<bool, Stop> {
    let guards = ctx.snapshot.guards.clone();
    let selected = guards.applies(&subject(ctx));
    let Some(found) = ctx.request.operation.filter(|_| !selected.is_empty()) else {
        return Ok(false);
    };
    let judged = guards.request(selected, found.language, found.operation, ctx.body.bytes());
    let outcome = match judged {
        Ok(outcome) => outcome,
        Err(refused) => {
            for finding in &refused.findings {
                note(ctx, finding);
            }
            return Err(refused.rejection.into());
        }
    };
    for finding in &outcome.findings {
        note(ctx, finding);
    }
    let changed = !outcome.edits.is_empty();
    ctx.body.change(outcome.edits);
    let mut own = GuardState { selected, vault: outcome.vault, beside: Vec::new() };
    if selected.moderates() {
        // As the backend gets it.
        let language = (found.language, found.operation);
        let questions = guards.questions(selected, language, ctx.body.bytes(), &subject(ctx));
        for (moderation, question) in questions {
            if moderation.is_before() {
                let verdict = moderation.ask(&question).await;
                decide(ctx, &moderation, verdict)?;
            } else {
                own.beside.push(Asked::begin(async move {
                    let verdict = moderation.ask(&question).await;
                    warn(&moderation, &verdict);
                    verdict
                }));
            }
        }
    }
    let state = state(ctx);
    state.guards = own;
    if changed {
        state.parsed = None;
    }
    Ok(changed)
}

fn warn(moderation: &Moderation, verdict: &Verdict) {
    if let Verdict::Failed { why, .. } = verdict {
        log::warn!("guard moderation: {}: {why}", moderation.name());
    }
}

fn decide(ctx: &mut Ctx, moderation: &Moderation, verdict: Verdict) -> Result<(), Stop> {
    warn(moderation, &verdict);
    match verdict {
        Verdict::Allowed => Ok(()),
        Verdict::Blocked { rejection, finding } => {
            note(ctx, &finding);
            Err(rejection.into())
        }
        Verdict::Failed { rejection, finding, .. } => {
            note(ctx, &finding);
            rejection.map_or(Ok(()), |rejection| Err(rejection.into()))
        }
    }
}

/// Puts the operator's prompts into the request. `true`: the body has changed.
pub fn prompt(ctx: &mut Ctx) -> bool {
    let prompts = ctx.snapshot.prompts.clone();
    let Some(found) = ctx.request.operation.filter(|_| !prompts.is_empty()) else {
        return false;
    };
    let principal = ctx.caller.principal.as_deref();
    let target = Target {
        language: found.language,
        operation: found.operation,
        model: ctx.request.model.as_deref().unwrap_or_default(),
        user: principal.map_or("", |principal| &principal.user_id),
        now: jiff::Timestamp::now(),
    };
    let applied = prompts.apply(&target, ctx.body.bytes());
    if applied.edits.is_empty() {
        return false;
    }
    let before = ctx.body.bytes().len();
    ctx.body.change(applied.edits);
    ctx.body.take_share(ctx.body.bytes().len().saturating_sub(before));
    let explains = ctx.carry.explains.capacity() > 0;
    let state = state(ctx);
    state.parsed = None;
    if explains {
        state.trace.extend(applied.names.iter().map(|name| KeptHook {
            stage: "system_prompts",
            script: name.to_string(),
            took: Duration::ZERO,
            result: "changed",
            changed: Vec::new(),
        }));
    }
    true
}

/// Counts what a guard has found, and notes it.
fn note(ctx: &mut Ctx, finding: &Finding) {
    trace::count(&ctx.carry.metrics, finding);
    if ctx.carry.explains.capacity() > 0 {
        state(ctx).trace.push(trace::of_finding(finding));
    }
}
