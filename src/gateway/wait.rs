//! Waiting: for a slot, for a pause to pass, for a backend that the gateway itself asked.

use std::{
    future::Future,
    pin::pin,
    time::{Duration, Instant},
};

use pingora::Error;
use pingora_proxy::Session;

use super::{body::Framing, ctx::Ctx, stop::Stop};
use crate::base::{Fault, Side};

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitFor {
    /// A slot of a limit.
    Slot,
    /// The end of a pause before the next attempt.
    Pause,
    /// An answer of a backend.
    Backend,
}

impl WaitFor {
    /// How often the deadline and the shutdown are checked.
    fn look_up(self) -> Duration {
        Duration::from_millis(match self {
            Self::Slot => 500,
            Self::Pause => 250,
            Self::Backend => 100,
        })
    }

    /// Whose fault it is if the time for the request is over meanwhile.
    fn side(self) -> Side {
        match self {
            Self::Slot | Self::Pause => Side::Gateway,
            Self::Backend => Side::Backend,
        }
    }
}

/// Waits for an event, until a moment: `None` if the event has not come by then.
///
/// # Errors
/// If the client goes away, if a deadline of the request passes, or if the gateway stops.
pub async fn wait<T>(
    session: &mut Session,
    ctx: &Ctx,
    reason: WaitFor,
    until: Option<Instant>,
    event: impl Future<Output = T>,
) -> Result<Option<T>, Stop> {
    let mut event = pin!(event);
    let mut gone = pin!(gone(session, ctx.body.framing));
    loop {
        let look_up = Instant::now() + reason.look_up();
        let next = until.map_or(look_up, |until| until.min(look_up));
        let come = tokio::select! {
            come = &mut event => Some(come),
            () = tokio::time::sleep_until(next.into()) => None,
            error = &mut gone => return Err(Stop::Broken(error)),
        };
        if let Some(kind) = ctx.watch.as_ref().and_then(|watch| watch.fired()) {
            let fault = Fault { side: reason.side(), kind };
            return Err(Stop::fault(fault, "ended while it waited"));
        }
        if come.is_some() || until.is_some_and(|until| Instant::now() >= until) {
            return Ok(come);
        }
    }
}

/// Comes back when the client has gone.
async fn gone(session: &mut Session, framing: Framing) -> Box<Error> {
    loop {
        let read = match session.is_body_done() {
            // What is unread of such a body must stay so: it could not be sent a second time.
            false if framing == Framing::LargeChunked => std::future::pending().await,
            false => session.read_request_body().await,
            true => session.downstream_session.read_body_or_idle(true).await,
        };
        if let Err(e) = read {
            return e.into_down();
        }
    }
}
