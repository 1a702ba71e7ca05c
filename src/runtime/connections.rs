//! Clients' connections: how many there are, in which state each is, and until when it may stay
//! in it.
//!
//! A connection costs a file descriptor and memory whether anything comes over it or not. So
//! every state has a time limit, apart from a request under way, which has limits of its own.
//! `listener` tells when bytes come and enforces the limits; `gateway` tells when requests begin
//! and end.

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

/// How long a connection may live on that has been told to end: the last answers are written, and
/// what the client still sends is read, so that closing does not destroy them.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How long connections are kept idle while three quarters of all places are taken.
const IDLE_UNDER_PRESSURE: Duration = Duration::from_secs(5);

/// Limits of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// For a TLS handshake, an HTTP/2 preface, or the head of a request.
    pub head: Option<Duration>,
    /// Between requests.
    pub idle: Option<Duration>,
    /// For the client to take some of what is sent to it.
    pub write: Option<Duration>,
    /// Bytes of a request's head as it comes over the wire.
    pub head_size: usize,
}

impl ConnectionLimits {
    /// What is added to `server.max_header_size` for what is not counted there: method, version,
    /// white space, and the empty line.
    const HEAD_ROOM: usize = 4096;

    /// Those of a configuration.
    pub fn of(plan: &Plan) -> Self {
        Self {
            head: plan.timeouts.client_head,
            idle: plan.timeouts.client_idle,
            write: plan.timeouts.client_write,
            head_size: plan.max_header_size + Self::HEAD_ROOM,
        }
    }
}

/// How many connections there may be; 0 means any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// In total.
    pub total: usize,
    /// From one address, or from one /64 network of IPv6.
    pub per_address: u32,
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// There are as many as there may be.
    Total,
    /// The address has as many as it may have.
    Address,
}

impl Full {
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
    /// How many there may be, by the configuration in force; 0 means any number.
    total: AtomicUsize,
    addresses: Mutex<HashMap<IpAddr, u32>>,
    metrics: ConnectionMetrics,
}

impl Connections {
    /// Starts with none.
    pub fn new(metrics: ConnectionMetrics) -> Self {
        Self {
            start: Instant::now(),
            open: AtomicUsize::new(0),
            total: AtomicUsize::new(0),
            addresses: Mutex::default(),
            metrics,
        }
    }

    /// Takes a place for a connection. `address` is `None` for those that are not limited by
    /// address.
    ///
    /// # Errors
    /// Which limit is reached.
    pub fn admit(
        self: &Arc<Self>,
        address: Option<IpAddr>,
        places: Places,
        limits: ConnectionLimits,
    ) -> Result<Arc<ClientConnection>, Full> {
        self.total.store(places.total, Ordering::Relaxed);
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        let mut place = Place { all: Arc::clone(self), address: None };
        self.metrics.open.inc();
        if places.total != 0 && before >= places.total {
            return Err(self.refuse(Full::Total));
        }
        if let Some(address) = address.filter(|_| places.per_address != 0) {
            let address = ip::network(address);
            let mut addresses = lock(&self.addresses);
            let count = addresses.entry(address).or_default();
            if *count >= places.per_address {
                return Err(self.refuse(Full::Address));
            }
            *count += 1;
            drop(addresses);
            place.address = Some(address);
        }
        let connection = ClientConnection {
            limits: Mutex::new(limits),
            place,
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

    /// How many there are.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    fn crowded(&self) -> bool {
        let total = self.total.load(Ordering::Relaxed);
        total != 0 && self.open() > total - total.div_ceil(4)
    }

    fn refuse(&self, full: Full) -> Full {
        self.metrics.refused.with_label_values(&[full.word()]).inc();
        full
    }

    fn millis(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_millis().try_into().unwrap_or(NEVER - 1)
    }
}

/// A place among the connections; given back when dropped.
struct Place {
    all: Arc<Connections>,
    address: Option<IpAddr>,
}

impl Drop for Place {
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

/// What a connection is waited on for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Nothing has come yet, or TLS is being negotiated.
    Opening,
    /// The beginning of a request has come, or of an HTTP/2 preface.
    Head,
    /// Requests are under way.
    Busy,
    /// Between requests.
    Idle,
    /// It has been told to end.
    Ending,
}

/// What to do with a connection whose deadline has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    /// Close it.
    Close,
    /// Call it again: its next read or write learns what has happened.
    Continue,
}

