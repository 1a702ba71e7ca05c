//! Session affinity of a request, and the fields that only engines get.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName};

use super::{
    body::Extras,
    inbound::{Caller, Request},
};
use crate::{
    base::ip,
    config::plan::{Affinity, BalancePlan, Strategy},
    runtime::Snapshot,
    wire::prefix,
};

/// The field that names a session where the configuration does not say another one.
const SESSION: HeaderName = HeaderName::from_static("x-session-id");

/// What binds the request, hashed; `None`: nothing.
pub fn session(
    headers: &HeaderMap,
    caller: &Caller,
    request: &Request,
    balance: &BalancePlan,
) -> Option<u64> {
    let header = |name: &HeaderName| {
        let value = headers.get(name)?;
        Some(prefix::words(&[b"header", value.as_bytes()]))
    };
    let principal = caller.principal.as_deref();
    let key = || {
        let id = principal.map(|p| p.key_id.as_str()).filter(|id| !id.is_empty())?;
        Some(prefix::words(&[b"key", id.as_bytes()]))
    };
    let user = || {
        let id = principal.map(|p| p.user_id.as_str()).filter(|id| !id.is_empty())?;
        Some(prefix::words(&[b"user", id.as_bytes()]))
    };
    match &balance.affinity {
        Some(Affinity::Header(name)) => header(name),
        Some(Affinity::Key) => key(),
        // A key without a user stands for itself.
        Some(Affinity::User) => user().or_else(key),
        None if balance.strategy == Strategy::ConsistentHash => {
            let address = request.client.map(|ip| ip.to_string());
            let address = || Some(prefix::words(&[b"address", address?.as_bytes()]));
            header(&SESSION).or_else(key).or_else(address)
        }
        None => None,
    }
}

/// The caller, hashed: the user, or a key without a user, or the address.
pub fn caller(caller: &Caller, request: &Request) -> u64 {
    let principal = caller.principal.as_deref();
    let named =
        principal.and_then(|p| [&p.user_id, &p.key_id].into_iter().find(|id| !id.is_empty()));
    match (named, request.client.map(ip::network)) {
        (Some(id), _) => prefix::words(&[b"caller", id.as_bytes()]),
        (None, Some(IpAddr::V4(ip))) => prefix::words(&[b"address", &ip.octets()]),
        (None, Some(IpAddr::V6(ip))) => prefix::words(&[b"address", &ip.octets()]),
        (None, None) => 0,
    }
}

/// The priority and the cache salt that engines get with the request.
pub fn extras(snapshot: &Snapshot, caller: &Caller) -> Extras {
    let routing = &snapshot.plan.routing;
    let principal = caller.principal.as_deref();
    let priority = snapshot.tiers.of(principal).engine_priority;
    let secret = routing.cache_salt_secret.as_ref();
    let salt = secret.and_then(|secret| routing.cache_salt.of(secret, principal));
    Extras { priority, salt }
}
