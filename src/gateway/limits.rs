//! Limits: a request is let in, waits for a slot, or is refused; and when it has ended, what it
//! took is settled.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Version, header};
use pingora::{Error, ErrorType, Result, http::ResponseHeader};
use pingora_proxy::Session;

use super::{
    answer::{REQUEST_ID, opened},
    body_in::Framing,
    ctx::Ctx,
    held::COMMENT,
    logging,
};
use crate::{
    auth::Auth,
    base::{
        Fault, KeyUsage, Outcome, Rejection, Side, TokenCounts, UsageSource, limits::Standings,
    },
    dialect::{self, Kind},
    limit::{
        AdmissionRequest, Consumption, CountSource, Denial, Limiter, Rejected, RequestFacts,
        Ticket,
        queue::{QueuePlace, Turn},
    },
    wire::peek::Peek,
};

/// How soon one whose turn it is tries again. The pauses grow, because a slot that becomes free in
/// this process wakes it at once: this is for slots that other replicas free.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How often all others look up.
const LOOK_UP: Duration = Duration::from_millis(500);

/// How long a client may take for a comment. A place in the queue is not held up for one that does
/// not read.
const COMMENT_TIME: Duration = Duration::from_secs(1);

/// A request and its limits.
#[derive(Default)]
pub struct Limits {
    /// What it holds.
    ticket: Option<Ticket>,
    /// How its limits stand, for the headers of its answer.
    pub standings: Option<Standings>,
    /// One of them has refused the request.
    pub refused: bool,
    /// All of it has been given back, and what was used has been counted.
    settled: bool,
    /// Bytes of the body, and the most tokens that the client allows; `None` for what generates
    /// nothing.
    asked: Option<(usize, Option<u64>)>,
}

impl Limits {
    /// Bytes of the body, and the most tokens that the client allows: 0 where none are generated.
    pub fn asked(&self) -> Option<(usize, Option<u64>)> {
        self.asked
    }
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
    let limiter = Arc::clone(&snapshot.limits);
    if found.is_some() && ctx.call.model.is_none() && limiter.needs_model() {
        return Ok(Err(Rejection::missing_model()));
    }
    // What is no stream has no answer in tokens either: embeddings.
    let generates = ctx.call.route.is_some_and(|r| r.kind == Kind::Inference { streams: true });
    let most = |found: &Peek| if generates { found.max_tokens } else { Some(0) };
    ctx.limits.asked = found.map(|found| (ctx.body.bytes().len(), most(found)));
    let Some(mut wish) = wish(ctx, &limiter) else {
        return Ok(Ok(()));
    };
    let no = match limiter.admit(&mut wish, true).await {
        Ok(ticket) => {
            enter(ctx, ticket);
            return Ok(Ok(()));
        }
        Err(Rejected::NoSlot { bucket, denial }) if limiter.queue().size > 0 => {
            let waiting = Waiting {
                limiter: Arc::clone(&limiter),
                wish: &mut wish,
                denial,
                bucket,
                pause: FIRST_PAUSE,
            };
            // Boxed: requests that do not wait do not carry the room for it.
            match Box::pin(waiting.wait(session, ctx)).await? {
                Ok(ticket) => {
                    enter(ctx, ticket);
                    return Ok(Ok(()));
                }
                Err(no) => no,
            }
        }
        Err(Rejected::NoSlot { denial, .. }) => denial,
        Err(Rejected::Denied(no)) => no,
    };
    limiter.count_refusal(&no);
    ctx.limits.refused = no.is_known();
    ctx.limits.standings = limiter.standings(&wish).filter(|_| no.is_known());
    Ok(Err(match (&snapshot.auth, no.quota) {
        (Some(auth), Some(renews_at)) => auth.quota_exceeded(renews_at),
        _ => no.rejection,
    }))
}

