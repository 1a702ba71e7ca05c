//! Choosing a backend, once for each try.

use std::{
    os::fd::RawFd,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use pingora::{Error, ErrorType, Result, protocols::Digest, upstreams::peer::HttpPeer};
use pingora_proxy::Session;

use super::{
    ctx::Ctx,
    early, limits,
    tries::{self, Next},
};
use crate::{
    balance::Nobody,
    base::{Fault, Rejection, Side},
    runtime::watch::Connection,
};

/// Seconds after which a client may try again when no backend is healthy and nothing is probed.
const RETRY_AFTER: u64 = 5;

/// How often a pause looks whether its request still may go on.
const LOOK_UP: Duration = Duration::from_millis(250);

/// The peer of the next try.
///
/// # Errors
/// If there is none, or the client has left meanwhile.
pub async fn choose(session: &mut Session, ctx: &mut Ctx) -> Result<Box<HttpPeer>> {
    ctx.body.given = false;
    if std::mem::take(&mut ctx.way.fresh)
        && let Some(endpoint) = &ctx.way.endpoint
    {
        let unique = ctx.carry.unique.fetch_add(1, Ordering::Relaxed);
        return Ok(Box::new(endpoint.fresh_peer(unique)));
    }
    loop {
        match tries::next(session, ctx) {
            Next::Pause(time) => pause(session, ctx, time).await?,
            Next::Try(picked) => {
                let peer = picked.choice.endpoint.peer();
                tries::start(ctx, *picked);
                return Ok(Box::new(peer));
            }
            Next::Nobody(nobody) => {
                if ctx.end.fault.is_none() && ctx.way.tries.told.is_none() {
                    ctx.end.rejection = Some(rejection(ctx, nobody));
                }
                return Error::e_explain(ErrorType::InternalError, "no backend is left to try");
            }
        }
    }
}

fn rejection(ctx: &Ctx, nobody: Nobody) -> Rejection {
    let probes = ctx.snapshot.plan.health_check.as_ref().map(|h| h.interval.as_secs().max(1));
    match nobody.retry_after {
        Some(wait) => Rejection::all_ejected(wait.as_millis().div_ceil(1000).max(1) as u64),
        None => Rejection::no_healthy_backend(probes.unwrap_or(RETRY_AFTER)),
    }
}

/// Waits, as long as the client does and the request may.
async fn pause(session: &mut Session, ctx: &mut Ctx, time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(left.min(LOOK_UP)) => {}
            gone = limits::gone(session, ctx.body.framing) => return Err(gone),
        }
        if let Some(kind) = ctx.way.watch.as_ref().and_then(|w| w.fired()) {
            ctx.end.fault = Some(Fault { side: Side::Gateway, kind });
            return Error::e_explain(ErrorType::ReadTimedout, "ended while it waited");
        }
    }
}

/// A connection stands: from now on its silence is watched.
pub fn connected(reused: bool, fd: RawFd, digest: Option<&Digest>, ctx: &mut Ctx) -> Result<()> {
    let Some(watch) = &ctx.way.watch else {
        return Ok(());
    };
    if let Some(endpoint) = &ctx.way.endpoint {
        if !reused {
            endpoint.connected();
        }
        watch.set_backend(Some((endpoint.id, tries::is_alone(ctx))));
    }
    let socket = digest.and_then(|d| d.socket_digest.as_ref());
    let several = ctx.way.endpoint.as_ref().is_some_and(|e| e.places().len() > 1);
    watch.set_connection(match several {
        // It may not be the address that Pingora asked for.
        true => Connection::of(fd),
        false => socket.and_then(|s| early::connection(fd, s.local_addr(), s.peer_addr())),
    });
    let timeouts = &ctx.snapshot.plan.timeouts;
    let token = timeouts.first_token.filter(|_| ctx.call.stream);
    let soonest = timeouts.first_byte.into_iter().chain(token).min();
    watch.set_first_byte(Ctx::after(soonest));
    // Only now: a deadline that passes from here on finds the connection.
    if watch.fired().is_some() {
        return Err(
            Error::explain(ErrorType::ReadTimedout, "the time for the request is over").into_up()
        );
    }
    Ok(())
}
