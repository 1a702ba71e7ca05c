//! The one exit of every request: what it took is settled, unless its answer could be settled
//! before its last byte; counts, the usage record, the access line.

use std::time::Duration;

use pingora::{Error, ErrorSource};
use pingora_proxy::Session;

use super::{ctx::Ctx, held, limits, response, story};
use crate::{
    base::{Outcome, Side, TokenCounts, UsageSource, secret},
    config::raw::KeyForm,
    dialect::{self, Kind},
    telemetry::access,
    usage::Record,
};

/// Settles a request.
pub fn settle(session: &mut Session, error: Option<&Error>, ctx: &mut Ctx) {
    if let Some(home) = ctx.way.held.take() {
        held::abandon(session, &home);
    }
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
    record(session, ctx, &summary);
    access_line(session, ctx, &summary);
    story::keep(ctx, summary.status, summary.outcome.word(), summary.duration);
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
        _ if gone => Outcome::ClientAborted,
        _ if ctx.end.fault.is_some() || error.is_some() => Outcome::UpstreamError,
        // What the gateway itself answers with 503, `/ready` for instance, is nobody's failure.
        Some(500..) if ctx.answer.status.is_some() => Outcome::UpstreamError,
        Some(400..) => Outcome::Rejected,
        _ => Outcome::Complete,
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
    metrics.prompt_tokens.inc_by(sane(summary.counts.prompt));
    metrics.completion_tokens.inc_by(sane(summary.counts.completion));
}

/// Sends a record on its way: for every inference request, whatever became of it.
fn record(session: &Session, ctx: &Ctx, summary: &Summary) {
    let Some(hook) = &ctx.snapshot.plan.usage_hook else {
        return;
    };
    let Some(route) = ctx.call.route else { return };
    if !matches!(route.kind, Kind::Inference { .. }) {
        return;
    }
    let key = ctx.who.key();
    let who = ctx.who.principal.as_deref();
    let arrived = jiff::Timestamp::now() - summary.duration;
    let mut record = Record {
        record_id: format!("rec_{:032x}", rand::random::<u128>()),
        request_id: ctx.call.id.as_str().to_owned(),
        user_id: who.map(|p| p.user_id.clone()).unwrap_or_default(),
        key_id: who.map(|p| p.key_id.clone()).unwrap_or_default(),
        key_name: who.map(|p| p.name.clone()).unwrap_or_default(),
        team: who.map(|p| p.team.clone()).unwrap_or_default(),
        tier: who.map(|p| p.tier.clone()).unwrap_or_default(),
        metadata: who.map(|p| p.metadata.clone()).unwrap_or_default(),
        tags: who.map(|p| p.tags.clone()).unwrap_or_default(),
        api_key: match hook.caller_key {
            KeyForm::Masked => key.map(secret::mask).unwrap_or_default(),
            KeyForm::Plain => key.unwrap_or_default().to_owned(),
            KeyForm::None => String::new(),
        },
        model: ctx.call.model.clone().unwrap_or_default(),
        prompt_tokens: 0,
        completion_tokens: 0,
        total_tokens: 0,
        is_stream: summary.stream,
        endpoint: route.path.to_owned(),
        path: route.path.to_owned(),
        timestamp: format!("{arrived:.3}"),
        backend_url: ctx.way.endpoint.as_ref().map(|e| e.plan.url.clone()).unwrap_or_default(),
        method: session.req_header().method.as_str().to_owned(),
        status_code: summary.status,
        latency_ms: summary.duration.as_millis() as u64,
        ttft_ms: ctx.answer.first_token.map(|t| t.as_millis() as u64),
        outcome: "",
        usage_source: "",
        usage: None,
    };
    record.set_usage(summary.counts, summary.source, summary.outcome);
    let metrics = &ctx.carry.metrics;
    if !ctx.carry.usage.put(record, hook.queue_size) {
        metrics.webhook_failure.inc();
        log::error!("usage record of request {} lost: the queue is full", ctx.call.id);
    }
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
