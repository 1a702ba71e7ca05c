//! Hedging: a short request that is not answered soon is also sent to a second backend. The first
//! good answer is the client's; the other attempt is broken off.
//!
//! Pingora proxies to one backend at a time. So these requests are made here, before it would
//! begin, with its own connector, and by the rules of all others: what fails is judged by the same
//! policy, and when no attempt is left under way that could succeed, Pingora goes on as after any
//! attempt that has failed.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Version, header};
use pingora::{Error, ErrorType, Result, http::ResponseHeader};
use pingora_proxy::Session;

use super::{
    attempt::Attempt,
    attempts,
    body::Framing,
    ctx::{Attempts, Ctx},
    direct::{Exchange, Finished, Response, Rest},
    outbound, passing, response,
    retry::{self, AttemptOutcome, Concurrent, Decision, Next, PlannedAttempt},
    stop::Stop,
    wait::{WaitFor, wait},
};
use crate::base::{Fault, FaultKind, Side};

/// Serves the request, if it is one to hedge. `true` if it has been answered; otherwise Pingora goes
/// on with it.
///
/// # Errors
/// If the client has left, or no further attempt can be made.
pub async fn serve(session: &mut Session, ctx: &mut Ctx) -> Result<bool, Stop> {
    let Some(delay) = delay(session, ctx) else {
        return Ok(false);
    };
    ctx.retry.concurrent = Concurrent::Possible;
    // Boxed: other requests do not carry the room for it.
    let served = Box::pin(run(session, ctx, delay)).await;
    ctx.retry.concurrent = Concurrent::None;
    served
}

/// The delay before the second attempt; `None`: there is never one.
fn delay(session: &Session, ctx: &mut Ctx) -> Option<Duration> {
    let plan = ctx.snapshot.plan.routing.hedge?;
    let (bytes, tokens) = ctx.limits.asked?;
    let fits = bytes <= plan.max_body && tokens.is_some_and(|n| n <= plan.max_tokens);
    let inference = ctx.request.is_inference();
    // What is unread of a long chunked body must stay so, and the client would not be seen to leave.
    let short = ctx.body.framing != Framing::LargeChunked;
    let once = ctx.body.glance().stores;
    (fits && inference && short && !ctx.request.stream && !once)
        .then(|| retry::has_several(&ctx.attempts(session).view))
        .and_then(|several| several.then_some(plan.delay))
}

/// An attempt under way.
struct RunningAttempt {
    attempt: Attempt,
    exchange: Pin<Box<dyn Future<Output = Finished> + Send>>,
}

/// The attempts that are under way.
#[derive(Default)]
struct Race {
    first: Option<RunningAttempt>,
    second: Option<RunningAttempt>,
    /// The one that has failed while the other is waited for.
    failed: Option<Attempt>,
    /// What has become of the second, if there was one: a label of the metrics.
    hedge: Option<&'static str>,
}

/// One of them that has ended.
struct RaceResult {
    attempt: Attempt,
    second: bool,
    finished: Finished,
}

impl Race {
    /// The next one that ends.
    async fn next(&mut self) -> RaceResult {
        poll_fn(|context| {
            for (second, place) in [(false, &mut self.first), (true, &mut self.second)] {
                if let Some(runner) = place
                    && let Poll::Ready(finished) = runner.exchange.as_mut().poll(context)
                    && let Some(runner) = place.take()
                {
                    return Poll::Ready(RaceResult { attempt: runner.attempt, second, finished });
                }
            }
            Poll::Pending
        })
        .await
    }

    fn under_way(&self) -> bool {
        self.first.is_some() || self.second.is_some()
    }
}

async fn run(session: &mut Session, ctx: &mut Ctx, delay: Duration) -> Result<bool, Stop> {
    let mut race = Race::default();
    let Attempts { policy, timeline, view, .. } = ctx.attempts(session);
    match policy.next(&view, timeline) {
        Next::Attempt(picked) => race.first = begin(session, ctx, *picked).await?,
        Next::Pause(pause) => {
            policy.postpone(pause);
            return Ok(false);
        }
        // `peer` finds none either, and the request is rejected there.
        Next::NoBackend(_) => return Ok(false),
    }
    let result = match race.under_way() {
        true => contest(session, ctx, &mut race, delay).await,
        false => Ok(false),
    };
    if result.is_err() && ctx.attempt.is_none() {
        // What was under way when the request ended belongs to its record.
        let running = race.second.take().or_else(|| race.first.take());
        ctx.attempt = running.map(|running| running.attempt).or(race.failed.take());
    }
    if let Some(result) = race.hedge {
        ctx.carry.metrics.hedges.with_label_values(&[result]).inc();
    }
    result
}

