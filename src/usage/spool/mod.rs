//! The log in which records wait until every reporter has delivered them: on disk, or in memory.
//!
//! Records have an index, counted from 0 on over all runs of the gateway that used the same folder.
//! Each reporter has a place: the index of the first record that it has not delivered.

mod archive;
mod disk;
mod foreign;
mod frame;
mod intake;
mod memory;
mod place;
mod segment;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    path::Path,
    sync::{
        Arc, Condvar, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::watch;

pub use self::{
    archive::{Archive, Damage, Gap, Records, Verdict},
    segment::Segment,
};
use self::{disk::Disk, intake::Intake, memory::Memory};
use super::Draft;
use crate::{
    base::lock,
    config::plan::{SpoolPlan, UsagePlan},
    telemetry::UsageMetrics,
};

/// From one line about lost records to the next.
const QUIET: Duration = Duration::from_secs(1);

/// A record in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the log.
    pub index: u64,
    /// When it was written, in milliseconds since 1970.
    pub time: i64,
    /// The record as JSON.
    pub json: Bytes,
}

/// Records that are lost and not told of.
#[derive(Default)]
struct Untold {
    at: Option<Instant>,
    n: u64,
    why: String,
}

impl Untold {
    fn tell(&mut self) {
        if self.n > 0 && self.at.is_none_or(|at| at.elapsed() >= QUIET) {
            log::error!("{} usage records lost: {}", std::mem::take(&mut self.n), self.why);
            self.at = Some(Instant::now());
        }
    }
}

/// A log of records.
trait Log: Send + Sync {
    /// Adds records at the end. Called by one thread.
    fn append(&self, records: Vec<Entry>) -> Result<(), Full>;

    /// Forces what was added to the disk.
    fn sync(&self) -> Result<(), String>;

    /// The index of the next record that will be added.
    fn end(&self) -> u64;

    /// The index of the oldest record that is there.
    fn first(&self) -> u64;

    /// Up to `most` records from an index on, and the index to go on from. Records that cannot be
    /// read are left out.
    fn read(&self, from: u64, most: usize) -> Result<(Vec<Entry>, u64), String>;

    /// The place of a reporter that was named to [`Self::set`].
    fn place(&self, reporter: &str) -> u64;

    /// Keeps the place of a reporter, also over restarts.
    fn keep_place(&self, reporter: &str, next: u64) -> Result<(), String>;

    /// Frees what no reporter needs any more, and what it need not keep. Called now and then by the
    /// thread that appends.
    fn trim(&self);

    /// Makes room by giving up what reporters still need: as much as can be freed at a time. Returns
    /// how many records were lost; `None`: there is no room to be had.
    fn drop_oldest(&self) -> Option<u64>;

    /// The process is about to end: from now on there is no limit to what may wait.
    fn lift_limit(&self);

    /// Takes over what a reload has changed, or nothing at all. Reporters that are new have their place at the end, if
    /// they have not been here before; those that are not named do not hold anything up.
    fn set(&self, plan: &UsagePlan) -> Result<(), String>;
}

/// Why records could not be added. Those that could not come back with it.
struct Full {
    kind: Kind,
    why: String,
    records: Vec<Entry>,
}

/// What kind of trouble it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// No more may wait. It does not wait for room.
    Queue,
    /// There is no room, by the configuration or on the disk.
    Room,
    /// Something else is wrong, that room would not mend.
    Broken,
}

/// The log, the thread that writes it, and the way there.
pub struct Spool {
    /// The run of the gateway, as records name it.
    process: String,
    plan: Mutex<SpoolPlan>,
    intake: Intake,
    log: Box<dyn Log>,
    /// Told after records were added.
    end: watch::Sender<u64>,
    refuses: AtomicBool,
    /// Losses that are not in the log yet.
    untold: Mutex<Untold>,
    /// Something was added that has not been forced to the disk.
    unsynced: Mutex<bool>,
    wake: Condvar,
    metrics: UsageMetrics,
}

impl Spool {
    /// Opens the log in a folder, or one in memory, and starts the thread that writes it.
    ///
    /// # Errors
    /// If the folder cannot be used, or another process uses it.
    pub fn open(
        folder: Option<&Path>,
        plan: &UsagePlan,
        metrics: UsageMetrics,
    ) -> Result<Arc<Self>, String> {
        let log: Box<dyn Log> = match folder {
            Some(folder) => Box::new(Disk::open(folder, plan, metrics.clone())?),
            None => Box::new(Memory::new(metrics.clone())),
        };
        log.set(plan)?;
        let end = watch::Sender::new(log.end());
        let spool = Arc::new(Self {
            process: format!("gw_{:016x}", rand::random::<u64>()),
            plan: Mutex::new(plan.spool),
            intake: Intake::new(plan.queue_size),
            log,
            end,
            refuses: AtomicBool::new(false),
            untold: Mutex::default(),
            unsynced: Mutex::new(false),
            wake: Condvar::new(),
            metrics,
        });
        start("spool", &spool, writer::run)?;
        if folder.is_some() {
            start("spool-sync", &spool, writer::sync)?;
        }
        Ok(spool)
    }

