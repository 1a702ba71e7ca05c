//! Authentication and authorisation: rules about addresses, whose key it is, and whether the key may
//! make this request.
//!
//! The key is identified before the body is read; the decision may need the model, and comes after.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use http::Method;
use pingora_proxy::Session;

use super::ctx::Ctx;
use crate::{
    auth::{Credential, RequestView},
    base::Rejection,
    dialect::{self, Dialect},
};

/// Decisions that a list of models may take, and how long all of them.
const MOST: usize = 200;
const PATIENCE: Duration = Duration::from_secs(1);

/// Rules about addresses, and whose key it is.
///
/// # Errors
/// If the caller is rejected.
pub async fn identify(session: &Session, ctx: &mut Ctx) -> Result<(), Rejection> {
    if !ctx.snapshot.plan.ip_rules.allow(ctx.request.client) {
        return Err(Rejection::address_not_allowed());
    }
    let snapshot = ctx.snapshot.clone();
    if let Some(auth) = &snapshot.auth
        && !auth.skips(session.req_header().uri.path())
    {
        ctx.caller.found = auth.identify(ctx.caller.shown.as_ref()).await?;
    }
    Ok(())
}

/// Looks for the key again in the order of the request's language, if that is another one than the usual
/// order, and the configuration says none.
pub fn look_again(session: &Session, ctx: &mut Ctx, language: &dyn Dialect) {
    let own = language.credential_fields();
    let configured = ctx.snapshot.auth.as_ref().is_some_and(|auth| !auth.takes_usual_fields());
    if configured || own.first() == dialect::credential_fields().first() {
        return;
    }
    if let Some(found) = Credential::find(&session.req_header().headers, own) {
        ctx.caller.shown = Some(found);
    }
}

/// Whether a caller whose key is known may make this request.
///
/// # Errors
/// If not.
pub async fn decide(session: &Session, ctx: &mut Ctx) -> Result<(), Rejection> {
    let snapshot = ctx.snapshot.clone();
    let (Some(auth), Some(found)) = (&snapshot.auth, &ctx.caller.found) else {
        return Ok(());
    };
    let header = session.req_header();
    let call = RequestView {
        method: &header.method,
        path: header.uri.path(),
        ip: ctx.request.client,
        headers: &header.headers,
        model: ctx.request.model.as_deref(),
        stream: ctx.request.stream,
    };
    // The record names a rejected caller too.
    ctx.caller.principal = found.principal();
    ctx.caller.principal =
        Some(auth.decide(found, ctx.caller.key().unwrap_or_default(), call).await?);
    Ok(())
}

/// Those of these models for which the caller would be refused, and is not refused anyway. Models
/// about which it would take too long to decide are not among them.
pub async fn refused(session: &Session, ctx: &Ctx, models: &[String]) -> HashSet<String> {
    let mut refused = HashSet::new();
    let (Some(auth), Some(found)) = (&ctx.snapshot.auth, &ctx.caller.found) else {
        return refused;
    };
    // A list of models is for those that generate text.
    let path = ctx.request.language().usual_path();
    if auth.skips(path) || !auth.depends_on_model(found) {
        return refused;
    }
    let key = ctx.caller.key().unwrap_or_default();
    let would_allow = |model| {
        let headers = &session.req_header().headers;
        let (method, ip) = (&Method::POST, ctx.request.client);
        auth.would_allow(
            found,
            key,
            RequestView { method, path, ip, headers, model, stream: false },
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
    // reject a request without one, so this matters only here.
    if !allowed
        && !refused.is_empty()
        && !matches!(tokio::time::timeout_at(until.into(), would_allow(None)).await, Ok(Some(true)))
    {
        refused.clear();
    }
    refused
}
