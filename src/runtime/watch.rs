//! Deadlines of the requests in flight.
//!
//! While Pingora waits for a backend's next byte, no hook of the gateway runs, and Pingora's single
//! read timeout cannot tell the wait for the first byte from a later pause. So a waiting request has
//! an entry here, and a task checks the entries when the earliest deadline has passed. It shuts down
//! the connection to the backend; the pending read then ends, and the request finds the reason in its
//! entry. A second later the task also shuts down the client's connection, if the request is still
//! there.

use std::{
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::{BorrowedFd, RawFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::base::{FaultKind, lock};

/// The least time between two checks of the entries: how late a deadline may fire.
pub const SWEEP: Duration = Duration::from_millis(20);

const SHARDS: usize = 16;
const NEVER: u64 = u64::MAX;

/// The entries of all requests.
pub struct Watches {
    start: Instant,
    shards: [Mutex<Shard>; SHARDS],
    next: AtomicU64,
    /// When the entries are checked next, in milliseconds since `start`.
    check_at: AtomicU64,
    /// It is earlier now.
    earlier: Notify,
}

impl Default for Watches {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            shards: Default::default(),
            next: AtomicU64::new(0),
            check_at: AtomicU64::new(NEVER),
            earlier: Notify::new(),
        }
    }
}

/// A part of the entries.
#[derive(Default)]
struct Shard {
    slots: Vec<Option<Arc<Watch>>>,
    free: Vec<usize>,
}

impl Shard {
    fn all(&self) -> impl Iterator<Item = &Arc<Watch>> {
        self.slots.iter().flatten()
    }
}

/// The deadlines of one request.
pub struct Watch {
    /// In milliseconds from the start of the process: of the present phase and of the whole request.
    phase: AtomicU64,
    whole: AtomicU64,
    /// The kind of the phase's deadline.
    phase_kind: AtomicU8,
    /// The kind of the deadline that has passed; 0: none.
    fired: AtomicU8,
    /// When it was noticed, in the same milliseconds.
    fired_at: AtomicU64,
    /// The id of the backend of which nothing has gone to the client yet; 0: none.
    backend: AtomicU32,
    /// No other backend can be tried.
    alone: AtomicBool,
    connection: Mutex<Option<Connection>>,
    client: Mutex<Option<Connection>>,
}

/// A connection, and what identifies it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    pub fd: RawFd,
    /// Its two ends.
    pub ends: (SocketAddr, SocketAddr),
}

/// Milliseconds that a client has to read the end of its answer after its request was ended. Then its
/// connection is shut down too, so that a client that does not read blocks nothing.
const CLIENT_GRACE: u64 = 1000;

const FIRST_BYTE: u8 = 1;
const CHUNK: u8 = 2;
const TOTAL: u8 = 3;
const SHUTDOWN: u8 = 4;
const REFUSING: u8 = 5;
const LAST: u8 = 6;

/// How long a request that no other backend can serve waits for a backend that refuses connections: the
/// backend may be finishing its requests before it stops.
pub const LAST_CHANCE: Duration = Duration::from_secs(30);

impl Watches {
    /// Adds an entry for a request; dropping the entry removes it.
    pub fn enter(self: &Arc<Self>) -> Entry {
        let shard = self.next.fetch_add(1, Ordering::Relaxed) as usize % SHARDS;
        let watch = Arc::new(Watch {
            phase: AtomicU64::new(NEVER),
            whole: AtomicU64::new(NEVER),
            phase_kind: AtomicU8::new(0),
            fired: AtomicU8::new(0),
            fired_at: AtomicU64::new(NEVER),
            backend: AtomicU32::new(0),
            alone: AtomicBool::new(false),
            connection: Mutex::new(None),
            client: Mutex::new(None),
        });
        let mut entries = lock(&self.shards[shard]);
        let slot = entries.free.pop().unwrap_or_else(|| {
            entries.slots.push(None);
            entries.slots.len() - 1
        });
        entries.slots[slot] = Some(Arc::clone(&watch));
        drop(entries);
        Entry { watches: Arc::clone(self), shard, slot, watch }
    }

    /// Waits until a deadline has passed. As long as no request sets an earlier one, nothing is woken.
    pub async fn passed(&self) {
        loop {
            let due = self.check_at.load(Ordering::SeqCst);
            if due == NEVER {
                self.earlier.notified().await;
                continue;
            }
            let at = self.start + Duration::from_millis(due);
            tokio::select! {
                () = tokio::time::sleep_until(at.into()) => return,
                () = self.earlier.notified() => {}
            }
        }
    }

