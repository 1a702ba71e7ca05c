//! Responses and conversations that a backend has stored: requests for them, and requests that refer to
//! them, go to the backend that has them, and only for the caller who has got them.

use std::sync::Arc;

use http::Method;
use pingora_proxy::Session;

use super::{admission, auth, ctx::Ctx, stop::Stop};
use crate::{
    balance::Endpoint, base::Rejection, dialect::Kind, route::Route, runtime::owners::Owner,
};

/// Seconds after which a client may try again while a backend is drained.
const RETRY_AFTER: u64 = 5;

/// Why an object cannot be had.
enum Missing {
    /// No backend is known to have it for this caller.
    Unknown,
    /// It is another caller's.
    Foreign,
    /// The backend that has it is not in the configuration any more.
    Removed,
    /// The backend that has it gets no requests.
    Drained,
}

impl Missing {
    /// What the client is told beside that it was not found.
    fn why(&self) -> &'static str {
        match self {
            Self::Unknown | Self::Foreign => "",
            Self::Removed => "the backend that has stored it is no longer part of the gateway",
            Self::Drained => "the backend that has stored it is being drained",
        }
    }

    fn rejection(&self, id: &str, unknown: impl Fn(&str, &str) -> Rejection) -> Rejection {
        match self {
            Self::Drained => Rejection::owner_drained(id, RETRY_AFTER),
            missing => unknown(id, missing.why()),
        }
    }
}

/// A request for a stored response: it is passed on to the backend that has it.
///
/// # Errors
/// 404 if no backend is known to have it for this caller; 503 if that one is drained.
pub async fn begin(session: &mut Session, ctx: &mut Ctx) -> Result<(), Stop> {
    // Whose it is, is known of the caller whom the decision lets in.
    auth::decide(session, ctx).await?;
    let id = asked(session, ctx);
    let unknown = |why: &str| Rejection::unknown_response(&id, why);
    let (endpoint, owner) = match find(ctx, &id).await {
        Err(Missing::Unknown) => {
            (only(ctx, &id).ok_or_else(|| unknown(Missing::Unknown.why()))?, None)
        }
        Err(missing) => return Err(missing.rejection(&id, Rejection::unknown_response).into()),
        Ok((endpoint, owner)) => (endpoint, Some(owner)),
    };
    ctx.request.renamed = owner.as_ref().is_some_and(|owner| owner.renamed);
    ctx.request.model = owner.and_then(|owner| owner.model).map(|model| model.to_string());
    ctx.route = route_to(ctx, endpoint.id).ok_or_else(|| unknown(Missing::Removed.why()))?.into();
    admission::admit(session, ctx, None).await?;
    ctx.retry.begin(&ctx.snapshot, ctx.route.as_deref());
    ctx.retry.bind(endpoint.id);
    Ok(())
}

/// A new response that continues a stored one, or belongs to a stored conversation, is made by the same
/// backend.
///
/// # Errors
/// 400 or 404 if no backend is known to have the response for this caller, or the conversation is another
/// caller's; if its backend does not serve the model, or is gone. 503 if it is drained.
pub async fn bind(ctx: &mut Ctx) -> Result<(), Rejection> {
    let glance = ctx.body.glance();
    let (continues, held_in) = (glance.continues.clone(), glance.held_in.clone());
    if let Some(id) = &continues {
        let unknown = Rejection::unknown_previous_response;
        let endpoint = match find(ctx, id).await {
            Ok((endpoint, _)) => endpoint,
            Err(Missing::Unknown) => only(ctx, id).ok_or_else(|| unknown(id, ""))?,
            Err(missing) => return Err(missing.rejection(id, unknown)),
        };
        bind_to(ctx, &endpoint).map_err(|()| unknown(id, ""))?;
    }
    if let Some(id) = &held_in {
        let unknown = Rejection::unknown_conversation;
        match find(ctx, id).await {
            Ok((endpoint, _)) => bind_to(ctx, &endpoint).map_err(|()| unknown(id, ""))?,
            // It was made without the gateway. Where it is, the first good answer shows.
            Err(Missing::Unknown) => {}
            Err(missing) => return Err(missing.rejection(id, unknown)),
        }
    }
    Ok(())
}

/// Only this backend is asked, if it serves the model.
fn bind_to(ctx: &mut Ctx, endpoint: &Endpoint) -> Result<(), ()> {
    let mut pools = ctx.route.iter().flat_map(|route| route.pools());
    if !pools.any(|pool| has(ctx, pool, endpoint.id)) {
        return Err(());
    }
    drop(pools);
    ctx.retry.bind(endpoint.id);
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
    let owner = Owner {
        backend: attempt.endpoint.stable_tag(),
        renamed: attempt.model.is_some(),
        model: ctx.request.model.as_deref().map(Into::into),
        caller: caller(ctx).into(),
    };
    let shared = ctx.snapshot.owners.as_ref();
    if let Some(conversation) = &ctx.body.glance().held_in {
        let owner = Owner { model: None, renamed: false, ..owner.clone() };
        ctx.carry.owners.remember(conversation, owner, shared);
    }
    ctx.carry.owners.remember(&id, owner, shared);
}

/// Forgets a response that was deleted.
pub fn note(session: &Session, ctx: &Ctx) {
    let stored = ctx.request.operation.is_some_and(|found| found.kind() == Kind::Stored);
    let status = ctx.attempt.as_ref().and_then(|attempt| attempt.answer.status);
    if stored && status == Some(200) && session.req_header().method == Method::DELETE {
        ctx.carry.owners.forget(&asked(session, ctx), ctx.snapshot.owners.as_ref());
    }
}

/// The id in the path.
fn asked(session: &Session, ctx: &Ctx) -> String {
    let path = session.req_header().uri.path();
    let operation = ctx.request.operation.map(|found| found.operation);
    operation.and_then(|operation| operation.id_in(path)).unwrap_or_default().into_owned()
}

/// Where an object is.
async fn find(ctx: &Ctx, id: &str) -> Result<(Arc<Endpoint>, Owner), Missing> {
    let owner = ctx.carry.owners.find(id, ctx.snapshot.owners.as_ref()).await;
    let owner = owner.ok_or(Missing::Unknown)?;
    if *owner.caller != *caller(ctx) {
        return Err(Missing::Foreign);
    }
    let mut all = ctx.snapshot.endpoints.iter();
    let endpoint = all.find(|e| e.stable_tag() == owner.backend).ok_or(Missing::Removed)?;
    if endpoint.draining() {
        return Err(Missing::Drained);
    }
    Ok((Arc::clone(endpoint), owner))
}

/// Where an object can only be that this process has not seen. Nowhere if there are keys, because it is
/// not known whose it is.
fn only(ctx: &Ctx, id: &str) -> Option<Arc<Endpoint>> {
    // A segment that a backend would resolve is no id.
    if matches!(id, "" | "." | "..") || ctx.snapshot.auth.is_some() {
        return None;
    }
    let language = ctx.request.language().name();
    let mut able = ctx.snapshot.endpoints.iter().filter(|e| e.plan.languages.has(language));
    able.next().filter(|_| able.next().is_none()).cloned()
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
