//! What becomes of a failure: another attempt, or one status and one sentence for the client.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::header;
use pingora::{Error, ErrorType};
use pingora_proxy::{FailToProxy, Session};

use super::{
    attempt::{Attempt, KeptAnswer},
    attempts,
    ctx::Ctx,
    deferred_head,
    end::End,
    ending, fault, heartbeat,
    hooks::answer::AnswerFilters,
    receive, reply,
    retry::AttemptOutcome,
    stop,
};
use crate::{
    balance::Endpoint,
    base::{Fault, Rejection, Side},
    dialect::Failure,
    runtime::watch::{self, Watches},
};

/// How long a backend that refuses connections has to accept them again.
const RESTART: Duration = Duration::from_secs(1);

/// A connection could not be made: another backend is tried.
pub fn connect(session: &mut Session, mut error: Box<Error>, ctx: &mut Ctx) -> Box<Error> {
    let Some(attempt) = &ctx.attempt else { return error };
    let kind = fault::unreachable(&error, &attempt.endpoint);
    if *error.etype() == ErrorType::ConnectRefused && attempt.endpoint.refused() {
        tokio::spawn(give_up(attempt.endpoint.clone(), ctx.carry.watches.clone()));
    }
    let fault = Fault { side: Side::Backend, kind };
    let decision = attempts::decide(session, ctx, AttemptOutcome::Fault(fault));
    error.set_retry(decision.continues());
    error
}

/// Ends the wait of requests that a backend has not answered, unless it accepts connections again
/// soon: it may be restarting. Probes, where there are any, find that out as well.
async fn give_up(endpoint: Arc<Endpoint>, watches: Arc<Watches>) {
    let mut waited = Duration::ZERO;
    for after in [RESTART, watch::LAST_CHANCE] {
        tokio::time::sleep(after - waited).await;
        waited = after;
        if !endpoint.is_refusing() {
            return;
        }
        watches.abandon(endpoint.id, after, Instant::now());
    }
}

/// Something broke on a connection that stood.
pub fn proxying(
    session: &mut Session,
    mut error: Box<Error>,
    ctx: &mut Ctx,
    reused: bool,
) -> Box<Error> {
    if let Some(watch) = &ctx.watch {
        watch.set_connection(None);
        watch.set_chunk(None);
    }
    if ctx.attempt.as_ref().is_some_and(|attempt| attempt.answer.discarded) {
        error.set_retry(true);
        return error;
    }
    if stop::rejection_of(&error).is_some() {
        // The gateway itself has refused the request: no backend is at fault.
        error.set_retry(false);
        return error;
    }
    if ctx.attempt.as_ref().is_some_and(|attempt| attempt.answer.substituted) {
        error.set_retry(false);
        return error;
    }
    heartbeat::recall(ctx);
    if ending::was_complete(session, ctx) {
        error.set_retry(false);
        return error;
    }
    let fired = ctx.watch.as_ref().and_then(|watch| watch.fired());
    let bad_chunks = receive::has_bad_chunks(&error, ctx);
    let silent = ctx.attempt.as_ref().is_some_and(|attempt| attempt.answer.status.is_none());
    let fault = fault::classify(&error, fired, reused && silent);
    let failed = |attempt: &&mut Attempt| {
        attempt.answer.failed.as_ref().is_some_and(|failed| failed.class.is_clients())
    };
    if let Some(attempt) = ctx.attempt.as_mut().filter(failed) {
        // The request is at fault: no backend would do better, and none has failed.
        attempt.fault = Some(fault);
        error.set_retry(false);
        return error;
    }
    let decision = attempts::decide(session, ctx, AttemptOutcome::Fault(fault));
    error.set_retry(decision.continues());
    if bad_chunks { stop::refusing(error, Rejection::bad_chunk()) } else { error }
}

