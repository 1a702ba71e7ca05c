//! What is known of one request. Closed: a new feature brings an object of its own and adds one
//! field here, with its writer and readers named.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    body_in::Body, held::Home, limits::Limits, story::Story, stream::Answer, tries::Tries,
};
use crate::{
    auth::{Credential, IdentifiedKey},
    balance::{Choice, Endpoint, Lease},
    base::{Fault, Principal, Rejection, RequestId},
    dialect::Route,
    route,
    runtime::{Carry, Snapshot, connections::ActiveRequest, watch},
};

/// One request.
pub struct Ctx {
    /// The configuration it was begun with, and keeps.
    pub snapshot: Arc<Snapshot>,
    /// What all requests share.
    pub carry: Arc<Carry>,
    /// What the client asked. Written by `early` and `request`, read by all later phases.
    pub call: Call,
    /// Who asks. Written by `early` and `policy`, read by `outbound`, `logging`.
    pub who: Who,
    /// What it may take. Written by `limits`, read by `answer`, `response`, `outbound`.
    pub limits: Limits,
    /// The body on its way to the backend. Written by `body_in`, read by `outbound`; emptied by
    /// `stream` when it can no longer be needed.
    pub body: Body,
    /// Where it went. Written by `peer` and `failure`, read by `outbound`, `logging`.
    pub way: Way,
    /// What came back. Written by `response` and `stream`, read by `failure`, `logging`.
    pub answer: Answer,
    /// How it ended, if not well. Written by `request` and `failure`, read by `logging`.
    pub end: End,
}

/// What the client asked.
pub struct Call {
    /// When it arrived.
    pub arrived: Instant,
    /// Its id.
    pub id: RequestId,
    /// The client's address.
    pub client: Option<IpAddr>,
    /// What stands at the path; `None` until it was looked up, or if there is nothing.
    pub route: Option<&'static Route>,
    /// The model asked for.
    pub model: Option<String>,
    /// A stream was asked for.
    pub stream: bool,
    /// What `stream_options` of the client say: `include_usage`, and `continuous_usage_stats`.
    pub usage_asked: (bool, bool),
}

/// Who asks.
#[derive(Default)]
pub struct Who {
    /// The key that was shown.
    pub shown: Option<Credential>,
    /// Whose key it is, before anything was decided.
    pub found: Option<IdentifiedKey>,
    /// The caller, as far as it is known; `None` where no key is needed.
    pub principal: Option<Arc<Principal>>,
}

impl Who {
    /// The caller's key, for records and logs.
    pub fn key(&self) -> Option<&str> {
        self.shown.as_ref().map(Credential::expose)
    }
}

/// Where the request went.
#[derive(Default)]
pub struct Way {
    /// The ways to the model.
    pub route: Option<Arc<route::Route>>,
    /// The backend of the present try, or of the last.
    pub endpoint: Option<Arc<Endpoint>>,
    /// Its place at that backend.
    lease: Option<Lease>,
    /// What was tried, and may be.
    pub tries: Tries,
    /// What is told of it afterwards.
    pub story: Story,
    /// The next attempt goes to the same backend on a connection of its own.
    pub fresh: bool,
    /// Attempts after the first.
    pub retries: u32,
    /// Its deadlines; `None` until there is a backend to wait for.
    pub watch: Option<watch::Entry>,
    /// Where the client's own session is while heads are held back.
    pub held: Option<Home>,
}

impl Way {
    /// The next try goes to this backend.
    pub fn choose(&mut self, choice: Choice) {
        self.lease = Some(choice.lease);
        self.endpoint = Some(choice.endpoint);
    }

    /// Takes the present try away, to be put back with [`Self::choose`] or given up.
    pub fn put_aside(&mut self) -> Option<Choice> {
        let lease = self.lease.take()?;
        Some(Choice { endpoint: self.endpoint.clone()?, lease })
    }

    /// Its place at the present backend.
    pub fn lease(&mut self) -> Option<&mut Lease> {
        self.lease.as_mut()
    }

    /// The first token of a stream has come at `now`, or the head of another answer.
    pub fn first_token(&mut self, now: Instant, stream: bool) {
        if let (Some(lease), Some(since)) = (&mut self.lease, self.tries.since) {
            lease.first_token(now.saturating_duration_since(since), stream);
        }
    }

    /// Gives its place back.
    pub fn leave(&mut self) {
        self.lease = None;
        self.watch = None;
    }
}

/// How a request ended.
#[derive(Default)]
pub struct End {
    /// It was refused by the gateway.
    pub rejection: Option<Rejection>,
    /// Something broke.
    pub fault: Option<Fault>,
    /// Status of an answer made by the gateway.
    pub status: Option<u16>,
    /// Its place among the requests in flight.
    pub in_flight: Option<InFlight>,
    /// Its place on the client's connection. Written by `early`.
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

impl Ctx {
    /// A request that has just arrived.
    pub fn new(snapshot: Arc<Snapshot>, carry: Arc<Carry>) -> Self {
        Self {
            snapshot,
            carry,
            call: Call {
                arrived: Instant::now(),
                id: RequestId::from_random(rand::random()),
                client: None,
                route: None,
                model: None,
                stream: false,
                usage_asked: (false, false),
            },
            who: Who::default(),
            limits: Limits::default(),
            body: Body::default(),
            way: Way::default(),
            answer: Answer::default(),
            end: End::default(),
        }
    }

    /// The deadline that lies `wait` from now.
    pub fn after(wait: Option<Duration>) -> Option<Instant> {
        wait.map(|wait| Instant::now() + wait)
    }
}
