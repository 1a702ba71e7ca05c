//! Choosing a backend, once for each attempt.

use std::{
    future::pending,
    os::fd::RawFd,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use pingora::{Error, ErrorType, Result, protocols::Digest, upstreams::peer::HttpPeer};
use pingora_proxy::Session;

use super::{
    attempts,
    ctx::{Attempts, Ctx},
    early,
    retry::Next,
    stop::Stop,
    wait::{WaitFor, wait},
};
use crate::{balance::NoBackend, base::Rejection, runtime::watch::Connection};

/// Seconds after which a client may try again when no backend is healthy and nothing is probed.
const RETRY_AFTER: u64 = 5;

/// The peer of the next attempt.
///
/// # Errors
/// If there is none, or the client has left meanwhile.
pub async fn choose(session: &mut Session, ctx: &mut Ctx) -> Result<Box<HttpPeer>> {
    if let Some(attempt) = ctx.attempt.as_mut().filter(|attempt| attempt.reconnects) {
        attempt.restart();
        let unique = ctx.carry.unique.fetch_add(1, Ordering::Relaxed);
        return Ok(Box::new(attempt.endpoint.fresh_peer(unique)));
    }
    let mut refusal = None;
    loop {
        let Attempts { policy, timeline, view, .. } = ctx.attempts(session);
        match policy.next(&view, timeline) {
            Next::Pause(time) => pause(session, ctx, time).await.map_err(Stop::into_error)?,
            Next::Attempt(picked) => {
                let peer = picked.choice.endpoint.peer();
                match attempts::start(session, ctx, *picked) {
                    Ok(()) => return Ok(Box::new(peer)),
                    // Another backend may speak the client's language.
                    Err(rejection) => refusal = Some(rejection),
                }
            }
            Next::NoBackend(none) => {
                let untried = attempts::fault(ctx).is_none() && ctx.retry.kept.is_none();
                if let Some(refusal) = refusal.filter(|_| untried) {
                    return Err(Stop::Refuse(refusal).into_error());
                }
                if attempts::fault(ctx).is_none() && ctx.retry.kept.is_none() {
                    return Err(Stop::Refuse(rejection(ctx, none)).into_error());
                }
                return Error::e_explain(ErrorType::InternalError, "no backend is left to try");
            }
        }
    }
}

fn rejection(ctx: &Ctx, none: NoBackend) -> Rejection {
    let probes = ctx.snapshot.plan.health_check.as_ref().map(|h| h.interval.as_secs().max(1));
    match none.retry_after {
        Some(wait) => Rejection::all_ejected(wait.as_millis().div_ceil(1000).max(1) as u64),
        None => Rejection::no_healthy_backend(probes.unwrap_or(RETRY_AFTER)),
    }
}

/// Waits, as long as the client does and the request may.
async fn pause(session: &mut Session, ctx: &Ctx, time: Duration) -> Result<(), Stop> {
    let until = Instant::now() + time;
    wait::<()>(session, ctx, WaitFor::Pause, Some(until), pending()).await.map(drop)
}

/// A connection stands: from now on its silence is watched.
pub fn connected(
    session: &Session,
    reused: bool,
    fd: RawFd,
    digest: Option<&Digest>,
    ctx: &mut Ctx,
) -> Result<()> {
    let Attempts { policy, attempt: Some(attempt), view, .. } = ctx.attempts(session) else {
        return Ok(());
    };
    let alone = policy.is_alone(attempt, &view);
    let endpoint = attempt.endpoint.clone();
    if !reused {
        endpoint.connected();
    }
    let Some(watch) = &ctx.watch else { return Ok(()) };
    watch.set_backend(Some((endpoint.id, alone)));
    let socket = digest.and_then(|d| d.socket_digest.as_ref());
    watch.set_connection(match endpoint.addresses().len() > 1 {
        // It may not be the address that Pingora asked for.
        true => Connection::of(fd),
        false => socket.and_then(|s| early::connection(fd, s.local_addr(), s.peer_addr())),
    });
    let timeouts = &ctx.snapshot.plan.timeouts;
    let token = timeouts.first_token.filter(|_| ctx.request.stream);
    let soonest = timeouts.first_byte.into_iter().chain(token).min();
    watch.set_first_byte(Ctx::after(soonest));
    // Only now: a deadline that passes from here on finds the connection.
    if watch.fired().is_some() {
        let why = "the time for the request is over";
        return Err(Error::explain(ErrorType::ReadTimedout, why).into_up());
    }
    Ok(())
}
