//! The outbox for usage records: the spool, which is opened when it is first needed, and the status of the
//! reporters. Requests and reporters share it.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use jiff::Timestamp;

use super::{
    record::Draft,
    spool::{Entry, Spool},
};
use crate::{base::lock, config::plan::UsagePlan, telemetry::UsageMetrics};

pub struct Outbox {
    /// The folder of the spool; `None`: in memory.
    folder: Option<PathBuf>,
    spool: OnceLock<Arc<Spool>>,
    /// Held while the spool is opened.
    opening: Mutex<()>,
    reporters: Mutex<BTreeMap<String, Arc<ReporterStatus>>>,
    metrics: UsageMetrics,
}

impl Outbox {
    /// An outbox whose spool is in this folder, or in memory. Opens nothing.
    pub fn new(folder: Option<PathBuf>, metrics: UsageMetrics) -> Self {
        Self {
            folder,
            spool: OnceLock::new(),
            opening: Mutex::default(),
            reporters: Mutex::default(),
            metrics,
        }
    }

    /// Applies the plan to the spool, and opens the spool if the plan needs it.
    ///
    /// # Errors
    /// If the folder cannot be used, or another process uses it.
    pub fn open(&self, plan: &UsagePlan) -> Result<(), String> {
        if let Some(spool) = self.spool() {
            return spool.set(plan);
        }
        if !plan.is_on() {
            return Ok(());
        }
        let _guard = lock(&self.opening);
        if self.spool().is_none() {
            let folder = self.folder.as_deref();
            let spool = Spool::open(folder, plan, self.metrics.clone())?;
            self.spool.set(spool).ok();
        }
        Ok(())
    }

    /// The spool, if it is open.
    pub fn spool(&self) -> Option<&Arc<Spool>> {
        self.spool.get()
    }

    /// Whether the spool is on disk.
    pub fn durable(&self) -> bool {
        self.folder.is_some()
    }

    pub fn folder(&self) -> Option<&PathBuf> {
        self.folder.as_ref()
    }

    /// Queues a record. If the queue is full, the record is lost, which is counted and logged.
    pub fn put(&self, draft: Draft) {
        let Some(spool) = self.spool() else { return };
        spool.put(draft);
    }

    /// Whether new requests must be rejected because there is no space for their records.
    pub fn refuses(&self) -> bool {
        self.spool().is_some_and(|spool| spool.refuses())
    }

    pub fn metrics(&self) -> &UsageMetrics {
        &self.metrics
    }

    /// The status of a reporter; a new one if there is none of this name and kind.
    pub fn reporter(&self, name: &str, kind: &'static str) -> Arc<ReporterStatus> {
        let mut reporters = lock(&self.reporters);
        let known = reporters.get(name).filter(|known| known.kind == kind);
        let reporter = known.cloned().unwrap_or_else(|| Arc::new(ReporterStatus::new(name, kind)));
        reporters.insert(name.to_owned(), Arc::clone(&reporter));
        reporter
    }

    /// Removes a reporter.
    pub fn forget(&self, name: &str) {
        lock(&self.reporters).remove(name);
        self.metrics.forget(name);
    }

    /// All reporters, sorted by name.
    pub fn reporters(&self) -> Vec<Arc<ReporterStatus>> {
        lock(&self.reporters).values().cloned().collect()
    }

    /// Removes the size limit of the spool, because the process is about to end and must write what it has.
    pub fn finish(&self) {
        if let Some(spool) = self.spool() {
            spool.lift_limit();
        }
    }

    /// Whether waiting records take more than half of the space of the spool.
    pub fn is_half_full(&self) -> bool {
        self.spool().is_some_and(|spool| spool.is_half_full())
    }

    /// Whether records could be written or delivered soon, so that the process should not end yet.
    pub fn busy(&self) -> bool {
        let Some(spool) = self.spool() else { return false };
        let statuses = self.reporters();
        let soon = |s: &Arc<ReporterStatus>| {
            spool.behind(s.next()) > 0
                && (!self.durable() || s.state() == ReporterState::Delivering)
        };
        spool.queued() > 0 || statuses.iter().any(soon)
    }

