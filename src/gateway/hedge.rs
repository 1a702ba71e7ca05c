//! Hedging: a short request that is not answered soon is also sent to a second backend. The first
//! good answer is the client's; the other try is broken off.
//!
//! Pingora proxies to one backend at a time. So these requests are made here, before it would
//! begin, with its own connector, and by the rules of all others: what fails is judged by the same
//! functions, and when no try is left under way that could do better, Pingora goes on as after any
//! try that has failed.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Version, header};
use pingora::{Error, ErrorType, Result, http::ResponseHeader};
use pingora_proxy::Session;

use super::{
    body_in::{self, Framing},
    cause::Cause,
    ctx::Ctx,
    exchange::{self, Came, Ended, Exchange, Rest},
    failure, limits, outbound, response, stream,
    tries::{self, Beside, Next, Picked},
    verdict::{self, Verdict},
};
use crate::{
    balance::PickedBackend,
    base::{Fault, FaultKind, Side},
    dialect::Kind,
};

/// How often it is looked up whether the request may go on.
const LOOK_UP: Duration = Duration::from_millis(100);

/// Serves the request, if it is one to hedge. `true` if it has been answered; otherwise Pingora goes
/// on with it.
///
/// # Errors
/// If the client has left, or no further try can be made.
pub async fn serve(session: &mut Session, ctx: &mut Ctx) -> Result<bool> {
    let Some(delay) = delay(ctx) else {
        return Ok(false);
    };
    ctx.way.tries.beside = Beside::Possible;
    // Boxed: other requests do not carry the room for it.
    let served = Box::pin(run(session, ctx, delay)).await;
    ctx.way.tries.beside = Beside::None;
    served
}

/// After how long there is a second try; `None`: never.
fn delay(ctx: &Ctx) -> Option<Duration> {
    let plan = ctx.snapshot.plan.routing.hedge?;
    let (bytes, tokens) = ctx.limits.asked()?;
    let fits = bytes <= plan.max_body && tokens.is_some_and(|n| n <= plan.max_tokens);
    let inference = ctx.call.route.is_some_and(|r| matches!(r.kind, Kind::Inference { .. }));
    // What is unread of a long chunked body must stay so, and nobody would see the client leave.
    let short = ctx.body.framing != Framing::LargeChunked;
    (fits && inference && short && !ctx.call.stream && tries::several(ctx)).then_some(plan.delay)
}

/// One try.
struct Runner {
    choice: PickedBackend,
    model: Option<Arc<str>>,
    since: Option<Instant>,
    /// Its place in the story.
    place: usize,
    exchange: Pin<Box<dyn Future<Output = Ended> + Send>>,
}

/// The tries that are under way.
#[derive(Default)]
struct Race {
    first: Option<Runner>,
    second: Option<Runner>,
    /// What has become of the second, if there was one.
    hedge: Option<&'static str>,
}