    /// Has the entries checked at this time, if nothing else has them checked before.
    fn check_by(&self, due: u64) {
        // `SeqCst`, as the store of the deadline before it: either this sees that a sweep has begun, or the
        // sweep sees the deadline.
        if due < self.check_at.load(Ordering::SeqCst)
            && due < self.check_at.fetch_min(due, Ordering::SeqCst)
        {
            self.earlier.notify_one();
        }
    }

    /// Ends the wait of every request whose deadline has passed at `now`.
    pub fn sweep(&self, now: Instant) {
        let now = self.millis(now);
        self.check_at.store(NEVER, Ordering::SeqCst);
        let mut soonest = NEVER;
        for shard in &self.shards {
            // Collected first: nothing is shut down under the lock.
            let mut late = Vec::new();
            for watch in lock(shard).all() {
                match watch.due() {
                    due if due <= now => late.push(Arc::clone(watch)),
                    due => soonest = soonest.min(due),
                }
            }
            for watch in late {
                watch.fire(now);
                soonest = soonest.min(watch.due());
            }
        }
        self.check_at.fetch_min(soonest, Ordering::SeqCst);
    }

    /// Ends the wait of requests that a backend has not answered at all. It has refused connections for
    /// `refused_for`, and a stopping server may leave its open connections silent.
    pub fn abandon(&self, backend: u32, refused_for: Duration, now: Instant) {
        let now = self.millis(now);
        let given_up = |watch: &&Arc<Watch>| {
            watch.backend.load(Ordering::Relaxed) == backend
                && (refused_for >= LAST_CHANCE || !watch.alone.load(Ordering::Relaxed))
                && watch.fired.load(Ordering::Relaxed) == 0
        };
        for shard in &self.shards {
            let silent: Vec<_> = lock(shard).all().filter(given_up).cloned().collect();
            for watch in silent {
                watch.end(REFUSING, now);
            }
        }
        self.check_by(now.saturating_add(CLIENT_GRACE));
    }

    /// Ends the wait of every request, because the process is about to end.
    pub fn end_all(&self, now: Instant) {
        let now = self.millis(now);
        for shard in &self.shards {
            let all: Vec<_> = lock(shard).all().cloned().collect();
            for watch in all {
                watch.end(SHUTDOWN, now);
            }
        }
        self.check_by(now.saturating_add(CLIENT_GRACE));
    }

    fn millis(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_millis().try_into().unwrap_or(NEVER - 1)
    }
}

impl Watch {
    /// When something is to be done about it.
    fn due(&self) -> u64 {
        if self.fired.load(Ordering::Relaxed) != 0 {
            return self.fired_at.load(Ordering::Relaxed).saturating_add(CLIENT_GRACE);
        }
        self.phase.load(Ordering::SeqCst).min(self.whole.load(Ordering::SeqCst))
    }

    fn fire(&self, now: u64) {
        // Another phase may have begun since the check.
        if self.due() > now {
            return;
        }
        if self.fired.load(Ordering::Relaxed) != 0 {
            // The client's grace time is over.
            self.fired_at.store(NEVER, Ordering::Relaxed);
            let client = *lock(&self.client);
            if let Some(client) = client {
                client.shut_down();
            }
            return;
        }
        let whole = self.whole.load(Ordering::Relaxed) <= now;
        self.end(if whole { TOTAL } else { self.phase_kind.load(Ordering::Relaxed) }, now);
    }

    fn end(&self, kind: u8, now: u64) {
        // The answer is complete: a slow client may go on reading it.
        self.fired_at.store(if kind == LAST { NEVER } else { now }, Ordering::Relaxed);
        self.fired.store(kind, Ordering::Release);
        let connection = *lock(&self.connection);
        if let Some(connection) = connection {
            connection.shut_down();
        }
    }
}

impl Connection {
    /// The connection of an open descriptor.
    pub fn of(fd: RawFd) -> Option<Self> {
        // SAFETY: the descriptor is only duplicated.
        let copy = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned();
        let stream = TcpStream::from(copy.ok()?);
        Some(Self { fd, ends: (stream.local_addr().ok()?, stream.peer_addr().ok()?) })
    }