    /// Takes over what a reload has changed.
    ///
    /// # Errors
    /// If the place of a new reporter cannot be kept.
    pub fn set(&self, plan: &UsagePlan) -> Result<(), String> {
        self.log.set(plan)?;
        self.intake.set(plan.queue_size);
        *lock(&self.plan) = plan.spool;
        Ok(())
    }

    fn plan(&self) -> SpoolPlan {
        *lock(&self.plan)
    }

    /// Takes a record in. If there is no room for it, it is lost, and that is counted and logged.
    pub fn put(&self, draft: Draft) {
        if let Err(id) = self.intake.put(draft) {
            self.lost("queue_full", 1, &format!("the queue is full (request {id})"));
        }
    }

    /// Counts records that are lost, and tells of them: at once, and then once a second.
    fn lost(&self, reason: &str, n: u64, why: &str) {
        self.metrics.lost.with_label_values(&[reason]).inc_by(n);
        let mut untold = lock(&self.untold);
        untold.n += n;
        why.clone_into(&mut untold.why);
        untold.tell();
    }

    /// Tells of records that were lost and not told of yet.
    fn tell_lost(&self) {
        lock(&self.untold).tell();
    }

    /// There is no room, or there is again.
    fn full(&self, full: bool) {
        self.refuses.store(full, Ordering::Relaxed);
        self.metrics.spool.full.set(full.into());
    }

    /// Whether new requests are to be refused, because there would be no room for their records.
    pub fn refuses(&self) -> bool {
        self.refuses.load(Ordering::Relaxed)
    }

    /// Whether more than half of the room is taken by records that wait, or there is none at all.
    pub fn pressed(&self) -> bool {
        let (waiting, max) =
            (self.metrics.spool.waiting_bytes.get(), self.metrics.spool.max_bytes.get());
        self.refuses() || max > 0 && waiting > max / 2
    }

    /// Records that wait for one who has delivered everything before `next`.
    pub fn behind(&self, next: u64) -> u64 {
        self.end().saturating_sub(next.max(self.log.first()))
    }

    /// The process is about to end: what was handed over is to be written, however much that is.
    pub fn lift_limit(&self) {
        self.log.lift_limit();
    }

    /// Records that were handed over and are not in the log yet.
    pub fn queued(&self) -> u64 {
        self.intake.len() as u64
    }

    /// Forces what is in the log to the disk.
    ///
    /// # Errors
    /// If that cannot be.
    pub fn sync(&self) -> Result<(), String> {
        self.log.sync()
    }

    /// The index of the next record that will be added.
    pub fn end(&self) -> u64 {
        *self.end.borrow()
    }

    /// Tells when records were added: [`Self::end`].
    pub fn ends(&self) -> watch::Receiver<u64> {
        self.end.subscribe()
    }

    /// Up to `most` records from an index on, and the index to go on from. May read from the disk.
    ///
    /// # Errors
    /// If the log cannot be read. What is damaged in it is no error but left out, counted and
    /// logged.
    pub fn read(&self, from: u64, most: usize) -> Result<(Vec<Entry>, u64), String> {
        self.log.read(from, most)
    }

    /// The place of a reporter of the plan.
    pub fn cursor(self: &Arc<Self>, reporter: &str) -> Cursor {
        let next = self.log.place(reporter);
        Cursor { spool: Arc::clone(self), reporter: reporter.to_owned(), next }
    }
}

fn start(name: &str, spool: &Arc<Spool>, work: fn(&Weak<Spool>)) -> Result<(), String> {
    let weak = Arc::downgrade(spool);
    let thread = std::thread::Builder::new().name(name.to_owned());
    let started = thread.spawn(move || work(&weak)).map(drop);
    started.map_err(|e| format!("cannot start a thread: {e}"))
}

/// The place of a reporter in the log.
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

    /// It has delivered everything before `next`. May write to the disk.
    ///
    /// # Errors
    /// If the place could not be kept: after a restart, records would be delivered again.
    pub fn advance(&mut self, next: u64) -> Result<(), String> {
        self.next = next;
        self.spool.log.keep_place(&self.reporter, next)
    }
}
