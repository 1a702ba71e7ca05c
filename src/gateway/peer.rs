//! Choosing a backend, once for each attempt.

use std::{os::fd::RawFd, sync::atomic::Ordering, time::Instant};

use pingora::{Error, ErrorType, Result, protocols::Digest, upstreams::peer::HttpPeer};

use super::{ctx::Ctx, early};
use crate::{
    balance::Wish,
    base::{Fault, FaultKind, Rejection, Side},
};

/// Seconds after which a client may try again when no backend is healthy and nothing is probed.
const RETRY_AFTER: u64 = 5;

/// The peer of the next attempt.
pub fn choose(ctx: &mut Ctx) -> Result<Box<HttpPeer>> {
    ctx.body.given = false;
    if std::mem::take(&mut ctx.way.fresh)
        && let Some(endpoint) = &ctx.way.endpoint
    {
        let unique = ctx.carry.unique.fetch_add(1, Ordering::Relaxed);
        if let Some(peer) = endpoint.fresh_peer(unique) {
            return Ok(Box::new(peer));
        }
    }
    let snapshot = ctx.snapshot.clone();
    let pool = ctx.way.pool().and_then(|id| snapshot.pools.get(id));
    let pick = |tried: &[u32]| {
        let model = ctx.call.model.as_deref().unwrap_or_default();
        let now = Instant::now();
        pool?.pick(&Wish { model, session: None, blocks: &[], tried, now }).ok()
    };
    while let Some(choice) = pick(&ctx.way.tried) {
        let peer = choice.endpoint.peer();
        if let Some(peer) = peer {
            ctx.way.choose(choice);
            return Ok(Box::new(peer));
        }
        // A name that leads nowhere is a backend that cannot be reached.
        ctx.end.fault = Some(Fault { side: Side::Backend, kind: FaultKind::Connect });
        ctx.way.tried.push(choice.endpoint.id);
        ctx.way.choose(choice);
    }
    if ctx.end.fault.is_none() {
        let interval = snapshot.plan.health_check.as_ref().map(|h| h.interval.as_secs().max(1));
        let no = Rejection::no_healthy_backend(interval.unwrap_or(RETRY_AFTER));
        ctx.end.rejection = Some(no);
    }
    Error::e_explain(ErrorType::InternalError, "no backend is left to try")
}

/// A connection stands: from now on its silence is watched.
pub fn connected(fd: RawFd, digest: Option<&Digest>, ctx: &mut Ctx) -> Result<()> {
    let Some(watch) = &ctx.way.watch else {
        return Ok(());
    };
    let socket = digest.and_then(|d| d.socket_digest.as_ref());
    watch.set_connection(socket.and_then(|s| early::connection(fd, s.local_addr(), s.peer_addr())));
    watch.set_first_byte(Ctx::after(ctx.snapshot.plan.timeouts.first_byte));
    // Only now: a deadline that passes from here on finds the connection.
    if watch.fired().is_some() {
        return Err(
            Error::explain(ErrorType::ReadTimedout, "the time for the request is over").into_up()
        );
    }
    Ok(())
}
