//! Clients' connections: how many there are, which phase each is in, and the deadline of that phase.
//!
//! A connection costs a file descriptor and memory even if it is silent. So every phase has a time
//! limit, except a request in flight, which has its own limits. `listener` reports received bytes and
//! enforces the deadlines; `gateway` reports when requests begin and end.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    task::Waker,
    time::{Duration, Instant},
};

use futures::task::AtomicWaker;
use tokio::sync::watch;

use crate::{
    base::{ip, lock},
    config::Plan,
    telemetry::ConnectionMetrics,
};

/// No deadline.
pub const NEVER: u64 = u64::MAX;

/// How long a connection that is ending may stay open: the last answers are written, and what the client
/// still sends is read, because closing with unread data would reset the connection and destroy them.
const CLOSING_TIME: Duration = Duration::from_secs(5);

/// The idle timeout while more than three quarters of all connection slots are taken.
const IDLE_UNDER_PRESSURE: Duration = Duration::from_secs(5);

/// The limits of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Timeout of a TLS handshake, an HTTP/2 preface, or the head of a request.
    pub head: Option<Duration>,
    /// Timeout between requests.
    pub idle: Option<Duration>,
    /// Timeout of a blocked write.
    pub write: Option<Duration>,
    /// The largest head of a request, in bytes on the wire.
    pub head_size: usize,
}

impl ConnectionLimits {
    /// Added to `server.max_header_size`, which does not count method, version, white space and the empty
    /// line.
    const HEAD_ROOM: usize = 4096;

    pub fn of(plan: &Plan) -> Self {
        Self {
            head: plan.timeouts.client_head,
            idle: plan.timeouts.client_idle,
            write: plan.timeouts.client_write,
            head_size: plan.max_header_size + Self::HEAD_ROOM,
        }
    }
}

/// The most connections; 0 means no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxConnections {
    pub total: usize,
    /// From one address, or from one /64 network of IPv6.
    pub per_address: u32,
}

/// The limit because of which a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReachedLimit {
    Total,
    Address,
}

impl ReachedLimit {
    /// The `reason` label of `llmproxy_connections_refused_total`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Address => "address",
        }
    }
}

/// All connections of clients.
pub struct Connections {
    start: Instant,
    open: AtomicUsize,
    /// The limit of the configuration in force; 0 means none.
    total: AtomicUsize,
    addresses: Mutex<HashMap<IpAddr, u32>>,
    metrics: ConnectionMetrics,
}

impl Connections {
    pub fn new(metrics: ConnectionMetrics) -> Self {
        Self {
            start: Instant::now(),
            open: AtomicUsize::new(0),
            total: AtomicUsize::new(0),
            addresses: Mutex::default(),
            metrics,
        }
    }

    /// Takes a slot for a connection. `address` is `None` for connections without a limit by address.
    ///
    /// # Errors
    /// Which limit is reached.
    pub fn admit(
        self: &Arc<Self>,
        address: Option<IpAddr>,
        max: MaxConnections,
        limits: ConnectionLimits,
    ) -> Result<Arc<ClientConnection>, ReachedLimit> {
        self.total.store(max.total, Ordering::Relaxed);
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        let mut slot = Slot { all: Arc::clone(self), address: None };
        self.metrics.open.inc();
        if max.total != 0 && before >= max.total {
            return Err(self.refuse(ReachedLimit::Total));
        }
        if let Some(address) = address.filter(|_| max.per_address != 0) {
            let address = ip::network(address);
            let mut addresses = lock(&self.addresses);
            let count = addresses.entry(address).or_default();
            if *count >= max.per_address {
                return Err(self.refuse(ReachedLimit::Address));
            }
            *count += 1;
            drop(addresses);
            slot.address = Some(address);
        }
        let connection = ClientConnection {
            limits: Mutex::new(limits),
            slot,
            phase: AtomicU8::new(Phase::Opening as u8),
            deadline: AtomicU64::new(NEVER),
            write_deadline: AtomicU64::new(NEVER),
            write_failed: AtomicBool::new(false),
            head_timed_out: AtomicBool::new(false),
            bad_chunks: AtomicBool::new(false),
            watched: AtomicU32::new(0),
            chunked: AtomicU32::new(0),
            requests: AtomicU32::new(0),
            head: AtomicUsize::new(0),
            http2: OnceLock::new(),
            driver: AtomicWaker::new(),
        };
        connection.set_deadline(limits.head);
        Ok(Arc::new(connection))
    }

    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    fn is_crowded(&self) -> bool {
        let total = self.total.load(Ordering::Relaxed);
        total != 0 && self.open() > total - total.div_ceil(4)
    }

    fn refuse(&self, limit: ReachedLimit) -> ReachedLimit {
        self.metrics.refused.with_label_values(&[limit.word()]).inc();
        limit
    }

