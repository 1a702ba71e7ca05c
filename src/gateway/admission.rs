//! Admission: by its limits a request passes, waits for a slot, or is refused.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use pingora::{Error, ErrorSource, ErrorType};
use pingora_proxy::Session;

use super::{
    ctx::Ctx,
    hooks, reply,
    stop::Stop,
    wait::{WaitFor, wait},
};
use crate::{
    auth::Auth,
    base::{Rejection, Stage},
    dialect::Glance,
    limit::{
        AdmissionRequest, Denial, Limiter, Rejected, RequestFacts, Ticket,
        queue::{QueuePlace, Turn},
    },
};

/// How soon a request whose turn it is tries again. The pauses grow, because a slot that becomes
/// free in this process wakes it at once: this is for slots that other replicas free.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How often a request looks up whether its turn has come.
const LOOK_UP: Duration = Duration::from_millis(500);

/// How long a client may take for a keep-alive comment. A client that does not read holds no place
/// in the queue.
const COMMENT_TIME: Duration = Duration::from_secs(1);

/// Admits a request, perhaps after a wait in the queue. `glance` is what its body says; `None` for
/// lists of models, which have no body.
///
/// # Errors
/// If the request is refused, or the client went away.
pub async fn admit(
    session: &mut Session,
    ctx: &mut Ctx,
    glance: Option<&Glance>,
) -> Result<(), Stop> {
    let snapshot = ctx.snapshot.clone();
    let limiter = Arc::clone(&snapshot.limits);
    if glance.is_some() && ctx.request.model.is_none() && limiter.needs_model() {
        return Err(Rejection::missing_model().into());
    }
    // An answer that is not generated has no tokens: embeddings.
    let generates = ctx.request.generates();
    let most = |glance: &Glance| if generates { glance.max_tokens } else { Some(0) };
    // To count the tokens of a request uses none.
    let asks = glance.filter(|_| !ctx.request.counts_tokens());
    ctx.limits.asked = asks.map(|glance| (ctx.body.bytes().len(), most(glance)));
    if snapshot.hooks.has(Stage::RateLimit) && glance.is_some() {
        let standing = |ctx: &Ctx| {
            claims(ctx, &limiter).map_or_else(Vec::new, |mut request| limiter.peek(&mut request))
        };
        Box::pin(hooks::limits::run_all(session, ctx, standing)).await?;
    }
    let Some(mut request) = claims(ctx, &limiter) else {
        return Ok(());
    };
    let denial = match limiter.admit(&mut request, true).await {
        Ok(ticket) => {
            enter(ctx, ticket);
            return Ok(());
        }
        Err(Rejected::NoSlot { bucket, denial }) if limiter.queue().size > 0 => {
            let waiting = Waiting {
                limiter: Arc::clone(&limiter),
                request: &mut request,
                denial,
                bucket,
                pause: FIRST_PAUSE,
            };
            // Boxed: requests that do not wait do not carry the room for it.
            match Box::pin(waiting.wait(session, ctx)).await? {
                Ok(ticket) => {
                    enter(ctx, ticket);
                    return Ok(());
                }
                Err(denial) => denial,
            }
        }
        Err(Rejected::NoSlot { denial, .. }) => denial,
        Err(Rejected::Denied(denial)) => denial,
    };
    limiter.count_refusal(&denial);
    ctx.limits.refused = denial.is_known();
    ctx.limits.standings = limiter.standings(&request).filter(|_| denial.is_known());
    Err(Stop::Refuse(match (&snapshot.auth, denial.quota) {
        (Some(auth), Some(renews_at)) => auth.quota_exceeded(renews_at),
        _ => denial.rejection,
    }))
}

fn facts(ctx: &Ctx) -> RequestFacts<'_> {
    RequestFacts {
        principal: ctx.caller.principal.as_deref(),
        address: ctx.request.client,
        model: ctx.request.model.as_deref(),
        now: jiff::Timestamp::now().as_second(),
        only_requests: ctx.limits.asked.is_none(),
        enforce_quotas: ctx.snapshot.auth.as_deref().is_none_or(Auth::enforces_quotas),
    }
}

