//! The one exit of every request: what it took is settled, unless its answer could be settled
//! before its last byte; counts, the usage record, the access line.

use std::{sync::Arc, time::Duration};

use pingora::{Error, ErrorSource};
use pingora_proxy::Session;
use serde_json::Map;

use super::{attempts, ctx::Ctx, deferred_head, end::End, hooks, settlement, stored};
use crate::{
    balance::Endpoint,
    base::{
        Fault, FaultKind, Outcome, Side, Stage, TokenCounts, UsageSource, lock, secret::Masked,
    },
    config::choices::KeyForm,
    dialect,
    runtime::explain::{KeptHook, KeptRequest, Names},
    telemetry::{access, logger},
    usage::{Draft, ShownKey},
};

/// The request ends.
pub async fn finish(session: &mut Session, error: Option<&Error>, ctx: &mut Ctx) {
    if let Some(deferred) = ctx.deferred.take() {
        deferred_head::abandon(session, &deferred);
        if let Some(mut filters) = deferred.take_filters() {
            filters.close();
        }
    }
    ctx.retry.ended();
    if let Some(attempt) = &mut ctx.attempt {
        attempt.lease = None;
    }
    ctx.watch = None;
    let (counts, source) = settlement::usage(ctx);
    let outcome = settlement::outcome(ctx, error);
    settlement::settle(ctx, error);
    ctx.conclude(attempts::end(ctx));
    let answer = ctx.attempt.as_ref().map(|attempt| &attempt.answer);
    let (duration, now) = (ctx.request.arrived.elapsed(), jiff::Timestamp::now());
    let summary = Summary {
        masked: ctx.caller.key().map(Masked::new),
        outcome,
        status: shown_status(ctx),
        stream: ctx.request.stream || answer.is_some_and(|answer| answer.passage.is_stream()),
        counts,
        source,
        first_token: answer.and_then(|answer| answer.first_token),
        duration,
        now,
        arrived: now - duration,
    };
    stored::note(session, ctx);
    count(session, ctx, &summary);
    if let Some((side, reason)) = blame(error, ctx, summary.outcome) {
        ctx.carry.metrics.errors.with_label_values(&[side.word(), reason]).inc();
    }
    access_line(session, ctx, &summary);
    if !ctx.snapshot.has_hooks() {
        trace(ctx, &summary);
        // It takes away what the others look at.
        record(session, ctx, &summary);
    } else {
        Box::pin(hooked(session, ctx, &summary)).await;
    }
    // Last: when nothing is in flight any more, every record is on its way.
    ctx.in_flight = None;
}

/// The status that the client got.
fn shown_status(ctx: &Ctx) -> u16 {
    let report = ctx.hooks.as_ref().and_then(|state| state.report.as_ref());
    let changed = report.and_then(|report| lock(report).status);
    changed.unwrap_or_else(|| ctx.end().map_or(499, |end| end.status))
}

/// The record as scripts want it, and the trace, which has their runs.
async fn hooked(session: &Session, ctx: &mut Ctx, summary: &Summary) {
    hooks::auth::label_caller(ctx);
    let mut draft = draft(session, ctx, summary);
    if let Some(draft) = &mut draft {
        if ctx.snapshot.hooks.has(Stage::Usage) {
            hooks::usage::run_all(session, ctx, draft).await;
        }
        if ctx.snapshot.hooks.has(Stage::Complete) {
            hooks::complete::begin(session, ctx, draft);
        }
    }
    let model = draft.as_ref().and_then(|draft| draft.model.clone());
    let who = draft.as_ref().and_then(|draft| draft.who.clone());
    if let Some(draft) = draft.filter(|_| ctx.snapshot.plan.usage.is_on()) {
        ctx.carry.usage.put(draft);
    }
    // The trace names what the record has taken.
    (ctx.request.model, ctx.caller.principal) =
        (ctx.request.model.take().or(model), ctx.caller.principal.take().or(who));
    trace(ctx, summary);
}