/// What a request claims by these limits; `None` if no rule matches it.
fn wish(ctx: &Ctx, limiter: &Limiter) -> Option<AdmissionRequest> {
    let ask = RequestFacts {
        principal: ctx.who.principal.as_deref(),
        address: ctx.call.client,
        model: ctx.call.model.as_deref(),
        now: jiff::Timestamp::now().as_second(),
        only_requests: ctx.limits.asked.is_none(),
        enforce_quotas: ctx.snapshot.auth.as_deref().is_none_or(Auth::enforces_quotas),
    };
    let (bytes, max_tokens) = ctx.limits.asked.unwrap_or_default();
    let mut wish = limiter.prepare(&ask, bytes, max_tokens)?;
    wish.class = ctx.snapshot.tiers.of(ask.principal).queue_class;
    Some(wish)
}

fn enter(ctx: &mut Ctx, ticket: Ticket) {
    ctx.limits.standings = ticket.standings();
    ctx.limits.ticket = Some(ticket);
}

/// Settles a request whose answer is known to its end, before the client sees that end: who then
/// asks again, on another connection, finds its slot free.
pub fn settle_at_the_end(ctx: &mut Ctx) {
    if ctx.limits.settled {
        return;
    }
    let (counts, source) = ctx.answer.usage();
    let outcome = logging::outcome(None, ctx);
    settle(ctx, counts, source, outcome);
}

/// Settles what a request took, and counts what it used of its key's quota and balance; once.
pub fn settle(ctx: &mut Ctx, counts: TokenCounts, source: UsageSource, outcome: Outcome) {
    if std::mem::replace(&mut ctx.limits.settled, true) {
        return;
    }
    let came = came(ctx, counts, source, outcome);
    if let Consumption::Tokens { counts, credit, .. } = came {
        spend(ctx, &counts, credit);
    }
    if let Some(ticket) = ctx.limits.ticket.take() {
        ticket.settle(ctx.call.model.as_deref().unwrap_or_default(), came);
    }
}

fn came(ctx: &Ctx, counts: TokenCounts, source: UsageSource, outcome: Outcome) -> Consumption {
    let limiter = &ctx.snapshot.limits;
    let model = ctx.call.model.as_deref().unwrap_or_default();
    let whole = outcome == Outcome::Complete;
    let streamed = ctx.answer.streamed();
    let (counts, seen) = match (source, ctx.limits.asked) {
        (UsageSource::Final, _) if whole => (counts, CountSource::Complete),
        (UsageSource::Final | UsageSource::Partial, _) => (counts, CountSource::Partial),
        // What nobody meters is not for nothing.
        (UsageSource::None, Some((bytes, max_tokens))) if whole || streamed > 0 => {
            (limiter.assume(model, bytes, max_tokens, streamed), CountSource::Estimated)
        }
        (UsageSource::None, _) => return Consumption::Nothing,
    };
    let (cost, credit) = limiter.cost(model, counts);
    Consumption::Tokens { counts, cost, credit, source: seen }
}

/// Counts what was used against quota and balance of the key.
fn spend(ctx: &Ctx, counts: &TokenCounts, credit: f64) {
    let (Some(auth), Some(found)) = (&ctx.snapshot.auth, &ctx.who.found) else {
        return;
    };
    // Embeddings report the prompt and the total.
    let tokens = counts.prompt.saturating_add(counts.completion).max(counts.total) as f64;
    if tokens > 0.0 {
        auth.count(found, ctx.who.shown.as_ref(), KeyUsage { tokens, credit });
    }
}

/// A request in the queue.
struct Waiting<'a> {
    limiter: Arc<Limiter>,
    wish: &'a mut AdmissionRequest,
    /// What it is told if it waits in vain.
    denial: Denial,
    /// What it lacks a slot of.
    bucket: u64,
    pause: Duration,
}

