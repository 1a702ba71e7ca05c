//! The first look at a request: its id, its client, its size.

use std::sync::atomic::Ordering;

use http::HeaderMap;
use pingora::protocols::l4::socket::SocketAddr;
use pingora_proxy::Session;

use super::{
    body_in,
    ctx::{BEARER, CallerKey, Ctx},
};
use crate::base::{Rejection, RequestId};

/// Fills in what is known before anything is decided. A refusal is only noted here; `request`
/// answers it.
pub fn filter(session: &mut Session, ctx: &mut Ctx) {
    ctx.carry.in_flight.fetch_add(1, Ordering::Relaxed);
    ctx.carry.metrics.in_flight.inc();
    ctx.end.counted = true;
    // RFC 9112, section 9.3.2: requests may be pipelined. Without this Pingora takes the next
    // request for garbage and ends the present one.
    session.set_pipelining_enabled(true);
    // A refusal does not wait for the rest of the body, and does not cost the connection either:
    // the rest is read and thrown away, for as long as that takes no more than this.
    session.set_close_on_response_before_downstream_finish(false);
    session.set_total_drain_timeout(Some(body_in::LINGER));
    let timeouts = &ctx.snapshot.plan.timeouts;
    session.set_read_timeout(timeouts.client_read);
    session.set_write_timeout(timeouts.client_write);

    ctx.call.client = session
        .client_addr()
        .and_then(SocketAddr::as_inet)
        .map(|a| a.ip());
    let headers = &session.req_header().headers;
    if let Some(id) = headers
        .get("x-request-id")
        .and_then(|v| RequestId::accept(v.as_bytes()))
    {
        ctx.call.id = id;
    }
    ctx.call.key = key(headers);

    // 4 bytes for `: ` and the line end, as on the wire.
    let size: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 4)
        .sum();
    let limit = ctx.snapshot.plan.max_header_size;
    if size + session.req_header().raw_path().len() > limit {
        ctx.end.rejection = Some(Rejection::headers_too_large(limit));
    }
}

/// The caller's key: a bearer token, or else `X-API-Key`.
fn key(headers: &HeaderMap) -> Option<CallerKey> {
    let bearer = headers.get(http::header::AUTHORIZATION).filter(|value| {
        let start = value.to_str().ok().and_then(|v| v.get(..BEARER.len()));
        start.is_some_and(|s| s.eq_ignore_ascii_case(BEARER))
    });
    let key = match bearer {
        Some(field) => CallerKey {
            field: field.clone(),
            bearer: true,
        },
        None => CallerKey {
            field: headers.get("x-api-key")?.clone(),
            bearer: false,
        },
    };
    Some(key).filter(|k| !k.expose().is_empty())
}
