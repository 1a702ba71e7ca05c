//! Deadlines of requests under way.
//!
//! While Pingora waits for a backend's next byte, no hook of ours runs, and its one read timeout
//! cannot tell the wait for a first byte from a pause later on. So a request that waits is
//! entered here, and a task looks through the entries every few milliseconds. When a deadline has
//! passed it shuts the connection to the backend down; the pending read then ends, and the
//! request learns from its entry why. A second later it shuts the client's connection down as
//! well, if the request is still there.

use std::{
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::{BorrowedFd, RawFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::base::{FaultKind, lock};

/// How often the entries are looked through: what a deadline may be late by.
pub const SWEEP: Duration = Duration::from_millis(20);

const SHARDS: usize = 16;
const NEVER: u64 = u64::MAX;

/// All entries.
pub struct Watches {
    start: Instant,
    shards: [Mutex<Shard>; SHARDS],
    next: AtomicU64,
}

impl Default for Watches {
    fn default() -> Self {
        Self { start: Instant::now(), shards: Default::default(), next: AtomicU64::new(0) }
    }
}

/// Some of the entries, each in a place of its own.
#[derive(Default)]
struct Shard {
    places: Vec<Option<Arc<Watch>>>,
    free: Vec<usize>,
}

impl Shard {
    fn all(&self) -> impl Iterator<Item = &Arc<Watch>> {
        self.places.iter().flatten()
    }
}

/// One request's deadlines.
pub struct Watch {
    /// Milliseconds from the start of the process; the phase at hand and the whole request.
    phase: AtomicU64,
    whole: AtomicU64,
    /// What it means when the phase's deadline passes.
    phase_kind: AtomicU8,
    fired: AtomicU8,
    /// When, in the same milliseconds.
    fired_at: AtomicU64,
    /// The backend that has not given the client anything yet, by its id; 0: none.
    backend: AtomicU32,
    /// No other backend can be asked.
    alone: AtomicBool,
    connection: Mutex<Option<Connection>>,
    client: Mutex<Option<Connection>>,
}

/// A connection, and how to recognise it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// Its file descriptor.
    pub fd: RawFd,
    /// Its two ends.
    pub ends: (SocketAddr, SocketAddr),
}

/// Milliseconds that a client has, after its request was ended, to take what is still sent to it.
/// Then its connection is shut down too, so that a client that does not read holds nothing up.
const LAST_WORDS: u64 = 1000;

const FIRST_BYTE: u8 = 1;
const CHUNK: u8 = 2;
const TOTAL: u8 = 3;
const SHUTDOWN: u8 = 4;
const REFUSING: u8 = 5;
const LAST: u8 = 6;

/// How long a request that no other backend can take is left with one that accepts no connections: it
/// may be finishing its work before it ends.
pub const LAST_CHANCE: Duration = Duration::from_secs(30);

impl Watches {
    /// Enters a request; it stays until the entry is dropped.
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
        let place = entries.free.pop().unwrap_or_else(|| {
            entries.places.push(None);
            entries.places.len() - 1
        });
        entries.places[place] = Some(Arc::clone(&watch));
        drop(entries);
        Entry { watches: Arc::clone(self), shard, place, watch }
    }

    /// Ends the wait of every request whose deadline has passed at `now`.
    pub fn sweep(&self, now: Instant) {
        let now = self.millis(now);
        for shard in &self.shards {
            // Collected first: nothing is shut down under the lock.
            let late: Vec<_> = lock(shard).all().filter(|w| w.is_late(now)).cloned().collect();
            for watch in late {
                watch.fire(now);
            }
        }
    }

    /// Ends the wait of requests of which a backend has answered nothing: it has accepted no
    /// connections for so long, and a server that stops may leave those that it has open and silent.
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
    }

    fn millis(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_millis().try_into().unwrap_or(NEVER - 1)
    }
}

impl Watch {
    fn is_late(&self, now: u64) -> bool {
        if self.fired.load(Ordering::Relaxed) != 0 {
            return self.fired_at.load(Ordering::Relaxed).saturating_add(LAST_WORDS) <= now;
        }
        let due = self.phase.load(Ordering::Relaxed).min(self.whole.load(Ordering::Relaxed));
        due <= now
    }