    fn millis(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_millis().try_into().unwrap_or(NEVER - 1)
    }
}

/// A slot of a connection; released when dropped.
struct Slot {
    all: Arc<Connections>,
    address: Option<IpAddr>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.all.open.fetch_sub(1, Ordering::Relaxed);
        self.all.metrics.open.dec();
        let Some(address) = self.address else { return };
        let mut addresses = lock(&self.all.addresses);
        if let Some(count) = addresses.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&address);
            }
        }
    }
}

/// What a connection is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// The first bytes, or the end of the TLS handshake.
    Opening,
    /// The rest of a request's head, or of an HTTP/2 preface.
    Head,
    /// The end of the requests in flight.
    Busy,
    /// The next request.
    Idle,
    /// Its end.
    Ending,
}

/// What to do with a connection whose deadline has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadlineAction {
    Close,
    /// Poll it again: its next read or write sees what has happened.
    Continue,
}

/// Why the head of a request never becomes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadFailure {
    Timeout,
    TooLarge,
}

/// One connection of a client.
pub struct ClientConnection {
    limits: Mutex<ConnectionLimits>,
    slot: Slot,
    phase: AtomicU8,
    /// In milliseconds from the start of the process.
    deadline: AtomicU64,
    /// Likewise; of a blocked write.
    write_deadline: AtomicU64,
    write_failed: AtomicBool,
    head_timed_out: AtomicBool,
    bad_chunks: AtomicBool,
    /// Requests with chunked bodies whose chunk lines are watched, and all with chunked bodies.
    watched: AtomicU32,
    chunked: AtomicU32,
    requests: AtomicU32,
    /// Bytes of the head that is being received.
    head: AtomicUsize,
    /// Set for HTTP/2; `true` makes Pingora send GOAWAY.
    http2: OnceLock<watch::Sender<bool>>,
    /// The task that closes the connection when its deadline has passed.
    driver: AtomicWaker,
}

