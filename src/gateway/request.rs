//! The request phase: what is asked, may it be asked, who can answer it.

use bytes::Bytes;
use pingora::Result;
use pingora_proxy::Session;

use super::{
    answer, body_in,
    ctx::Ctx,
    hedge,
    held::{self, KeepAlive},
    limits, models, policy, tries,
};
use crate::{
    base::Rejection,
    dialect::{self, Kind},
    telemetry::Metrics,
    wire::{
        headers::content_coding,
        peek::{self, Peek},
    },
};

/// Seconds after which a client may try again while there is no backend.
const RETRY_AFTER: u64 = 5;

/// Bytes of the name of a model. Names are kept, in traces and for circuits.
const LONGEST_MODEL: usize = 1024;

/// Decides about the request. `true` if it has been answered.
pub async fn filter(session: &mut Session, ctx: &mut Ctx) -> Result<bool> {
    match decide(session, ctx).await? {
        Step::Proxy => Ok(false),
        Step::Answered => Ok(true),
        Step::Refuse(no) => {
            refuse(session, ctx, no).await?;
            Ok(true)
        }
    }
}

enum Step {
    Proxy,
    Answered,
    Refuse(Rejection),
}

async fn decide(session: &mut Session, ctx: &mut Ctx) -> Result<Step> {
    let header = session.req_header();
    let route = dialect::find(header.method.as_str(), header.uri.path());
    if let Some(no) = ctx.end.rejection.take() {
        ctx.call.route = route.ok();
        return Ok(Step::Refuse(no));
    }
    let route = match route {
        Ok(route) => route,
        Err(no) => return Ok(Step::Refuse(no)),
    };
    if route.kind == Kind::Metrics && ctx.snapshot.plan.fixed.metrics_listen.is_some() {
        let no = Rejection::unknown_path(header.method.as_str(), route.path);
        return Ok(Step::Refuse(no));
    }
    let inference = matches!(route.kind, Kind::Inference { .. });
    if inference && ctx.carry.usage.refuses() {
        // Before it is one with a route, of which a record is made.
        return Ok(Step::Refuse(Rejection::usage_spool_full(RETRY_AFTER)));
    }
    ctx.call.route = Some(route);
    let lists = matches!(route.kind, Kind::Models | Kind::Model);
    if (inference || lists)
        && let Err(no) = policy::identify(session, ctx).await
    {
        return Ok(Step::Refuse(no));
    }
    match route.kind {
        Kind::Inference { .. } => infer(session, ctx).await,
        kind => {
            if let Err(no) = policy::decide(session, ctx).await {
                return Ok(Step::Refuse(no));
            }
            if lists && let Err(no) = limits::admit(session, ctx, None).await? {
                return Ok(Step::Refuse(no));
            }
            if kind == Kind::Model {
                return model(session, ctx).await;
            }
            operator(session, ctx, kind).await?;
            Ok(Step::Answered)
        }
    }
}

/// The endpoints that the gateway answers itself.
async fn operator(session: &mut Session, ctx: &mut Ctx, kind: Kind) -> Result<()> {
    const TEXT: &str = "text/plain; charset=utf-8";
    let (status, content_type, body) = match kind {
        Kind::Models => (200, "application/json", models::list(session, ctx).await),
        Kind::Metrics => (200, Metrics::CONTENT_TYPE, ctx.carry.metrics.render()),
        Kind::Ready => match ctx.carry.ready(&ctx.snapshot) {
            Ok(()) => (200, TEXT, b"OK".to_vec()),
            Err(why) => (503, TEXT, why.into()),
        },
        Kind::Health | Kind::Model | Kind::Inference { .. } => (200, TEXT, b"OK".to_vec()),
    };
    answer::write(session, ctx, status, content_type, Bytes::from(body), &[]).await
}

/// One model of the list.
async fn model(session: &mut Session, ctx: &mut Ctx) -> Result<Step> {
    let name = dialect::model_of(session.req_header().uri.path());
    match models::one(session, ctx, &name).await {
        Some(body) => {
            answer::write(session, ctx, 200, "application/json", body.into(), &[]).await?;
            Ok(Step::Answered)
        }
        None => Ok(Step::Refuse(Rejection::unknown_model(&name))),
    }
}

