//! What is known of one request. Closed: a new feature brings an object of its own and adds one
//! field here, with its writers and readers named.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use pingora_proxy::Session;

use super::{
    attempt::Attempt,
    body::Body,
    deferred_head::DeferredHead,
    end::End,
    hooks::state::RequestHooks,
    inbound::{Caller, Request},
    request_limits::RequestLimits,
    retry::{RetryPolicy, RoutingView},
    timeline::Timeline,
};
use crate::{
    route::Route,
    runtime::{Carry, Snapshot, connections::ActiveRequest, watch},
};

/// One request.
pub struct Ctx {
    /// The configuration that it began with, and keeps.
    pub snapshot: Arc<Snapshot>,
    /// What all requests share.
    pub carry: Arc<Carry>,
    /// What the client asked. Written by `early` and `request`, read by all later phases; `logging`
    /// takes the model.
    pub request: Request,
    /// Who asks. Written by `early` and `auth`; read by `request`, `admission`, `outbound`, `retry`,
    /// `settlement` and `logging`, which takes the principal.
    pub caller: Caller,
    /// Its limits. Written by `admission` and `settlement`; read by `request`, `heartbeat`,
    /// `response`, `reply`, `hedge` and `logging`.
    pub limits: RequestLimits,
    /// The body on its way to backends. Written by `receive` and `request`; `outbound` makes its
    /// versions and takes its tail; read by `admission`, `attempts`, `failure`, `hedge`, `response`,
    /// `retry` and `wait`; emptied by `pacing` when no further attempt can need it.
    pub body: Body,
    /// Where its backends are looked for. Written by `request`; read by `retry` and `logging`.
    pub route: Option<Arc<Route>>,
    /// Which attempt is next, and whether there is one. Begun by `request`; asked by `peer`,
    /// `attempts`, `hedge`, `passing` and `outbound`; `passing` keeps an answer in it, which `failure`
    /// takes; closed by `passing`, `ending`, `failure` and `logging`.
    pub retry: RetryPolicy,
    /// The present attempt, or the last. Set by `attempts`, for `peer` and `hedge`; `hedge` takes it
    /// out and puts it back; `failure` replaces it by a kept answer. The phases of the answer write
    /// into it.
    pub attempt: Option<Attempt>,
    /// What scripts have left in it; `None` where there are none. Written and read by `hooks`.
    pub hooks: Option<Box<RequestHooks>>,
    /// The attempts for `/admin/v1/explain`. Written by `admission`, `attempts`, `peer` and `hedge`;
    /// taken by `logging`.
    pub timeline: Timeline,
    /// Its deadlines. Entered by `early`; set by `peer`, `pacing` and `ending`; reset by `attempts`
    /// and `failure`; dropped by `logging`.
    pub watch: Option<watch::Entry>,
    /// The wrapper of the client's session while a head is deferred, or a piece of the answer is
    /// sent by time. Put in by `request`, `response`, `heartbeat` and `ending`; taken out by `passing`,
    /// `failure` and `logging`.
    pub deferred: Option<DeferredHead>,
    /// How it ended. The first call of [`Self::conclude`] decides; later ones change nothing.
    end: Option<End>,
    /// Its place among the requests in flight. Taken by `early`, given back by `logging`.
    pub in_flight: Option<InFlight>,
    /// Its place on the client's connection. Written by `early`, read by `receive`.
    pub connection: Option<ActiveRequest>,
}

/// A place among the requests in flight; given back when dropped, also if the request's task
/// panics.
pub struct InFlight(Arc<Carry>);

impl InFlight {
    /// Takes a place.
    pub fn new(carry: &Arc<Carry>) -> Self {
        carry.metrics.in_flight.inc();
        Self(Arc::clone(carry))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.metrics.in_flight.dec();
    }
}

/// What is needed to decide about attempts, borrowed from one request.
pub struct Attempts<'a> {
    /// The policy.
    pub policy: &'a mut RetryPolicy,
    /// The present attempt, or the last.
    pub attempt: &'a mut Option<Attempt>,
    /// The attempts so far.
    pub timeline: &'a mut Timeline,
    /// The rest of the request.
    pub view: RoutingView<'a>,
}

impl Ctx {
    /// A request that has just arrived.
    pub fn new(snapshot: Arc<Snapshot>, carry: Arc<Carry>) -> Self {
        Self {
            snapshot,
            carry,
            request: Request::new(),
            caller: Caller::default(),
            limits: RequestLimits::default(),
            body: Body::default(),
            route: None,
            retry: RetryPolicy::default(),
            attempt: None,
            hooks: None,
            timeline: Timeline::default(),
            watch: None,
            deferred: None,
            end: None,
            in_flight: None,
            connection: None,
        }
    }

    /// The deadline that lies `wait` from now.
    pub fn after(wait: Option<Duration>) -> Option<Instant> {
        wait.map(|wait| Instant::now() + wait)
    }

    /// The request ends so. What was concluded first stays.
    pub fn conclude(&mut self, end: End) {
        self.end.get_or_insert(end);
    }

    /// How it ended; `None` while it has not, or if a backend's answer ends it.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// A piece of an answer has gone to the client.
    pub fn has_begun(&self) -> bool {
        self.attempt.as_ref().is_some_and(|attempt| attempt.answer.begun)
    }

    /// The parts that decide about attempts.
    pub fn attempts<'a>(&'a mut self, session: &'a Session) -> Attempts<'a> {
        Attempts {
            policy: &mut self.retry,
            attempt: &mut self.attempt,
            timeline: &mut self.timeline,
            view: RoutingView {
                snapshot: &self.snapshot,
                carry: &self.carry,
                route: self.route.as_deref(),
                request: &self.request,
                caller: &self.caller,
                body: &self.body,
                headers: &session.req_header().headers,
            },
        }
    }
}
