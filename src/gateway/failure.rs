//! What becomes of a fault: another attempt, or one status and one sentence for the client.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::header;
use pingora::{Error, ErrorSource, ErrorType};
use pingora_proxy::{FailToProxy, Session};

use super::{
    answer, body_in,
    cause::Cause,
    ctx::Ctx,
    ending, heartbeat, held, limits,
    stream::Reading,
    tries::{self, Told},
    verdict::{self, Verdict},
};
use crate::{
    balance::Endpoint,
    base::{Fault, FaultKind, Rejection, Side},
    runtime::watch::{self, Watches},
};

/// How long a backend that refuses connections has to accept them again.
const RESTART: Duration = Duration::from_secs(1);

/// Status, code and sentence for each fault. The only place where faults become statuses.
fn table(kind: FaultKind) -> (u16, &'static str, &'static str) {
    match kind {
        FaultKind::Connect => (502, "backend_unreachable", "The backend could not be reached"),
        FaultKind::ConnectTimeout => {
            (504, "backend_timeout", "The backend did not accept a connection in time")
        }
        FaultKind::Broken | FaultKind::StaleConnection => (
            502,
            "backend_failed",
            "The backend closed the connection before its answer was complete",
        ),
        FaultKind::FirstByteTimeout => {
            (504, "backend_timeout", "The backend did not begin to answer in time")
        }
        FaultKind::ChunkTimeout => (504, "backend_timeout", "The backend stopped answering"),
        FaultKind::TotalTimeout => {
            (504, "request_timeout", "The request took longer than is allowed")
        }
        FaultKind::Protocol => {
            (502, "backend_failed", "The backend answered with something that is not HTTP")
        }
        FaultKind::Redirect => (
            502,
            "backend_failed",
            "The backend answered with a redirect, which the gateway does not follow",
        ),
        FaultKind::Refusing => (
            502,
            "backend_failed",
            "The backend had not begun to answer when it stopped accepting connections",
        ),
        // Nobody is left to read it; the status is for logs and records.
        FaultKind::Gone => (499, "client_gone", "The client closed the connection"),
        FaultKind::NotReplayable => (
            502,
            "backend_failed",
            "The backend failed, and a chunked body cannot be sent a second time",
        ),
        FaultKind::Shutdown => (503, "shutting_down", "The gateway is shutting down"),
        FaultKind::Internal => (500, "internal_error", "The gateway failed to handle the request"),
    }
}

