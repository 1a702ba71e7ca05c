//! Limits: a request is let in, waits for a slot, or is refused; and when it has ended, what it
//! took is settled.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Version, header};
use pingora::{Error, ErrorType, Result, http::ResponseHeader};
use pingora_proxy::Session;

use super::{answer::REQUEST_ID, body_in::Framing, ctx::Ctx, logging, stream::Reading};
use crate::{
    auth::Auth,
    base::{Fault, Outcome, Rejection, Side, TokenCounts, UsageSource, limits::Standings},
    dialect::{self, Kind},
    limit::{
        Ask, Came, Denial, Limiter, No, Ticket, Wish,
        queue::{Place, Turn},
    },
    usage::{StreamMeter, Strip},
    wire::peek::Peek,
};

/// How often one whose turn it is tries again, and how often all others look up.
const TRY: Duration = Duration::from_millis(100);
const LOOK_UP: Duration = Duration::from_millis(500);

/// A request and its limits.
#[derive(Default)]
pub struct Limits {
    /// What it holds.
    ticket: Option<Ticket>,
    /// How its limits stand, for the headers of its answer.
    pub standings: Option<Standings>,
    /// The head of a stream has been sent while the request waited.
    pub opened: bool,
}

/// Lets a request in, perhaps after a while. `found` is what its body says; `None` where nothing
/// will be generated.
///
/// # Errors
/// If the client went away. A request that is refused is a value.
pub async fn admit(
    session: &mut Session,
    ctx: &mut Ctx,
    found: Option<&Peek>,
) -> Result<Result<(), Rejection>> {
    let snapshot = ctx.snapshot.clone();
    let limiter = &snapshot.limits;
    let ask = Ask {
        who: ctx.who.principal.as_deref(),
        address: ctx.call.client,
        model: ctx.call.model.as_deref(),
        now: jiff::Timestamp::now().as_second(),
        only_requests: found.is_none(),
        enforce_quotas: snapshot.auth.as_ref().is_none_or(Auth::enforces_quotas),
    };
    // What is no stream has no answer in tokens either: embeddings.
    let generates = ctx.call.route.is_some_and(|r| r.kind == Kind::Inference { streams: true });
    let max_tokens = if generates { found.and_then(|f| f.max_tokens) } else { Some(0) };
    let Some(mut wish) = limiter.wish(&ask, ctx.body.bytes().len(), max_tokens) else {
        return Ok(Ok(()));
    };
    let no = match limiter.admit(&mut wish, true).await {
        Ok(ticket) => {
            enter(ctx, ticket);
            return Ok(Ok(()));
        }
        Err(No::Slot { bucket, otherwise }) if limiter.queue().size > 0 => {
            let waiting = Waiting { limiter, wish: &mut wish, otherwise };
            match waiting.wait(session, ctx, bucket).await? {
                Ok(ticket) => {
                    enter(ctx, ticket);
                    return Ok(Ok(()));
                }
                Err(no) => no,
            }
        }
        Err(No::Slot { otherwise, .. }) => otherwise,
        Err(No::Refused(no)) => no,
    };
    limiter.count_refusal(&no);
    ctx.limits.standings = Some(Limiter::standings(&wish));
    Ok(Err(match (&snapshot.auth, no.quota) {
        (Some(auth), Some(renews_at)) => auth.quota_exceeded(renews_at),
        _ => no.rejection,
    }))
}

fn enter(ctx: &mut Ctx, ticket: Ticket) {
    ctx.limits.standings = Some(ticket.standings());
    ctx.limits.ticket = Some(ticket);
}

/// Settles a request whose answer is known to its end, before the client sees that end: who then
/// asks again, on another connection, finds its slot free.
pub fn settle_at_the_end(ctx: &mut Ctx) {
    if ctx.limits.ticket.is_none() {
        return;
    }
    let (counts, source) = ctx.answer.usage();
    let outcome = logging::outcome(None, ctx);
    settle(ctx, counts, source, outcome);
}

/// Settles what a request took.
pub fn settle(ctx: &mut Ctx, counts: TokenCounts, source: UsageSource, outcome: Outcome) {
    let Some(ticket) = ctx.limits.ticket.take() else {
        return;
    };
    let model = ctx.call.model.as_deref().unwrap_or_default();
    let came = match (source, outcome) {
        (UsageSource::None, Outcome::Complete) => Came::Unmetered,
        (UsageSource::None, _) => Came::Nothing,
        (UsageSource::Final | UsageSource::Partial, _) => {
            let (cost, credit) = ctx.snapshot.limits.cost(model, counts);
            let whole = source == UsageSource::Final && outcome == Outcome::Complete;
            Came::Metered { counts, cost, credit, whole }
        }
    };
    ticket.settle(model, came);
}

