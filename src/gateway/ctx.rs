//! What is known of one request. Closed: a new feature brings an object of its own and adds one
//! field here, with its writer and readers named.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use http::HeaderValue;

use super::{body_in::Body, stream::Answer};
use crate::{
    balance::Endpoint,
    base::{Fault, Rejection, RequestId},
    dialect::Route,
    runtime::{Carry, Snapshot, watch},
};

/// One request.
pub struct Ctx {
    /// The configuration it was begun with, and keeps.
    pub snapshot: Arc<Snapshot>,
    /// What all requests share.
    pub carry: Arc<Carry>,
    /// What the client asked. Written by `early` and `request`, read by all later phases.
    pub call: Call,
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
    /// The caller's key.
    pub key: Option<CallerKey>,
    /// What stands at the path; `None` until it was looked up, or if there is nothing.
    pub route: Option<&'static Route>,
    /// The model asked for.
    pub model: Option<String>,
    /// A stream was asked for.
    pub stream: bool,
    /// What `stream_options` of the client say: `include_usage`, and `continuous_usage_stats`.
    pub usage_asked: Option<(Option<bool>, bool)>,
}

/// The caller's key, in the header field in which it came: shared, not copied.
pub struct CallerKey {
    /// The field.
    pub field: HeaderValue,
    /// Whether it reads `Bearer KEY`, and not just `KEY`.
    pub bearer: bool,
}

impl CallerKey {
    /// The key itself, for records and for comparing.
    pub fn expose(&self) -> &str {
        let text = self.field.to_str().unwrap_or_default();
        if self.bearer { text[BEARER.len()..].trim() } else { text }
    }
}

/// How the value of `Authorization` begins.
pub const BEARER: &str = "bearer ";

/// Where the request went.
#[derive(Default)]
pub struct Way {
    /// The pool that serves the model.
    pub pool: Option<usize>,
    /// The backend of the present attempt, or of the last.
    pub endpoint: Option<Arc<Endpoint>>,
    /// Ids of backends that could not be reached.
    pub tried: Vec<u32>,
    /// The next attempt goes to the same backend on a connection of its own.
    pub fresh: bool,
    /// Attempts after the first.
    pub retries: u32,
    /// Its deadlines; `None` until there is a backend to wait for.
    pub watch: Option<watch::Entry>,
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
                key: None,
                route: None,
                model: None,
                stream: false,
                usage_asked: None,
            },
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
