//! Faults of attempts: whose they are, and the one table that turns them into statuses.

use pingora::{Error, ErrorSource, ErrorType};

use super::retry;
use crate::{
    balance::Endpoint,
    base::{Fault, FaultKind, Side},
};

/// Status, code and sentence for each fault. The only place where faults become statuses.
pub fn table(kind: FaultKind) -> (u16, &'static str, &'static str) {
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
        // For logs and records: no client is left to read it.
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

/// Why a connection could not be made.
pub fn unreachable(error: &Error, endpoint: &Endpoint) -> FaultKind {
    log::warn!("backend {}: {}", endpoint.name, brief(error));
    match error.etype() {
        ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => FaultKind::ConnectTimeout,
        _ => FaultKind::Connect,
    }
}

/// An error without Pingora's chain of contexts, which repeats the peer with all its options.
fn brief(error: &Error) -> String {
    let root = error.root_cause();
    match error.etype() {
        ErrorType::ConnectTimedout => "no connection in time".to_owned(),
        etype => format!("{}: {root}", etype.as_str()),
    }
}

/// Whose fault an error is. `fired`: the deadline that has passed. `stale`: the error hit a
/// kept-alive connection before any byte of an answer.
pub fn classify(error: &Error, fired: Option<FaultKind>, stale: bool) -> Fault {
    let backend = |kind| Fault { side: Side::Backend, kind };
    if let Some(kind) = fired {
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
        ErrorType::HTTPStatus(status) if retry::is_redirect(*status) => {
            backend(FaultKind::Redirect)
        }
        _ if *error.esource() == ErrorSource::Upstream => backend(FaultKind::Broken),
        _ => Fault { side: Side::Gateway, kind: FaultKind::Internal },
    }
}

/// A fault from before there was a backend.
pub fn early(error: &Error) -> Fault {
    match error.esource() {
        ErrorSource::Downstream => Fault { side: Side::Client, kind: FaultKind::Gone },
        _ => {
            log::error!("internal error: {error}");
            Fault { side: Side::Gateway, kind: FaultKind::Internal }
        }
    }
}
