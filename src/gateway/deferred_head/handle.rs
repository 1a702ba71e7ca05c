//! The handle of a wrapper around a client's session, for the phases of the request.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use pingora::{http::ResponseHeader, protocols::http::ServerSession};

use crate::{
    base::lock,
    gateway::{hooks::answer::AnswerFilters, pending::PendingPiece},
};

/// A head that is deferred: the handle of the wrapper around the client's session, and where the
/// real session comes back to when the wrapper is dropped.
#[derive(Clone, Default)]
pub struct DeferredHead(pub(super) Arc<Shared>);

#[derive(Default)]
pub(super) struct Shared {
    pub session: Mutex<Option<Box<ServerSession>>>,
    pub quiet: AtomicBool,
    /// Something was written through the wrapper, or it is needed for as long as the request.
    pub used: AtomicBool,
    /// The answer has begun, and its content is still waited for.
    pub waits: AtomicBool,
    /// The client has the whole answer once it has what is written next.
    pub over: AtomicBool,
    /// A keep-alive from the backend, and a head for it.
    pub heartbeat: Mutex<Option<(Box<ResponseHeader>, Bytes)>>,
    pub pending: PendingPiece,
    /// What scripts do with the answer.
    pub filters: Mutex<Option<Box<AnswerFilters>>>,
}

impl DeferredHead {
    /// No comments for now, or comments again.
    pub fn set_quiet(&self, quiet: bool) {
        self.0.quiet.store(quiet, Ordering::Relaxed);
    }

    /// Whether comments go on after what is passed on next: a stream has begun, and nothing of its content
    /// has come. What is passed on has to be whole events then.
    pub fn set_waits(&self, waits: bool) {
        self.0.waits.store(waits, Ordering::Relaxed);
    }

    /// The answer ends with what is passed on next, whatever its backend does.
    pub fn end(&self) {
        self.0.over.store(true, Ordering::Relaxed);
    }

    /// Sends a keep-alive from the backend on before anything of the answer, and after this head
    /// if none has been sent.
    pub fn pass_heartbeat(&self, head: Box<ResponseHeader>, piece: Bytes) {
        *lock(&self.0.heartbeat) = Some((head, piece));
    }

    /// See [`PendingPiece::send_at`].
    pub fn send_at(&self, at: std::time::Instant, piece: Bytes) -> bool {
        self.0.pending.send_at(at.into(), piece)
    }

    /// See [`PendingPiece::recall`].
    pub fn recall(&self) -> bool {
        self.0.pending.recall()
    }

    /// From here on scripts see what goes to the client.
    pub fn filter(&self, filters: AnswerFilters) {
        self.0.used.store(true, Ordering::Relaxed);
        *lock(&self.0.filters) = Some(Box::new(filters));
    }

    pub(super) fn has_filters(&self) -> bool {
        lock(&self.0.filters).is_some()
    }

    /// What scripts do with the answer, for one that does not pass through the wrapper.
    pub fn take_filters(&self) -> Option<Box<AnswerFilters>> {
        lock(&self.0.filters).take()
    }

    /// A keep-alive of a backend that has failed since is not sent.
    pub fn forget_heartbeat(&self) {
        lock(&self.0.heartbeat).take();
    }

    pub(super) fn take(&self) -> Option<Box<ServerSession>> {
        lock(&self.0.session).take()
    }

    /// The wrapper holds nothing, has sent nothing, and nothing is left for it to do.
    pub(super) fn is_spare(&self) -> bool {
        let used = [&self.0.used, &self.0.over].iter().any(|flag| flag.load(Ordering::Relaxed));
        let waits = lock(&self.0.heartbeat).is_some();
        !used && !waits && self.0.pending.is_none()
    }
}