async fn infer(session: &mut Session, ctx: &mut Ctx) -> Result<Step> {
    if let Some(coding) = content_coding(&session.req_header().headers) {
        return Ok(Step::Refuse(Rejection::compressed_body(coding)));
    }
    if let Err(no) = body_in::read(session, ctx).await? {
        return Ok(Step::Refuse(no));
    }
    let snapshot = ctx.snapshot.clone();
    let found = match peek::peek(ctx.body.bytes(), &snapshot.plan.guard_fields) {
        Ok(found) => found,
        Err(why) => return Ok(Step::Refuse(Rejection::not_json(why))),
    };
    if found.model_invalid {
        return Ok(Step::Refuse(Rejection::bad_field("model", "it must be a string")));
    }
    if found.model.as_ref().is_some_and(|name| name.len() > LONGEST_MODEL) {
        let why = format!("it is longer than {LONGEST_MODEL} bytes");
        return Ok(Step::Refuse(Rejection::bad_field("model", &why)));
    }
    if let Some(param) = found.bad_switch {
        let why = "its switches must be true, false or null";
        return Ok(Step::Refuse(Rejection::bad_field(param, why)));
    }
    ctx.call.model.clone_from(&found.model);
    ctx.call.stream = found.stream;
    ctx.call.usage_asked =
        found.stream_options.as_ref().map_or((false, false), |o| (o.include_usage, o.continuous));
    if let Err(no) = policy::decide(session, ctx).await {
        return Ok(Step::Refuse(no));
    }
    match snapshot.router.find(found.model.as_deref()) {
        Ok(route) => ctx.way.route = Some(route),
        // No backend at all is no reason to say of a model that it does not exist.
        Err(_) if snapshot.backends.is_empty() => {
            return Ok(Step::Refuse(Rejection::no_healthy_backend(RETRY_AFTER)));
        }
        Err(no) => return Ok(Step::Refuse(no)),
    }
    if let Err(no) = limits::admit(session, ctx, Some(&found)).await? {
        return Ok(Step::Refuse(no));
    }
    prepare(ctx, found);
    if hedge::serve(session, ctx).await? {
        return Ok(Step::Answered);
    }
    hold(session, ctx)?;
    Ok(Step::Proxy)
}

/// Takes the guarded fields out of the body, and makes everything ready for the first try.
fn prepare(ctx: &mut Ctx, found: Peek) {
    let guard = &ctx.snapshot.plan.guard_fields;
    let mut found = found;
    if found.guarded
        && let Ok(edits) = peek::guard_edits(ctx.body.bytes(), guard)
    {
        ctx.body.change(edits);
        // The offsets of the first look are void after an edit.
        found = peek::peek(ctx.body.bytes(), &[]).unwrap_or_default();
    }
    ctx.body.note(found);
    tries::begin(ctx);
}

/// Holds the head of an answer back, if another backend may give another one.
fn hold(session: &mut Session, ctx: &mut Ctx) -> Result<()> {
    let every = ctx.snapshot.plan.routing.keep_alive.filter(|_| limits::can_open(session, ctx));
    if every.is_none() && !ctx.way.tries.may_follow() {
        return Ok(());
    }
    let keep_alive = match every {
        Some(every) => {
            let standings = ctx.limits.standings.as_ref();
            Some(KeepAlive { every, head: limits::head_of_stream(session, ctx, standings)? })
        }
        None => None,
    };
    ctx.way.held = Some(held::hold(session, keep_alive));
    Ok(())
}

/// Answers a refusal.
async fn refuse(session: &mut Session, ctx: &mut Ctx, no: Rejection) -> Result<()> {
    answer::refusal(session, ctx, &no).await?;
    if no.close {
        body_in::linger(session).await;
    }
    ctx.end.rejection = Some(no);
    Ok(())
}
