//! The request phase: what is asked, may it be asked, which backends can answer it.

use http::HeaderValue;
use pingora::Result;
use pingora_proxy::Session;

use super::{
    admission, affinity, auth,
    body::Framing,
    cors, count,
    ctx::Ctx,
    deferred_head::{self, KeepAlive},
    early,
    end::End,
    hedge, hooks, models, receive, reply,
    stop::Stop,
    stored,
};
use crate::{
    base::{Rejection, Stage},
    dialect::{self, Glance, Kind},
    telemetry::Metrics,
    wire::headers::{content_coding, wants_websocket},
};

/// Seconds after which a client may try again while there is no backend.
const RETRY_AFTER: u64 = 5;

/// Decides about the request. `true` if it has been answered.
pub async fn filter(session: &mut Session, ctx: &mut Ctx) -> Result<bool> {
    match decide(session, ctx).await {
        Ok(Step::Proxy) => Ok(false),
        Ok(Step::Answered) => Ok(true),
        Err(Stop::Broken(error)) => Err(error),
        Err(Stop::Refuse(rejection)) => {
            if let Some(deferred) = ctx.deferred.take() {
                deferred_head::abandon(session, &deferred);
            }
            let close = rejection.close;
            reply::refuse(session, ctx, rejection).await?;
            if close {
                receive::linger(session).await;
            }
            Ok(true)
        }
    }
}

enum Step {
    Proxy,
    Answered,
}

async fn decide(session: &mut Session, ctx: &mut Ctx) -> Result<Step, Stop> {
    let checked = early::check(session, ctx);
    cors::look(session, ctx);
    let header = session.req_header();
    let found = dialect::find(header.method.as_str(), header.uri.path(), &header.headers);
    if checked.is_err() || found.is_err() {
        ctx.request.claimed = dialect::claimed(&header.headers);
    }
    if let Err(rejection) = checked {
        ctx.request.operation = found.ok();
        return Err(rejection.into());
    }
    if let Some(preflight) = cors::preflight(session, ctx)? {
        cors::answer(session, ctx, preflight).await?;
        return Ok(Step::Answered);
    }
    let found = found.map_err(|rejection| match rejection.status {
        405 if wants_websocket(&header.headers) => Rejection::no_websocket(header.uri.path()),
        _ => rejection,
    })?;
    let kind = found.kind();
    if kind == Kind::Metrics && ctx.snapshot.plan.fixed.metrics_listen.is_some() {
        return Err(Rejection::unknown_path(header.method.as_str(), found.label()).into());
    }
    if kind.is_inference() && ctx.carry.usage.refuses() {
        // Before it is an operation of which a record is made.
        return Err(Rejection::usage_spool_full(RETRY_AFTER).into());
    }
    ctx.request.operation = Some(found);
    if matches!(kind, Kind::Metrics | Kind::Health | Kind::Ready) {
        // They are the operator's, not those of pages.
        ctx.request.page = None;
    }
    auth::look_again(session, ctx, found.language);
    let lists = matches!(kind, Kind::Models | Kind::Model);
    if kind.is_inference() || lists || kind == Kind::Stored {
        auth::identify(session, ctx).await?;
    }
    if kind.is_inference() {
        return infer(session, ctx).await;
    }
    if kind == Kind::Stored {
        stored::begin(session, ctx).await?;
        if ctx.snapshot.has_hooks() {
            hooks::guards::select(ctx);
            see_answer(session, ctx);
        }
        return Ok(Step::Proxy);
    }
    auth::decide(session, ctx).await?;
    if lists {
        admission::admit(session, ctx, None).await?;
    }
    own(session, ctx, kind).await?;
    Ok(Step::Answered)
}

/// What the gateway answers itself.
async fn own(session: &mut Session, ctx: &mut Ctx, kind: Kind) -> Result<(), Stop> {
    let (status, content_type, body) = match kind {
        Kind::Models => (200, reply::JSON, models::list(session, ctx).await?),
        Kind::Model => {
            let path = session.req_header().uri.path();
            let operation = ctx.request.operation.map(|found| found.operation);
            let name = operation.and_then(|operation| operation.model_in(path)).unwrap_or_default();
            let model = models::one(session, ctx, &name).await;
            (200, reply::JSON, model.ok_or_else(|| Rejection::unknown_model(&name))?)
        }
        Kind::Metrics => {
            let content_type = HeaderValue::from_static(Metrics::CONTENT_TYPE);
            (200, content_type, ctx.carry.metrics.render().into())
        }
        Kind::Ready => match ctx.carry.ready(&ctx.snapshot) {
            Ok(()) => (200, reply::TEXT, "OK".into()),
            Err(why) => (503, reply::TEXT, why.into()),
        },
        Kind::Health | Kind::Inference { .. } | Kind::CountTokens | Kind::Stored => {
            (200, reply::TEXT, "OK".into())
        }
    };
    reply::write(session, ctx, End::answered(status), content_type, body, &[]).await?;
    Ok(())
}