/// No attempt is left: answers the client, if it can still be answered.
pub async fn last(session: &mut Session, error: &Error, ctx: &mut Ctx) -> FailToProxy {
    ctx.retry.ended();
    let mut filters = None;
    if let Some(deferred) = ctx.deferred.take() {
        written(deferred_head::release(session, &deferred).await);
        filters = deferred.take_filters();
    }
    if ctx.attempt.as_ref().is_some_and(|attempt| attempt.answer.is_complete()) {
        return end_complete(session, ctx, filters).await;
    }
    let code = if ctx.end().is_some() {
        // The answer of the gateway itself could not be written.
        0
    } else {
        answer(session, error, filters, ctx).await
    };
    // The connection is closed after this. What the client has sent and has not been read, the last
    // chunk of a body for instance, would turn the close into a reset.
    if code > 0 && !session.is_body_done() {
        receive::linger(session).await;
    }
    FailToProxy { error_code: code, can_reuse_downstream: false }
}

async fn answer(
    session: &mut Session,
    error: &Error,
    filters: Option<Box<AnswerFilters>>,
    ctx: &mut Ctx,
) -> u16 {
    let fault = stop::fault_of(error).or_else(|| attempts::fault(ctx));
    let left = fault.is_some_and(|fault| fault.side == Side::Client);
    let kept = ctx.retry.kept.take().filter(|_| !ctx.has_begun() && !left);
    if let Some(kept) = kept {
        return pass_on(session, ctx, kept, filters).await;
    }
    let cause = match stop::rejection_of(error) {
        Some(rejection) => FailureCause::Rejection(rejection.clone()),
        None => FailureCause::Fault(fault.unwrap_or_else(|| fault::early(error))),
    };
    if reply::opened(session) {
        return end_stream(session, cause, filters, ctx).await;
    }
    // Also if the head was to go out together with what has failed.
    refuse(session, cause, ctx).await
}

/// Why the request is not answered by a backend.
enum FailureCause {
    Rejection(Rejection),
    Fault(Fault),
}

/// The stream was complete when its connection broke: it is ended as any other.
async fn end_complete(
    session: &mut Session,
    ctx: &mut Ctx,
    filters: Option<Box<AnswerFilters>>,
) -> FailToProxy {
    let rest = ctx.attempt.as_mut().map(|attempt| std::mem::take(&mut attempt.answer.rest));
    let (rest, _) = filtered(filters, rest.unwrap_or_default()).await;
    written(reply::last(session, ctx, rest).await);
    FailToProxy { error_code: 0, can_reuse_downstream: false }
}

/// Answers with the last real answer that a backend gave.
async fn pass_on(
    session: &mut Session,
    ctx: &mut Ctx,
    kept: KeptAnswer,
    filters: Option<Box<AnswerFilters>>,
) -> u16 {
    let KeptAnswer { endpoint, mut head, mut body } = kept;
    let status = head.status.as_u16();
    let mut attempt = Attempt::answered(endpoint);
    attempt.span = ctx.attempt.as_ref().and_then(|attempt| attempt.span);
    attempt.answer.status = Some(status);
    ctx.attempt = Some(attempt);
    ctx.conclude(End::answered(status));
    if reply::opened(session) {
        let event = reply::error_wording(ctx).error_event(status, &body);
        written(reply::last(session, ctx, event).await);
        return status;
    }
    if let Some(mut filters) = filters {
        written(filters.whole(&mut head, &mut body).await);
    }
    head.remove_header(&header::TRANSFER_ENCODING);
    if let Err(e) = head.insert_header(header::CONTENT_LENGTH, body.len()) {
        log::debug!("cannot answer: {e}");
    }
    session.set_keepalive(None);
    written(reply::backends_own(session, ctx, head, body).await);
    status
}

/// Nothing has been answered yet.
async fn refuse(session: &mut Session, cause: FailureCause, ctx: &mut Ctx) -> u16 {
    let fault = match cause {
        FailureCause::Rejection(rejection) => {
            let mut rejection = reply::in_language(ctx, rejection);
            let status = rejection.status;
            // Pingora closes the connection after this, and the head says so.
            rejection.close = true;
            written(reply::refuse(session, ctx, rejection).await);
            return status;
        }
        FailureCause::Fault(fault) => fault,
    };
    let (status, code, message) = fault::table(fault.kind);
    let said = ctx.attempt.as_ref().and_then(Attempt::said);
    let end = End::failed(said.as_ref().map_or(status, |said| said.0), fault);
    if fault.side == Side::Client {
        ctx.conclude(end);
        return 0;
    }
    let body = match said {
        Some((_, body, _)) => body,
        None => reply::error_wording(ctx).failure(status, message, code),
    };
    // What was begun on this connection may be unfinished.
    session.set_keepalive(None);
    written(reply::write_error(session, ctx, end, body, Vec::new()).await);
    ctx.end().map_or(status, |end| end.status)
}

