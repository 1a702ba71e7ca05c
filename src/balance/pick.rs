//! A pick: what a request asks a pool for, what it gets, and what a strategy sees of it meanwhile.

use std::{
    cell::OnceCell,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{ejection::Scope, endpoint::Endpoint, state::Lease};
use crate::config::plan::Strategy;

/// What a request asks a pool for.
#[derive(Clone, Copy, Debug)]
pub struct PickRequest<'a> {
    /// The model, by the name that the backend knows.
    pub model: &'a str,
    /// Hash of the caller: failures that only one caller meets eject a backend for that caller only.
    pub caller: u64,
    /// Ignores open circuits and pauses: the pool has one backend, and no other can replace it.
    pub ignore_ejections: bool,
    /// Hash of what binds the request to a backend; `None`: any backend will do.
    pub session: Option<u64>,
    /// Hashes of the beginnings of the conversation, the shortest first. Each hash covers everything
    /// before its end. Empty where the pool's strategy does not use it.
    pub blocks: &'a [u64],
    /// Ids of backends that must not be picked.
    pub excluded: &'a [u32],
    /// The strategy in place of the pool's, where the pool has others ready.
    pub strategy: Option<Strategy>,
    /// The session binds the request also where the pool's configuration has no affinity.
    pub binds: bool,
    pub now: Instant,
}

/// A backend that was picked, and the request's lease on it.
pub struct PickedBackend {
    pub endpoint: Arc<Endpoint>,
    pub lease: Lease,
}

/// No backend is available.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoBackend {
    /// When the first ejected backend becomes available again; `None`: none is ejected.
    pub retry_after: Option<Duration>,
}

/// The state of one backend at the time of a pick.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Its name.
    pub backend: Arc<str>,
    /// The strategy's score, lower is better; `None` if the strategy does not compare.
    pub score: Option<f64>,
    /// Why it could not be picked: `unhealthy`, `draining`, `tried`, `open`, `busy`, `overloaded`;
    /// `None`: it could.
    pub barred: Option<&'static str>,
}

/// A pick in progress: the request, and what is computed once for it.
#[derive(Debug)]
pub struct Pick<'a> {
    pub request: &'a PickRequest<'a>,
    /// The request's time, in milliseconds since the table's epoch.
    pub millis: u64,
    /// Start and backend id of the last open circuit that still ejects its backend. Computed on first
    /// use; `None` inside if no circuit may eject.
    pub last_ejecting: OnceCell<Option<(Instant, u32)>>,
}

impl<'a> Pick<'a> {
    pub fn new(request: &'a PickRequest<'a>, epoch: Instant) -> Self {
        let millis = request.now.saturating_duration_since(epoch).as_millis() as u64;
        Self { request, millis, last_ejecting: OnceCell::new() }
    }

    /// What the backends' circuits are asked about.
    pub fn scope(&self) -> Scope<'a> {
        let PickRequest { model, caller, now, .. } = *self.request;
        Scope { model, caller, now }
    }

    /// Whether a backend must not be picked.
    pub fn excludes(&self, id: u32) -> bool {
        self.request.excluded.contains(&id)
    }
}