/// Why the head of a request never becomes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadFailure {
    /// It took too long.
    Timeout,
    /// It is too large.
    TooLarge,
}

/// One connection of a client.
pub struct ClientConnection {
    limits: Mutex<ConnectionLimits>,
    place: Place,
    phase: AtomicU8,
    /// Milliseconds from the start of the process.
    deadline: AtomicU64,
    /// Likewise; for a write that is blocked.
    write_deadline: AtomicU64,
    write_failed: AtomicBool,
    head_timed_out: AtomicBool,
    bad_chunks: AtomicBool,
    /// Requests with chunked bodies whose lines are watched, and those that have come.
    watched: AtomicU32,
    chunked: AtomicU32,
    requests: AtomicU32,
    /// Bytes of the head at hand.
    head: AtomicUsize,
    /// Set for HTTP/2; `true` makes Pingora send GOAWAY.
    http2: OnceLock<watch::Sender<bool>>,
    /// The task that closes the connection when its deadline has passed.
    driver: AtomicWaker,
}

impl ClientConnection {
    /// What it is waited on for.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Opening,
            1 => Phase::Head,
            2 => Phase::Busy,
            3 => Phase::Idle,
            _ => Phase::Ending,
        }
    }

    /// Limits of the configuration in force; they hold from the next wait on.
    pub fn set_limits(&self, limits: ConnectionLimits) {
        *lock(&self.limits) = limits;
    }

    fn limits(&self) -> ConnectionLimits {
        *lock(&self.limits)
    }

    /// How long it may be idle now.
    fn idle(&self) -> Option<Duration> {
        let idle = self.limits().idle;
        idle.map(|idle| if self.place.all.crowded() { idle.min(IDLE_UNDER_PRESSURE) } else { idle })
    }

    fn enter(&self, phase: Phase, wait: Option<Duration>) {
        self.phase.store(phase as u8, Ordering::Release);
        self.set_deadline(wait);
    }

    fn set_deadline(&self, wait: Option<Duration>) {
        let due = wait.map_or(NEVER, |wait| self.place.all.millis(Instant::now() + wait));
        self.deadline.store(due, Ordering::Release);
    }

    /// Bytes have come; not to be called while requests are under way.
    pub fn received(&self, bytes: usize) {
        if matches!(self.phase(), Phase::Opening | Phase::Idle) {
            self.head.store(0, Ordering::Relaxed);
            self.enter(Phase::Head, self.limits().head);
        }
        self.head.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether to go on reading the head of a request. To be asked before a read: what has come
    /// so far is known not to be a whole head then.
    pub fn head_failure(&self) -> Option<HeadFailure> {
        if self.head_timed_out.load(Ordering::Acquire) {
            return Some(HeadFailure::Timeout);
        }
        if self.phase() != Phase::Head || self.head_bytes() < self.limits().head_size {
            return None;
        }
        self.place.all.metrics.closed.with_label_values(&["head_size"]).inc();
        Some(HeadFailure::TooLarge)
    }

    /// Bytes of the head that is being received.
    pub fn head_bytes(&self) -> usize {
        self.head.load(Ordering::Relaxed)
    }

    /// The lines of a chunked body are watched from here on.
    pub fn watch_chunks(&self) {
        self.watched.fetch_add(1, Ordering::Release);
    }

    /// The lines of a chunked body do not end as they must: nothing more is read.
    pub fn set_bad_chunks(&self) {
        self.bad_chunks.store(true, Ordering::Release);
    }

    /// Whether that is so.
    pub fn has_bad_chunks(&self) -> bool {
        self.bad_chunks.load(Ordering::Acquire)
    }

    /// HTTP/2 is spoken from here on. The sender makes it end gracefully.
    pub fn set_http2(&self, goaway: watch::Sender<bool>) {
        self.http2.set(goaway).ok();
    }

    /// The preface of HTTP/2 is complete.
    pub fn ready(&self) {
        self.enter(Phase::Idle, self.idle());
    }

    /// A request begins. The connection has no deadline until the last one has ended.
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
            self.set_deadline(Some(LAST_WORDS));
        } else {
            self.enter(Phase::Idle, self.idle());
        }
        // Another request may have begun meanwhile, on another thread.
        if self.requests.load(Ordering::Acquire) > 0 {
            self.set_deadline(None);
        }
        // By HTTP/2 this is another task than the connection's.
        self.driver.wake();
    }

    /// The connection ends as soon as what is under way on it has ended.
    pub fn finish(&self) {
        self.enter(Phase::Ending, Some(LAST_WORDS));
    }

    /// The client has closed its side: nothing is to be waited for.
    pub fn close(&self) {
        self.phase.store(Phase::Ending as u8, Ordering::Release);
        self.deadline.store(0, Ordering::Release);
    }

    /// A write is blocked (`true`), or has made progress.
    pub fn set_blocked(&self, blocked: bool) {
        let known = self.write_deadline.load(Ordering::Relaxed) != NEVER;
        if blocked && !known {
            if let Some(wait) = self.limits().write {
                let due = self.place.all.millis(Instant::now() + wait);
                self.write_deadline.store(due, Ordering::Release);
            }
        } else if !blocked && known {
            self.write_deadline.store(NEVER, Ordering::Release);
        }
    }

    /// The client has taken nothing for too long.
    pub fn write_failed(&self) -> bool {
        self.write_failed.load(Ordering::Acquire)
    }

    /// When it has to be looked at again, or `None`.
    pub fn due(&self) -> Option<Instant> {
        let due = self.deadline.load(Ordering::Acquire);
        let due = due.min(self.write_deadline.load(Ordering::Acquire));
        (due != NEVER).then(|| self.place.all.start + Duration::from_millis(due))
    }

    /// Who is to be woken when the deadline has changed.
    pub fn register(&self, waker: &Waker) {
        self.driver.register(waker);
    }

    /// What to do, if a deadline has passed.
    pub fn overdue(&self) -> Option<Overdue> {
        let now = self.place.all.millis(Instant::now());
        let closed = &self.place.all.metrics.closed;
        if self.write_deadline.load(Ordering::Acquire) <= now {
            // The request, or the connection of HTTP/2, learns it from its write.
            closed.with_label_values(&["write"]).inc();
            self.write_failed.store(true, Ordering::Release);
            self.write_deadline.store(NEVER, Ordering::Release);
            if self.requests.load(Ordering::Acquire) == 0 {
                return Some(Overdue::Close);
            }
            return Some(Overdue::Continue);
        }
        if self.deadline.load(Ordering::Acquire) > now {
            return None;
        }
        let http2 = self.http2.get();
        Some(match self.phase() {
            // Requests that crossed with the end are served.
            Phase::Ending if self.requests.load(Ordering::Acquire) > 0 => {
                self.set_deadline(None);
                Overdue::Continue
            }
            Phase::Ending => Overdue::Close,
            // A request began at the same moment.
            Phase::Busy => Overdue::Continue,
            Phase::Opening => {
                closed.with_label_values(&["opening"]).inc();
                Overdue::Close
            }
            Phase::Head => {
                closed.with_label_values(&["head"]).inc();
                self.finish();
                self.head_timed_out.store(true, Ordering::Release);
                if http2.is_some() { Overdue::Close } else { Overdue::Continue }
            }
            Phase::Idle => {
                closed.with_label_values(&["idle"]).inc();
                let Some(goaway) = http2 else { return Some(Overdue::Close) };
                self.finish();
                goaway.send_replace(true);
                Overdue::Continue
            }
        })
    }
}

