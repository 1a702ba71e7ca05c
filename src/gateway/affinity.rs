//! What binds a request to a backend, and what engines are told of it.

use std::net::IpAddr;

use http::HeaderName;
use pingora_proxy::Session;

use super::{body_in::Extras, ctx::Ctx};
use crate::{
    base::ip,
    config::plan::{Affinity, BalancePlan, Strategy},
    wire::prefix,
};

/// What names a session where nothing else is said.
const SESSION: HeaderName = HeaderName::from_static("x-session-id");

/// What binds the request, hashed; `None`: nothing.
pub fn session(session: &Session, ctx: &Ctx, balance: &BalancePlan) -> Option<u64> {
    let header = |name: &HeaderName| {
        let value = session.req_header().headers.get(name)?;
        Some(prefix::words(&[b"header", value.as_bytes()]))
    };
    let who = ctx.who.principal.as_deref();
    let key = || {
        let id = who.map(|p| p.key_id.as_str()).filter(|id| !id.is_empty())?;
        Some(prefix::words(&[b"key", id.as_bytes()]))
    };
    let user = || {
        let id = who.map(|p| p.user_id.as_str()).filter(|id| !id.is_empty())?;
        Some(prefix::words(&[b"user", id.as_bytes()]))
    };
    match &balance.affinity {
        Some(Affinity::Header(name)) => header(name),
        Some(Affinity::Key) => key(),
        // A key that belongs to nobody stands for itself.
        Some(Affinity::User) => user().or_else(key),
        None if balance.strategy == Strategy::ConsistentHash => {
            let address = ctx.call.client.map(|ip| ip.to_string());
            let address = || Some(prefix::words(&[b"address", address?.as_bytes()]));
            header(&SESSION).or_else(key).or_else(address)
        }
        None => None,
    }
}

/// Who calls, hashed: the user, or the key that belongs to nobody, or the address.
pub fn caller(ctx: &Ctx) -> u64 {
    let who = ctx.who.principal.as_deref();
    let named = who.and_then(|p| [&p.user_id, &p.key_id].into_iter().find(|id| !id.is_empty()));
    match (named, ctx.call.client.map(ip::network)) {
        (Some(id), _) => prefix::words(&[b"caller", id.as_bytes()]),
        (None, Some(IpAddr::V4(ip))) => prefix::words(&[b"address", &ip.octets()]),
        (None, Some(IpAddr::V6(ip))) => prefix::words(&[b"address", &ip.octets()]),
        (None, None) => 0,
    }
}

/// What engines are told beside the client's words.
pub fn extras(ctx: &Ctx) -> Extras {
    let routing = &ctx.snapshot.plan.routing;
    let who = ctx.who.principal.as_deref();
    let priority = ctx.snapshot.tiers.of(who).engine_priority;
    let secret = routing.cache_salt_secret.as_ref();
    let salt = secret.and_then(|secret| routing.cache_salt.of(secret, who));
    Extras { priority, salt }
}
