//! What all requests and all reporters share: the spool, once records are made, and how the
//! reporters stand.

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

/// The outbox of a gateway.
pub struct Outbox {
    /// Where the spool is; `None`: in memory.
    folder: Option<PathBuf>,
    spool: OnceLock<Arc<Spool>>,
    /// Opening is done by one at a time.
    opening: Mutex<()>,
    reporters: Mutex<BTreeMap<String, Arc<Standing>>>,
    metrics: UsageMetrics,
}

impl Outbox {
    /// An outbox whose spool will be in this folder, or in memory. Nothing is opened yet.
    pub fn new(folder: Option<PathBuf>, metrics: UsageMetrics) -> Self {
        Self {
            folder,
            spool: OnceLock::new(),
            opening: Mutex::default(),
            reporters: Mutex::default(),
            metrics,
        }
    }

    /// Opens the spool if records are to be made and it is not open, and tells it of the plan.
    ///
    /// # Errors
    /// If the folder cannot be used, or another gateway uses it.
    pub fn open(&self, plan: &UsagePlan) -> Result<(), String> {
        if let Some(spool) = self.spool() {
            return spool.set(plan);
        }
        if !plan.is_on() {
            return Ok(());
        }
        let _one = lock(&self.opening);
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

    /// Whether records wait on disk.
    pub fn durable(&self) -> bool {
        self.folder.is_some()
    }

    /// The folder of the spool.
    pub fn folder(&self) -> Option<&PathBuf> {
        self.folder.as_ref()
    }

    /// Takes a record in. If there is no room for it, it is lost, and that is counted and logged.
    pub fn put(&self, draft: Draft) {
        let Some(spool) = self.spool() else { return };
        spool.put(draft);
    }

    /// Whether new requests are to be refused, because there would be no room for their records.
    pub fn refuses(&self) -> bool {
        self.spool().is_some_and(|spool| spool.refuses())
    }

    /// The metrics of usage.
    pub fn metrics(&self) -> &UsageMetrics {
        &self.metrics
    }

    /// Adds a reporter, or finds it.
    pub fn standing(&self, name: &str, kind: &'static str) -> Arc<Standing> {
        let mut reporters = lock(&self.reporters);
        let known = reporters.get(name).filter(|known| known.kind == kind);
        let standing = known.cloned().unwrap_or_else(|| Arc::new(Standing::new(name, kind)));
        reporters.insert(name.to_owned(), Arc::clone(&standing));
        standing
    }

    /// A reporter is not used any more.
    pub fn forget(&self, name: &str) {
        lock(&self.reporters).remove(name);
        self.metrics.forget(name);
    }

    /// All reporters, by their names.
    pub fn standings(&self) -> Vec<Arc<Standing>> {
        lock(&self.reporters).values().cloned().collect()
    }

    /// The process is about to end: what was handed over is to be written, however much that is.
    pub fn finish(&self) {
        if let Some(spool) = self.spool() {
            spool.lift_limit();
        }
    }

    /// Whether the spool is short of room.
    pub fn pressed(&self) -> bool {
        self.spool().is_some_and(|spool| spool.pressed())
    }

    /// Whether a process that ends now would leave records behind that could be delivered, or
    /// written, in a moment.
    pub fn busy(&self) -> bool {
        let Some(spool) = self.spool() else { return false };
        let standings = self.standings();
        let soon = |s: &Arc<Standing>| {
            spool.behind(s.next()) > 0 && (!self.durable() || s.state() == State::Delivering)
        };
        spool.queued() > 0 || standings.iter().any(soon)
    }

    /// Forces everything that was handed over to the disk: the process is about to end.
    pub fn flush(&self) {
        if let Some(spool) = self.spool()
            && let Err(why) = spool.sync()
        {
            log::error!("the usage spool: {why}");
        }
    }

    /// Records that were handed over and are not in the spool.
    pub fn unwritten(&self) -> u64 {
        self.spool().map_or(0, |spool| spool.queued())
    }

    /// Records in the spool that some reporter has not delivered.
    pub fn waiting(&self) -> u64 {
        let Some(spool) = self.spool() else { return 0 };
        self.standings().iter().map(|s| spool.behind(s.next())).max().unwrap_or(0)
    }
}

/// How a reporter stands.
pub struct Standing {
    /// Its name.
    pub name: String,
    /// What kind of place it delivers to, as in the configuration.
    pub kind: &'static str,
    /// The index of the first record that it has not delivered.
    next: AtomicU64,
    /// Records that it has read and not delivered, with the time at which each was written: the
    /// first one of all, and the first one of each batch.
    read: Mutex<BTreeMap<u64, i64>>,
    told: Mutex<Told>,
}

#[derive(Clone, Default)]
struct Told {
    state: State,
    failure: Option<(Timestamp, String)>,
    retry_at: Option<Timestamp>,
}

/// What a reporter does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It delivers, or has nothing to deliver.
    #[default]
    Delivering,
    /// It waits after an attempt that failed.
    Waiting,
    /// The receiver does not want any more (410).
    Disabled,
}

impl State {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Delivering => "delivering",
            Self::Waiting => "waiting",
            Self::Disabled => "disabled",
        }
    }
}

impl Standing {
    fn new(name: &str, kind: &'static str) -> Self {
        let next = AtomicU64::new(u64::MAX);
        let (read, told) = (Mutex::default(), Mutex::default());
        Self { name: name.to_owned(), kind, next, read, told }
    }

    /// The index of the first record that it has not delivered.
    pub fn next(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// It has delivered everything before this index.
    pub fn set_next(&self, next: u64) {
        self.next.store(next, Ordering::Relaxed);
        let mut read = lock(&self.read);
        *read = read.split_off(&next);
    }

    /// It has read this record, which begins a batch, and has not delivered it.
    pub fn has_read(&self, first: &Entry) {
        lock(&self.read).insert(first.index, first.time);
    }

    /// When the first record that it has not delivered was written, in milliseconds since 1970.
    /// `None`: there is none, or it has not read any of those that wait.
    pub fn oldest(&self) -> Option<i64> {
        lock(&self.read).first_key_value().map(|(_, time)| *time)
    }

    /// What it does.
    pub fn state(&self) -> State {
        lock(&self.told).state
    }

    /// It delivers.
    pub fn delivers(&self) {
        let mut told = lock(&self.told);
        (told.state, told.retry_at) = (State::Delivering, None);
    }

    /// An attempt has failed; the next one comes at `retry_at`, or never.
    pub fn failed(&self, why: &str, retry_at: Option<Timestamp>) {
        let mut told = lock(&self.told);
        told.state = if retry_at.is_some() { State::Waiting } else { State::Disabled };
        told.failure = Some((Timestamp::now(), why.to_owned()));
        told.retry_at = retry_at;
    }

    /// When an attempt failed last, and why.
    pub fn failure(&self) -> Option<(Timestamp, String)> {
        lock(&self.told).failure.clone()
    }

    /// When the next attempt will be made.
    pub fn retry_at(&self) -> Option<Timestamp> {
        lock(&self.told).retry_at
    }
}