/// What a request claims by these limits; `None` if no rule matches it.
fn claims(ctx: &Ctx, limiter: &Limiter) -> Option<AdmissionRequest> {
    let ask = facts(ctx);
    let (bytes, max_tokens) = ctx.limits.asked.unwrap_or_default();
    let mut request = limiter.prepare(&ask, bytes, max_tokens)?;
    request.class = ctx.snapshot.tiers.of(ask.principal).queue_class;
    if let Some(weight) = ctx.hooks.as_ref().and_then(|state| state.weight) {
        request.weigh(weight);
    }
    Some(request)
}

fn enter(ctx: &mut Ctx, ticket: Ticket) {
    ctx.limits.standings = ticket.standings();
    ctx.limits.ticket = Some(ticket);
}

/// A request in the queue.
struct Waiting<'a> {
    limiter: Arc<Limiter>,
    request: &'a mut AdmissionRequest,
    /// The refusal if it waits without success.
    denial: Denial,
    /// The bucket that it lacks a slot of.
    bucket: u64,
    pause: Duration,
}

impl Waiting<'_> {
    async fn wait(
        mut self,
        session: &mut Session,
        ctx: &mut Ctx,
    ) -> Result<Result<Ticket, Denial>, Stop> {
        let Ok(place) = self.limiter.enqueue(self.request, &facts(ctx), self.bucket) else {
            return Ok(Err(self.denial));
        };
        let since = Instant::now();
        let (result, ticket) = self.wait_in(&place, since, session, ctx).await?;
        ctx.timeline.queued = Some(since.elapsed());
        self.limiter.waited(since, result);
        Ok(ticket.ok_or_else(|| self.denial()))
    }

    /// Waits at a place of the queue. The result is a label of the metrics.
    async fn wait_in(
        &mut self,
        place: &QueuePlace,
        since: Instant,
        session: &mut Session,
        ctx: &Ctx,
    ) -> Result<(&'static str, Option<Ticket>), Stop> {
        let end = since + self.limiter.queue().timeout;
        let keep_alive = self.limiter.queue().keep_alive.filter(|_| reply::can_open(session, ctx));
        let mut comment = keep_alive.map(|every| since + every);
        loop {
            if let Some(latest) = self.limiter.replaced() {
                // A request that waits is not held to limits that do not apply any more.
                *self.request = claims(ctx, &latest).unwrap_or_default();
                self.limiter = latest;
                if !self.limiter.requeue(self.request, place) {
                    return Ok(match self.attempt(place).await {
                        Some(ticket) => ("admitted", Some(ticket)),
                        None => ("refused", None),
                    });
                }
            }
            let turn = place.turn();
            let ticket = match turn {
                Turn::Try => self.attempt(place).await,
                Turn::Wait => None,
                Turn::Evicted => return Ok(("refused", None)),
            };
            if ticket.is_some() {
                return Ok(("admitted", ticket));
            }
            if Instant::now() >= end {
                return Ok(("timeout", None));
            }
            let look_up = Instant::now() + if turn == Turn::Try { self.pause } else { LOOK_UP };
            let next = comment.map_or(end, |at| at.min(end)).min(look_up);
            let waited = wait(session, ctx, WaitFor::Slot, Some(next), place.changed()).await;
            if let Err(Stop::Broken(e)) = &waited
                && *e.esource() == ErrorSource::Downstream
            {
                self.limiter.waited(since, "left");
            }
            waited?;
            if comment.is_some_and(|at| Instant::now() >= at) {
                comment = keep_alive.map(|every| Instant::now() + every);
                self.keep_alive(since, session, ctx).await?;
            }
        }
    }

    /// Sends a comment to the client that waits.
    async fn keep_alive(
        &self,
        since: Instant,
        session: &mut Session,
        ctx: &Ctx,
    ) -> Result<(), Stop> {
        let standings = self.limiter.standings(self.request);
        let sent = reply::keep_alive(session, ctx, standings.as_ref());
        let Ok(sent) = tokio::time::timeout(COMMENT_TIME, sent).await else {
            self.limiter.waited(since, "left");
            let why = "the client does not take what is sent to it";
            return Err(Error::explain(ErrorType::WriteTimedout, why).into_down().into());
        };
        Ok(sent?)
    }

    async fn attempt(&mut self, place: &QueuePlace) -> Option<Ticket> {
        match self.limiter.admit(self.request, false).await {
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

    /// The refusal of a request that has waited: for what it lacks now.
    fn denial(self) -> Denial {
        match self.denial.is_for_slot() {
            true => self.limiter.no_slot(self.request, self.bucket).unwrap_or(self.denial),
            false => self.denial,
        }
    }
}
