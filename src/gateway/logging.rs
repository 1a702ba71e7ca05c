//! The one exit of every request: what it took is settled, unless its answer could be settled
//! before its last byte; counts, the usage record, the access line.

use std::{sync::Arc, time::Duration};

use pingora::{Error, ErrorSource};
use pingora_proxy::Session;

use super::{ctx::Ctx, held, limits, response, story, tries};
use crate::{
    base::{Fault, FaultKind, Outcome, Side, TokenCounts, UsageSource, secret},
    config::raw::KeyForm,
    dialect::{self, Kind},
    telemetry::access,
    usage::Draft,
};

/// Settles a request.
pub fn settle(session: &mut Session, error: Option<&Error>, ctx: &mut Ctx) {
    if let Some(home) = ctx.way.held.take() {
        held::abandon(session, &home);
    }
    tries::ended(ctx);
    ctx.way.leave();
    let (counts, source) = ctx.answer.usage();
    let summary = Summary {
        outcome: outcome(error, ctx),
        status: ctx.end.status.or(ctx.answer.status).unwrap_or(499),
        stream: ctx.call.stream || response::is_stream(ctx),
        counts,
        source,
        duration: ctx.call.arrived.elapsed(),
    };
    limits::settle(ctx, counts, source, summary.outcome);
    count(session, ctx, &summary);
    if let Some((side, reason)) = blame(error, ctx, summary.outcome) {
        ctx.carry.metrics.errors.with_label_values(&[side.word(), reason]).inc();
    }
    access_line(session, ctx, &summary);
    story::keep(ctx, summary.status, summary.outcome.word(), summary.duration);
    // It takes away what the others look at.
    record(session, ctx, &summary);
    // Last: when nothing is in flight any more, every record is on its way.
    ctx.end.in_flight = None;
}

/// What the three accounts have in common.
struct Summary {
    outcome: Outcome,
    status: u16,
    stream: bool,
    counts: TokenCounts,
    source: UsageSource,
    /// From the arrival of the request until now.
    duration: Duration,
}

/// How a request has ended, as far as is known.
pub fn outcome(error: Option<&Error>, ctx: &Ctx) -> Outcome {
    let gone = ctx.end.fault.is_some_and(|f| f.side == Side::Client)
        || error.is_some_and(|e| *e.esource() == ErrorSource::Downstream);
    let status = ctx.end.status.or(ctx.answer.status);
    match status {
        _ if ctx.end.rejection.is_some() => Outcome::Rejected,
        _ if ctx.answer.broken_off() => Outcome::UpstreamError,
        _ if ctx.answer.complete() => Outcome::Complete,
        _ if gone => Outcome::ClientAborted,
        _ if ctx.end.fault.is_some() || error.is_some() => Outcome::UpstreamError,
        // What the gateway itself answers with 503, `/ready` for instance, is nobody's failure.
        Some(500..) if ctx.answer.status.is_some() => Outcome::UpstreamError,
        Some(400..) => Outcome::Rejected,
        _ => Outcome::Complete,
    }
}

/// On whose side a request has failed, and how; `None` if it has not.
fn blame(error: Option<&Error>, ctx: &Ctx, outcome: Outcome) -> Option<(Side, &'static str)> {
    if let Some(no) = &ctx.end.rejection {
        return Some(match (no.code.as_deref(), no.status) {
            (Some("no_healthy_backend"), _) => (Side::Backend, "no_healthy_backend"),
            // Whatever status the configuration gives it.
            _ if ctx.limits.refused => (Side::Client, "limited"),
            (_, 500..) => (Side::Gateway, "unavailable"),
            _ => (Side::Client, "refused"),
        });
    }
    match outcome {
        Outcome::Complete => return None,
        Outcome::ClientAborted => return Some((Side::Client, FaultKind::Gone.word())),
        _ if ctx.answer.broken_off() => return Some((Side::Backend, "broken_off")),
        _ => {}
    }
    match (ctx.end.fault, ctx.answer.status, error) {
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
        // What the gateway answers itself, `/ready` for instance, is nobody's fault.
        (None, _, None) => None,
    }
}