/// A request in the queue.
struct Waiting<'a> {
    limiter: &'a Limiter,
    wish: &'a mut Wish,
    /// What it is told if it waits in vain.
    otherwise: Denial,
}

impl Waiting<'_> {
    async fn wait(
        mut self,
        session: &mut Session,
        ctx: &mut Ctx,
        bucket: u64,
    ) -> Result<Result<Ticket, Denial>> {
        let Ok(place) = self.limiter.enter(self.wish, bucket) else {
            return Ok(Err(self.otherwise));
        };
        let since = Instant::now();
        let end = since + self.limiter.queue().timeout;
        let keep_alive = self.limiter.queue().keep_alive.filter(|_| can_open(session, ctx));
        let mut comment = keep_alive.map(|every| since + every);
        let result = loop {
            let turn = place.turn();
            match turn {
                Turn::Try => match self.attempt(&place).await {
                    Some(ticket) => break ("admitted", Ok(ticket)),
                    None if Instant::now() >= end => break ("timeout", Err(self.otherwise)),
                    None => {}
                },
                Turn::Wait if Instant::now() >= end => break ("timeout", Err(self.otherwise)),
                Turn::Wait => {}
                Turn::PushedOut => break ("refused", Err(self.otherwise)),
            }
            let look_up = Instant::now() + if turn == Turn::Try { TRY } else { LOOK_UP };
            let next = comment.map_or(end, |at| at.min(end)).min(look_up);
            tokio::select! {
                () = place.changed() => {}
                () = tokio::time::sleep_until(next.into()) => {}
                gone = gone(session, ctx.body.framing) => {
                    self.limiter.waited(since, "left");
                    return Err(gone);
                }
            }
            if let Some(kind) = ctx.way.watch.as_ref().and_then(|w| w.fired()) {
                ctx.end.fault = Some(Fault { side: Side::Gateway, kind });
                return Error::e_explain(ErrorType::ReadTimedout, "ended while it waited");
            }
            if comment.is_some_and(|at| Instant::now() >= at) {
                comment = keep_alive.map(|every| Instant::now() + every);
                let standings = Limiter::standings(self.wish);
                send_comment(session, ctx, &standings).await?;
            }
        };
        self.limiter.waited(since, result.0);
        Ok(result.1)
    }

    async fn attempt(&mut self, place: &Place) -> Option<Ticket> {
        match self.limiter.admit(self.wish, false).await {
            Ok(ticket) => return Some(ticket),
            Err(No::Slot { bucket, otherwise }) => {
                self.otherwise = otherwise;
                place.waits_for(bucket);
            }
            // Since it has come other requests may have used a limit up: it waits for that too.
            Err(No::Refused(otherwise)) => {
                self.otherwise = otherwise;
                place.yields();
            }
        }
        None
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

/// Whether the head of a stream can be sent before there is an answer.
fn can_open(session: &Session, ctx: &Ctx) -> bool {
    ctx.call.stream && session.req_header().version != Version::HTTP_10
}

async fn send_comment(session: &mut Session, ctx: &mut Ctx, standings: &Standings) -> Result<()> {
    if !ctx.limits.opened {
        let mut head = ResponseHeader::build(200, Some(16))?;
        head.insert_header(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")?;
        head.insert_header(header::CACHE_CONTROL, "no-cache")?;
        head.insert_header(REQUEST_ID, ctx.call.id.header())?;
        if session.req_header().version == Version::HTTP_11 {
            head.insert_header(header::TRANSFER_ENCODING, "chunked")?;
        }
        for (name, value) in dialect::limit_headers(session.req_header().uri.path(), standings) {
            head.insert_header(name, value)?;
        }
        session.write_response_header(Box::new(head), false).await?;
        ctx.limits.opened = true;
        // What goes wrong from here on is told as an event.
        ctx.answer.reading = Reading::Stream(Box::new(StreamMeter::new(Strip::Nothing)));
    }
    session.write_response_body(Some(Bytes::from_static(b": keep-alive\n\n")), false).await
}