impl ClientConnection {
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Opening,
            1 => Phase::Head,
            2 => Phase::Busy,
            3 => Phase::Idle,
            _ => Phase::Ending,
        }
    }

    /// Sets the limits of the configuration in force; they apply from the next phase on.
    pub fn set_limits(&self, limits: ConnectionLimits) {
        *lock(&self.limits) = limits;
    }

    fn limits(&self) -> ConnectionLimits {
        *lock(&self.limits)
    }

    /// The present idle timeout.
    fn idle(&self) -> Option<Duration> {
        let idle = self.limits().idle;
        idle.map(
            |idle| if self.slot.all.is_crowded() { idle.min(IDLE_UNDER_PRESSURE) } else { idle },
        )
    }

    fn enter(&self, phase: Phase, wait: Option<Duration>) {
        self.phase.store(phase as u8, Ordering::Release);
        self.set_deadline(wait);
    }

    fn set_deadline(&self, wait: Option<Duration>) {
        let due = wait.map_or(NEVER, |wait| self.slot.all.millis(Instant::now() + wait));
        self.deadline.store(due, Ordering::Release);
    }

    /// Counts received bytes of a head. Must not be called while requests are in flight.
    pub fn received(&self, bytes: usize) {
        if matches!(self.phase(), Phase::Opening | Phase::Idle) {
            self.head.store(0, Ordering::Relaxed);
            self.enter(Phase::Head, self.limits().head);
        }
        self.head.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether to give up on the head of a request. Call it before a read, when the bytes so far are
    /// known not to be a whole head.
    pub fn head_failure(&self) -> Option<HeadFailure> {
        if self.head_timed_out.load(Ordering::Acquire) {
            return Some(HeadFailure::Timeout);
        }
        if self.phase() != Phase::Head || self.head_bytes() < self.limits().head_size {
            return None;
        }
        self.slot.all.metrics.closed.with_label_values(&["head_size"]).inc();
        Some(HeadFailure::TooLarge)
    }

    /// Bytes of the head that is being received.
    pub fn head_bytes(&self) -> usize {
        self.head.load(Ordering::Relaxed)
    }

    /// Notes that the chunk lines of a body are watched.
    pub fn watch_chunks(&self) {
        self.watched.fetch_add(1, Ordering::Release);
    }

    /// Notes a chunk line with a wrong ending: nothing more is read.
    pub fn set_bad_chunks(&self) {
        self.bad_chunks.store(true, Ordering::Release);
    }

    pub fn has_bad_chunks(&self) -> bool {
        self.bad_chunks.load(Ordering::Acquire)
    }

    /// Switches to HTTP/2. The sender ends it gracefully.
    pub fn set_http2(&self, goaway: watch::Sender<bool>) {
        self.http2.set(goaway).ok();
    }

    /// Notes that the preface of HTTP/2 is complete.
    pub fn ready(&self) {
        self.enter(Phase::Idle, self.idle());
    }

    /// Begins a request. The connection has no deadline until its last request has ended.
    pub fn begin(self: &Arc<Self>) -> ActiveRequest {
        self.requests.fetch_add(1, Ordering::AcqRel);
        if self.phase() == Phase::Ending {
            self.set_deadline(None);
        } else {
            self.enter(Phase::Busy, None);
        }
        ActiveRequest(Arc::clone(self))
    }

    fn end(&self) {
        if self.requests.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        if self.phase() == Phase::Ending {
            self.set_deadline(Some(CLOSING_TIME));
        } else {
            self.enter(Phase::Idle, self.idle());
        }
        // Another thread may have begun a request meanwhile.
        if self.requests.load(Ordering::Acquire) > 0 {
            self.set_deadline(None);
        }
        // With HTTP/2 this is not the connection's own task.
        self.driver.wake();
    }

    /// Ends the connection as soon as its requests have ended.
    pub fn finish(&self) {
        self.enter(Phase::Ending, Some(CLOSING_TIME));
    }

    /// Ends the connection at once: the client has closed its side.
    pub fn close(&self) {
        self.phase.store(Phase::Ending as u8, Ordering::Release);
        self.deadline.store(0, Ordering::Release);
    }

    /// Notes that a write is blocked (`true`) or has made progress.
    pub fn set_blocked(&self, blocked: bool) {
        let known = self.write_deadline.load(Ordering::Relaxed) != NEVER;
        if blocked && !known {
            if let Some(wait) = self.limits().write {
                let due = self.slot.all.millis(Instant::now() + wait);
                self.write_deadline.store(due, Ordering::Release);
            }
        } else if !blocked && known {
            self.write_deadline.store(NEVER, Ordering::Release);
        }
    }

    /// Whether a write was blocked for too long.
    pub fn write_failed(&self) -> bool {
        self.write_failed.load(Ordering::Acquire)
    }

    /// The next deadline.
    pub fn due(&self) -> Option<Instant> {
        let due = self.deadline.load(Ordering::Acquire);
        let due = due.min(self.write_deadline.load(Ordering::Acquire));
        (due != NEVER).then(|| self.slot.all.start + Duration::from_millis(due))
    }

    /// Registers the task to wake when the deadline has changed.
    pub fn register(&self, waker: &Waker) {
        self.driver.register(waker);
    }

    /// What to do if a deadline has passed.
    pub fn overdue(&self) -> Option<DeadlineAction> {
        let now = self.slot.all.millis(Instant::now());
        let closed = &self.slot.all.metrics.closed;
        if self.write_deadline.load(Ordering::Acquire) <= now {
            // The request, or the HTTP/2 connection, sees it at its next write.
            closed.with_label_values(&["write"]).inc();
            self.write_failed.store(true, Ordering::Release);
            self.write_deadline.store(NEVER, Ordering::Release);
            if self.requests.load(Ordering::Acquire) == 0 {
                return Some(DeadlineAction::Close);
            }
            return Some(DeadlineAction::Continue);
        }
        if self.deadline.load(Ordering::Acquire) > now {
            return None;
        }
        let http2 = self.http2.get();
        Some(match self.phase() {
            // Requests that arrived while the connection was ending are served.
            Phase::Ending if self.requests.load(Ordering::Acquire) > 0 => {
                self.set_deadline(None);
                DeadlineAction::Continue
            }
            Phase::Ending => DeadlineAction::Close,
            // A request began at the same moment.
            Phase::Busy => DeadlineAction::Continue,
            Phase::Opening => {
                closed.with_label_values(&["opening"]).inc();
                DeadlineAction::Close
            }
            Phase::Head => {
                closed.with_label_values(&["head"]).inc();
                self.finish();
                self.head_timed_out.store(true, Ordering::Release);
                if http2.is_some() { DeadlineAction::Close } else { DeadlineAction::Continue }
            }
            Phase::Idle => {
                closed.with_label_values(&["idle"]).inc();
                let Some(goaway) = http2 else { return Some(DeadlineAction::Close) };
                self.finish();
                goaway.send_replace(true);
                DeadlineAction::Continue
            }
        })
    }
}

/// A request in flight; dropping it ends the request.
pub struct ActiveRequest(Arc<ClientConnection>);

impl ActiveRequest {
    /// Counts a request with a chunked body; whether its chunk lines are watched. They are not if the
    /// request arrived together with the one before it.
    pub fn is_watched(&self) -> bool {
        self.0.chunked.fetch_add(1, Ordering::Relaxed) < self.0.watched.load(Ordering::Acquire)
    }

    /// Whether a chunk line of its body had a wrong ending.
    pub fn has_bad_chunks(&self) -> bool {
        self.0.has_bad_chunks()
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.end();
    }
}

#[cfg(test)]
mod tests;