impl Race {
    /// The next one that ends, whether it is the second, and what came of it.
    async fn next(&mut self) -> (Runner, bool, Ended) {
        poll_fn(|context| {
            for (second, place) in [(false, &mut self.first), (true, &mut self.second)] {
                if let Some(runner) = place
                    && let Poll::Ready(ended) = runner.exchange.as_mut().poll(context)
                    && let Some(runner) = place.take()
                {
                    return Poll::Ready((runner, second, ended));
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

async fn run(session: &mut Session, ctx: &mut Ctx, delay: Duration) -> Result<bool> {
    let mut race = Race::default();
    let tier = match tries::next(session, ctx) {
        Next::Try(picked) => {
            let tier = picked.tier;
            race.first = begin(session, ctx, *picked)?;
            tier
        }
        Next::Pause(pause) => {
            tries::postpone(ctx, pause);
            return Ok(false);
        }
        // Pingora asks again, and tells the client.
        Next::Nobody(_) => return Ok(false),
    };
    let result = if race.under_way() {
        contest(session, ctx, &mut race, (delay, tier)).await
    } else {
        Ok(false)
    };
    if let Some(result) = race.hedge {
        ctx.carry.metrics.hedges.with_label_values(&[result]).inc();
    }
    result
}

/// Begins a try, and takes it out of the context. `None` if it is not there any more.
fn begin(session: &Session, ctx: &mut Ctx, picked: Picked) -> Result<Option<Runner>> {
    let endpoint = picked.choice.endpoint.clone();
    let peer = endpoint.peer();
    tries::start(ctx, picked);
    let mut request = outbound::of_client(session.req_header());
    outbound::headers(&mut request, ctx)?;
    let exchange = Exchange {
        carry: ctx.carry.clone(),
        endpoint,
        peer,
        request: Box::new(request),
        body: body_in::for_backend(ctx),
        first_byte: ctx.snapshot.plan.timeouts.first_byte,
        between_chunks: ctx.snapshot.plan.timeouts.between_chunks,
    };
    let (place, since) = (ctx.way.story.present(), ctx.way.tries.since);
    let model = ctx.way.tries.model.clone();
    let exchange = Box::pin(exchange.run());
    Ok(ctx.way.put_aside().map(|choice| Runner { choice, model, since, place, exchange }))
}

/// Waits for a good answer.
async fn contest(
    session: &mut Session,
    ctx: &mut Ctx,
    race: &mut Race,
    (delay, tier): (Duration, usize),
) -> Result<bool> {
    let mut hedge_at = Some(Instant::now() + delay);
    loop {
        let look_up = Instant::now() + LOOK_UP;
        let next = hedge_at.map_or(look_up, |at| at.min(look_up));
        let ended = tokio::select! {
            ended = race.next() => Some(ended),
            () = tokio::time::sleep_until(next.into()) => None,
            gone = limits::gone(session, ctx.body.framing) => {
                ctx.end.fault = Some(Fault { side: Side::Client, kind: FaultKind::Gone });
                return Err(gone);
            }
        };
        if let Some(error) = over(ctx) {
            return Err(error);
        }
        if let Some((runner, second, ended)) = ended {
            match settle(session, ctx, race, (runner, second, ended)).await? {
                After::Wait => {}
                After::Answered => return Ok(true),
                After::GoOn => return Ok(false),
            }
        } else if hedge_at.is_some_and(|at| Instant::now() >= at) {
            hedge_at = None;
            if race.first.is_some()
                && let Some(picked) = tries::second(session, ctx, tier)
                && let Some(runner) = begin(session, ctx, *picked)?
            {
                ctx.way.story.hedge();
                race.second = Some(runner);
                race.hedge = Some("lost");
            }
        }
    }
}

/// What follows when a try has ended.
enum After {
    /// The other one is waited for.
    Wait,
    /// The client has its answer.
    Answered,
    /// Pingora goes on.
    GoOn,
}

/// Judges what has come of a try, as if it had been the only one.
async fn settle(
    session: &mut Session,
    ctx: &mut Ctx,
    race: &mut Race,
    (runner, second, ended): (Runner, bool, Ended),
) -> Result<After> {
    let other = race.under_way();
    ctx.way.tries.beside = if other { Beside::UnderWay } else { Beside::Possible };
    ctx.way.tries.model = runner.model;
    ctx.way.tries.since = runner.since;
    ctx.way.story.turn_to(runner.place);
    ctx.way.choose(runner.choice);
    ctx.way.retries += u32::from(ended.again);
    ctx.answer.renew();
    ctx.end.fault = None;
    let result = match ended.result {
        Ok(came) if verdict::is_redirect(came.head.status.as_u16()) => Err(FaultKind::Redirect),
        result => result,
    };
    let result = match result {
        Ok(came) => match judge(session, ctx, came)? {
            Judged::Good(good) => {
                if second {
                    race.hedge = Some("won");
                }
                give_up(ctx, race);
                pass_on(session, ctx, *good).await?;
                return Ok(After::Answered);
            }
            Judged::Refused(cause) => Ok(cause),
            Judged::Unreadable => Err(FaultKind::Protocol),
        },
        Err(kind) => Err(kind),
    };
    let cause = match result {
        Ok(cause) => cause,
        Err(kind) => {
            let fault = Fault { side: Side::Backend, kind };
            ctx.end.fault = Some(fault);
            let cause = Cause::Fault(kind);
            if !other {
                // The last one: by the rules of all tries from here on.
                ctx.way.tries.beside = Beside::None;
                if !failure::another(session, ctx, cause) {
                    return Err(Error::explain(ErrorType::InternalError, fault.word()).into_up());
                }
                ctx.way.put_aside();
                return Ok(After::GoOn);
            }
            tries::tell(ctx, Verdict::of_fault(cause));
            cause
        }
    };
    if second {
        race.hedge = Some("failed");
    }
    if other {
        tries::fail(ctx, cause);
        ctx.answer.renew();
        ctx.end.fault = None;
    } else {
        tries::follow(ctx, cause);
    }
    ctx.way.put_aside();
    Ok(if other { After::Wait } else { After::GoOn })
}

/// Breaks the try off that is still under way. Its connection is closed, and its backend is none the
/// worse for it.
fn give_up(ctx: &mut Ctx, race: &mut Race) {
    let present = ctx.way.story.present();
    for runner in race.first.take().into_iter().chain(race.second.take()) {
        ctx.way.story.turn_to(runner.place);
        ctx.way.story.end("broken off".to_owned());
    }
    ctx.way.story.turn_to(present);
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
    /// Another try is to be waited for or made.
    Refused(Cause),
    /// It cannot be read.
    Unreadable,
}

/// Reads an answer as any other.
///
/// # Errors
/// If the time for the request is over.
fn judge(session: &mut Session, ctx: &mut Ctx, came: Came) -> Result<Judged> {
    let Came { mut head, head_at, first_at, body, rest } = came;
    ctx.answer.head_at = Some(head_at);
    if let Some(at) = first_at {
        ctx.way.story.first_byte_at(at);
    }
    response::arrived(&mut head, ctx);
    let mut body = Some(body);
    let read = response::headers(session, &mut head, ctx)
        .and_then(|()| stream::filter(session, &mut body, rest.is_none(), ctx));
    let Err(error) = read else {
        return Ok(Judged::Good(Box::new(Good { head, body, rest })));
    };
    if let Some(cause) = ctx.answer.refused.take() {
        return Ok(Judged::Refused(cause));
    }
    match over(ctx) {
        Some(over) => Err(over),
        None => {
            log::debug!("an answer cannot be used: {error}");
            Ok(Judged::Unreadable)
        }
    }
}

/// Writes the answer to the client; of a long one the rest as it comes.
async fn pass_on(session: &mut Session, ctx: &mut Ctx, good: Good) -> Result<()> {
    let Good { mut head, body, rest } = good;
    let mut rest = rest.filter(|_| !ctx.answer.whole);
    head.set_version(Version::HTTP_11);
    head.remove_header(&header::CONNECTION);
    if rest.is_none() {
        limits::settle_at_the_end(ctx);
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
        let mut piece = match read(ctx, more.read()).await {
            Ok(piece) => piece,
            Err(kind) => {
                let fault = Fault { side: Side::Backend, kind };
                ctx.end.fault = Some(fault);
                return Err(Error::explain(ErrorType::ReadError, fault.word()).into_up());
            }
        };
        let end = piece.is_none();
        stream::filter(session, &mut piece, end, ctx)?;
        // Also after `[DONE]`, whatever its backend sends then.
        let end = ctx.answer.whole;
        if end {
            limits::settle_at_the_end(ctx);
            rest = None;
        }
        if end || piece.as_ref().is_some_and(|p| !p.is_empty()) {
            let written = session.write_response_body(piece, end).await;
            written.map_err(|e| e.into_down())?;
        }
    }
    Ok(())
}

/// Reads, as long as the request may go on.
async fn read(ctx: &Ctx, piece: impl Future<Output = exchange::Piece>) -> exchange::Piece {
    let mut piece = pin!(piece);
    loop {
        tokio::select! {
            piece = &mut piece => return piece,
            () = tokio::time::sleep(LOOK_UP) => {}
        }
        if let Some(kind) = ctx.way.watch.as_ref().and_then(|w| w.fired()) {
            return Err(kind);
        }
    }
}

/// The end of the request, if its time is over.
fn over(ctx: &mut Ctx) -> Option<Box<Error>> {
    let kind = ctx.way.watch.as_ref().and_then(|w| w.fired())?;
    ctx.end.fault = Some(Fault { side: Side::Backend, kind });
    Some(Error::explain(ErrorType::ReadTimedout, "ended while it waited").into_up())
}
