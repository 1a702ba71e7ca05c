//! Responses that a backend has stored: requests for them, and requests that refer to them, go to the
//! backend that has them, and only for the caller who has got them.

use std::sync::Arc;

use http::Method;
use pingora_proxy::Session;

use super::{admission, auth, ctx::Ctx, stop::Stop};
use crate::{base::Rejection, dialect::Kind, route::Route, runtime::owners::Owner};

/// A request for a stored response: it is passed on to the backend that has it.
///
/// # Errors
/// 404 if no backend is known to have it for this caller.
pub async fn begin(session: &mut Session, ctx: &mut Ctx) -> Result<(), Stop> {
    // Whose it is, is known of the caller whom the decision lets in.
    auth::decide(session, ctx).await?;
    let id = asked(session, ctx);
    let owner = find(ctx, &id)?;
    ctx.request.model = owner.model.as_deref().map(str::to_owned);
    ctx.route =
        route_to(ctx, owner.endpoint).ok_or_else(|| Rejection::unknown_response(&id))?.into();
    admission::admit(session, ctx, None).await?;
    ctx.retry.begin(&ctx.snapshot, ctx.route.as_deref());
    ctx.retry.bind(owner.endpoint);
    Ok(())
}

/// A new response that continues a stored one is made by the same backend.
///
/// # Errors
/// 400 if no backend is known to have that one for this caller, or if it does not serve the model.
pub fn bind(ctx: &mut Ctx, id: &str) -> Result<(), Rejection> {
    let unknown = |_| Rejection::unknown_previous_response(id);
    let owner = find(ctx, id).map_err(unknown)?;
    let mut pools = ctx.route.iter().flat_map(|route| route.pools());
    if !pools.any(|pool| has(ctx, pool, owner.endpoint)) {
        return Err(Rejection::unknown_previous_response(id));
    }
    drop(pools);
    ctx.retry.bind(owner.endpoint);
    Ok(())
}

/// The pool has this backend.
fn has(ctx: &Ctx, pool: usize, endpoint: u32) -> bool {
    ctx.snapshot.pools[pool].members().any(|(member, _)| member.id == endpoint)
}

/// Remembers who has stored the response, as soon as its id is known: its client may ask for it before
/// the backend has ended the answer.
pub fn remember(ctx: &mut Ctx) {
    let Some(attempt) = &mut ctx.attempt else { return };
    let answer = &mut attempt.answer;
    if answer.status != Some(200) || answer.remembered {
        return;
    }
    let Some(id) = answer.progress().stored.clone().filter(|id| !id.is_empty()) else { return };
    answer.remembered = true;
    let (endpoint, model) = (attempt.endpoint.id, ctx.request.model.as_deref().map(Into::into));
    let caller = caller(ctx).into();
    let owner = Owner { endpoint, model, caller };
    ctx.carry.owners.remember(&id, owner);
}

/// Forgets a response that was deleted.
pub fn note(session: &Session, ctx: &Ctx) {
    let stored = ctx.request.operation.is_some_and(|found| found.kind() == Kind::Stored);
    let status = ctx.attempt.as_ref().and_then(|attempt| attempt.answer.status);
    if stored && status == Some(200) && session.req_header().method == Method::DELETE {
        ctx.carry.owners.forget(&asked(session, ctx));
    }
}

/// The id in the path.
fn asked(session: &Session, ctx: &Ctx) -> String {
    let path = session.req_header().uri.path();
    let operation = ctx.request.operation.map(|found| found.operation);
    operation.and_then(|operation| operation.id_in(path)).unwrap_or_default().into_owned()
}

/// Where a response is. What this process has not seen is looked for where it can only be; not if
/// there are keys, because it is not known whose it is.
fn find(ctx: &Ctx, id: &str) -> Result<Owner, Rejection> {
    if let Some(owner) = ctx.carry.owners.find(id, &caller(ctx)) {
        return Ok(owner);
    }
    // A segment that a backend would resolve is no id.
    if matches!(id, "" | "." | "..") {
        return Err(Rejection::unknown_response(id));
    }
    let language = ctx.request.language().name();
    let mut able = ctx.snapshot.endpoints.iter().filter(|e| e.plan.languages.has(language));
    match (able.next(), able.next(), &ctx.snapshot.auth) {
        (Some(only), None, None) => {
            Ok(Owner { endpoint: only.id, model: None, caller: Box::default() })
        }
        _ => Err(Rejection::unknown_response(id)),
    }
}

/// A route on which this backend is found.
fn route_to(ctx: &Ctx, endpoint: u32) -> Option<Arc<Route>> {
    let mut routes = ctx.snapshot.router.routes();
    routes.find(|route| route.pools().any(|pool| has(ctx, pool, endpoint))).cloned()
}

/// Whose a response is: the user's, or the key's if it has no user.
fn caller(ctx: &Ctx) -> String {
    let Some(principal) = ctx.caller.principal.as_deref() else { return String::new() };
    match principal.user_id.as_str() {
        "" => format!("key {}", principal.key_id),
        user => format!("user {user}"),
    }
}
