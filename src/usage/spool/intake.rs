//! The queue from the requests to the thread that writes the log.

use std::{
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::{
    base::{RequestId, lock},
    usage::record::Draft,
};

/// How long the writer lets records gather after the first one: waking it and writing cost more than all
/// other work for a record. A crash loses the gathered records.
const GATHER: Duration = Duration::from_millis(5);

/// With this many records the writer does not wait for more.
const ENOUGH: usize = 512;

/// Records that requests have handed over.
pub struct Intake {
    waiting: Mutex<Queue>,
    wake: Condvar,
    limit: AtomicUsize,
    /// Records in the queue, and records that the writer has taken but not yet written.
    len: AtomicUsize,
}

#[derive(Default)]
struct Queue {
    drafts: Vec<Draft>,
    /// Records that were lost because the queue was full. They leave a gap in the sequence.
    lost: u64,
}

/// What the writer takes from the queue.
#[derive(Default)]
pub struct Batch {
    pub drafts: Vec<Draft>,
    /// Records that were lost since the previous batch.
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

    /// Sets how many records may wait.
    pub fn set(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Queues a record, or returns the request whose record is lost because the queue is full.
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

    /// Records that are not yet in the log.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// `n` records that the writer took are now in the log, or lost.
    pub fn done(&self, n: usize) {
        self.len.fetch_sub(n, Ordering::Relaxed);
    }

    /// Waits for records for at most `patience`. `spare` is an empty buffer for the next records.
    pub fn take(&self, spare: Vec<Draft>, patience: Duration) -> Batch {
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
        Batch { drafts, lost: std::mem::take(&mut waiting.lost) }
    }
}