/// The head of an answer has gone out. A stream is ended with an error event, so that its reader
/// does not take it for complete; any other body is cut off, which HTTP shows by itself.
async fn end_stream(
    session: &mut Session,
    cause: FailureCause,
    filters: Option<Box<AnswerFilters>>,
    ctx: &mut Ctx,
) -> u16 {
    let answer = ctx.attempt.as_ref().map(|attempt| &attempt.answer);
    let answered = answer.filter(|answer| answer.begun).and_then(|answer| answer.status);
    let (end, status, error) = match cause {
        FailureCause::Rejection(rejection) => {
            let rejection = reply::in_language(ctx, rejection);
            let error = StreamError::of_rejection(ctx, &rejection);
            let status = rejection.status;
            (End { status: answered.unwrap_or(status), ..End::refused(rejection) }, status, error)
        }
        FailureCause::Fault(fault) if fault.side == Side::Client => {
            ctx.conclude(End { status: attempts::end(ctx).status, ..End::failed(499, fault) });
            return 0;
        }
        FailureCause::Fault(fault) => {
            let (status, code, message) = fault::table(fault.kind);
            let said = ctx.attempt.as_ref().and_then(Attempt::said);
            let (status, document, message) = match said {
                Some((status, body, message)) => (status, body, message.into()),
                None => {
                    let body = reply::error_wording(ctx).failure(status, message, code);
                    (status, body, message.into())
                }
            };
            let error = StreamError { document, message, code: code.into() };
            (End::failed(answered.unwrap_or(status), fault), status, error)
        }
    };
    ctx.conclude(end);
    let (mut rest, mut last) = (Vec::new(), None);
    if let Some(attempt) = &mut ctx.attempt {
        let answer = &mut attempt.answer;
        // A head of the backend's own says what follows, and how long that is.
        let own_head = answer.status.is_some() && !answer.promised;
        if answer.passage.is_stream() {
            rest.extend_from_slice(&std::mem::take(&mut answer.rest));
            rest.extend_from_slice(&answer.passage.abandon());
            // Before anything has gone out there is nothing that it could refer to.
            last = answer.passage.failure(&error.failure(status)).filter(|_| answer.begun);
        } else if answer.begun || own_head {
            return status;
        }
        // Else nothing of an answer has followed the comments.
    }
    let event = last.unwrap_or_else(|| ctx.request.language().event(&error.document));
    let (mut rest, ended) = filtered(filters, Bytes::from(rest)).await;
    if !ended {
        rest = [rest, event].concat().into();
    }
    written(reply::last(session, ctx, rest).await);
    status
}

/// The last events of a stream that broke, as scripts and guards let them pass. `true`: one of these has ended
/// it with an error.
async fn filtered(filters: Option<Box<AnswerFilters>>, rest: Bytes) -> (Bytes, bool) {
    match filters {
        Some(mut filters) => filters.rest(rest).await,
        None => (rest, false),
    }
}

/// Why a stream ends here.
struct StreamError {
    document: Bytes,
    message: Cow<'static, str>,
    code: Cow<'static, str>,
}

impl StreamError {
    fn of_rejection(ctx: &Ctx, rejection: &Rejection) -> Self {
        Self {
            document: reply::error_wording(ctx).rejection(rejection),
            message: rejection.message.clone().into(),
            code: rejection.code.clone().unwrap_or_default(),
        }
    }

    fn failure(&self, status: u16) -> Failure<'_> {
        Failure { document: &self.document, message: &self.message, code: &self.code, status }
    }
}

/// A client that cannot be written to has gone; the access line says how its request ended.
fn written(result: pingora::Result<()>) {
    if let Err(e) = result {
        log::debug!("cannot answer: {e}");
    }
}
