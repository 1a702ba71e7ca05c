//! Policies, in their order: rules about addresses, who is calling, may it call.
//!
//! Who is calling is found out before the body is read; the decision may want to know the model,
//! and comes after.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use http::Method;
use pingora_proxy::Session;

use super::ctx::Ctx;
use crate::{auth::RequestView, base::Rejection};

/// What a model is asked for at, as far as the list of models is concerned.
const CHAT: &str = "/v1/chat/completions";

/// Decisions that a list of models may take, and how long all of them.
const MOST: usize = 200;
const PATIENCE: Duration = Duration::from_secs(1);

/// Rules about addresses, and whose key it is.
///
/// # Errors
/// If the caller is not let in.
pub async fn identify(session: &Session, ctx: &mut Ctx) -> Result<(), Rejection> {
    if !ctx.snapshot.plan.ip_rules.allow(ctx.call.client) {
        return Err(Rejection::address_not_allowed());
    }
    let snapshot = ctx.snapshot.clone();
    if let Some(auth) = &snapshot.auth
        && !auth.skips(session.req_header().uri.path())
    {
        ctx.who.found = auth.identify(ctx.who.shown.as_ref()).await?;
    }
    Ok(())
}

/// Whether a caller whose key is known may make this request.
///
/// # Errors
/// If not.
pub async fn decide(session: &Session, ctx: &mut Ctx) -> Result<(), Rejection> {
    let snapshot = ctx.snapshot.clone();
    let (Some(auth), Some(found)) = (&snapshot.auth, &ctx.who.found) else {
        return Ok(());
    };
    let header = session.req_header();
    let call = RequestView {
        method: &header.method,
        path: header.uri.path(),
        ip: ctx.call.client,
        headers: &header.headers,
        model: ctx.call.model.as_deref(),
        stream: ctx.call.stream,
    };
    // Also a caller that is not let in is told of in the record.
    ctx.who.principal = found.principal();
    ctx.who.principal = Some(auth.decide(found, ctx.who.key().unwrap_or_default(), call).await?);
    Ok(())
}

/// Those of these models for which the caller would be refused, and is not refused anyway. Models
/// about which it would take too long to decide are not among them.
pub async fn refused(session: &Session, ctx: &Ctx, models: &[String]) -> HashSet<String> {
    let mut refused = HashSet::new();
    let (Some(auth), Some(found)) = (&ctx.snapshot.auth, &ctx.who.found) else {
        return refused;
    };
    if auth.skips(CHAT) || !auth.depends_on_model(found) {
        return refused;
    }
    let key = ctx.who.key().unwrap_or_default();
    let would_allow = |model| {
        let headers = &session.req_header().headers;
        let (method, ip) = (&Method::POST, ctx.call.client);
        auth.would_allow(
            found,
            key,
            RequestView { method, path: CHAT, ip, headers, model, stream: false },
        )
    };
    let until = Instant::now() + PATIENCE;
    let mut allowed = false;
    for model in models.iter().take(MOST) {
        match tokio::time::timeout_at(until.into(), would_allow(Some(model))).await {
            Ok(Some(true)) => allowed = true,
            Ok(Some(false)) => _ = refused.insert(model.clone()),
            Ok(None) | Err(_) => break,
        }
        if Instant::now() >= until {
            break;
        }
        // Other requests of this thread do not wait for all of them.
        tokio::task::yield_now().await;
    }
    // Nothing is allowed: is that because of the models? Scripts that ask for the model may also
    // refuse who names none, so this counts only here.
    if !allowed
        && !refused.is_empty()
        && !matches!(tokio::time::timeout_at(until.into(), would_allow(None)).await, Ok(Some(true)))
    {
        refused.clear();
    }
    refused
}
