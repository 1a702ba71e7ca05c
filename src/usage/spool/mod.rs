//! The log in which records wait until every reporter has delivered them: on disk, or in memory.
//!
//! The index of a record counts from 0 over all gateway processes that used the same folder. Each reporter
//! has a position: the index of the first record that it has not delivered.

mod archive;
mod disk;
mod entry;
mod foreign;
mod frame;
mod handle;
mod intake;
mod memory;
mod position;
mod record_log;
mod segment;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    path::Path,
    sync::{Arc, Condvar, Mutex, Weak, atomic::AtomicBool},
};

use tokio::sync::watch;

pub use self::{
    archive::{Archive, Damage, Gap, Records, Verification},
    entry::Entry,
    handle::{Cursor, Spool},
    segment::Segment,
};
use self::{disk::DiskLog, intake::Intake, memory::MemoryLog, record_log::RecordLog};
use crate::{config::plan::UsagePlan, telemetry::UsageMetrics};

impl Spool {
    /// Opens the log in a folder, or in memory, and starts the threads that write and sync it.
    ///
    /// # Errors
    /// If the folder cannot be used, or another process uses it.
    pub fn open(
        folder: Option<&Path>,
        plan: &UsagePlan,
        metrics: UsageMetrics,
    ) -> Result<Arc<Self>, String> {
        let log: Box<dyn RecordLog> = match folder {
            Some(folder) => Box::new(DiskLog::open(folder, plan, metrics.clone())?),
            None => Box::new(MemoryLog::new(metrics.clone())),
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
            losses: Mutex::default(),
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
}

fn start(name: &str, spool: &Arc<Spool>, work: fn(&Weak<Spool>)) -> Result<(), String> {
    let weak = Arc::downgrade(spool);
    let thread = std::thread::Builder::new().name(name.to_owned());
    let started = thread.spawn(move || work(&weak)).map(drop);
    started.map_err(|e| format!("cannot start a thread: {e}"))
}