    /// Syncs the spool to disk, because the process is about to end.
    pub fn flush(&self) {
        if let Some(spool) = self.spool()
            && let Err(why) = spool.sync()
        {
            log::error!("the usage spool: {why}");
        }
    }

    /// Queued records that are not yet in the spool.
    pub fn unwritten(&self) -> u64 {
        self.spool().map_or(0, |spool| spool.queued())
    }

    /// Records in the spool that the slowest reporter has not delivered.
    pub fn waiting(&self) -> u64 {
        let Some(spool) = self.spool() else { return 0 };
        self.reporters().iter().map(|s| spool.behind(s.next())).max().unwrap_or(0)
    }
}

/// The status of a reporter.
pub struct ReporterStatus {
    pub name: String,
    /// The type of its destination, as in the configuration.
    pub kind: &'static str,
    /// The index of the first record that it has not delivered.
    next: AtomicU64,
    /// The first record of each batch that it has read and not delivered, with the time at which the record
    /// was written.
    read: Mutex<BTreeMap<u64, i64>>,
    delivery: Mutex<DeliveryState>,
}

#[derive(Clone, Default)]
struct DeliveryState {
    state: ReporterState,
    failure: Option<(Timestamp, String)>,
    retry_at: Option<Timestamp>,
}

/// What a reporter is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReporterState {
    /// It is delivering, or has nothing to deliver.
    #[default]
    Delivering,
    /// It waits after a failed attempt.
    Waiting,
    /// The receiver wants no more records (410).
    Disabled,
}

impl ReporterState {
    pub fn word(self) -> &'static str {
        match self {
            Self::Delivering => "delivering",
            Self::Waiting => "waiting",
            Self::Disabled => "disabled",
        }
    }
}

impl ReporterStatus {
    fn new(name: &str, kind: &'static str) -> Self {
        let next = AtomicU64::new(u64::MAX);
        let (read, delivery) = (Mutex::default(), Mutex::default());
        Self { name: name.to_owned(), kind, next, read, delivery }
    }

    /// The index of the first record that it has not delivered.
    pub fn next(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Everything before this index has been delivered.
    pub fn set_next(&self, next: u64) {
        self.next.store(next, Ordering::Relaxed);
        let mut read = lock(&self.read);
        *read = read.split_off(&next);
    }

    /// Notes a batch that begins with this record and is not yet delivered.
    pub fn has_read(&self, first: &Entry) {
        lock(&self.read).insert(first.index, first.time);
    }

    /// When the oldest undelivered record was written, in milliseconds since 1970. `None`: there is none, or
    /// none has been read yet.
    pub fn oldest(&self) -> Option<i64> {
        lock(&self.read).first_key_value().map(|(_, time)| *time)
    }

    pub fn state(&self) -> ReporterState {
        lock(&self.delivery).state
    }

    /// A delivery succeeded, or a waiting reporter starts again.
    pub fn delivers(&self) {
        let mut delivery = lock(&self.delivery);
        (delivery.state, delivery.retry_at) = (ReporterState::Delivering, None);
    }

    /// An attempt failed; the next one comes at `retry_at`, or never.
    pub fn failed(&self, why: &str, retry_at: Option<Timestamp>) {
        let mut delivery = lock(&self.delivery);
        delivery.state =
            if retry_at.is_some() { ReporterState::Waiting } else { ReporterState::Disabled };
        delivery.failure = Some((Timestamp::now(), why.to_owned()));
        delivery.retry_at = retry_at;
    }

    /// When the last attempt failed, and why.
    pub fn failure(&self) -> Option<(Timestamp, String)> {
        lock(&self.delivery).failure.clone()
    }

    pub fn retry_at(&self) -> Option<Timestamp> {
        lock(&self.delivery).retry_at
    }
}
