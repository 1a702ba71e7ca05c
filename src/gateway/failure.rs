//! What becomes of a fault: another attempt, or one status and one sentence for the client.

use bytes::Bytes;
use pingora::{Error, ErrorSource, ErrorType};
use pingora_proxy::{FailToProxy, Session};

use super::{answer, body_in, ctx::Ctx, limits, stream::Reading};
use crate::base::{Fault, FaultKind, Side};

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
pub fn connect(mut error: Box<Error>, ctx: &mut Ctx) -> Box<Error> {
    let kind = match error.etype() {
        ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => FaultKind::ConnectTimeout,
        _ => FaultKind::Connect,
    };
    ctx.end.fault = Some(Fault { side: Side::Backend, kind });
    if let Some(endpoint) = &ctx.way.endpoint {
        log::warn!("backend {}: {}", endpoint.plan.name, brief(&error));
        ctx.way.tried.push(endpoint.id);
    }
    let next = ctx.way.pool().is_some_and(|id| {
        let mut members = ctx.snapshot.pools[id].members();
        members.any(|(e, up)| up && !ctx.way.tried.contains(&e.id))
    });
    if next {
        again(ctx, kind);
    }
    error.set_retry(next);
    error
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
    let silent = ctx.answer.status.is_none();
    let mut fault = classify(&error, ctx, reused && silent);
    let mut retry = false;
    if fault.kind == FaultKind::StaleConnection {
        if body_in::replayable(session, ctx) {
            retry = true;
            ctx.way.fresh = true;
            again(ctx, fault.kind);
        } else {
            fault.kind = FaultKind::NotReplayable;
        }
    }
    ctx.end.fault = Some(fault);
    error.set_retry(retry);
    error
}

fn again(ctx: &mut Ctx, kind: FaultKind) {
    ctx.way.retries += 1;
    let fault = Fault { side: Side::Backend, kind };
    ctx.carry.metrics.retries.with_label_values(&[fault.word()]).inc();
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
        _ if *error.esource() == ErrorSource::Upstream => backend(FaultKind::Broken),
        _ => Fault { side: Side::Gateway, kind: FaultKind::Internal },
    }
}

/// No attempt is left: answers the client, if it can still be answered.
pub async fn last(session: &mut Session, error: &Error, ctx: &mut Ctx) -> FailToProxy {
    let code = if ctx.answer.begun
        || session.response_written().is_some_and(|r| !r.status.is_informational())
    {
        end_stream(session, error, ctx).await
    } else {
        refuse(session, error, ctx).await
    };
    // The connection is closed after this. What the client has sent and nobody has read, the last
    // chunk of a body for instance, would turn the close into a reset.
    if code > 0 && !session.is_body_done() {
        body_in::linger(session).await;
    }
    FailToProxy { error_code: code, can_reuse_downstream: false }
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
    if ctx.limits.opened {
        ctx.end.status.get_or_insert(status);
    }
    let mut rest = match &mut ctx.answer.reading {
        Reading::Stream(meter) => meter.abandon().to_vec(),
        // Of the one event that it was to be nothing has been sent.
        Reading::Event(_) if !ctx.answer.begun => Vec::new(),
        _ => return status,
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