/// Begins an attempt, and takes it out of the context.
async fn begin(
    session: &Session,
    ctx: &mut Ctx,
    picked: PlannedAttempt,
) -> Result<Option<RunningAttempt>> {
    let endpoint = picked.choice.endpoint.clone();
    let peer = endpoint.peer();
    if attempts::start(session, ctx, picked).is_err() {
        // Pingora goes on, and picks another one.
        return Ok(None);
    }
    let mut request = outbound::of_client(session.req_header());
    outbound::headers(&mut request, ctx)?;
    outbound::hooked(&mut request, ctx).await?;
    let exchange = Exchange {
        carry: ctx.carry.clone(),
        endpoint,
        peer,
        request: Box::new(request),
        body: outbound::for_backend(ctx),
        first_byte: ctx.snapshot.plan.timeouts.first_byte,
        between_chunks: ctx.snapshot.plan.timeouts.between_chunks,
    };
    let exchange = Box::pin(exchange.run());
    Ok(ctx.attempt.take().map(|attempt| RunningAttempt { attempt, exchange }))
}

/// Waits for a good answer.
async fn contest(
    session: &mut Session,
    ctx: &mut Ctx,
    race: &mut Race,
    delay: Duration,
) -> Result<bool, Stop> {
    let mut hedge_at = Some(Instant::now() + delay);
    loop {
        let over = wait(session, ctx, WaitFor::Backend, hedge_at, race.next()).await?;
        if let Some(over) = over {
            match settle(session, ctx, race, over).await? {
                NextStep::Wait => {}
                NextStep::Answered => return Ok(true),
                NextStep::GoOn => return Ok(false),
            }
            continue;
        }
        hedge_at = None;
        let Some(first) = &race.first else { continue };
        let Attempts { policy, timeline, view, .. } = ctx.attempts(session);
        if let Some(picked) = policy.second(&first.attempt, &view, timeline)
            && let Some(runner) = begin(session, ctx, *picked).await?
        {
            ctx.timeline.hedge(runner.attempt.span);
            race.second = Some(runner);
            race.hedge = Some("lost");
        }
    }
}

/// What follows when an attempt has ended.
enum NextStep {
    /// The other one is waited for.
    Wait,
    /// The client has its answer.
    Answered,
    /// Pingora goes on.
    GoOn,
}

/// Judges a finished attempt as if it had been the only one.
async fn settle(
    session: &mut Session,
    ctx: &mut Ctx,
    race: &mut Race,
    over: RaceResult,
) -> Result<NextStep, Stop> {
    let RaceResult { attempt, second, finished } = over;
    let other = race.under_way();
    ctx.retry.concurrent = if other { Concurrent::UnderWay } else { Concurrent::Possible };
    ctx.retry.retries += u32::from(finished.again);
    ctx.attempt = Some(attempt);
    let result = match finished.result {
        Ok(response) if retry::is_redirect(response.head.status.as_u16()) => {
            Err(FaultKind::Redirect)
        }
        result => result,
    };
    let result = match result {
        Ok(response) => judge(session, ctx, response)?,
        Err(kind) => Judged::Broken(kind),
    };
    match result {
        Judged::Good(good) => {
            if second {
                race.hedge = Some("won");
            }
            give_up(ctx, race);
            pass_on(session, ctx, *good).await?;
            return Ok(NextStep::Answered);
        }
        Judged::Discarded => {}
        Judged::Broken(kind) => {
            let fault = Fault { side: Side::Backend, kind };
            if !other {
                // The last one: by the rules of all attempts from here on.
                ctx.retry.concurrent = Concurrent::None;
            }
            let decision = attempts::decide(session, ctx, AttemptOutcome::Fault(fault));
            if let (Decision::Last(_), false) = (decision, other) {
                return Err(Error::explain(ErrorType::InternalError, fault.word())
                    .into_up()
                    .into());
            }
        }
    }
    if second {
        race.hedge = Some("failed");
    }
    if other {
        race.failed = ctx.attempt.take();
        return Ok(NextStep::Wait);
    }
    Ok(NextStep::GoOn)
}