async fn infer(session: &mut Session, ctx: &mut Ctx) -> Result<Step, Stop> {
    if let Some(coding) = content_coding(&session.req_header().headers) {
        return Err(Rejection::compressed_body(coding).into());
    }
    receive::read(session, ctx).await?;
    let mut glance = glance(session, ctx)?;
    look(ctx, &glance);
    // Boxed: requests without scripts do not carry the room for them.
    let hooks = ctx.snapshot.has_hooks();
    if hooks && Box::pin(hooks::request::run_all(session, ctx)).await? {
        glance = self::glance(session, ctx)?;
        look(ctx, &glance);
    }
    auth::decide(session, ctx).await?;
    if hooks {
        match Box::pin(checked(session, ctx)).await? {
            Checked::Answered => return Ok(Step::Answered),
            Checked::Changed => {
                glance = self::glance(session, ctx)?;
                look(ctx, &glance);
            }
            Checked::Same => {}
        }
    }
    let snapshot = ctx.snapshot.clone();
    ctx.route = Some(match snapshot.router.find(glance.model.as_deref()) {
        Ok(route) => route,
        // No backend at all is no reason to say of a model that it does not exist.
        Err(_) if snapshot.backends.is_empty() => {
            return Err(Rejection::no_healthy_backend(RETRY_AFTER).into());
        }
        Err(rejection) => return Err(rejection.into()),
    });
    admission::admit(session, ctx, Some(&glance)).await?;
    prepare(session, ctx, glance);
    stored::bind(ctx).await?;
    if ctx.snapshot.hooks.has(Stage::Route) {
        Box::pin(hooks::route::run_all(session, ctx)).await?;
    }
    if count::estimate(session, ctx).await? {
        return Ok(Step::Answered);
    }
    if hooks {
        see_answer(session, ctx);
    }
    if hedge::serve(session, ctx).await? {
        return Ok(Step::Answered);
    }
    defer_head(session, ctx)?;
    Ok(Step::Proxy)
}

/// Scripts and guards see the answer on its way to the client, if any of them has to do with it.
fn see_answer(session: &mut Session, ctx: &mut Ctx) {
    if let Some(filters) = hooks::begin::answer(session, ctx) {
        let deferred = deferred_head::defer(session, None, false);
        deferred.filter(filters);
        ctx.deferred = Some(deferred);
    }
}

/// Takes over what the body says.
fn look(ctx: &mut Ctx, glance: &Glance) {
    ctx.request.model.clone_from(&glance.model);
    ctx.request.stream = glance.stream;
    ctx.request.usage = glance.usage.unwrap_or_default();
}

/// What has become of a request whose key was allowed.
enum Checked {
    Same,
    /// Its body has changed.
    Changed,
    /// A script has answered it.
    Answered,
}

/// Runs what sees who may make the request: scripts, guards, and the operator's prompts, which no guard
/// judges.
async fn checked(session: &mut Session, ctx: &mut Ctx) -> Result<Checked, Stop> {
    hooks::auth::run_all(session, ctx).await?;
    if hooks::request::answer(session, ctx).await? {
        return Ok(Checked::Answered);
    }
    let judged = !ctx.snapshot.guards.is_empty() && hooks::guards::judge(ctx).await?;
    let prompted = hooks::guards::prompt(ctx);
    Ok(if judged || prompted { Checked::Changed } else { Checked::Same })
}

/// What the body says, in the client's language.
fn glance(session: &Session, ctx: &Ctx) -> Result<Glance, Rejection> {
    let Some(found) = &ctx.request.operation else {
        return Ok(Glance::default());
    };
    let path = session.req_header().uri.path();
    let guarded = &ctx.snapshot.plan.guard_fields;
    found.language.glance(found.operation, path, ctx.body.bytes(), guarded)
}

/// Takes the guarded fields out of the body, and makes everything ready for the first attempt.
fn prepare(session: &Session, ctx: &mut Ctx, glance: Glance) {
    let mut glance = glance;
    if glance.guarded {
        let guarded = &ctx.snapshot.plan.guard_fields;
        let edits = ctx.request.language().guard_edits(ctx.body.bytes(), guarded);
        ctx.body.change(edits);
        // The offsets of the first look are void after an edit.
        glance = self::glance(session, ctx).unwrap_or_default();
    }
    ctx.body.note(glance);
    ctx.body.extras = affinity::extras(&ctx.snapshot, &ctx.caller);
    ctx.retry.begin(&ctx.snapshot, ctx.route.as_deref());
}

/// Defers the heads of answers from the start, if the client gets comments while it waits, or a long
/// chunked body has to be sent again. Otherwise `response` defers one when it comes.
fn defer_head(session: &mut Session, ctx: &mut Ctx) -> Result<()> {
    let every = ctx.snapshot.plan.routing.keep_alive.filter(|_| reply::can_open(session, ctx));
    ctx.retry.defers = ctx.retry.may_follow();
    let again = ctx.body.framing == Framing::LargeChunked && ctx.retry.defers;
    if every.is_none() && !again {
        return Ok(());
    }
    let keep_alive = match every {
        Some(every) => {
            let standings = ctx.limits.standings.as_ref();
            let head = reply::head_of_stream(session, ctx, standings)?;
            Some(KeepAlive { every, head, comment: ctx.request.language().keep_alive() })
        }
        None => None,
    };
    let filters = ctx.deferred.take().and_then(|deferred| {
        // One wrapper does both.
        deferred_head::abandon(session, &deferred);
        deferred.take_filters()
    });
    let deferred = deferred_head::defer(session, keep_alive, false);
    if let Some(filters) = filters {
        deferred.filter(*filters);
    }
    ctx.deferred = Some(deferred);
    Ok(())
}