/// What the three accounts have in common.
struct Summary {
    /// The caller's key.
    masked: Option<Masked>,
    outcome: Outcome,
    status: u16,
    stream: bool,
    counts: TokenCounts,
    source: UsageSource,
    first_token: Option<Duration>,
    /// From the arrival of the request until now.
    duration: Duration,
    now: jiff::Timestamp,
    arrived: jiff::Timestamp,
}

/// On whose side a request has failed, and how; `None` if it has not.
fn blame(error: Option<&Error>, ctx: &Ctx, outcome: Outcome) -> Option<(Side, &'static str)> {
    let end = ctx.end();
    if let Some(rejection) = end.and_then(End::rejection) {
        return Some(match (rejection.code.as_deref(), rejection.status) {
            (Some("no_healthy_backend"), _) => (Side::Backend, "no_healthy_backend"),
            // Whatever status the configuration gives it.
            _ if ctx.limits.refused => (Side::Client, "limited"),
            (_, 500..) => (Side::Gateway, "unavailable"),
            _ => (Side::Client, "refused"),
        });
    }
    let answer = ctx.attempt.as_ref().map(|attempt| &attempt.answer);
    match outcome {
        Outcome::Complete => return None,
        Outcome::ClientAborted => return Some((Side::Client, FaultKind::Gone.word())),
        _ if answer.is_some_and(|answer| answer.progress().is_broken_off()) => {
            return Some((Side::Backend, "broken_off"));
        }
        _ => {}
    }
    let answered = answer.and_then(|answer| answer.status);
    match (end.and_then(End::fault), answered, error) {
        (Some(Fault { kind: FaultKind::Shutdown, .. }), ..) => {
            Some((Side::Gateway, FaultKind::Shutdown.word()))
        }
        (Some(fault), ..) => Some((fault.side, fault.word())),
        // The caller's key never reaches a backend: what it says of a key is not the caller's.
        (None, Some(401..=403 | 407 | 408 | 429 | 500..), _) => Some((Side::Backend, "status")),
        (None, Some(400..), _) => Some((Side::Client, "status")),
        (None, _, Some(e)) if *e.esource() == ErrorSource::Upstream => {
            Some((Side::Backend, FaultKind::Broken.word()))
        }
        (None, _, Some(_)) => Some((Side::Gateway, FaultKind::Internal.word())),
        // What the gateway answers itself, `/ready` for instance, is no fault.
        (None, _, None) => None,
    }
}

/// What broke, also where a rejection has ended the request.
fn fault(ctx: &Ctx) -> Option<Fault> {
    ctx.end().and_then(End::fault).or_else(|| attempts::fault(ctx))
}

/// The backend of the present attempt, or of the last.
fn endpoint(ctx: &Ctx) -> Option<&Arc<Endpoint>> {
    ctx.attempt.as_ref().map(|attempt| &attempt.endpoint)
}

fn count(session: &Session, ctx: &Ctx, summary: &Summary) {
    let metrics = &ctx.carry.metrics;
    let millis = summary.duration.as_secs_f64() * 1000.0;
    let usual = match (endpoint(ctx), &ctx.request.operation) {
        (Some(endpoint), Some(found)) if summary.status == 200 => {
            endpoint.usual(found, summary.stream, metrics)
        }
        _ => None,
    };
    if let Some(usual) = usual {
        usual.requests.inc();
        usual.latency_ms.observe(millis);
    } else {
        let label = || dialect::label(session.req_header().uri.path());
        let path = ctx.request.operation.map_or_else(label, |found| found.label());
        let stream = if summary.stream { "true" } else { "false" };
        let backend = endpoint(ctx).map_or("", |e| e.plan.name.as_str());
        let status = summary.status.to_string();
        metrics.requests.with_label_values(&[path, stream, backend, &status]).inc();
        metrics.latency_ms.with_label_values(&[path, stream, backend]).observe(millis);
    }
    // Counters begin at 0 again after the last number: one absurd answer must not bring them there.
    let sane = |tokens: u64| tokens.min(1 << 40);
    let named = |model: &str| ctx.snapshot.router.names(model);
    metrics.tokens.count(ctx.request.model.as_deref(), &summary.counts, named);
    if let Some(endpoint) = endpoint(ctx) {
        endpoint.meter(sane(summary.counts.prompt), sane(summary.counts.completion));
    }
}

