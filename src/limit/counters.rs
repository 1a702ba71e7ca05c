//! Everything that limits count in this process. It outlives a reload of the configuration.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use super::{
    bucket::Ticks,
    estimate::{Accuracy, Estimates},
    ledger::Ledger,
    queue::Queue,
    table::Table,
};
use crate::telemetry::Metrics;

/// Weight of a request in the average duration.
const WEIGHT: f64 = 0.1;

/// Buckets, queue, estimates and ledger of this process.
pub struct Counters {
    pub table: Table,
    pub queue: Arc<Queue>,
    pub estimates: Estimates,
    pub accuracy: Accuracy,
    pub ledger: Ledger,
    pub metrics: Metrics,
    start: Instant,
    /// Average seconds that a request holds a slot, as the bits of an `f64`.
    duration: AtomicU64,
}

impl Counters {
    /// `ledger` is the file of amounts spent.
    pub fn new(ledger: PathBuf, metrics: &Metrics) -> Self {
        Self {
            table: Table::default(),
            queue: Arc::new(Queue::new(metrics.limits.queue.clone())),
            estimates: Estimates::default(),
            accuracy: Accuracy::new(metrics),
            ledger: Ledger::new(ledger),
            metrics: metrics.clone(),
            start: Instant::now(),
            duration: AtomicU64::new(1f64.to_bits()),
        }
    }

    /// Ticks since the process started.
    pub fn now(&self) -> Ticks {
        // Sixteenths of a nanosecond, for 36 years.
        (self.start.elapsed().as_nanos() as u64).saturating_mul(16)
    }

    /// Average seconds that a request holds a slot.
    pub fn slot_seconds(&self) -> f64 {
        f64::from_bits(self.duration.load(Ordering::Relaxed))
    }

    /// Adds a request that held its slots since then to the average.
    pub fn observe_slot(&self, since: Instant) {
        let average = self.slot_seconds();
        let new = average + WEIGHT * (since.elapsed().as_secs_f64() - average);
        self.duration.store(new.to_bits(), Ordering::Relaxed);
    }

    /// Removes buckets that are full again.
    pub fn sweep(&self) {
        self.table.sweep(self.now());
        self.metrics.limits.buckets.set(self.table.buckets() as i64);
    }
}
