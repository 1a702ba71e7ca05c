//! Reads the spool and forms batches.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use crate::{
    runtime::Carry,
    usage::{Entry, ReporterStatus, Spool, sink::Pace},
};

/// Records that are read at a time, if batches are not larger.
const AHEAD: usize = 256;

/// The longest wait before the reader checks the spool by itself.
const CHECK: Duration = Duration::from_secs(1);

/// How often it looks whether a batch is full. It is not woken by each record: under load that would
/// cost more than the delivery.
const LOOK: Duration = Duration::from_millis(20);

/// Records that are delivered together.
#[derive(Debug, Default)]
pub struct Batch {
    /// Empty if none of them could be read.
    pub entries: Vec<Entry>,
    /// The index after them.
    pub next: u64,
}

/// Reads the spool from a position on.
pub struct Reader {
    spool: Arc<Spool>,
    carry: Arc<Carry>,
    /// Gets the first record, so that its age is known without another read.
    standing: Arc<ReporterStatus>,
    pace: Pace,
    ends: watch::Receiver<u64>,
    read: VecDeque<Entry>,
    /// The index after the last read record.
    next: u64,
}

impl Reader {
    /// Starts at the index `next`.
    pub fn new(
        spool: &Arc<Spool>,
        carry: &Arc<Carry>,
        standing: &Arc<ReporterStatus>,
        pace: Pace,
        next: u64,
    ) -> Self {
        let (spool, carry) = (Arc::clone(spool), Arc::clone(carry));
        let (standing, ends) = (Arc::clone(standing), spool.ends());
        Self { spool, carry, standing, pace, ends, read: VecDeque::new(), next }
    }

    /// Waits for the next batch.
    pub async fn batch(&mut self) -> Batch {
        while self.read.is_empty() {
            if !self.read_on().await {
                self.wait(CHECK).await;
            } else if self.read.is_empty() {
                return Batch { entries: Vec::new(), next: self.next };
            }
        }
        self.gather().await;
        let size = self.pace.batch.max(1).min(self.read.len());
        let entries = self.read.drain(..size).collect();
        let next = self.read.front().map_or(self.next, |entry| entry.index);
        self.report_first();
        Batch { entries, next }
    }

    /// Waits until a batch is full, but no longer than `linger` after its first record was written; not at
    /// all when the process is about to end.
    async fn gather(&mut self) {
        let Some(first) = self.read.front().filter(|_| self.pace.batch > 1) else { return };
        let age = Timestamp::now().as_millisecond().saturating_sub(first.time).max(0);
        let left = self.pace.linger.saturating_sub(Duration::from_millis(age.unsigned_abs()));
        let end = Instant::now() + left;
        while self.read.len() < self.pace.batch {
            let left = end.saturating_duration_since(Instant::now());
            let over = left.is_zero() || self.carry.draining.load(Ordering::Relaxed);
            let waiting = self.spool.end().saturating_sub(self.next);
            let full = self.read.len() as u64 + waiting >= self.pace.batch as u64;
            // Those that wait are read when the batch is complete, not a few at a time.
            let more = (over || full) && self.read_on().await;
            if over {
                return;
            }
            if !more {
                sleep(left.min(LOOK)).await;
            }
        }
    }

    fn report_first(&self) {
        if let Some(first) = self.read.front() {
            self.standing.has_read(first);
        }
    }

    async fn wait(&mut self, longest: Duration) {
        if let Ok(Err(_)) = timeout(longest, self.ends.changed()).await {
            // The sender is gone: no record will be added.
            sleep(longest).await;
        }
    }

    /// Reads more records, if there are any; whether the position has advanced.
    async fn read_on(&mut self) -> bool {
        if self.spool.end() <= self.next {
            return false;
        }
        let most = self.pace.batch.max(AHEAD).saturating_sub(self.read.len());
        match read(&self.spool, self.next, most).await {
            Some((entries, next)) => {
                let advanced = next > self.next;
                self.read.extend(entries);
                self.next = next;
                self.report_first();
                advanced
            }
            None => {
                sleep(5 * CHECK).await;
                false
            }
        }
    }
}

/// Reads records, on a thread that may wait for the disk. `None`: they cannot be read now; the error is
/// logged.
pub async fn read(spool: &Arc<Spool>, from: u64, most: usize) -> Option<(Vec<Entry>, u64)> {
    let log = Arc::clone(spool);
    let read = spawn_blocking(move || log.read(from, most)).await;
    match read.unwrap_or_else(|e| Err(e.to_string())) {
        Ok(read) => Some(read),
        Err(why) => {
            log::error!("the usage spool: {why}");
            None
        }
    }
}