/// Sends a record on its way: for every inference request, whatever became of it.
/// Nothing is copied that can be taken: this is the last that is done for the request.
fn record(session: &Session, ctx: &mut Ctx, summary: &Summary) {
    if let Some(draft) = draft(session, ctx, summary) {
        ctx.carry.usage.put(draft);
    }
}

/// The record; `None`: none is made.
fn draft(session: &Session, ctx: &mut Ctx, summary: &Summary) -> Option<Draft> {
    let plan = &ctx.snapshot.plan.usage;
    let found = ctx.request.operation.filter(|found| found.kind().is_inference())?;
    let scripts = ctx.snapshot.hooks.has(Stage::Usage) || ctx.snapshot.hooks.has(Stage::Complete);
    if !plan.is_on() && !scripts {
        return None;
    }
    let unknown = summary.outcome == Outcome::Rejected
        && ctx.caller.principal.is_none()
        && ctx.snapshot.auth.is_some();
    // Who has no key must not be able to fill the spool.
    if unknown && ctx.carry.usage.is_half_full() {
        ctx.carry.metrics.usage.lost.with_label_values(&["unknown_caller"]).inc();
        return None;
    }
    let key = ctx.caller.key();
    let api_key = match plan.caller_key {
        KeyForm::Masked => summary.masked.map_or(ShownKey::None, ShownKey::Masked),
        KeyForm::Plain => ShownKey::Plain(key.unwrap_or_default().to_owned()),
        KeyForm::None => ShownKey::None,
    };
    let cost = cost(ctx, summary);
    Some(Draft {
        record_id: rand::random(),
        request_id: ctx.request.id.clone(),
        who: ctx.caller.principal.take(),
        api_key,
        model: ctx.request.model.take(),
        response_model: ctx.attempt.as_mut().and_then(|a| a.answer.passage.take_model()),
        counts: summary.counts,
        source: summary.source,
        outcome: summary.outcome,
        cost,
        stream: summary.stream,
        path: found.label(),
        arrived: summary.arrived,
        backend_url: endpoint(ctx).map(|e| Arc::clone(&e.plan.url)),
        method: session.req_header().method.clone(),
        status: summary.status,
        latency: summary.duration,
        ttft: summary.first_token,
        queued: ctx.timeline.queued,
        tries: ctx.retry.begun,
        custom: Map::new(),
        metered: None,
    })
}

/// What the tokens cost, whether anything limits the caller or not: the amount that budgets are
/// charged with. They differ where the engine has reported nothing: budgets are charged with a guess
/// then, and a record has no cost.
fn cost(ctx: &Ctx, summary: &Summary) -> Option<f64> {
    if summary.source == UsageSource::None {
        return None;
    }
    let model = ctx.request.model.as_deref().unwrap_or_default();
    ctx.snapshot.limits.price(model, summary.counts)
}

fn access_line(session: &Session, ctx: &Ctx, summary: &Summary) {
    let log = &ctx.snapshot.plan.log;
    if log.slow_requests.is_some_and(|most| summary.duration > most) {
        warn_of_slow(session, ctx, summary);
    }
    if !log.access || !logger::writes_access() {
        return;
    }
    let header = session.req_header();
    let line = access::Line {
        request_id: ctx.request.id.as_str(),
        client: ctx.request.client,
        method: header.method.as_str(),
        path: header.uri.path(),
        status: summary.status,
        model: ctx.request.model.as_deref().unwrap_or(""),
        backend: endpoint(ctx).map_or("", |e| &*e.name),
        stream: summary.stream,
        outcome: summary.outcome.word(),
        tokens: summary.counts,
        duration: summary.duration,
        first_token: summary.first_token,
        key: summary.masked.as_ref().map(Masked::as_str),
        user: ctx.caller.principal.as_ref().map_or("", |p| p.user_id.as_str()),
        retries: ctx.retry.retries,
        fault: fault(ctx).map(|fault| fault.word()),
    };
    let json = ctx.snapshot.plan.fixed.json_log;
    access::write(&line, &log.access_fields, json, summary.now);
}

