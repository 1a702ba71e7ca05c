//! `on_request`: the request has been read.

use std::sync::Arc;

use bytes::Bytes;
use http::header;
use pingora_proxy::Session;
use serde_json::Value;

use super::{
    apply, described,
    run::{run, state},
};
use crate::{
    base::Stage,
    gateway::{ctx::Ctx, end::End, reply, stop::Stop},
    hooks::{Answer, Global, Hook, Unusable, Verdict},
    wire::head,
};

/// Runs the scripts. `true`: the body has changed.
///
/// # Errors
/// If one refuses the request.
pub async fn run_all(session: &mut Session, ctx: &mut Ctx) -> Result<bool, Stop> {
    if ctx.snapshot.hooks.keeps_request() {
        let body = ctx.body.shared();
        state(ctx).keep(&body);
    }
    if !ctx.snapshot.hooks.has(Stage::Request) {
        return Ok(false);
    }
    // For conditions; what it may is not decided yet.
    if let (None, Some(found)) = (&ctx.caller.principal, &ctx.caller.found) {
        ctx.caller.principal = found.principal();
    }
    run(session, ctx, Stage::Request, view, apply).await?;
    Ok(ctx.hooks.as_mut().is_some_and(|state| std::mem::take(&mut state.changed)))
}

/// The present body as JSON; an empty table stands in for one that is none.
pub fn parsed(ctx: &mut Ctx) -> Option<Arc<Value>> {
    if ctx.hooks.as_deref().is_none_or(|state| state.parsed.is_none()) {
        let value: Value = serde_json::from_slice(ctx.body.bytes()).ok()?;
        state(ctx).parsed = Some(Arc::new(value));
    }
    state(ctx).parsed.clone()
}

fn view(hook: &Hook, session: &Session, ctx: &mut Ctx) -> Vec<Global> {
    let body = hook.reads("request", "body").then(|| parsed(ctx)).flatten();
    let words = described::request(session.req_header(), ctx);
    let mut globals = vec![words.request(hook, || body)];
    words.others(hook, &mut globals);
    globals
}

fn apply(session: &mut Session, ctx: &mut Ctx, verdict: Verdict) -> Result<Vec<String>, Unusable> {
    let mut changed = Vec::new();
    if let Some(new) = &verdict.body {
        change_body(ctx, new, &mut changed)?;
    }
    if !verdict.headers.is_empty() {
        let edit = |fields: &mut _| changed.extend(apply::headers(fields, verdict.headers));
        head::edit_request(session.req_header_mut(), edit).map_err(|e| Unusable(e.to_string()))?;
    }
    if let Some(answer) = verdict.answer {
        state(ctx).answer.get_or_insert(answer);
        changed.push("answer".to_owned());
    }
    label(ctx, verdict.tags, verdict.metadata, &mut changed);
    Ok(changed)
}

/// Puts what a script returned in the place of the body.
pub fn change_body(ctx: &mut Ctx, new: &Value, changed: &mut Vec<String>) -> Result<(), Unusable> {
    let Some(parsed) = parsed(ctx) else {
        return Err(Unusable("`body`: the request has no JSON body".to_owned()));
    };
    let (edits, members) = apply::body(ctx.body.bytes(), &parsed, new)?;
    if !edits.is_empty() {
        let before = ctx.body.bytes().len();
        ctx.body.change(edits);
        ctx.body.take_share(ctx.body.bytes().len().saturating_sub(before));
        let state = state(ctx);
        (state.parsed, state.changed) = (None, true);
        changed.extend(members);
    }
    Ok(())
}

/// Adds what scripts say about a request for conditions and records.
pub fn label(
    ctx: &mut Ctx,
    tags: Vec<String>,
    metadata: serde_json::Map<String, Value>,
    changed: &mut Vec<String>,
) {
    if tags.is_empty() && metadata.is_empty() {
        return;
    }
    let state = state(ctx);
    for tag in tags {
        if !state.tags.contains(&tag) {
            changed.push(format!("tags.{tag}"));
            state.tags.push(tag);
        }
    }
    for (name, value) in metadata {
        changed.push(format!("metadata.{name}"));
        state.metadata.insert(name, value);
    }
}

/// Gives the answer of a script, if there is one. `true`: the request has been answered.
///
/// # Errors
/// If the client cannot be written to.
pub async fn answer(session: &mut Session, ctx: &mut Ctx) -> Result<bool, Stop> {
    let Some(answer) = ctx.hooks.as_mut().and_then(|state| state.answer.take()) else {
        return Ok(false);
    };
    let Answer { status, headers, body } = answer;
    let json = !matches!(body, Some(Value::String(_)));
    let bytes = body.as_ref().map_or_else(Bytes::new, apply::whole);
    let mut content_type = if json { reply::JSON } else { reply::TEXT };
    let mut more = Vec::new();
    for change in headers {
        match change.value {
            Some(value) if change.name == header::CONTENT_TYPE => content_type = value,
            // How it is framed and coded is the gateway's.
            Some(_) if apply::is_framing(&change.name) => {}
            Some(_) if change.name == header::CONTENT_ENCODING => {}
            Some(value) => more.push((change.name, value)),
            None => {}
        }
    }
    reply::write(session, ctx, End::answered(status), content_type, bytes, &more).await?;
    Ok(true)
}
