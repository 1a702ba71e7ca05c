//! The way from the requests to the thread that writes the log.

use std::{
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::{
    base::{RequestId, lock},
    usage::Draft,
};

/// How long the writer lets records gather once there is one: waking it, and a write of its own, cost
/// more than all else that is done for a record. A crash costs what gathers.
const GATHER: Duration = Duration::from_millis(5);

/// So many records are not waited for.
const ENOUGH: usize = 512;

/// Records that were handed over.
pub struct Intake {
    waiting: Mutex<Waiting>,
    wake: Condvar,
    limit: AtomicUsize,
    /// Records that wait, or that the writer has and that are not in the log.
    len: AtomicUsize,
}

#[derive(Default)]
struct Waiting {
    drafts: Vec<Draft>,
    /// Records for which there was no room. They leave a gap in the sequence.
    lost: u64,
}

/// What the writer takes.
#[derive(Default)]
pub struct Taken {
    /// The records, in their order.
    pub drafts: Vec<Draft>,
    /// Records that were lost since it last took some.
    pub lost: u64,
}

impl Intake {
    pub fn new(limit: usize) -> Self {
        Self {
            waiting: Mutex::default(),
            wake: Condvar::new(),
            limit: AtomicUsize::new(limit),
            len: AtomicUsize::new(0),
        }
    }

    /// How many records may wait from now on.
    pub fn set(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Takes a record in, or tells whose was lost. The lock is held for as long as a push takes.
    pub fn put(&self, draft: Draft) -> Result<(), RequestId> {
        let mut waiting = lock(&self.waiting);
        if self.len.load(Ordering::Relaxed) >= self.limit.load(Ordering::Relaxed) {
            waiting.lost += 1;
            return Err(draft.request_id);
        }
        self.len.fetch_add(1, Ordering::Relaxed);
        waiting.drafts.push(draft);
        let first = waiting.drafts.len() == 1;
        drop(waiting);
        if first {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Records that are not in the log yet.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// What the writer took is in the log, or lost.
    pub fn done(&self, n: usize) {
        self.len.fetch_sub(n, Ordering::Relaxed);
    }

    /// Waits for records, but not for longer than `patience`. `spare` is what the next ones are
    /// gathered in.
    pub fn take(&self, spare: Vec<Draft>, patience: Duration) -> Taken {
        let waiting = lock(&self.waiting);
        let woken = self.wake.wait_timeout_while(waiting, patience, |w| w.drafts.is_empty());
        let (waiting, _) = woken.unwrap_or_else(PoisonError::into_inner);
        let gather = (1..ENOUGH).contains(&waiting.drafts.len());
        drop(waiting);
        if gather {
            std::thread::sleep(GATHER);
        }
        let mut waiting = lock(&self.waiting);
        let drafts = std::mem::replace(&mut waiting.drafts, spare);
        Taken { drafts, lost: std::mem::take(&mut waiting.lost) }
    }
}