fn count(session: &Session, ctx: &Ctx, summary: &Summary) {
    let metrics = &ctx.carry.metrics;
    let millis = summary.duration.as_secs_f64() * 1000.0;
    let usual = match (&ctx.way.endpoint, ctx.call.route) {
        (Some(endpoint), Some(route)) if summary.status == 200 => {
            endpoint.usual(route, summary.stream, metrics)
        }
        _ => None,
    };
    if let Some(usual) = usual {
        usual.requests.inc();
        usual.latency_ms.observe(millis);
    } else {
        let label = || dialect::label(session.req_header().uri.path());
        let path = ctx.call.route.map_or_else(label, |r| r.path);
        let stream = if summary.stream { "true" } else { "false" };
        let backend = ctx.way.endpoint.as_ref().map_or("", |e| e.plan.name.as_str());
        let status = summary.status.to_string();
        metrics.requests.with_label_values(&[path, stream, backend, &status]).inc();
        metrics.latency_ms.with_label_values(&[path, stream, backend]).observe(millis);
    }
    // Counters begin at 0 again after the last number: one absurd answer must not bring them there.
    let sane = |tokens: u64| tokens.min(1 << 40);
    let (prompt, completion) = (sane(summary.counts.prompt), sane(summary.counts.completion));
    let named = |model: &str| ctx.snapshot.router.names(model);
    metrics.tokens.count(ctx.call.model.as_deref(), prompt, completion, named);
    if let Some(endpoint) = &ctx.way.endpoint {
        endpoint.meter(prompt, completion);
    }
}

/// Sends a record on its way: for every inference request, whatever became of it.
/// Nothing is copied that can be taken: this is the last that is done for the request.
fn record(session: &Session, ctx: &mut Ctx, summary: &Summary) {
    let plan = &ctx.snapshot.plan.usage;
    let Some(route) = ctx.call.route.filter(|r| matches!(r.kind, Kind::Inference { .. })) else {
        return;
    };
    if !plan.is_on() {
        return;
    }
    let unknown = summary.outcome == Outcome::Rejected
        && ctx.who.principal.is_none()
        && ctx.snapshot.auth.is_some();
    // Who has no key must not be able to fill the spool.
    if unknown && ctx.carry.usage.is_half_full() {
        ctx.carry.metrics.usage.lost.with_label_values(&["unknown_caller"]).inc();
        return;
    }
    let key = ctx.who.key();
    let api_key = match plan.caller_key {
        KeyForm::Masked => key.map(secret::mask).unwrap_or_default(),
        KeyForm::Plain => key.unwrap_or_default().to_owned(),
        KeyForm::None => String::new(),
    };
    let cost = cost(ctx, summary);
    let draft = Draft {
        record_id: rand::random(),
        request_id: ctx.call.id.clone(),
        who: ctx.who.principal.take(),
        api_key,
        model: ctx.call.model.take(),
        response_model: ctx.answer.take_model(),
        counts: summary.counts,
        source: summary.source,
        outcome: summary.outcome,
        cost,
        stream: summary.stream,
        path: route.path,
        arrived: jiff::Timestamp::now() - summary.duration,
        backend_url: ctx.way.endpoint.as_ref().map(|e| Arc::clone(&e.plan.url)),
        method: session.req_header().method.clone(),
        status: summary.status,
        latency: summary.duration,
        ttft: ctx.answer.first_token,
        queued: ctx.way.story.queued,
        tries: ctx.way.tries.begun,
    };
    ctx.carry.usage.put(draft);
}

/// What the tokens cost, whether anything limits the caller or not: the amount that budgets are
/// charged with. They differ where the engine has reported nothing: budgets are charged with a guess
/// then, and a record has no cost.
fn cost(ctx: &Ctx, summary: &Summary) -> Option<f64> {
    if summary.source == UsageSource::None {
        return None;
    }
    let model = ctx.call.model.as_deref().unwrap_or_default();
    ctx.snapshot.limits.price(model, summary.counts)
}

fn access_line(session: &Session, ctx: &Ctx, summary: &Summary) {
    let log = &ctx.snapshot.plan.log;
    if !log.access.0 || !log::log_enabled!(log::Level::Info) {
        return;
    }
    let header = session.req_header();
    let masked = ctx.who.key().map(secret::mask);
    let line = access::Line {
        request_id: ctx.call.id.as_str(),
        client: ctx.call.client,
        method: header.method.as_str(),
        path: header.uri.path(),
        status: summary.status,
        model: ctx.call.model.as_deref().unwrap_or(""),
        backend: ctx.way.endpoint.as_ref().map_or("", |e| e.name.as_str()),
        stream: summary.stream,
        outcome: summary.outcome.word(),
        tokens: summary.counts,
        duration: summary.duration,
        first_token: ctx.answer.first_token,
        key: masked.as_deref(),
        user: ctx.who.principal.as_ref().map_or("", |p| p.user_id.as_str()),
        retries: ctx.way.retries,
        fault: ctx.end.fault.map(|f| f.word()),
    };
    access::write(&line, ctx.snapshot.plan.fixed.json_log);
}