    /// Shuts the connection down, unless the descriptor now belongs to another one.
    fn shut_down(self) {
        // SAFETY: the descriptor is only duplicated. If it was closed in the meantime, that fails or
        // yields another file, which the check of the addresses below recognises. The duplicate is
        // owned here, so it cannot change during the check.
        let copy = unsafe { BorrowedFd::borrow_raw(self.fd) }.try_clone_to_owned();
        let Ok(stream) = copy.map(TcpStream::from) else {
            return;
        };
        let ends = stream.local_addr().ok().zip(stream.peer_addr().ok());
        if ends == Some(self.ends) {
            stream.shutdown(Shutdown::Both).ok();
        }
    }
}

/// A request's entry; removed when dropped.
pub struct Entry {
    watches: Arc<Watches>,
    shard: usize,
    slot: usize,
    watch: Arc<Watch>,
}

impl Entry {
    /// Sets the deadline of the whole request.
    pub fn set_whole(&self, deadline: Instant) {
        let due = self.watches.millis(deadline);
        self.watch.whole.store(due, Ordering::SeqCst);
        self.watches.check_by(due);
    }

    /// Sets the deadline of the first byte.
    pub fn set_first_byte(&self, deadline: Option<Instant>) {
        self.set_phase(FIRST_BYTE, deadline);
    }

    /// Sets the deadline of the next bytes.
    pub fn set_chunk(&self, deadline: Option<Instant>) {
        self.set_phase(CHUNK, deadline);
    }

    /// Sets the deadline of the end of an answer of which the client gets everything: when it passes,
    /// only the connection to the backend is shut down.
    pub fn set_last(&self, deadline: Option<Instant>) {
        self.set_phase(LAST, deadline);
    }

    fn set_phase(&self, kind: u8, deadline: Option<Instant>) {
        self.watch.phase_kind.store(kind, Ordering::Relaxed);
        let due = deadline.map_or(NEVER, |at| self.watches.millis(at));
        self.watch.phase.store(due, Ordering::SeqCst);
        self.watches.check_by(due);
    }

    /// Prepares the wait for another backend: forgets a missed deadline, except that of the whole
    /// request.
    pub fn rearm(&self) {
        self.set_backend(None);
        if matches!(self.watch.fired.load(Ordering::Acquire), FIRST_BYTE | CHUNK | REFUSING) {
            self.set_phase(FIRST_BYTE, None);
            self.watch.fired_at.store(NEVER, Ordering::Relaxed);
            self.watch.fired.store(0, Ordering::SeqCst);
            // A check may have seen only that the missed deadline was dealt with.
            self.watches.check_by(self.watch.whole.load(Ordering::SeqCst));
        }
    }

    /// Sets the connection to the backend, `None` if there is none.
    pub fn set_connection(&self, connection: Option<Connection>) {
        *lock(&self.watch.connection) = connection;
    }

    /// Sets the id of the awaited backend, and whether no other one can be tried; `None` once a part of
    /// its answer has gone to the client.
    pub fn set_backend(&self, backend: Option<(u32, bool)>) {
        let (backend, alone) = backend.unwrap_or_default();
        self.watch.alone.store(alone, Ordering::Relaxed);
        self.watch.backend.store(backend, Ordering::Relaxed);
    }

    /// Sets the client's connection, if it serves only this request.
    pub fn set_client(&self, connection: Option<Connection>) {
        *lock(&self.watch.client) = connection;
    }

