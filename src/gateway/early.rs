//! The first look at a request: its id, its client, its size.

use std::{os::fd::RawFd, sync::Arc};

use http::{
    HeaderValue, Version,
    header::{HOST, TRANSFER_ENCODING},
};
use pingora::{Result, protocols::l4::socket::SocketAddr};
use pingora_proxy::Session;

use super::{
    ctx::{Ctx, InFlight},
    receive,
    reply::REQUEST_ID,
};
use crate::{
    auth::{Auth, Credential},
    base::{Rejection, RequestId},
    dialect,
    runtime::{
        connections::{ClientConnection, ConnectionLimits},
        watch::Connection,
    },
    wire::{authority, forwarded, head, headers},
};

/// Fills in what is known before anything is decided.
///
/// # Errors
/// None in practice.
pub fn filter(session: &mut Session, ctx: &mut Ctx) -> Result<()> {
    ctx.in_flight = Some(InFlight::new(&ctx.carry));
    // RFC 9112, section 9.3.2: requests may be pipelined. Without this Pingora takes the next
    // request for garbage and ends the present one.
    session.set_pipelining_enabled(true);
    // A refusal does not wait for the rest of the body, and does not cost the connection either:
    // the rest is read and thrown away, for as long as that takes no more than this.
    session.set_close_on_response_before_downstream_finish(false);
    session.set_total_drain_timeout(Some(receive::LINGER));
    // Pingora has decided whether the connection is kept (RFC 9112, sections 6.1 and 9.3); `listener`
    // limits for how long, and blocked writes. With HTTP/2 a client may stop reading one answer alone.
    // HTTP/1.0 has no interim responses: its reader would take one for the answer.
    let plain = session.req_header().version == Version::HTTP_10;
    session.downstream_session.set_ignore_info_resp(plain);
    let timeouts = &ctx.snapshot.plan.timeouts;
    let by_http2 = session.is_http2();
    session.set_read_timeout(timeouts.client_read);
    session.set_write_timeout(timeouts.client_write.filter(|_| by_http2));

    if session.req_header().has_case() {
        // Pingora copies the head for the backend: without the second map that is half the work.
        head::edit_request(session.req_header_mut(), |_| {})?;
    }
    attach(session, ctx);
    watch(session, ctx);
    let peer = session.client_addr().and_then(SocketAddr::as_inet).map(|a| a.ip());
    let fields = &session.req_header().headers;
    if let Some(id) = fields.get(&REQUEST_ID).and_then(|v| RequestId::accept(v.as_bytes())) {
        ctx.request.id = id;
    }
    let trusted = &ctx.snapshot.plan.trusted_proxies;
    ctx.request.client = peer.map(|peer| forwarded::client(fields, peer, trusted));
    ctx.caller.shown = match &ctx.snapshot.auth {
        Some(auth) => Auth::credential(auth, fields),
        None => Credential::find(fields, dialect::credential_fields()),
    };
    Ok(())
}

/// Checks the head of the request: where it goes, what belongs to its connection, its size.
///
/// # Errors
/// If it is refused.
pub fn check(session: &mut Session, ctx: &Ctx) -> Result<(), Rejection> {
    let checked = check_target(session);
    let fields = &session.req_header().headers;
    // 4 bytes for `: ` and the line end, as on the wire.
    let size: usize =
        fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let limit = ctx.snapshot.plan.max_header_size;
    if size + session.req_header().raw_path().len() > limit {
        return Err(Rejection::headers_too_large(limit));
    }
    let chunked = session.req_header().headers.contains_key(TRANSFER_ENCODING);
    if chunked && ctx.connection.as_ref().is_some_and(|connection| !connection.is_watched()) {
        return Err(Rejection::bad_chunk());
    }
    checked
}

/// Tells the client's connection that a request is under way, and by which configuration.
fn attach(session: &Session, ctx: &mut Ctx) {
    let digest = session.digest().and_then(|digest| digest.proxy_digest.as_ref());
    let data = digest.and_then(|digest| digest.user_data.as_ref());
    let Some(connection) = data.and_then(|data| data.downcast_ref::<Arc<ClientConnection>>())
    else {
        return;
    };
    connection.set_limits(ConnectionLimits::of(&ctx.snapshot.plan));
    ctx.connection = Some(connection.begin());
}

/// Looks at what says where a request goes, and what belongs to its connection. An absolute target
/// becomes a path with a `Host` (RFC 9112, section 3.2.2).
fn check_target(session: &mut Session) -> Result<(), Rejection> {
    if session.is_http2() {
        // Pingora has looked at `:authority`, and there is no `Connection`.
        return Ok(());
    }
    let request = session.req_header_mut();
    let mut hosts = request.headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if authority::is_valid(host.as_bytes()) => {}
        (Some(_), None) => return Err(Rejection::bad_host("it is no host name or address")),
        (Some(_), Some(_)) => return Err(Rejection::bad_host("there are two")),
        (None, _) if request.version == Version::HTTP_10 => {}
        (None, _) => return Err(Rejection::bad_host("it is missing")),
    }
    headers::check_nominated(&request.headers).map_err(|why| Rejection::bad_connection(&why))?;
    let Some((host, path)) = authority::split(request.raw_path()) else {
        return Ok(());
    };
    let host = HeaderValue::from_bytes(host).ok().filter(|h| authority::is_valid(h.as_bytes()));
    let Some(host) = host else {
        return Err(Rejection::bad_host("that of the target is no host name or address"));
    };
    let unreadable = |_| Rejection::bad_host("the target cannot be read");
    request.set_raw_path(&path).map_err(unreadable)?;
    request.insert_header(HOST, host).map_err(unreadable)
}

/// Enters the request among those that can be ended from outside: by its deadlines, or when the
/// process stops.
fn watch(session: &Session, ctx: &mut Ctx) {
    let entry = ctx.carry.watches.enter();
    if let Some(total) = ctx.snapshot.plan.timeouts.total {
        entry.set_whole(ctx.request.arrived + total);
    }
    // By HTTP/2 the connection is not this request's alone.
    if let Some(stream) = session.stream() {
        entry.set_client(connection(stream.id(), session.server_addr(), session.client_addr()));
    }
    ctx.watch = Some(entry);
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