/// A request under way; its end is told when this is dropped.
pub struct ActiveRequest(Arc<ClientConnection>);

impl ActiveRequest {
    /// Its body is chunked. Whether the lines of the chunks are watched: those of one that came together
    /// with the request before it are not.
    pub fn is_watched(&self) -> bool {
        self.0.chunked.fetch_add(1, Ordering::Relaxed) < self.0.watched.load(Ordering::Acquire)
    }

    /// Whether the lines of its chunked body do not end as they must.
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
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    const LIMITS: ConnectionLimits = ConnectionLimits {
        head: Some(Duration::from_secs(1000)),
        idle: Some(Duration::from_secs(3000)),
        write: Some(Duration::from_secs(2000)),
        head_size: 100,
    };

    fn connections() -> (Arc<Connections>, Metrics) {
        let metrics = Metrics::new();
        (Arc::new(Connections::new(metrics.connections.clone())), metrics)
    }

    fn seconds(connection: &ClientConnection) -> Option<u64> {
        let left = connection.due()?.saturating_duration_since(Instant::now());
        // To the nearest hundred: the clock runs.
        Some((left.as_secs() + 50) / 100 * 100)
    }

    #[test]
    fn each_phase_has_its_deadline() {
        let (all, _) = connections();
        let places = Places { total: 0, per_address: 0 };
        let connection = all.admit(None, places, LIMITS).unwrap();
        assert_eq!((connection.phase(), seconds(&connection)), (Phase::Opening, Some(1000)));
        connection.received(60);
        assert_eq!((connection.phase(), seconds(&connection)), (Phase::Head, Some(1000)));
        assert_eq!(connection.head_failure(), None);
        connection.received(60);
        assert_eq!(connection.head_failure(), Some(HeadFailure::TooLarge));
        let (first, second) = (connection.begin(), connection.begin());
        assert_eq!((connection.phase(), connection.due()), (Phase::Busy, None));
        connection.set_blocked(true);
        assert_eq!(seconds(&connection), Some(2000));
        connection.set_blocked(false);
        drop(first);
        assert_eq!((connection.phase(), connection.due()), (Phase::Busy, None));
        drop(second);
        assert_eq!((connection.phase(), seconds(&connection)), (Phase::Idle, Some(3000)));
        // The next head is counted anew.
        connection.received(60);
        assert_eq!((connection.phase(), connection.head_failure()), (Phase::Head, None));
        connection.close();
        assert_eq!(connection.overdue(), Some(Overdue::Close));
    }