/// A connection could not be made: another backend is tried.
pub fn connect(session: &mut Session, mut error: Box<Error>, ctx: &mut Ctx) -> Box<Error> {
    let kind = unreachable(&error, ctx.way.endpoint.as_deref());
    if *error.etype() == ErrorType::ConnectRefused
        && let Some(endpoint) = &ctx.way.endpoint
        && endpoint.refused()
    {
        tokio::spawn(give_up(endpoint.clone(), ctx.carry.watches.clone()));
    }
    ctx.end.fault = Some(Fault { side: Side::Backend, kind });
    let next = another(session, ctx, Cause::Fault(kind));
    error.set_retry(next);
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

/// What it is that a connection could not be made.
pub fn unreachable(error: &Error, endpoint: Option<&Endpoint>) -> FaultKind {
    if let Some(endpoint) = endpoint {
        log::warn!("backend {}: {}", endpoint.name, brief(error));
    }
    match error.etype() {
        ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => FaultKind::ConnectTimeout,
        _ => FaultKind::Connect,
    }
}

/// The present try has failed: tells its backend's state, and says whether another try follows.
pub fn another(session: &mut Session, ctx: &mut Ctx, cause: Cause) -> bool {
    tries::tell(ctx, Verdict::of_fault(cause));
    let follows = tries::can_follow(session, ctx, cause);
    if follows {
        tries::follow(ctx, cause);
    }
    follows
}

/// An error without Pingora's chain of contexts, which repeats the peer with all its options.
fn brief(error: &Error) -> String {
    let root = error.root_cause();
    match error.etype() {
        ErrorType::ConnectTimedout => "no connection in time".to_owned(),
        etype => format!("{}: {root}", etype.as_str()),
    }
}

/// Something broke on a connection that stood.
pub fn proxying(
    session: &mut Session,
    mut error: Box<Error>,
    ctx: &mut Ctx,
    reused: bool,
) -> Box<Error> {
    if let Some(watch) = &ctx.way.watch {
        watch.set_connection(None);
        watch.set_chunk(None);
    }
    if let Some(cause) = ctx.answer.refused.take() {
        tries::follow(ctx, cause);
        error.set_retry(true);
        return error;
    }
    heartbeat::recall(ctx);
    if ending::was_complete(ctx) {
        error.set_retry(false);
        return error;
    }
    if body_in::has_bad_chunks(&error, ctx) {
        ctx.end.rejection = Some(Rejection::bad_chunk());
    }
    let silent = ctx.answer.status.is_none();
    let mut fault = classify(&error, ctx, reused && silent);
    let mut retry = false;
    if fault.kind == FaultKind::StaleConnection {
        if body_in::replayable(session, ctx) {
            retry = true;
            ctx.way.fresh = true;
            ctx.way.retries += 1;
            ctx.carry.metrics.retries.with_label_values(&[fault.word()]).inc();
        } else {
            fault.kind = FaultKind::NotReplayable;
        }
    } else if fault.side == Side::Backend
        && !matches!(fault.kind, FaultKind::TotalTimeout | FaultKind::Shutdown)
    {
        retry = another(session, ctx, Cause::Fault(fault.kind));
    }
    ctx.end.fault = Some(fault);
    error.set_retry(retry);
    error
}

/// Whose fault it was. `stale`: it hit a kept-alive connection before any byte of an answer.
fn classify(error: &Error, ctx: &Ctx, stale: bool) -> Fault {
    let backend = |kind| Fault { side: Side::Backend, kind };
    if let Some(kind) = ctx.way.watch.as_ref().and_then(|w| w.fired()) {
        return backend(kind);
    }
    if *error.esource() == ErrorSource::Downstream {
        return Fault { side: Side::Client, kind: FaultKind::Gone };
    }
    match error.etype() {
        ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError if stale => {
            backend(FaultKind::StaleConnection)
        }
        ErrorType::InvalidHTTPHeader => backend(FaultKind::Protocol),
        ErrorType::HTTPStatus(status) if verdict::is_redirect(*status) => {
            backend(FaultKind::Redirect)
        }
        _ if *error.esource() == ErrorSource::Upstream => backend(FaultKind::Broken),
        _ => Fault { side: Side::Gateway, kind: FaultKind::Internal },
    }
}

/// No attempt is left: answers the client, if it can still be answered.
pub async fn last(session: &mut Session, error: &Error, ctx: &mut Ctx) -> FailToProxy {
    tries::ended(ctx);
    if let Some(home) = ctx.way.held.take() {
        written(held::release(session, &home).await);
    }
    if ctx.answer.complete() {
        return end_complete(session, ctx).await;
    }
    let told = ctx.way.tries.told.take().filter(|_| !ctx.answer.begun && !is_gone(ctx));
    let code = if let Some(told) = told {
        pass_on(session, ctx, told).await
    } else if answer::opened(session) {
        end_stream(session, error, ctx).await
    } else {
        // Also if the head was to go out together with what has failed.
        refuse(session, error, ctx).await
    };
    // The connection is closed after this. What the client has sent and nobody has read, the last
    // chunk of a body for instance, would turn the close into a reset.
    if code > 0 && !session.is_body_done() {
        body_in::linger(session).await;
    }
    FailToProxy { error_code: code, can_reuse_downstream: false }
}

/// The stream was complete when its connection broke: it is ended as any other.
async fn end_complete(session: &mut Session, ctx: &mut Ctx) -> FailToProxy {
    limits::settle_at_the_end(ctx);
    let rest = std::mem::take(&mut ctx.answer.rest);
    written(session.write_response_body(Some(rest), true).await);
    FailToProxy { error_code: 0, can_reuse_downstream: false }
}

fn is_gone(ctx: &Ctx) -> bool {
    ctx.end.fault.is_some_and(|fault| fault.side == Side::Client)
}

/// Answers with the last real answer that a backend gave.
async fn pass_on(session: &mut Session, ctx: &mut Ctx, told: Told) -> u16 {
    let Told { endpoint, mut head, body } = told;
    let status = head.status.as_u16();
    ctx.way.endpoint = Some(endpoint);
    ctx.answer.renew();
    ctx.answer.status = Some(status);
    ctx.end.fault = None;
    ctx.end.status = Some(status);
    limits::settle_at_the_end(ctx);
    if answer::opened(session) {
        let event = answer::error_event(ctx, status, &body);
        written(session.write_response_body(Some(event), true).await);
        return status;
    }
    head.remove_header(&header::TRANSFER_ENCODING);
    if let Err(e) = head.insert_header(header::CONTENT_LENGTH, body.len()) {
        log::debug!("cannot answer: {e}");
    }
    session.set_keepalive(None);
    written(session.write_response_header(head, body.is_empty()).await);
    if !body.is_empty() {
        written(session.write_response_body(Some(body), true).await);
    }
    status
}

/// Nothing has been answered yet.
async fn refuse(session: &mut Session, error: &Error, ctx: &mut Ctx) -> u16 {
    if let Some(mut no) = ctx.end.rejection.clone() {
        // Pingora closes the connection after this; the client is told so.
        no.close = true;
        written(answer::refusal(session, ctx, &no).await);
        return no.status;
    }
    let fault = *ctx.end.fault.get_or_insert_with(|| early(error));
    let (status, code, message) = table(fault.kind);
    ctx.end.status = Some(status);
    if fault.side == Side::Client {
        return 0;
    }
    let body = answer::failure(ctx, status, message, code);
    // What was begun on this connection may be unfinished.
    session.set_keepalive(None);
    written(answer::write(session, ctx, status, "application/json", body, &[]).await);
    status
}

/// A fault from before there was a backend.
fn early(error: &Error) -> Fault {
    match error.esource() {
        ErrorSource::Downstream => Fault { side: Side::Client, kind: FaultKind::Gone },
        _ => {
            log::error!("internal error: {error}");
            Fault { side: Side::Gateway, kind: FaultKind::Internal }
        }
    }
}

/// The head of an answer has gone out. A stream is ended with an error event, so that its reader
/// does not take it for complete; any other body is cut off, which HTTP shows by itself.
async fn end_stream(session: &mut Session, error: &Error, ctx: &mut Ctx) -> u16 {
    let (status, told) = match &ctx.end.rejection {
        // A stream that was opened while its request waited.
        Some(no) => (no.status, answer::refusal_body(ctx, no)),
        None => {
            let fault = *ctx.end.fault.get_or_insert_with(|| early(error));
            if fault.side == Side::Client {
                return 0;
            }
            let (status, code, message) = table(fault.kind);
            (status, answer::failure(ctx, status, message, code))
        }
    };
    if !ctx.answer.begun {
        ctx.end.status.get_or_insert(status);
    }
    // A head of the backend's own says what follows, and how long that is.
    let own_head = ctx.answer.status.is_some() && !ctx.answer.opened;
    let mut rest = match &mut ctx.answer.reading {
        Reading::Stream(meter) => [std::mem::take(&mut ctx.answer.rest), meter.abandon()].concat(),
        _ if ctx.answer.begun || own_head => return status,
        // Nothing of an answer has followed the comments.
        _ => Vec::new(),
    };
    rest.extend_from_slice(&answer::event(&told));
    limits::settle_at_the_end(ctx);
    written(session.write_response_body(Some(Bytes::from(rest)), true).await);
    status
}

/// A client that cannot be written to has gone; the access line says how its request ended.
fn written(result: pingora::Result<()>) {
    if let Err(e) = result {
        log::debug!("cannot answer: {e}");
    }
}
