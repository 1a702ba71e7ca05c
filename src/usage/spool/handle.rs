//! The spool as requests and reporters use it: handing records over, and reading them.

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{entry::Entry, intake::Intake, record_log::RecordLog};
use crate::{
    base::lock,
    config::plan::{SpoolPlan, UsagePlan},
    telemetry::UsageMetrics,
    usage::record::Draft,
};

/// Between two log lines about lost records.
const QUIET: Duration = Duration::from_secs(1);

/// Lost records that have not been logged yet.
#[derive(Default)]
pub(super) struct LossReport {
    at: Option<Instant>,
    n: u64,
    why: String,
}

impl LossReport {
    fn write(&mut self) {
        if self.n > 0 && self.at.is_none_or(|at| at.elapsed() >= QUIET) {
            log::error!("{} usage records lost: {}", std::mem::take(&mut self.n), self.why);
            self.at = Some(Instant::now());
        }
    }
}

/// The log, and the queue of the thread that writes it.
pub struct Spool {
    /// `process` of the records that this gateway process writes.
    pub(super) process: String,
    pub(super) plan: Mutex<SpoolPlan>,
    pub(super) intake: Intake,
    pub(super) log: Box<dyn RecordLog>,
    /// The index after the last record; changes when records were appended.
    pub(super) end: watch::Sender<u64>,
    pub(super) refuses: AtomicBool,
    pub(super) losses: Mutex<LossReport>,
    /// Appended records are not yet synced to disk.
    pub(super) unsynced: Mutex<bool>,
    pub(super) wake: Condvar,
    pub(super) metrics: UsageMetrics,
}

impl Spool {
    /// Applies a reloaded plan.
    ///
    /// # Errors
    /// If the position of a new reporter cannot be saved.
    pub fn set(&self, plan: &UsagePlan) -> Result<(), String> {
        self.log.set(plan)?;
        self.intake.set(plan.queue_size);
        *lock(&self.plan) = plan.spool;
        Ok(())
    }

    pub(super) fn plan(&self) -> SpoolPlan {
        *lock(&self.plan)
    }

    /// Queues a record. If the queue is full, the record is lost, which is counted and logged.
    pub fn put(&self, draft: Draft) {
        if let Err(id) = self.intake.put(draft) {
            self.lost("queue_full", 1, &format!("the queue is full (request {id})"));
        }
    }

    /// Counts lost records and logs them: at once, then at most once a second.
    pub(super) fn lost(&self, reason: &str, n: u64, why: &str) {
        self.metrics.lost.with_label_values(&[reason]).inc_by(n);
        let mut losses = lock(&self.losses);
        losses.n += n;
        why.clone_into(&mut losses.why);
        losses.write();
    }

    /// Logs lost records that have not been logged yet.
    pub(super) fn report_losses(&self) {
        lock(&self.losses).write();
    }

    /// Sets whether there is space for new records.
    pub(super) fn full(&self, full: bool) {
        self.refuses.store(full, Ordering::Relaxed);
        self.metrics.spool.full.set(full.into());
    }

    /// Whether new requests must be rejected because there is no space for their records.
    pub fn refuses(&self) -> bool {
        self.refuses.load(Ordering::Relaxed)
    }

    /// Whether waiting records take more than half of the space, or there is none left.
    pub fn is_half_full(&self) -> bool {
        let (waiting, max) =
            (self.metrics.spool.waiting_bytes.get(), self.metrics.spool.max_bytes.get());
        self.refuses() || max > 0 && waiting > max / 2
    }

    /// Records that wait for a reporter that has delivered everything before `next`.
    pub fn behind(&self, next: u64) -> u64 {
        self.end().saturating_sub(next.max(self.log.first()))
    }

    /// Removes the size limit, because the process is about to end and must write what it has.
    pub fn lift_limit(&self) {
        self.log.lift_limit();
    }

    /// Queued records that are not yet in the log.
    pub fn queued(&self) -> u64 {
        self.intake.len() as u64
    }

    /// Syncs the log to disk.
    ///
    /// # Errors
    /// If the disk reports an error.
    pub fn sync(&self) -> Result<(), String> {
        self.log.sync()
    }

    /// The index of the next record to append.
    pub fn end(&self) -> u64 {
        *self.end.borrow()
    }

    /// Notifies when records were appended; the value is [`Self::end`].
    pub fn ends(&self) -> watch::Receiver<u64> {
        self.end.subscribe()
    }

    /// Up to `most` records from an index on, and the index to continue from. May read from disk. Damaged
    /// records are skipped, counted and logged.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn read(&self, from: u64, most: usize) -> Result<(Vec<Entry>, u64), String> {
        self.log.read(from, most)
    }

    /// The cursor of a reporter of the plan.
    pub fn cursor(self: &Arc<Self>, reporter: &str) -> Cursor {
        let next = self.log.position_of(reporter);
        Cursor { spool: Arc::clone(self), reporter: reporter.to_owned(), next }
    }
}

/// The position of a reporter in the log.
pub struct Cursor {
    spool: Arc<Spool>,
    reporter: String,
    next: u64,
}

impl Cursor {
    /// The index of the first record that it has not delivered.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Saves that everything before `next` is delivered. May write to disk.
    ///
    /// # Errors
    /// If the position cannot be saved: records would be delivered again after a restart.
    pub fn advance(&mut self, next: u64) -> Result<(), String> {
        self.next = next;
        self.spool.log.save_position(&self.reporter, next)
    }
}