    fn fire(&self, now: u64) {
        // Since it was looked at, another wait may have begun.
        if !self.is_late(now) {
            return;
        }
        if self.fired.load(Ordering::Relaxed) != 0 {
            // The client has had its time to take the last words.
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
        // A client that reads slowly is still taking an answer that is complete.
        self.fired_at.store(if kind == LAST { NEVER } else { now }, Ordering::Relaxed);
        self.fired.store(kind, Ordering::Release);
        let connection = *lock(&self.connection);
        if let Some(connection) = connection {
            connection.shut_down();
        }
    }
}

impl Connection {
    /// The connection of a descriptor that is open.
    pub fn of(fd: RawFd) -> Option<Self> {
        // SAFETY: the descriptor is only duplicated.
        let copy = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned();
        let stream = TcpStream::from(copy.ok()?);
        Some(Self { fd, ends: (stream.local_addr().ok()?, stream.peer_addr().ok()?) })
    }

    /// Shuts the connection down, unless the descriptor has come to mean another one.
    fn shut_down(self) {
        // SAFETY: the descriptor is only duplicated. If it was closed in the meantime, that fails
        // or yields another file, which is told apart below by its addresses; the duplicate is
        // ours, so nobody can change what it means while we look.
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

/// A request's place among the watches; gives it back when dropped.
pub struct Entry {
    watches: Arc<Watches>,
    shard: usize,
    place: usize,
    watch: Arc<Watch>,
}

impl Entry {
    /// The whole request must end by then.
    pub fn set_whole(&self, deadline: Instant) {
        self.watch.whole.store(self.watches.millis(deadline), Ordering::Relaxed);
    }

    /// The first byte must come by then.
    pub fn set_first_byte(&self, deadline: Option<Instant>) {
        self.set_phase(FIRST_BYTE, deadline);
    }

    /// The next bytes must come by then.
    pub fn set_chunk(&self, deadline: Option<Instant>) {
        self.set_phase(CHUNK, deadline);
    }

    /// The backend must end its answer by then, of which the client has or gets all: only the
    /// connection to the backend is at stake.
    pub fn set_last(&self, deadline: Option<Instant>) {
        self.set_phase(LAST, deadline);
    }

    fn set_phase(&self, kind: u8, deadline: Option<Instant>) {
        self.watch.phase_kind.store(kind, Ordering::Relaxed);
        let due = deadline.map_or(NEVER, |at| self.watches.millis(at));
        self.watch.phase.store(due, Ordering::Relaxed);
    }

    /// Another backend is waited for: what one of them missed is forgotten. The end of the whole
    /// request is not.
    pub fn rearm(&self) {
        self.set_backend(None);
        if matches!(self.watch.fired.load(Ordering::Acquire), FIRST_BYTE | CHUNK | REFUSING) {
            self.set_phase(FIRST_BYTE, None);
            self.watch.fired_at.store(NEVER, Ordering::Relaxed);
            self.watch.fired.store(0, Ordering::Release);
        }
    }

    /// The connection that is waited on; `None` when there is none.
    pub fn set_connection(&self, connection: Option<Connection>) {
        *lock(&self.watch.connection) = connection;
    }

    /// The backend that is waited for, by its id, and whether no other one can be asked; `None` once
    /// something of its answer has gone to the client.
    pub fn set_backend(&self, backend: Option<(u32, bool)>) {
        let (backend, alone) = backend.unwrap_or_default();
        self.watch.alone.store(alone, Ordering::Relaxed);
        self.watch.backend.store(backend, Ordering::Relaxed);
    }

    /// The client's own connection, if it serves this request alone.
    pub fn set_client(&self, connection: Option<Connection>) {
        *lock(&self.watch.client) = connection;
    }

    /// Which deadline has passed, if one has.
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
        entries.places[self.place] = None;
        entries.free.push(self.place);
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, net::TcpListener, os::fd::AsRawFd};

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
    fn another_connection_with_the_same_descriptor_is_left_alone() {
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
        // It goes on with another one, which is well.
        entries[0].rearm();
        watches.abandon(7, LAST_CHANCE, now);
        assert_eq!(fired(), [false, true, false, false]);
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