/// Breaks the attempt off that is still under way. Its connection is closed, and nothing counts
/// against its backend.
fn give_up(ctx: &mut Ctx, race: &mut Race) {
    for runner in race.first.take().into_iter().chain(race.second.take()) {
        ctx.timeline.end(runner.attempt.span, "broken off".into());
    }
}

/// An answer for the client.
struct Good {
    head: ResponseHeader,
    body: Option<Bytes>,
    rest: Option<Rest>,
}

/// What an answer comes to.
enum Judged {
    /// It goes to the client.
    Good(Box<Good>),
    /// Another attempt is waited for or made.
    Discarded,
    /// The answer is missing or cannot be read.
    Broken(FaultKind),
}

/// Reads an answer as any other.
///
/// # Errors
/// If the time for the request is over.
fn judge(session: &mut Session, ctx: &mut Ctx, response: Response) -> Result<Judged, Stop> {
    let Response { mut head, head_at, first_at, body, rest } = response;
    if let Some(attempt) = &mut ctx.attempt {
        attempt.answer.head_at = Some(head_at);
    }
    if let Some(at) = first_at {
        attempts::first_byte(ctx, || at);
    }
    response::arrived(&mut head, ctx);
    let mut body = Some(body);
    let read = response::headers(session, &mut head, ctx)
        .and_then(|()| passing::filter(session, &mut body, rest.is_none(), ctx));
    let Err(error) = read else {
        return Ok(Judged::Good(Box::new(Good { head, body, rest })));
    };
    if ctx.attempt.as_ref().is_some_and(|attempt| attempt.answer.discarded) {
        return Ok(Judged::Discarded);
    }
    if ctx.attempt.as_ref().is_some_and(|attempt| attempt.answer.substituted) {
        return Err(error.into());
    }
    if let Some(kind) = ctx.watch.as_ref().and_then(|watch| watch.fired()) {
        let fault = Fault { side: Side::Backend, kind };
        return Err(Stop::fault(fault, "ended while it waited"));
    }
    log::debug!("an answer cannot be used: {error}");
    Ok(Judged::Broken(FaultKind::Protocol))
}

/// Writes the answer to the client; of a long one the rest as it comes.
async fn pass_on(session: &mut Session, ctx: &mut Ctx, good: Good) -> Result<(), Stop> {
    let Good { mut head, body, rest } = good;
    let mut rest = rest.filter(|_| !is_whole(ctx));
    head.set_version(Version::HTTP_11);
    head.remove_header(&header::CONNECTION);
    if rest.is_none() {
        head.remove_header(&header::TRANSFER_ENCODING);
        if !matches!(head.status.as_u16(), 204 | 304) {
            head.insert_header(header::CONTENT_LENGTH, body.as_ref().map_or(0, Bytes::len))?;
        }
    } else if session.req_header().version == Version::HTTP_11
        && !head.headers.contains_key(header::CONTENT_LENGTH)
    {
        head.insert_header(header::TRANSFER_ENCODING, "chunked")?;
    }
    let empty = body.as_ref().is_none_or(Bytes::is_empty);
    let written = session.write_response_header(Box::new(head), empty && rest.is_none()).await;
    written.map_err(|e| e.into_down())?;
    if !empty {
        let written = session.write_response_body(body, rest.is_none()).await;
        written.map_err(|e| e.into_down())?;
    }
    while let Some(more) = &mut rest {
        let read = wait(session, ctx, WaitFor::Backend, None, more.read()).await?;
        let mut piece = match read.unwrap_or(Ok(None)) {
            Ok(piece) => piece,
            Err(kind) => return Err(Stop::fault(Fault { side: Side::Backend, kind }, "broken")),
        };
        let end = piece.is_none();
        passing::filter(session, &mut piece, end, ctx)?;
        // Also after the end marker, whatever its backend sends then.
        let end = is_whole(ctx);
        if end {
            rest = None;
        }
        if end || piece.as_ref().is_some_and(|p| !p.is_empty()) {
            let written = session.write_response_body(piece, end).await;
            written.map_err(|e| e.into_down())?;
        }
    }
    Ok(())
}

fn is_whole(ctx: &Ctx) -> bool {
    ctx.attempt.as_ref().is_some_and(|attempt| attempt.answer.whole)
}
