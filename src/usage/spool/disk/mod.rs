//! The log on disk: opening it, and what a log has to do.

mod files;
mod foreign_files;
mod reading;
mod state;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

pub use self::files::DiskLog;
use self::{
    files::{folders, sync_folder},
    state::LogState,
};
use super::{
    entry::Entry,
    foreign, frame,
    position::{self, PositionFile, SavedPosition},
    record_log::{AppendError, RecordLog},
    segment::{self, Segment},
};
use crate::{base::lock, config::plan::UsagePlan, telemetry::UsageMetrics};

/// How often old segments are removed.
const TRIM_INTERVAL: Duration = Duration::from_secs(1);

/// How often the folder is searched for foreign files.
const SEARCH_INTERVAL: Duration = Duration::from_secs(30);

impl DiskLog {
    /// Opens the log in a folder, which is created if it does not exist. An incomplete record at the end,
    /// left by a crash, is cut off.
    ///
    /// # Errors
    /// If the folder cannot be used, or another process uses it.
    pub fn open(folder: &Path, plan: &UsagePlan, metrics: UsageMetrics) -> Result<Self, String> {
        let shown = folder.display();
        let cannot = |e: io::Error| {
            format!(
                "cannot use {shown} for usage records: {e}; set `data_dir` to a writable folder, or \
                 `usage.spool.enabled: false`"
            )
        };
        folders(folder).map_err(cannot)?;
        let lock = lock_folder(folder)?;
        let saved = position::all(folder).map_err(cannot)?;
        let furthest = saved.iter().filter_map(|(_, saved)| match saved {
            SavedPosition::At(place) => Some(*place),
            SavedPosition::Missing | SavedPosition::Damaged => None,
        });
        let furthest = furthest.max().unwrap_or(0);
        let list = segment::list(folder).map_err(cannot)?;
        let survey = foreign::survey(list, furthest);
        foreign_files::report_gaps(folder, &survey.gaps);
        let mut segments: VecDeque<_> = survey.own.into();
        let mut end = 0;
        let mut active = None;
        if let Some(last) = segments.back_mut() {
            let (file, next) = segment::recover(last).map_err(cannot)?;
            (active, end) = (Some(file), next);
        }
        // After a power failure the positions may be ahead of the log: no index is used twice.
        let next = furthest.max(end);
        let active = match active.filter(|_| next == end) {
            Some(file) => file,
            None => {
                let (file, first) = segment::create(folder, next).map_err(cannot)?;
                segments.push_back(first);
                sync_folder(folder).map_err(cannot)?;
                file
            }
        };
        let disk = Self {
            folder: folder.to_owned(),
            active: Mutex::new(Arc::new(active)),
            buffer: Mutex::default(),
            state: Mutex::new(LogState {
                segments,
                end: next,
                recent: VecDeque::new(),
                recent_bytes: 0,
                positions: BTreeMap::new(),
                hints: VecDeque::new(),
                damaged: BTreeSet::new(),
                dropped: 0,
                doubtful: survey.doubtful,
                plan: plan.spool,
                trimmed_at: None,
                searched_at: Instant::now(),
                reported_files: BTreeSet::new(),
            }),
            positions: Mutex::default(),
            foreign: Mutex::new(survey.foreign),
            metrics,
            _lock: lock,
        };
        Ok(disk)
    }
}

/// Locks a folder against other processes.
fn lock_folder(folder: &Path) -> Result<File, String> {
    let path = folder.join("lock");
    let cannot = |e: io::Error| format!("cannot use {}: {e}", path.display());
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(cannot)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(format!(
            "another llmproxy uses {}: give each its own `data_dir` or `usage.spool.path`",
            folder.display()
        )),
        Err(fs::TryLockError::Error(e)) => Err(cannot(e)),
    }
}

impl RecordLog for DiskLog {
    fn append(&self, mut records: Vec<Entry>) -> Result<(), AppendError> {
        let mut active = lock(&self.active);
        while !records.is_empty() {
            let (size, used) = {
                let state = lock(&self.state);
                let used = state.segments.back().map_or(0, |active| active.bytes);
                (state.plan.segment_size, used)
            };
            let mut bytes = used;
            let fits = |entry: &&Entry| {
                bytes += frame::size(entry);
                bytes <= size
            };
            let fitting = records.iter().take_while(fits).count();
            let n = match fitting {
                0 if used > segment::HEAD => {
                    if let Err(e) = self.roll(&mut active) {
                        let kind = self.append_error_kind(&e);
                        let why = format!("cannot create a segment of the usage spool: {e}");
                        return Err(AppendError { kind, why, records });
                    }
                    continue;
                }
                // A record larger than a segment gets a segment of its own.
                0 => 1,
                n => n,
            };
            let more = records[..n].iter().map(frame::size).sum();
            if let Err((kind, why)) = self.make_space(more) {
                return Err(AppendError { kind, why, records });
            }
            if let Err(e) = self.write(&active, &records[..n]) {
                let kind = self.append_error_kind(&e);
                let why = format!("cannot write to the usage spool: {e}");
                return Err(AppendError { kind, why, records });
            }
            records.drain(..n);
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), String> {
        let file = Arc::clone(&lock(&self.active));
        file.sync_data().map_err(|e| format!("cannot sync records to disk: {e}"))
    }

    fn end(&self) -> u64 {
        lock(&self.state).end
    }

    fn first(&self) -> u64 {
        let state = lock(&self.state);
        state.segments.front().map_or(state.end, |oldest| oldest.first)
    }

    fn lift_limit(&self) {
        lock(&self.state).plan.max_size = u64::MAX;
    }

    fn read(&self, from: u64, most: usize) -> Result<(Vec<Entry>, u64), String> {
        let end = {
            let state = lock(&self.state);
            if from >= state.end {
                return Ok((Vec::new(), from));
            }
            if state.recent.front().is_some_and(|oldest| oldest.index <= from) {
                let start = state.recent.partition_point(|entry| entry.index < from);
                let entries: Vec<_> = state.recent.iter().skip(start).take(most).cloned().collect();
                let next = entries.last().map_or(state.end, |last| last.index + 1);
                return Ok((entries, next));
            }
            state.end
        };
        let Some(place) = self.find(from) else { return Ok((Vec::new(), from)) };
        let path = place.0.path.clone();
        match self.read_segment(place, from, most, end) {
            Ok(read) => Ok(read),
            // Dropped meanwhile, or removed by the operator: continue after it.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let first = path.file_stem().and_then(|n| n.to_str()?.parse().ok());
                let next = first.and_then(|first| self.after(first)).unwrap_or(end);
                self.missing(from, next, &path);
                Ok((Vec::new(), next.max(from)))
            }
            Err(e) => Err(format!("cannot read {}: {e}", path.display())),
        }
    }

