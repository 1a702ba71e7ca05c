//! The handle of a wrapper around a client's session, for the phases of the request.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use pingora::{http::ResponseHeader, protocols::http::ServerSession};
use tokio::time::Instant;

use crate::{base::lock, gateway::hooks::answer::AnswerFilters};

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
    /// The client has the whole answer once it has what is written next.
    pub over: AtomicBool,
    /// A keep-alive from the backend, and a head for it.
    pub heartbeat: Mutex<Option<(Box<ResponseHeader>, Bytes)>>,
    pending: Mutex<Pending>,
    /// What scripts do with the answer.
    pub filters: Mutex<Option<Box<AnswerFilters>>>,
}

/// A piece that goes out by itself if nothing comes soon that it waits for.
#[derive(Default)]
enum Pending {
    #[default]
    None,
    Waiting(Bytes, Instant),
    /// Being sent, or sent: the bytes that are left.
    Leaving(Bytes),
}

impl DeferredHead {
    /// No comments for now, or comments again.
    pub fn set_quiet(&self, quiet: bool) {
        self.0.quiet.store(quiet, Ordering::Relaxed);
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

    /// Sends this piece at that time, unless [`Self::recall`] comes before. `false` if another one is
    /// still going out.
    pub fn send_at(&self, at: std::time::Instant, piece: Bytes) -> bool {
        let mut pending = lock(&self.0.pending);
        let free = !matches!(&*pending, Pending::Leaving(rest) if !rest.is_empty());
        if free {
            *pending = Pending::Waiting(piece, at.into());
        }
        free
    }

    /// Takes back what waits; `false` if it is too late for that.
    pub fn recall(&self) -> bool {
        let mut pending = lock(&self.0.pending);
        let late = matches!(*pending, Pending::Leaving(_));
        if !late {
            *pending = Pending::None;
        }
        !late
    }

    /// When there is something to send.
    pub(super) fn pending_at(&self) -> Option<Instant> {
        match &*lock(&self.0.pending) {
            Pending::Waiting(_, at) => Some(*at),
            Pending::Leaving(rest) if !rest.is_empty() => Some(Instant::now()),
            _ => None,
        }
    }

    /// What is to be sent by now; it cannot be taken back any more.
    pub(super) fn leaving(&self, now: Instant) -> Bytes {
        let mut pending = lock(&self.0.pending);
        match std::mem::take(&mut *pending) {
            Pending::Waiting(piece, at) if at <= now => *pending = Pending::Leaving(piece),
            other => *pending = other,
        }
        match &*pending {
            Pending::Leaving(rest) => rest.clone(),
            _ => Bytes::new(),
        }
    }

    /// This many bytes of it were sent.
    pub(super) fn sent(&self, bytes: usize) {
        if let Pending::Leaving(rest) = &mut *lock(&self.0.pending) {
            *rest = rest.slice(bytes..);
        }
    }

    /// What is left of it, which must go out before anything else.
    pub(super) fn take_rest(&self) -> Bytes {
        let mut pending = lock(&self.0.pending);
        match std::mem::take(&mut *pending) {
            Pending::Leaving(rest) => rest,
            other => {
                *pending = other;
                Bytes::new()
            }
        }
    }

    /// From here on scripts see what goes to the client.
    pub fn filter(&self, filters: AnswerFilters) {
        self.0.used.store(true, Ordering::Relaxed);
        *lock(&self.0.filters) = Some(Box::new(filters));
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
        !used && !waits && matches!(*lock(&self.0.pending), Pending::None)
    }
}