impl Waiting<'_> {
    async fn wait(
        mut self,
        session: &mut Session,
        ctx: &mut Ctx,
    ) -> Result<Result<Ticket, Denial>> {
        let Ok(place) = self.limiter.enqueue(self.wish, self.bucket) else {
            return Ok(Err(self.denial));
        };
        let since = Instant::now();
        let end = since + self.limiter.queue().timeout;
        let keep_alive = self.limiter.queue().keep_alive.filter(|_| can_open(session, ctx));
        let mut comment = keep_alive.map(|every| since + every);
        let result = loop {
            if let Some(latest) = self.limiter.replaced() {
                // A request that waits is not held to limits that hold no longer.
                *self.wish = wish(ctx, &latest).unwrap_or_default();
                self.limiter = latest;
                if !self.limiter.requeue(self.wish, &place) {
                    match self.attempt(&place).await {
                        Some(ticket) => break ("admitted", Some(ticket)),
                        None => break ("refused", None),
                    }
                }
            }
            let turn = place.turn();
            match turn {
                Turn::Try => match self.attempt(&place).await {
                    Some(ticket) => break ("admitted", Some(ticket)),
                    None if Instant::now() >= end => break ("timeout", None),
                    None => {}
                },
                Turn::Wait if Instant::now() >= end => break ("timeout", None),
                Turn::Wait => {}
                Turn::Evicted => break ("refused", None),
            }
            let look_up = Instant::now() + if turn == Turn::Try { self.pause } else { LOOK_UP };
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
                let standings = self.limiter.standings(self.wish);
                let sent = tokio::time::timeout(
                    COMMENT_TIME,
                    send_comment(session, ctx, standings.as_ref()),
                );
                let Ok(sent) = sent.await else {
                    self.limiter.waited(since, "left");
                    let why = "the client does not take what is sent to it";
                    return Err(Error::explain(ErrorType::WriteTimedout, why).into_down());
                };
                sent?;
            }
        };
        let (result, ticket) = result;
        ctx.way.story.queued = Some(since.elapsed());
        self.limiter.waited(since, result);
        Ok(ticket.ok_or_else(|| self.in_vain()))
    }

    async fn attempt(&mut self, place: &QueuePlace) -> Option<Ticket> {
        match self.limiter.admit(self.wish, false).await {
            Ok(ticket) => return Some(ticket),
            Err(Rejected::NoSlot { bucket, denial }) => {
                (self.bucket, self.denial) = (bucket, denial);
                place.wait_for(bucket);
            }
            // Since it has come other requests may have used a limit up: it waits for that too.
            Err(Rejected::Denied(denial)) => {
                self.denial = denial;
                place.park(self.pause);
            }
        }
        self.pause = self.pause.mul_f64(1.5).min(LONGEST_PAUSE);
        None
    }

    /// The refusal of one that has waited: for what it lacks now, as things stand now.
    fn in_vain(self) -> Denial {
        match self.denial.is_for_slot() {
            true => self.limiter.no_slot(self.wish, self.bucket).unwrap_or(self.denial),
            false => self.denial,
        }
    }
}

/// Comes back when the client has gone.
pub async fn gone(session: &mut Session, framing: Framing) -> Box<Error> {
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
pub fn can_open(session: &Session, ctx: &Ctx) -> bool {
    ctx.call.stream && session.req_header().version != Version::HTTP_10
}

/// The head of a stream that has not begun yet.
pub fn head_of_stream(
    session: &Session,
    ctx: &Ctx,
    standings: Option<&Standings>,
) -> Result<Box<ResponseHeader>> {
    let mut head = ResponseHeader::build(200, Some(16))?;
    head.insert_header(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")?;
    head.insert_header(header::CACHE_CONTROL, "no-cache")?;
    head.insert_header(REQUEST_ID, ctx.call.id.header())?;
    if session.req_header().version == Version::HTTP_11 {
        head.insert_header(header::TRANSFER_ENCODING, "chunked")?;
    }
    if let Some(standings) = standings {
        dialect::tell_limits(&mut head, session.req_header().uri.path(), standings)?;
    }
    Ok(Box::new(head))
}

async fn send_comment(
    session: &mut Session,
    ctx: &Ctx,
    standings: Option<&Standings>,
) -> Result<()> {
    if !opened(session) {
        // What goes wrong from here on is told as an event.
        let head = head_of_stream(session, ctx, standings)?;
        session.write_response_header(head, false).await?;
    }
    session.write_response_body(Some(COMMENT), false).await
}
