//! The first look at a request: its id, its client, its size.

use std::os::fd::RawFd;

use http::{HeaderValue, Version, header::CONNECTION};
use pingora::{http::RequestHeader, protocols::l4::socket::SocketAddr};
use pingora_proxy::Session;

use super::{
    answer::REQUEST_ID,
    body_in,
    ctx::{Ctx, InFlight},
};
use crate::{
    auth::{Auth, Credential},
    base::{Rejection, RequestId},
    config::plan::KEY_HEADERS,
    runtime::watch::Connection,
    wire::forwarded,
};

/// Seconds for which an idle connection of a client is kept.
const KEEP_ALIVE: u64 = 75;

/// Fills in what is known before anything is decided. A refusal is only noted here; `request`
/// answers it.
pub fn filter(session: &mut Session, ctx: &mut Ctx) {
    ctx.end.in_flight = Some(InFlight::new(&ctx.carry));
    // RFC 9112, section 9.3.2: requests may be pipelined. Without this Pingora takes the next
    // request for garbage and ends the present one.
    session.set_pipelining_enabled(true);
    // A refusal does not wait for the rest of the body, and does not cost the connection either:
    // the rest is read and thrown away, for as long as that takes no more than this.
    session.set_close_on_response_before_downstream_finish(false);
    session.set_total_drain_timeout(Some(body_in::LINGER));
    let kept = is_kept(session.req_header()).then_some(KEEP_ALIVE);
    session.set_keepalive(kept);
    // HTTP/1.0 has no interim responses: its reader would take one for the answer.
    let plain = session.req_header().version == Version::HTTP_10;
    session.downstream_session.set_ignore_info_resp(plain);
    let timeouts = &ctx.snapshot.plan.timeouts;
    session.set_read_timeout(timeouts.client_read);
    session.set_write_timeout(timeouts.client_write);

    watch(session, ctx);
    let peer = session.client_addr().and_then(SocketAddr::as_inet).map(|a| a.ip());
    let headers = &session.req_header().headers;
    if let Some(id) = headers.get(&REQUEST_ID).and_then(|v| RequestId::accept(v.as_bytes())) {
        ctx.call.id = id;
    }
    let trusted = &ctx.snapshot.plan.trusted_proxies;
    ctx.call.client = peer.map(|peer| forwarded::client(headers, peer, trusted));
    ctx.who.shown = match &ctx.snapshot.auth {
        Some(auth) => Auth::credential(auth, headers),
        None => Credential::find(headers, &KEY_HEADERS),
    };

    // 4 bytes for `: ` and the line end, as on the wire.
    let size: usize =
        headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let limit = ctx.snapshot.plan.max_header_size;
    if size + session.req_header().raw_path().len() > limit {
        ctx.end.rejection = Some(Rejection::headers_too_large(limit));
    }
}

/// Whether the client's connection is kept. By HTTP/1.0 only if it asks for that (RFC 9112, section
/// 9.3): it may read to the end of the connection, whatever the answer says of its length.
fn is_kept(header: &RequestHeader) -> bool {
    let asks = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"keep-alive");
    header.version != Version::HTTP_10 || header.headers.get(CONNECTION).is_some_and(asks)
}

/// Enters the request among those that can be ended from outside: by its deadlines, or when the
/// process stops.
fn watch(session: &Session, ctx: &mut Ctx) {
    let entry = ctx.carry.watches.enter();
    if let Some(total) = ctx.snapshot.plan.timeouts.total {
        entry.set_whole(ctx.call.arrived + total);
    }
    // By HTTP/2 the connection is not this request's alone.
    if let Some(stream) = session.stream() {
        entry.set_client(connection(stream.id(), session.server_addr(), session.client_addr()));
    }
    ctx.way.watch = Some(entry);
}

/// A connection and its two ends, if they are internet addresses.
pub fn connection(
    fd: RawFd,
    local: Option<&SocketAddr>,
    peer: Option<&SocketAddr>,
) -> Option<Connection> {
    let inet = |address: Option<&SocketAddr>| address.and_then(SocketAddr::as_inet).copied();
    Some(Connection { fd, ends: (inet(local)?, inet(peer)?) })
}
