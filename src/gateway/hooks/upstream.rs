//! `on_upstream_request`: before an attempt is sent.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use pingora::http::RequestHeader;
use serde_json::Value;

use super::{
    apply, described,
    run::{note, subject},
    words::RequestWords,
};
use crate::{
    base::{Rejection, Stage},
    dialect,
    gateway::ctx::Ctx,
    hooks::{Global, Hook, Input, Unusable, Verdict},
    wire::{edit, head, headers as fields_of},
};

/// Runs the scripts on what is about to be sent. The body is the backend's version; the one that is to be
/// sent is returned.
///
/// # Errors
/// If one refuses the request.
pub async fn run_all(
    request: &mut RequestHeader,
    body: Bytes,
    ctx: &mut Ctx,
) -> Result<Bytes, Rejection> {
    let snapshot = Arc::clone(&ctx.snapshot);
    let mut body = body;
    for hook in snapshot.hooks.at(Stage::UpstreamRequest) {
        if !hook.applies(&subject(ctx)) {
            continue;
        }
        let parsed: Option<Arc<Value>> = match hook.reads("request", "body") {
            true => serde_json::from_slice(&body).ok().map(Arc::new),
            false => None,
        };
        let globals = view(hook, request, ctx, parsed.clone());
        let began = std::time::Instant::now();
        let returned = hook.run(globals).await;
        let took = began.elapsed();
        let outcome = returned.and_then(|returned| {
            let verdict = match returned {
                None => Verdict::default(),
                Some(value) => Verdict::read(Stage::UpstreamRequest, value)
                    .map_err(|why| hook.unusable(why.0))?,
            };
            if let Some(refusal) = verdict.refusal {
                return Ok(Err(refusal));
            }
            apply(request, &mut body, parsed.as_deref(), verdict)
                .map(Ok)
                .map_err(|why| hook.unusable(why.0))
        });
        match outcome {
            Ok(Ok(changed)) => {
                let word = if changed.is_empty() { "nothing" } else { "changed" };
                hook.count(word);
                note(ctx, hook, took, word, changed);
            }
            Ok(Err(refusal)) => {
                hook.count("refused");
                note(ctx, hook, took, "refused", Vec::new());
                let message = refusal.message.unwrap_or_else(|| "The request was refused".into());
                let status = refusal.status.unwrap_or(403);
                return Err(Rejection::by_script(
                    status,
                    message,
                    refusal.code,
                    refusal.retry_after,
                ));
            }
            Err(failure) => {
                let closed = failure.closed;
                note(ctx, hook, took, "failed", vec![failure.why]);
                if closed {
                    return Err(Rejection::hook_failed(Stage::UpstreamRequest.key()));
                }
            }
        }
    }
    Ok(body)
}

fn view(hook: &Hook, request: &RequestHeader, ctx: &Ctx, body: Option<Arc<Value>>) -> Vec<Global> {
    let endpoint = ctx.attempt.as_ref().map(|attempt| &attempt.endpoint);
    let visible = match hook.reads("request", "headers") {
        true => without_credentials(&request.headers, ctx),
        false => HeaderMap::new(),
    };
    let words = RequestWords {
        headers: &visible,
        backend_url: endpoint.map(|endpoint| &*endpoint.plan.url),
        ..described::request(request, ctx)
    };
    let mut globals = vec![words.request(hook, || body)];
    words.others(hook, &mut globals);
    if let Some(attempt) = ctx.attempt.as_ref().filter(|_| hook.reads("upstream", "")) {
        let there = attempt.model.as_deref().or(words.model).unwrap_or_default();
        let translated = attempt.translated.as_deref();
        let language = translated.map_or(words.language, |t| t.language.name());
        globals.push((
            "upstream",
            Input::Fields(vec![
                ("name", (&*attempt.endpoint.name).into()),
                ("url", (&*attempt.endpoint.plan.url).into()),
                ("model", there.into()),
                ("language", language.into()),
                ("attempt", Input::Integer(ctx.retry.begun.into())),
            ]),
        ));
    }
    globals
}

/// A backend's key is not for scripts.
fn without_credentials(fields: &HeaderMap, ctx: &Ctx) -> HeaderMap {
    let mut visible = fields.clone();
    let plan = ctx.attempt.as_ref().map(|attempt| &attempt.endpoint.plan);
    head::remove_fields(&mut visible, |name| {
        fields_of::is_credential(&fields_of::folded(name.as_str()))
            || dialect::credential_fields().contains(name)
            || plan.is_some_and(|plan| plan.identity().any(|(own, _)| own == name))
    });
    visible
}

fn apply(
    request: &mut RequestHeader,
    body: &mut Bytes,
    parsed: Option<&Value>,
    verdict: Verdict,
) -> Result<Vec<String>, Unusable> {
    let mut changed = Vec::new();
    if let Some(new) = &verdict.body {
        // A script may replace a body that it has not read.
        let read = if parsed.is_none() { serde_json::from_slice(body).ok() } else { None };
        let Some(parsed) = parsed.or(read.as_ref()) else {
            return Err(Unusable("`body`: the request has no JSON body".to_owned()));
        };
        let (edits, members) = apply::body(body, parsed, new)?;
        if !edits.is_empty() {
            let mut bytes = bytes::BytesMut::from(&body[..]);
            edit::apply(&mut bytes, edits);
            *body = bytes.freeze();
            changed.extend(members);
        }
    }
    if !verdict.headers.is_empty() {
        let edit = |fields: &mut HeaderMap| changed.extend(apply::headers(fields, verdict.headers));
        head::edit_request(request, edit).map_err(|e| Unusable(e.to_string()))?;
    }
    Ok(changed)
}
