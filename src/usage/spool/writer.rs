//! The thread that makes records of what requests hand over, and adds them to the log.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;

use super::{Entry, Full, Kind, Spool};
use crate::{base::lock, config::choices::WhenFull, usage::Draft};

/// How often the thread looks around when there is nothing to do.
const IDLE: Duration = Duration::from_millis(500);

/// From one attempt to write to a full log to the next.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs for as long as there is a spool.
pub fn run(spool: &Weak<Spool>) {
    let mut writer = Writer { sequence: 0, spare: Vec::new() };
    while let Some(spool) = spool.upgrade() {
        writer.turn(&spool);
    }
}

/// Forces records to the disk, on a thread of its own: others are written meanwhile. Runs for as
/// long as there is a spool.
pub fn sync(spool: &Weak<Spool>) {
    let mut failing = false;
    while let Some(spool) = spool.upgrade() {
        let unsynced = lock(&spool.unsynced);
        let woken = spool.wake.wait_timeout_while(unsynced, IDLE, |unsynced| !*unsynced);
        let (mut unsynced, _) = woken.unwrap_or_else(PoisonError::into_inner);
        if !std::mem::take(&mut *unsynced) {
            continue;
        }
        drop(unsynced);
        std::thread::sleep(spool.plan().fsync_interval);
        match spool.log.sync() {
            Ok(()) => failing = false,
            Err(why) => {
                spool.metrics.spool.sync_errors.inc();
                if !std::mem::replace(&mut failing, true) {
                    log::error!("the usage spool: {why}");
                }
                *lock(&spool.unsynced) = true;
                std::thread::sleep(PAUSE);
            }
        }
    }
}

struct Writer {
    /// The last number that was given.
    sequence: u64,
    spare: Vec<Draft>,
}

impl Writer {
    fn turn(&mut self, spool: &Spool) {
        let mut taken = spool.intake.take(std::mem::take(&mut self.spare), IDLE);
        // Numbers that never come.
        self.sequence += taken.lost;
        if !taken.drafts.is_empty() {
            // A defect here costs the records at hand, and not all that come later.
            let written = AssertUnwindSafe(|| self.write(spool, &taken.drafts));
            if catch_unwind(written).is_err() {
                spool.lost("queue_full", taken.drafts.len() as u64, "writing them panicked");
            }
            spool.intake.done(taken.drafts.len());
            if !std::mem::replace(&mut *lock(&spool.unsynced), true) {
                spool.wake.notify_one();
            }
        }
        taken.drafts.clear();
        self.spare = taken.drafts;
        spool.log.trim();
        spool.tell_lost();
    }

    fn write(&mut self, spool: &Spool, drafts: &[Draft]) {
        let first = spool.log.end();
        let time = jiff::Timestamp::now().as_millisecond();
        let mut text = Vec::with_capacity(drafts.len() * 1024);
        let mut ends = Vec::with_capacity(drafts.len());
        for draft in drafts {
            self.sequence += 1;
            let record = draft.record(&spool.process, self.sequence);
            if let Err(e) = serde_json::to_writer(&mut text, &record) {
                // Only if memory cannot be written to.
                log::error!("usage record of request {}: {e}", draft.request_id);
            }
            ends.push(text.len());
        }
        let (text, mut start) = (Bytes::from(text), 0);
        let entry = |(i, end): (usize, usize)| {
            let json = text.slice(std::mem::replace(&mut start, end)..end);
            Entry { index: first + i as u64, time, json }
        };
        let entries = ends.into_iter().enumerate().map(entry).collect();
        append(spool, entries);
    }
}

/// Adds records to the log; while there is no room, does what the policy says.
fn append(spool: &Spool, mut entries: Vec<Entry>) {
    let mut told = false;
    while let Err(full) = spool.log.append(std::mem::take(&mut entries)) {
        let Full { kind, why, records } = full;
        let drop_oldest = spool.plan().when_full == WhenFull::DropOldest;
        entries = records;
        match kind {
            Kind::Queue => {
                spool.lost("queue_full", entries.len() as u64, &why);
                break;
            }
            Kind::Room if drop_oldest => match spool.log.drop_oldest() {
                Some(lost) => {
                    spool.lost("spool_full", lost, &why);
                    continue;
                }
                None => {
                    spool.lost("spool_full", entries.len() as u64, &why);
                    break;
                }
            },
            Kind::Room | Kind::Broken => {}
        }
        if !std::mem::replace(&mut told, true) {
            match drop_oldest {
                true => log::error!("usage records wait in memory: {why}"),
                false => log::error!(
                    "new requests are refused until there is room for usage records: {why}"
                ),
            }
        }
        spool.full(!drop_oldest);
        // Those who deliver go on with what is there, which makes room.
        spool.end.send_replace(spool.log.end());
        std::thread::sleep(PAUSE);
        spool.log.trim();
        spool.tell_lost();
    }
    if told {
        log::warn!("usage records are written again");
    }
    spool.full(false);
    spool.end.send_replace(spool.log.end());
}