    /// The deadline that has passed, if any.
    pub fn fired(&self) -> Option<FaultKind> {
        match self.watch.fired.load(Ordering::Acquire) {
            FIRST_BYTE => Some(FaultKind::FirstByteTimeout),
            CHUNK | LAST => Some(FaultKind::ChunkTimeout),
            TOTAL => Some(FaultKind::TotalTimeout),
            SHUTDOWN => Some(FaultKind::Shutdown),
            REFUSING => Some(FaultKind::Refusing),
            _ => None,
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut entries = lock(&self.watches.shards[self.shard]);
        entries.slots[self.slot] = None;
        entries.free.push(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, net::TcpListener, os::fd::AsRawFd};

    use futures::FutureExt;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let far = listener.accept().unwrap().0;
        (near, far)
    }

    fn connection(stream: &TcpStream) -> Connection {
        let ends = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        Connection { fd: stream.as_raw_fd(), ends }
    }

    #[test]
    fn a_late_request_loses_its_connection_and_knows_why() {
        let watches = Arc::<Watches>::default();
        let (mut near, _far) = pair();
        let entry = watches.enter();
        entry.set_connection(Some(connection(&near)));
        let now = Instant::now();
        entry.set_first_byte(Some(now + Duration::from_secs(10)));
        watches.sweep(now + Duration::from_secs(9));
        assert_eq!(entry.fired(), None);
        watches.sweep(now + Duration::from_secs(11));
        assert_eq!(entry.fired(), Some(FaultKind::FirstByteTimeout));
        assert_eq!(near.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn another_connection_with_the_same_descriptor_is_not_touched() {
        let watches = Arc::<Watches>::default();
        let (near, _far) = pair();
        let (other, _other_far) = pair();
        let entry = watches.enter();
        // As if `near` had been closed and its number given to `other`.
        entry.set_connection(Some(Connection { fd: other.as_raw_fd(), ..connection(&near) }));
        let now = Instant::now();
        entry.set_whole(now);
        watches.sweep(now + Duration::from_secs(1));
        assert_eq!(entry.fired(), Some(FaultKind::TotalTimeout));
        other.set_nonblocking(true).unwrap();
        let open = (&other).read(&mut [0; 1]).unwrap_err();
        assert_eq!(open.kind(), std::io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_backend_that_refuses_connections_loses_those_it_says_nothing_to() {
        let watches = Arc::<Watches>::default();
        let entries: Vec<_> = (0..4).map(|_| watches.enter()).collect();
        entries[0].set_backend(Some((7, false)));
        entries[1].set_backend(Some((7, true)));
        entries[2].set_backend(Some((8, false)));
        entries[3].set_backend(Some((7, false)));
        entries[3].set_backend(None);
        let fired = || entries.iter().map(|e| e.fired().is_some()).collect::<Vec<_>>();
        let now = Instant::now();
        watches.abandon(7, Duration::from_secs(1), now);
        assert_eq!(fired(), [true, false, false, false]);
        assert_eq!(entries[0].fired(), Some(FaultKind::Refusing));
        // It continues with another backend, which is healthy.
        entries[0].rearm();
        watches.abandon(7, LAST_CHANCE, now);
        assert_eq!(fired(), [false, true, false, false]);
    }

    #[test]
    fn the_next_check_is_at_the_earliest_deadline() {
        let watches = Arc::<Watches>::default();
        let at = |seconds: u64| watches.start + Duration::from_secs(seconds);
        // When the next check is, and whether the task was woken for it.
        let next = || {
            let woken = watches.earlier.notified().now_or_never().is_some();
            (watches.check_at.load(Ordering::Relaxed) / 1000, woken)
        };
        let never = NEVER / 1000;
        assert_eq!(next(), (never, false));
        let (one, two) = (watches.enter(), watches.enter());
        one.set_whole(at(1000));
        assert_eq!(next(), (1000, true));
        two.set_first_byte(Some(at(910)));
        assert_eq!(next(), (910, true));
        two.set_chunk(Some(at(950)));
        assert_eq!(next(), (910, false), "a later one wakes nothing");
        watches.sweep(at(910));
        assert_eq!(next(), (950, false));
        watches.sweep(at(950));
        assert!(two.fired().is_some() && one.fired().is_none());
        assert_eq!(next(), (951, false), "the client's grace time");
        watches.sweep(at(951));
        assert_eq!(next(), (1000, false));
        drop((one, two));
        watches.sweep(at(1000));
        assert_eq!(next(), (never, false));
        let late = watches.enter();
        late.set_chunk(Some(at(0)));
        assert_eq!(next(), (0, true));
        watches.end_all(at(1000));
        assert_eq!(next(), (0, false));
    }

    #[tokio::test]
    async fn a_passed_deadline_is_noticed() {
        let watches = Arc::<Watches>::default();
        let entry = watches.enter();
        let set = async {
            tokio::task::yield_now().await;
            entry.set_chunk(Some(watches.start));
        };
        tokio::join!(watches.passed(), set);
    }

    #[test]
    fn entries_go_with_their_requests() {
        let watches = Arc::<Watches>::default();
        let entries: Vec<_> = (0..100).map(|_| watches.enter()).collect();
        assert_eq!(watches.shards.iter().map(|s| lock(s).all().count()).sum::<usize>(), 100);
        drop(entries);
        assert_eq!(watches.shards.iter().map(|s| lock(s).all().count()).sum::<usize>(), 0);
    }
}
