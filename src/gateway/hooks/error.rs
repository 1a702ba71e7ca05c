//! `on_error`: an error response of the gateway's own.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use pingora_proxy::Session;
use serde_json::Value;

use super::{
    apply, described,
    run::{note, subject},
    words::RequestWords,
};
use crate::{
    base::{FaultKind, Side, Stage},
    gateway::{ctx::Ctx, end::End},
    hooks::{Global, Hook, HookFailure, Input, Verdict},
};

/// An error response before it is written.
pub struct ErrorResponse {
    pub status: u16,
    pub body: Bytes,
    /// Fields beside those that every answer has.
    pub fields: Vec<(HeaderName, HeaderValue)>,
}

/// What the scripts see of an error.
struct ErrorWords {
    /// `auth_error`, `rate_limit`, `backend_error`, `timeout`, `invalid_request` or `gateway_error`.
    kind: &'static str,
    message: String,
    code: String,
    /// `client`, `gateway` or `backend`.
    side: &'static str,
    retry_after: Option<u64>,
}

/// Runs the scripts on an error response.
pub async fn run_all(
    session: &Session,
    ctx: &mut Ctx,
    end: &End,
    mut response: ErrorResponse,
) -> ErrorResponse {
    let snapshot = Arc::clone(&ctx.snapshot);
    let Some(mut words) = words_of(end) else { return response };
    for hook in snapshot.hooks.at(Stage::Error) {
        if !hook.applies(&subject(ctx)) {
            continue;
        }
        let parsed: Option<Arc<Value>> = serde_json::from_slice(&response.body).ok().map(Arc::new);
        if words.message.is_empty() {
            words.message = parsed.as_deref().and_then(said).unwrap_or_default();
        }
        let globals = view(hook, session, ctx, &words, response.status);
        let began = std::time::Instant::now();
        let returned = hook.run(globals).await;
        let took = began.elapsed();
        let outcome = returned.and_then(|returned| {
            let Some(value) = returned else { return Ok(Vec::new()) };
            Verdict::read(Stage::Error, value)
                .and_then(|verdict| change(&mut response, parsed.as_deref(), verdict))
                .map_err(|why| hook.unusable(why.0))
        });
        noted(ctx, hook, took, outcome);
    }
    response
}

fn noted(
    ctx: &mut Ctx,
    hook: &Hook,
    took: std::time::Duration,
    outcome: Result<Vec<String>, HookFailure>,
) {
    match outcome {
        Ok(changed) => {
            let word = if changed.is_empty() { "nothing" } else { "changed" };
            hook.count(word);
            note(ctx, hook, took, word, changed);
        }
        // The error itself is answered in any case.
        Err(failure) => note(ctx, hook, took, "failed", vec![failure.why]),
    }
}

fn change(
    response: &mut ErrorResponse,
    parsed: Option<&Value>,
    verdict: Verdict,
) -> Result<Vec<String>, crate::hooks::Unusable> {
    let mut changed = Vec::new();
    if let Some(status) = verdict.status {
        if status != response.status {
            changed.push("status".to_owned());
        }
        response.status = status;
    }
    if let Some(body) = &verdict.body {
        if parsed != Some(body) {
            changed.push("body".to_owned());
        }
        response.body = apply::whole(body);
    } else if let Some(message) = verdict.refusal.and_then(|refusal| refusal.message)
        && let Some(reworded) = parsed.and_then(|parsed| reworded(parsed, &message))
    {
        response.body = apply::whole(&reworded);
        changed.push("message".to_owned());
    }
    if !verdict.headers.is_empty() {
        let mut fields = HeaderMap::new();
        for (name, value) in response.fields.drain(..) {
            fields.append(name, value);
        }
        changed.extend(apply::headers(&mut fields, verdict.headers));
        response.fields =
            fields.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    }
    Ok(changed)
}

/// The sentence of an error document, in the languages that say it there.
fn said(document: &Value) -> Option<String> {
    let error = document.get("error")?;
    let message = error.get("message").unwrap_or(error);
    message.as_str().map(str::to_owned)
}

/// The same document with another sentence.
fn reworded(document: &Value, message: &str) -> Option<Value> {
    let mut document = document.clone();
    let place = match document.get("error")? {
        Value::String(_) => "/error",
        _ => "/error/message",
    };
    *document.pointer_mut(place)? = message.into();
    Some(document)
}

fn words_of(end: &End) -> Option<ErrorWords> {
    if let Some(rejection) = end.rejection() {
        let code = rejection.code.as_deref().unwrap_or_default();
        let (kind, side) = match (code, rejection.status) {
            ("no_healthy_backend", _) => ("backend_error", Side::Backend),
            (_, 401 | 403) => ("auth_error", Side::Client),
            (_, 402 | 429) => ("rate_limit", Side::Client),
            (_, 408) => ("timeout", Side::Client),
            (_, 500..) => ("gateway_error", Side::Gateway),
            _ => ("invalid_request", Side::Client),
        };
        return Some(ErrorWords {
            kind,
            message: rejection.message.clone(),
            code: code.to_owned(),
            side: side.word(),
            retry_after: rejection.retry_after,
        });
    }
    let fault = end.fault()?;
    let kind = match fault.kind {
        FaultKind::FirstByteTimeout | FaultKind::ChunkTimeout => "timeout",
        _ if end.status == 504 => "timeout",
        _ if fault.side == Side::Gateway => "gateway_error",
        _ => "backend_error",
    };
    Some(ErrorWords {
        kind,
        // The response says it.
        message: String::new(),
        code: fault.word().to_owned(),
        side: fault.side.word(),
        retry_after: None,
    })
}

fn view(hook: &Hook, session: &Session, ctx: &Ctx, error: &ErrorWords, status: u16) -> Vec<Global> {
    let endpoint = ctx.attempt.as_ref().map(|attempt| &attempt.endpoint);
    let url = endpoint.map(|endpoint| &*endpoint.plan.url);
    let words = RequestWords { backend_url: url, ..described::request(session.req_header(), ctx) };
    let body = || {
        let kept = ctx.hooks.as_ref()?.kept.as_ref()?;
        serde_json::from_slice(kept).ok().map(Arc::new)
    };
    let mut globals = vec![words.request(hook, body)];
    words.others(hook, &mut globals);
    let mut fields: Vec<Global> = vec![
        ("type", error.kind.into()),
        ("message", error.message.as_str().into()),
        ("status_code", Input::Integer(status.into())),
        ("status", Input::Integer(status.into())),
        ("code", error.code.as_str().into()),
        ("side", error.side.into()),
        ("backend_url", url.unwrap_or_default().into()),
        ("retry_count", Input::Integer(ctx.retry.retries.into())),
    ];
    if let Some(seconds) = error.retry_after {
        fields.push(("retry_after", Input::from(seconds)));
    }
    globals.push(("error", Input::Fields(fields)));
    if hook.reads("error_message", "") {
        globals.push(("error_message", error.message.as_str().into()));
    }
    globals
}
