//! Policies, in their order: rules about addresses, who is calling, may it call.
//!
//! Who is calling is found out before the body is read; the decision may want to know the model,
//! and comes after.

use pingora_proxy::Session;

use super::ctx::Ctx;
use crate::{auth::Call, base::Rejection};

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
    let call = Call {
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