    #[test]
    fn places_are_given_back() {
        let (all, metrics) = connections();
        let places = Places { total: 3, per_address: 2 };
        let admit = |address: &str| all.admit(Some(address.parse().unwrap()), places, LIMITS);
        let first = admit("192.0.2.1").unwrap();
        let second = admit("::ffff:192.0.2.1").unwrap();
        assert_eq!(admit("192.0.2.1").err(), Some(Full::Address));
        let third = admit("192.0.2.2").unwrap();
        assert_eq!(admit("192.0.2.3").err(), Some(Full::Total));
        assert_eq!((all.open(), metrics.connections.open.get()), (3, 3));
        drop((first, third));
        assert!(admit("192.0.2.1").is_ok());
        drop(second);
        assert_eq!((all.open(), metrics.connections.open.get()), (0, 0));
        assert!(lock(&all.addresses).is_empty());
        for (reason, count) in [("address", 1), ("total", 1)] {
            assert_eq!(metrics.connections.refused.with_label_values(&[reason]).get(), count);
        }
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one_address() {
        let (all, _) = connections();
        let places = Places { total: 0, per_address: 1 };
        let admit = |address: &str| all.admit(Some(address.parse().unwrap()), places, LIMITS);
        let _first = admit("2001:db8::1").unwrap();
        assert_eq!(admit("2001:db8::ffff:1").err(), Some(Full::Address));
        assert!(admit("2001:db8:0:1::1").is_ok());
        // A trusted proxy has no limit of its own.
        assert!(all.admit(None, places, LIMITS).is_ok());
    }

    #[test]
    fn idle_connections_make_room_when_places_are_short() {
        let (all, _) = connections();
        let places = Places { total: 4, per_address: 0 };
        let mut open: Vec<_> = (0..4).map(|_| all.admit(None, places, LIMITS).unwrap()).collect();
        for (count, idle) in [(4, 0), (3, 3000)] {
            open.truncate(count);
            drop(open[0].begin());
            assert_eq!(seconds(&open[0]), Some(idle), "{count} of 4 places");
        }
    }

    #[test]
    fn a_connection_of_http2_is_told_before_it_is_closed() {
        let (all, _) = connections();
        let limits = ConnectionLimits { idle: Some(Duration::ZERO), ..LIMITS };
        let connection = all.admit(None, Places { total: 0, per_address: 0 }, limits).unwrap();
        let (goaway, told) = watch::channel(false);
        connection.set_http2(goaway);
        connection.ready();
        assert_eq!(connection.overdue(), Some(Overdue::Continue));
        assert!(*told.borrow());
        assert_eq!((connection.phase(), connection.overdue()), (Phase::Ending, None));
        // A request that crossed with it is served to its end.
        let request = connection.begin();
        assert_eq!(connection.due(), None);
        drop(request);
        assert!(connection.due().is_some());
    }
}
