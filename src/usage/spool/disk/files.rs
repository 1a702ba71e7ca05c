//! The files of the log: writing records, beginning segments and removing them.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use super::state::LogState;
use crate::{
    base::lock,
    telemetry::UsageMetrics,
    usage::spool::{
        entry::Entry,
        foreign, frame,
        position::{self, PositionFile},
        record_log::AppendErrorKind,
        segment::{self, Segment},
    },
};

/// Bytes of the buffer that are kept between batches.
const BUFFER: usize = 64 << 10;

/// A log on disk.
pub struct DiskLog {
    pub(super) folder: PathBuf,
    /// The file of the last segment. Only the thread that appends holds the lock for long; the thread that
    /// syncs clones the file.
    pub(super) active: Mutex<Arc<File>>,
    /// For the thread that appends: what it writes next. Kept between batches.
    pub(super) buffer: Mutex<Vec<u8>>,
    pub(super) state: Mutex<LogState>,
    /// The files of the positions. They have a lock of their own, because saving writes to disk.
    pub(super) positions: Mutex<BTreeMap<String, PositionFile>>,
    /// Foreign segments. They are taken over once the positions of the reporters are known.
    pub(super) foreign: Mutex<Vec<Segment>>,
    pub(super) metrics: UsageMetrics,
    /// Keeps other processes from using the folder.
    pub(super) _lock: File,
}

impl DiskLog {
    /// Appends records to the active segment.
    pub(super) fn write(&self, file: &File, records: &[Entry]) -> io::Result<()> {
        let mut bytes = lock(&self.buffer);
        bytes.clear();
        bytes.shrink_to(BUFFER);
        records.iter().for_each(|record| frame::encode(&mut bytes, record));
        let at = lock(&self.state).segments.back().map_or(0, |active| active.bytes);
        if let Err(e) = file.write_all_at(&bytes, at) {
            // If this fails too, the next write overwrites the rest, or the next start cuts it off.
            file.set_len(at).ok();
            return Err(e);
        }
        let mut state = lock(&self.state);
        if let Some(active) = state.segments.back_mut() {
            active.bytes += bytes.len() as u64;
        }
        state.end = records.last().map_or(state.end, |last| last.index + 1);
        records.iter().for_each(|record| state.remember(record));
        Ok(())
    }

    /// Begins a new segment.
    pub(super) fn roll(&self, active: &mut Arc<File>) -> io::Result<()> {
        active.sync_data()?;
        let first = lock(&self.state).end;
        // The operator may have put a file there meanwhile.
        let path = segment::path(&self.folder, first);
        let own = lock(&self.state).segments.iter().any(|segment| segment.path == path);
        if !own && segment::has_records(&path)? {
            let aside = foreign::set_aside(&self.folder, &path)?;
            log::error!(
                "{} does not belong to the usage spool: its records are not delivered; moved to {}",
                path.display(),
                aside.display()
            );
        }
        let (file, segment) = segment::create(&self.folder, first)?;
        sync_folder(&self.folder)?;
        *active = Arc::new(file);
        let mut state = lock(&self.state);
        // An empty segment is replaced by the new one of the same name.
        state.segments.pop_back_if(|last| last.first == first);
        state.segments.push_back(segment);
        Ok(())
    }

    /// Removes the `n` oldest segments and returns how many are gone: it stops at a file that cannot be
    /// removed. A segment that may be foreign is moved aside.
    pub(super) fn remove(&self, n: usize) -> usize {
        for removed in 0..n {
            let (oldest, doubtful) = {
                let state = lock(&self.state);
                (state.segments.front().cloned(), state.doubtful)
            };
            let Some(oldest) = oldest else { return removed };
            let done = match oldest.first < doubtful {
                true => self.set_doubtful_aside(&oldest),
                false => fs::remove_file(&oldest.path),
            };
            match done {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    log::error!("cannot remove {}: {e}", oldest.path.display());
                    return removed;
                }
                _ => {}
            }
            lock(&self.state).segments.pop_front();
        }
        n
    }

    /// Makes space for `more` bytes by removing segments that are delivered everywhere.
    pub(super) fn make_space(&self, more: u64) -> Result<(), (AppendErrorKind, String)> {
        loop {
            let (spare, waiting, max) = {
                let state = lock(&self.state);
                let (bytes, max) = (state.bytes(), state.plan.max_size);
                if bytes + more <= max {
                    return Ok(());
                }
                (state.spare(), bytes, max)
            };
            if spare == 0 || self.remove(1) == 0 {
                let why = "bytes wait in the usage spool, and usage.spool.max_size is";
                return Err((AppendErrorKind::NoSpace, format!("{waiting} {why} {max}")));
            }
        }
    }

    /// The kind of a write error. If the disk is full, all segments are removed that are delivered
    /// everywhere.
    pub(super) fn append_error_kind(&self, e: &io::Error) -> AppendErrorKind {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        if !matches!(e.kind(), StorageFull | QuotaExceeded | FileTooLarge) {
            return AppendErrorKind::Broken;
        }
        let spare = lock(&self.state).spare();
        self.remove(spare);
        AppendErrorKind::NoSpace
    }

    /// Replaces an active file that was deleted: records written to it would be lost when the process
    /// ends.
    pub(super) fn replace_removed_file(&self) {
        let mut active = lock(&self.active);
        if active.metadata().is_ok_and(|about| about.nlink() > 0) {
            return;
        }
        log::error!(
            "the file to which usage records are written was deleted: a new one is created"
        );
        // The folders may have been deleted too.
        let made = folders(&self.folder);
        if let Err(e) = made.and_then(|()| self.roll(&mut active)) {
            log::error!("cannot create a segment of the usage spool: {e}");
        }
    }

    pub(super) fn update_metrics(&self, state: &LogState) {
        let needed = state.needed();
        let waits = |i: usize| state.segments.get(i + 1).map_or(state.end, |s| s.first) > needed;
        let waiting = state.segments.iter().enumerate().filter(|(i, _)| waits(*i));
        let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.metrics.spool.bytes.set(gauge(state.bytes()));
        self.metrics.spool.waiting_bytes.set(gauge(waiting.map(|(_, s)| s.bytes).sum()));
        self.metrics.spool.max_bytes.set(gauge(state.plan.max_size));
    }

    /// Moves a segment aside that may be foreign and that no reporter needs: its records may never have
    /// been delivered.
    fn set_doubtful_aside(&self, segment: &Segment) -> io::Result<()> {
        let aside = foreign::set_aside(&self.folder, &segment.path)?;
        log::error!(
            "{} lies before all records that are still to be delivered, and records are missing after it: it \
             may not belong to the usage spool, and its records are not delivered; moved to {}",
            segment.path.display(),
            aside.display()
        );
        Ok(())
    }
}

/// Creates the folders of a spool, readable only for their owner.
pub(super) fn folders(spool: &Path) -> io::Result<()> {
    [spool, &position::folder(spool)].into_iter().try_for_each(segment::private_folder)
}

/// Makes a new file survive a power failure.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
