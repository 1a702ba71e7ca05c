//! `on_auth`: the key may make the request by all other rules.

use std::sync::Arc;

use pingora_proxy::Session;
use serde_json::Value;

use super::{
    described,
    request::{label, parsed},
    run::{run, state},
};
use crate::{
    base::{ModelPattern, Principal, Rejection, Stage, limits::OwnLimits},
    gateway::{ctx::Ctx, stop::Stop},
    hooks::{Global, Hook, Input, Unusable, Verdict},
};

/// Runs the scripts.
///
/// # Errors
/// If one refuses the request.
pub async fn run_all(session: &mut Session, ctx: &mut Ctx) -> Result<(), Stop> {
    if !ctx.snapshot.hooks.has(Stage::Auth) {
        return Ok(());
    }
    run(session, ctx, Stage::Auth, view, apply).await?;
    let Some(state) = ctx.hooks.as_deref() else { return Ok(()) };
    let model = ctx.request.model.as_deref().unwrap_or_default();
    let allows = |list: &Vec<ModelPattern>| list.iter().any(|pattern| pattern.matches(model));
    if state.models.iter().all(allows) {
        return Ok(());
    }
    Err(Rejection::model_not_allowed(model).into())
}

fn view(hook: &Hook, session: &Session, ctx: &mut Ctx) -> Vec<Global> {
    let body = hook.reads("request", "body").then(|| parsed(ctx)).flatten();
    let words = described::request(session.req_header(), ctx);
    let mut globals = vec![words.request(hook, || body)];
    words.others(hook, &mut globals);
    if hook.reads("standard_checks", "") {
        // It runs only for a request that has passed them.
        let checks = ["key_valid", "status_active", "not_expired", "ip_allowed", "quota_available"];
        let passed = checks.into_iter().map(|check| (check, Input::Bool(true))).collect();
        globals.push(("standard_checks", Input::Fields(passed)));
    }
    globals
}

fn apply(_session: &mut Session, ctx: &mut Ctx, verdict: Verdict) -> Result<Vec<String>, Unusable> {
    let mut changed = Vec::new();
    if let Some(models) = verdict.models {
        let patterns = models.iter().map(|text| {
            ModelPattern::parse(text).map_err(|why| Unusable(format!("`models`: {why}")))
        });
        let patterns = patterns.collect::<Result<Vec<_>, _>>()?;
        changed.push("models".to_owned());
        state(ctx).models.push(patterns);
    }
    if let Some(answer) = verdict.answer {
        state(ctx).answer.get_or_insert(answer);
        changed.push("answer".to_owned());
    }
    if let Some(limits) = &verdict.limits {
        set_limits(ctx, limits)?;
        changed.push("limits".to_owned());
    }
    if let Some(tier) = verdict.tier {
        principal(ctx).tier = tier;
        changed.push("tier".to_owned());
    }
    label(ctx, verdict.tags, verdict.metadata, &mut changed);
    Ok(changed)
}

/// Takes limits as a script states them: they stand over the key's own, field by field.
pub fn set_limits(ctx: &mut Ctx, limits: &Value) -> Result<(), Unusable> {
    let new = OwnLimits::read(limits).map_err(|why| Unusable(format!("`limits`: {why}")))?;
    let limits = &mut principal(ctx).limits;
    *limits = Some(Arc::new(match limits {
        Some(old) => new.over(old),
        None => new,
    }));
    Ok(())
}

/// The caller, to be changed for this request.
pub fn principal(ctx: &mut Ctx) -> &mut Principal {
    Arc::make_mut(ctx.caller.principal.get_or_insert_default())
}

/// Adds what scripts have said of the request to its caller, for its record.
pub fn label_caller(ctx: &mut Ctx) {
    let Some(state) = ctx.hooks.as_deref_mut() else { return };
    let (tags, metadata) = (std::mem::take(&mut state.tags), std::mem::take(&mut state.metadata));
    if tags.is_empty() && metadata.is_empty() {
        return;
    }
    let principal = principal(ctx);
    for tag in tags {
        if !principal.tags.contains(&tag) {
            principal.tags.push(tag);
        }
    }
    principal.metadata.extend(metadata);
}
