//! How many scripts run on other threads than those that serve requests, and how many wait there.

use std::{
    future::Future,
    pin::pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

/// Concurrent runs of one script on other threads, if the processors allow that many.
const LONG_RUNS: usize = 4;

/// Threads that wait for the outside, for all scripts together.
const WAITING: usize = 64;

/// Bounds the runs of all scripts on other threads to half of the processors, so that the threads that
/// serve requests keep the other half.
static ALL_LONG_RUNS: LazyLock<LongRuns> = LazyLock::new(|| {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let runs = (cores / 2).max(1);
    LongRuns { runs, permits: Arc::new(Semaphore::new(runs)) }
});

static ALL_WAITING: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(WAITING)));

struct LongRuns {
    runs: usize,
    permits: Arc<Semaphore>,
}

/// The permits of one script.
#[derive(Clone)]
pub struct RunPermits(Arc<Semaphore>);

impl RunPermits {
    pub fn new() -> Self {
        // No more than run at all: others would only wait for the same permits.
        Self(Arc::new(Semaphore::new(LONG_RUNS.min(ALL_LONG_RUNS.runs))))
    }

    /// A permit for a run; `None` after waiting for this long. A run that waits for its script holds no
    /// permit of the others.
    pub async fn acquire(&self, patience: Duration) -> Option<RunPermit> {
        let held = tokio::time::timeout(patience, self.both()).await.ok()??;
        Some(RunPermit { of: self.clone(), held: Some(held), patience })
    }

    async fn both(&self) -> Option<Held> {
        let own = Arc::clone(&self.0).acquire_owned().await.ok()?;
        let shared = Arc::clone(&ALL_LONG_RUNS.permits).acquire_owned().await.ok()?;
        Some((own, shared))
    }
}

type Held = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// A permit for a run on another thread, returned when it is dropped.
pub struct RunPermit {
    of: RunPermits,
    held: Option<Held>,
    patience: Duration,
}

/// Too many runs wait, or the run does not get its permit back.
#[derive(Debug)]
pub struct Busy;

/// A place among the threads that wait.
pub struct WaitingPlace(
    #[allow(dead_code, reason = "held until it is dropped")] OwnedSemaphorePermit,
);

/// A place for a thread that waits for the outside.
///
/// # Errors
/// If too many wait.
pub fn waiting_place() -> Result<WaitingPlace, Busy> {
    match Arc::clone(&ALL_WAITING).try_acquire_owned() {
        Ok(place) => Ok(WaitingPlace(place)),
        Err(TryAcquireError::NoPermits | TryAcquireError::Closed) => Err(Busy),
    }
}

impl RunPermit {
    /// Returns the permit while the run waits.
    pub fn release(&mut self) {
        self.held = None;
    }

    /// Takes it again; blocks the thread.
    ///
    /// # Errors
    /// If there is none for too long.
    pub fn take_again(&mut self) -> Result<(), Busy> {
        self.held = block_on(self.of.both(), self.patience).flatten();
        if self.held.is_some() { Ok(()) } else { Err(Busy) }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Blocks the thread until the future is ready; `None` after this time. The future must not need a
/// runtime.
pub fn block_on<F: Future>(future: F, patience: Duration) -> Option<F::Output> {
    let end = Instant::now() + patience;
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(value);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        thread::park_timeout(left);
    }
}
