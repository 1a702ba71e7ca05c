//! The thread that turns drafts into records and appends them to the log, and the thread that syncs the
//! log to disk.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{PoisonError, Weak},
    time::Duration,
};

use bytes::{Bytes, BytesMut};

use super::{
    entry::Entry,
    handle::Spool,
    record_log::{AppendError, AppendErrorKind},
};
use crate::{base::lock, config::choices::WhenFull, usage::record::Draft};

/// How often an idle thread wakes up.
const IDLE: Duration = Duration::from_millis(500);

/// Between two attempts to write to a full log.
const PAUSE: Duration = Duration::from_millis(100);

/// Writes records until the spool is dropped.
pub fn run(spool: &Weak<Spool>) {
    let mut writer = Writer::default();
    while let Some(spool) = spool.upgrade() {
        writer.run_once(&spool);
    }
}

/// Syncs records to disk until the spool is dropped. It has its own thread, so that writing continues
/// meanwhile.
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

/// Memory for records is taken in pieces of this size, which many batches share.
const PIECE: usize = 64 << 10;

#[derive(Default)]
struct Writer {
    /// The last sequence number used.
    sequence: u64,
    spare: Vec<Draft>,
    /// The records of a batch, one after the other.
    text: Vec<u8>,
    /// Where each of them ends.
    ends: Vec<usize>,
    /// The rest of a piece of memory.
    piece: BytesMut,
}

impl Writer {
    fn run_once(&mut self, spool: &Spool) {
        let mut taken = spool.intake.take(std::mem::take(&mut self.spare), IDLE);
        // Lost records use up their sequence numbers.
        self.sequence += taken.lost;
        if !taken.drafts.is_empty() {
            // A panic here loses these records only.
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
        spool.report_losses();
    }

    fn write(&mut self, spool: &Spool, drafts: &[Draft]) {
        let first = spool.log.end();
        let time = jiff::Timestamp::now().as_millisecond();
        self.text.clear();
        self.ends.clear();
        for draft in drafts {
            self.sequence += 1;
            draft.write(&mut self.text, &spool.process, self.sequence);
            self.ends.push(self.text.len());
        }
        let mut text = self.keep();
        let mut start = 0;
        let entry = |(i, end): (usize, &usize)| {
            let json = text.split_to(end - std::mem::replace(&mut start, *end));
            Entry { index: first + i as u64, time, json }
        };
        let entries = self.ends.iter().enumerate().map(entry).collect();
        append(spool, entries);
    }

    /// The text of the batch, in memory that its records keep. The buffer itself is used again.
    fn keep(&mut self) -> Bytes {
        if self.piece.capacity() < self.text.len() {
            self.piece.reserve(self.text.len().max(PIECE));
        }
        self.piece.extend_from_slice(&self.text);
        // A batch after a long pause of the disk may be large.
        self.text.shrink_to(PIECE);
        self.piece.split().freeze()
    }
}

/// Appends records to the log. While there is no space, applies `usage.spool.when_full`.
fn append(spool: &Spool, mut entries: Vec<Entry>) {
    let mut reported = false;
    while let Err(full) = spool.log.append(std::mem::take(&mut entries)) {
        let AppendError { kind, why, records } = full;
        let drop_oldest = spool.plan().when_full == WhenFull::DropOldest;
        entries = records;
        match kind {
            AppendErrorKind::QueueFull => {
                spool.lost("queue_full", entries.len() as u64, &why);
                break;
            }
            AppendErrorKind::NoSpace if drop_oldest => match spool.log.drop_oldest() {
                Some(lost) => {
                    spool.lost("spool_full", lost, &why);
                    continue;
                }
                None => {
                    spool.lost("spool_full", entries.len() as u64, &why);
                    break;
                }
            },
            AppendErrorKind::NoSpace | AppendErrorKind::Broken => {}
        }
        if !std::mem::replace(&mut reported, true) {
            match drop_oldest {
                true => log::error!("usage records wait in memory: {why}"),
                false => log::error!(
                    "new requests are rejected until there is space for usage records: {why}"
                ),
            }
        }
        spool.full(!drop_oldest);
        // Reporters deliver waiting records, which makes space.
        spool.end.send_replace(spool.log.end());
        std::thread::sleep(PAUSE);
        spool.log.trim();
        spool.report_losses();
    }
    if reported {
        log::warn!("usage records are being written again");
    }
    spool.full(false);
    spool.end.send_replace(spool.log.end());
}