/// Where the time of a slow request has gone.
fn warn_of_slow(session: &Session, ctx: &Ctx, summary: &Summary) {
    let millis = |time: Duration| time.as_millis();
    let queued = ctx.timeline.queued.map_or(0, millis);
    let first = summary.first_token.map_or("-".to_owned(), |time| millis(time).to_string());
    log::warn!(
        "slow request: {}ms, {queued}ms of it queued, first token after {first}ms: {} {:?} id={} model={:?} backend={:?} retries={} outcome={} tokens={}+{}",
        millis(summary.duration),
        session.req_header().method,
        session.req_header().uri.path(),
        ctx.request.id.as_str(),
        ctx.request.model.as_deref().unwrap_or(""),
        endpoint(ctx).map_or("", |e| &*e.name),
        ctx.retry.retries,
        summary.outcome.word(),
        summary.counts.prompt,
        summary.counts.completion,
    );
}

/// What scripts have done, in the order of the stages.
fn hook_runs(ctx: &mut Ctx) -> Vec<KeptHook> {
    let Some(state) = ctx.hooks.as_deref_mut() else { return Vec::new() };
    let mut runs = std::mem::take(&mut state.trace);
    if let Some(report) = &state.report {
        // Before those that ran after the answer.
        let after = runs.iter().position(|run| run.stage == Stage::Usage.key());
        let of_answer = std::mem::take(&mut lock(report).trace);
        let at = after.unwrap_or(runs.len());
        runs.splice(at..at, of_answer);
    }
    runs
}

/// Keeps the timeline of the request for `/admin/v1/explain`.
fn trace(ctx: &mut Ctx, summary: &Summary) {
    if ctx.carry.explains.capacity() == 0 {
        return;
    }
    let refused = ctx.end().is_some_and(|end| end.rejection().is_some());
    let hooked = ctx.hooks.as_ref().is_some_and(|state| !state.trace.is_empty());
    if ctx.route.is_none() && !refused && !hooked {
        return;
    }
    let answer = ctx.attempt.as_ref().map(|attempt| &attempt.answer);
    let broken_off = answer.is_some_and(|answer| answer.progress().is_broken_off());
    let answered = answer.and_then(|answer| answer.status);
    let result = match (fault(ctx), answered) {
        (Some(fault), _) => fault.word().into(),
        (None, Some(status @ 200..=299)) if broken_off => {
            format!("status {status}, broken off").into()
        }
        (None, Some(200..=299)) => "ok".into(),
        (None, Some(status)) => format!("status {status}").into(),
        (None, None) => "no answer".into(),
    };
    let span = ctx.attempt.as_ref().and_then(|attempt| attempt.span);
    ctx.timeline.end(span, result);
    let hooks = hook_runs(ctx);
    let principal = ctx.caller.principal.as_deref();
    let names = Names::new(
        ctx.request.model.as_deref().unwrap_or_default(),
        principal.map_or("", |p| &p.key_id),
        principal.map_or("", |p| &p.user_id),
    );
    ctx.carry.explains.put(KeptRequest {
        request_id: ctx.request.id.clone(),
        arrived: summary.arrived,
        names,
        attempts: ctx.timeline.take(),
        hooks,
        outcome: summary.outcome,
        status: summary.status,
        duration: summary.duration,
        queued: ctx.timeline.queued,
    });
}