    fn position_of(&self, reporter: &str) -> u64 {
        let state = lock(&self.state);
        state.positions.get(reporter).copied().unwrap_or(state.end)
    }

    fn save_position(&self, reporter: &str, next: u64) -> Result<(), String> {
        match lock(&self.state).positions.get_mut(reporter) {
            Some(place) => *place = next,
            None => return Ok(()),
        }
        let mut positions = lock(&self.positions);
        let Some(file) = positions.get_mut(reporter) else { return Ok(()) };
        file.save(next).map_err(|e| format!("cannot save the position of reporter {reporter}: {e}"))
    }

    fn trim(&self) {
        let n = {
            let mut state = lock(&self.state);
            if state.trimmed_at.is_some_and(|at| at.elapsed() < TRIM_INTERVAL) {
                return;
            }
            state.trimmed_at = Some(Instant::now());
            self.update_metrics(&state);
            let keep = state.plan.keep;
            let now = SystemTime::now();
            let old = |segment: &&Segment| {
                let written = fs::metadata(&segment.path).and_then(|about| about.modified());
                written.map_or(true, |at| now.duration_since(at).is_ok_and(|age| age >= keep))
            };
            state.segments.iter().take(state.spare()).take_while(old).count()
        };
        if n > 0 {
            self.remove(n);
            self.update_metrics(&lock(&self.state));
        }
        self.replace_removed_file();
        let due = lock(&self.state).searched_at.elapsed() >= SEARCH_INTERVAL;
        if due {
            lock(&self.state).searched_at = Instant::now();
            self.report_unread_files();
        }
    }

    fn drop_oldest(&self) -> Option<u64> {
        let (oldest, next) = {
            let state = lock(&self.state);
            (state.segments.front()?.first, state.segments.get(1)?.first)
        };
        if self.remove(1) == 0 {
            return None;
        }
        // Records that are counted as lost must not be delivered after all.
        let mut state = lock(&self.state);
        state.dropped = next;
        state.recent.retain(|entry| entry.index >= next);
        state.recent_bytes = state.recent.iter().map(|entry| entry.json.len()).sum();
        Some(next.saturating_sub(state.needed().max(oldest)))
    }

    fn set(&self, plan: &UsagePlan) -> Result<(), String> {
        let mut files = lock(&self.positions);
        let (first, end, known) = {
            let state = lock(&self.state);
            (state.segments.front().map_or(0, |s| s.first), state.end, state.positions.clone())
        };
        // The state changes only after every step that can fail.
        let (mut positions, mut opened_files) = (BTreeMap::new(), Vec::new());
        for reporter in &plan.reporters {
            let name = &reporter.name;
            if !known.contains_key(name) {
                let opened = PositionFile::open(&self.folder, name, (first, end));
                let (file, at) = opened
                    .map_err(|e| format!("cannot save the position of reporter {name}: {e}"))?;
                self.missing(at, first, &self.folder);
                opened_files.push((name.clone(), file));
                positions.insert(name.clone(), at.max(first));
            }
        }
        let mut state = lock(&self.state);
        for reporter in &plan.reporters {
            if let Some(at) = state.positions.get(&reporter.name) {
                positions.insert(reporter.name.clone(), *at);
            }
        }
        (state.plan, state.trimmed_at) = (plan.spool, None);
        state.positions = positions;
        files.extend(opened_files);
        files.retain(|name, _| state.positions.contains_key(name));
        drop((state, files));
        for segment in std::mem::take(&mut *lock(&self.foreign)) {
            self.take_over(&segment);
        }
        // Segments that a reporter still needs are delivered first.
        let doubtful = {
            let state = lock(&self.state);
            let spare = state.segments.iter().take(state.spare());
            spare.take_while(|segment| segment.first < state.doubtful).count()
        };
        self.remove(doubtful);
        self.report_unread_files();
        Ok(())
    }
}
