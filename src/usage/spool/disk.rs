//! The log on disk.

mod strangers;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use super::{
    Entry, Full, Kind, Log, foreign, frame,
    place::{self, Kept, PlaceFile},
    segment::{self, Segment, Step, Walk},
};
use crate::{
    base::lock,
    config::plan::{SpoolPlan, UsagePlan},
    telemetry::UsageMetrics,
};

/// How many of the last records are kept in memory as well, so that whoever keeps up does not read
/// the disk.
const RECENT: usize = 1024;

/// And how many bytes of them.
const RECENT_BYTES: usize = 4 << 20;

/// Bytes that are handed out at a time, if that is more than one record.
const AT_A_TIME: usize = 1 << 20;

/// How often it is looked for what need not be kept any more.
const TIDY: Duration = Duration::from_secs(1);

/// How often it is looked for files that do not belong there.
const SURVEY: Duration = Duration::from_secs(30);

/// The log.
pub struct Disk {
    folder: PathBuf,
    /// Where records are added. Only the thread that appends waits for this, and the one that syncs
    /// takes the file from it.
    active: Mutex<Arc<File>>,
    state: Mutex<State>,
    /// The files with the places, apart: keeping one writes to the disk.
    places: Mutex<BTreeMap<String, PlaceFile>>,
    /// Segments that were found and do not belong to the log. They are taken over once it is known who
    /// needs what.
    foreign: Mutex<Vec<Segment>>,
    metrics: UsageMetrics,
    /// Nobody else uses the folder for as long as this is open.
    _lock: File,
}

struct State {
    /// From the oldest to the one that is written; never empty.
    segments: VecDeque<Segment>,
    /// The index of the next record.
    end: u64,
    recent: VecDeque<Entry>,
    recent_bytes: usize,
    /// The places of the reporters that count.
    places: BTreeMap<String, u64>,
    /// Where indexes begin that somebody has read up to: index, segment, place in the file.
    hints: VecDeque<(u64, u64, u64)>,
    /// Where damage was found that has been told of.
    damaged: BTreeSet<u64>,
    /// Everything before this index was dropped, and counted then.
    dropped: u64,
    /// Segments that begin before this index may not be the log's own: none of them is deleted.
    doubtful: u64,
    plan: SpoolPlan,
    tidied: Option<Instant>,
    surveyed: Instant,
    /// Files that do not belong to the log and have been told of.
    strangers: BTreeSet<PathBuf>,
}

impl State {
    /// The index of the oldest record that somebody needs.
    fn needed(&self) -> u64 {
        self.places.values().min().copied().unwrap_or(self.end)
    }

    fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Segments at the beginning that nobody needs.
    fn spare(&self) -> usize {
        let needed = self.needed();
        self.segments.iter().skip(1).take_while(|next| next.first <= needed).count()
    }

    fn remember(&mut self, entry: &Entry) {
        self.recent_bytes += entry.json.len();
        self.recent.push_back(entry.clone());
        while self.recent.len() > RECENT || self.recent_bytes > RECENT_BYTES {
            let Some(old) = self.recent.pop_front() else { break };
            self.recent_bytes -= old.json.len();
        }
    }

    fn hint(&mut self, index: u64, segment: u64, position: u64) {
        self.hints.retain(|(known, ..)| *known != index);
        self.hints.push_back((index, segment, position));
        if self.hints.len() > 32 {
            self.hints.pop_front();
        }
    }
}

impl Disk {
    /// Opens the log in a folder, which is made if it is not there. What a crash has left half
    /// written at its end is cut off.
    ///
    /// # Errors
    /// If the folder cannot be used, or another process uses it.
    pub fn open(folder: &Path, plan: &UsagePlan, metrics: UsageMetrics) -> Result<Self, String> {
        let shown = folder.display();
        let cannot = |e: io::Error| {
            format!(
                "cannot use {shown} for usage records: {e}; set `data_dir` to a folder that can be \
                 written to, or `usage.spool.enabled: false`"
            )
        };
        folders(folder).map_err(cannot)?;
        let lock = only_one(folder)?;
        let kept = place::all(folder).map_err(cannot)?;
        let furthest = kept.iter().filter_map(|(_, kept)| match kept {
            Kept::At(place) => Some(*place),
            Kept::Nothing | Kept::Damaged => None,
        });
        let furthest = furthest.max().unwrap_or(0);
        let list = segment::list(folder).map_err(cannot)?;
        let survey = foreign::survey(list, furthest);
        strangers::tell_gaps(folder, &survey.gaps);
        let mut segments: VecDeque<_> = survey.own.into();
        let mut end = 0;
        let mut active = None;
        if let Some(last) = segments.back_mut() {
            let (file, next) = segment::mend(last).map_err(cannot)?;
            (active, end) = (Some(file), next);
        }
        // Places may be further on than what a power failure has left: no index is used twice.
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
            state: Mutex::new(State {
                segments,
                end: next,
                recent: VecDeque::new(),
                recent_bytes: 0,
                places: BTreeMap::new(),
                hints: VecDeque::new(),
                damaged: BTreeSet::new(),
                dropped: 0,
                doubtful: survey.doubtful,
                plan: plan.spool,
                tidied: None,
                surveyed: Instant::now(),
                strangers: BTreeSet::new(),
            }),
            places: Mutex::default(),
            foreign: Mutex::new(survey.foreign),
            metrics,
            _lock: lock,
        };
        Ok(disk)
    }

    /// Writes records behind the last one of the active segment.
    fn write(&self, file: &File, records: &[Entry]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(records.iter().map(frame::size).sum::<u64>() as usize);
        records.iter().for_each(|record| frame::write(&mut bytes, record));
        let at = lock(&self.state).segments.back().map_or(0, |active| active.bytes);
        if let Err(e) = file.write_all_at(&bytes, at) {
            // What was written of it is written over, or cut off by the next start.
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

    /// Begins another segment.
    fn roll(&self, active: &mut Arc<File>) -> io::Result<()> {
        active.sync_data()?;
        let first = lock(&self.state).end;
        // Somebody may have put a file there meanwhile.
        let path = segment::path(&self.folder, first);
        let own = lock(&self.state).segments.iter().any(|segment| segment.path == path);
        if !own && segment::has_records(&path)? {
            let aside = foreign::put_aside(&self.folder, &path)?;
            log::error!(
                "{} does not belong to the spool, and its records are not delivered; it is now {}",
                path.display(),
                aside.display()
            );
        }
        let (file, segment) = segment::create(&self.folder, first)?;
        sync_folder(&self.folder)?;
        *active = Arc::new(file);
        let mut state = lock(&self.state);
        // One without a record gives way to its namesake.
        state.segments.pop_back_if(|last| last.first == first);
        state.segments.push_back(segment);
        Ok(())
    }

    /// Removes segments at the beginning. A file that cannot be removed is not forgotten, and one that
    /// may not be the log's own is put aside.
    fn remove(&self, n: usize) -> usize {
        for removed in 0..n {
            let (oldest, doubtful) = {
                let state = lock(&self.state);
                (state.segments.front().cloned(), state.doubtful)
            };
            let Some(oldest) = oldest else { return removed };
            let done = match oldest.first < doubtful {
                true => self.put_doubtful_aside(&oldest),
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

    /// Makes room for so many bytes by removing what has been delivered everywhere.
    fn room(&self, more: u64) -> Result<(), (Kind, String)> {
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
                let why = "bytes wait in the spool, and usage.spool.max_size is";
                return Err((Kind::Room, format!("{waiting} {why} {max}")));
            }
        }
    }

    /// What kind of trouble an error is. If the disk is full, everything is removed that has been
    /// delivered everywhere; other troubles are no reason to.
    fn trouble(&self, e: &io::Error) -> Kind {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        if !matches!(e.kind(), StorageFull | QuotaExceeded | FileTooLarge) {
            return Kind::Broken;
        }
        let spare = lock(&self.state).spare();
        self.remove(spare);
        Kind::Room
    }

    /// Where to look for an index: the segment, from where in it, and up to where; and whether it
    /// is the last one.
    fn find(&self, from: u64) -> Option<(Segment, Option<u64>, bool)> {
        let state = lock(&self.state);
        let behind = state.segments.partition_point(|segment| segment.first <= from);
        let at = behind.saturating_sub(1);
        let segment = state.segments.get(at)?.clone();
        let hint = state.hints.iter().find(|h| h.0 == from && h.1 == segment.first).map(|h| h.2);
        Some((segment, hint, at + 1 == state.segments.len()))
    }

    /// Up to `most` records of one segment, and the index to go on from.
    fn read_segment(
        &self,
        (segment, hint, last): (Segment, Option<u64>, bool),
        from: u64,
        most: usize,
        end: u64,
    ) -> io::Result<(Vec<Entry>, u64)> {
        let mut walk = Walk::open(&segment.path, hint, Some(segment.bytes))?;
        let (mut entries, mut next, mut bytes) = (Vec::new(), from.max(segment.first), 0);
        self.missing(from.max(lock(&self.state).dropped), segment.first, &segment.path);
        loop {
            match walk.step()? {
                Some(Step::Record(entry, _)) if entry.index < next => {}
                Some(Step::Record(entry, position)) => {
                    self.missing(next, entry.index, &segment.path);
                    next = entry.index + 1;
                    bytes += entry.json.len();
                    entries.push(entry);
                    if entries.len() >= most || bytes >= AT_A_TIME {
                        lock(&self.state).hint(next, segment.first, position);
                        return Ok((entries, next));
                    }
                }
                Some(Step::Damage(..)) => {}
                None => break,
            }
        }
        if last {
            // What is still missing will not come.
            self.missing(next, end, &segment.path);
            next = next.max(end);
            lock(&self.state).hint(next, segment.first, segment.bytes);
        } else if let Some(first) = self.after(segment.first) {
            self.missing(next, first, &segment.path);
            next = first;
        }
        Ok((entries, next))
    }

    /// The index with which the segment after this one begins.
    fn after(&self, first: u64) -> Option<u64> {
        lock(&self.state).segments.iter().map(|s| s.first).find(|other| *other > first)
    }

    /// Records are missing, which is told once.
    fn missing(&self, from: u64, to: u64, path: &Path) {
        let news = |state: &mut State| {
            // A disk that loses everything does not fill the memory as well.
            if state.damaged.len() > 10_000 {
                state.damaged.clear();
            }
            state.damaged.insert(from)
        };
        if to > from && news(&mut lock(&self.state)) {
            let lost = to - from;
            self.metrics.lost.with_label_values(&["damaged"]).inc_by(lost);
            log::error!(
                "{lost} usage records (#{from} to #{}) cannot be read any more: damaged, or removed, \
                 at {}",
                to - 1,
                path.display()
            );
        }
    }

    /// A file that somebody has removed would take records until it is full, and they would be gone
    /// with the process.
    fn mind_removal(&self) {
        let mut active = lock(&self.active);
        if active.metadata().is_ok_and(|about| about.nlink() > 0) {
            return;
        }
        log::error!("the file that usage records are written to was removed: another one is begun");
        // Perhaps with all that is in the folder.
        let made = folders(&self.folder);
        if let Err(e) = made.and_then(|()| self.roll(&mut active)) {
            log::error!("cannot begin a segment of the spool: {e}");
        }
    }

    fn show(&self, state: &State) {
        let needed = state.needed();
        let waits = |i: usize| state.segments.get(i + 1).map_or(state.end, |s| s.first) > needed;
        let waiting = state.segments.iter().enumerate().filter(|(i, _)| waits(*i));
        let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.metrics.spool.bytes.set(gauge(state.bytes()));
        self.metrics.spool.waiting_bytes.set(gauge(waiting.map(|(_, s)| s.bytes).sum()));
        self.metrics.spool.max_bytes.set(gauge(state.plan.max_size));
    }
}

/// Makes the folders of a spool, for nobody else to read.
fn folders(spool: &Path) -> io::Result<()> {
    [spool, &place::folder(spool)].into_iter().try_for_each(segment::private_folder)
}

/// A file that was made is to be found after a power failure.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Takes the lock of a folder.
fn only_one(folder: &Path) -> Result<File, String> {
    let path = folder.join("lock");
    let cannot = |e: io::Error| format!("cannot use {}: {e}", path.display());
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(cannot)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(format!(
            "another llmproxy uses {}: give each a `data_dir` or `usage.spool.path` of its own",
            folder.display()
        )),
        Err(fs::TryLockError::Error(e)) => Err(cannot(e)),
    }
}

impl Log for Disk {
    fn append(&self, mut records: Vec<Entry>) -> Result<(), Full> {
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
                        let kind = self.trouble(&e);
                        let why = format!("cannot begin a segment of the spool: {e}");
                        return Err(Full { kind, why, records });
                    }
                    continue;
                }
                // Larger than a segment should be.
                0 => 1,
                n => n,
            };
            let more = records[..n].iter().map(frame::size).sum();
            if let Err((kind, why)) = self.room(more) {
                return Err(Full { kind, why, records });
            }
            if let Err(e) = self.write(&active, &records[..n]) {
                let kind = self.trouble(&e);
                let why = format!("cannot write to the spool: {e}");
                return Err(Full { kind, why, records });
            }
            records.drain(..n);
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), String> {
        let file = Arc::clone(&lock(&self.active));
        file.sync_data().map_err(|e| format!("cannot force records to the disk: {e}"))
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
            // Given up meanwhile, or somebody has removed it: what follows is read.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let first = path.file_stem().and_then(|n| n.to_str()?.parse().ok());
                let next = first.and_then(|first| self.after(first)).unwrap_or(end);
                self.missing(from, next, &path);
                Ok((Vec::new(), next.max(from)))
            }
            Err(e) => Err(format!("cannot read {}: {e}", path.display())),
        }
    }

    fn place(&self, reporter: &str) -> u64 {
        let state = lock(&self.state);
        state.places.get(reporter).copied().unwrap_or(state.end)
    }

    fn keep_place(&self, reporter: &str, next: u64) -> Result<(), String> {
        match lock(&self.state).places.get_mut(reporter) {
            Some(place) => *place = next,
            None => return Ok(()),
        }
        let mut places = lock(&self.places);
        let Some(file) = places.get_mut(reporter) else { return Ok(()) };
        file.keep(next).map_err(|e| format!("cannot keep the place of reporter {reporter}: {e}"))
    }

    fn trim(&self) {
        let n = {
            let mut state = lock(&self.state);
            if state.tidied.is_some_and(|at| at.elapsed() < TIDY) {
                return;
            }
            state.tidied = Some(Instant::now());
            self.show(&state);
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
            self.show(&lock(&self.state));
        }
        self.mind_removal();
        let due = lock(&self.state).surveyed.elapsed() >= SURVEY;
        if due {
            lock(&self.state).surveyed = Instant::now();
            self.tell_strangers();
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
        // What is counted as lost does not come after all.
        let mut state = lock(&self.state);
        state.dropped = next;
        state.recent.retain(|entry| entry.index >= next);
        state.recent_bytes = state.recent.iter().map(|entry| entry.json.len()).sum();
        Some(next.saturating_sub(state.needed().max(oldest)))
    }

    fn set(&self, plan: &UsagePlan) -> Result<(), String> {
        let mut files = lock(&self.places);
        let (first, end, known) = {
            let state = lock(&self.state);
            (state.segments.front().map_or(0, |s| s.first), state.end, state.places.clone())
        };
        // Nothing changes before all of it is known to work.
        let (mut places, mut news) = (BTreeMap::new(), Vec::new());
        for reporter in &plan.reporters {
            let name = &reporter.name;
            if !known.contains_key(name) {
                let opened = PlaceFile::open(&self.folder, name, (first, end));
                let (file, at) =
                    opened.map_err(|e| format!("cannot keep the place of reporter {name}: {e}"))?;
                self.missing(at, first, &self.folder);
                news.push((name.clone(), file));
                places.insert(name.clone(), at.max(first));
            }
        }
        let mut state = lock(&self.state);
        for reporter in &plan.reporters {
            if let Some(at) = state.places.get(&reporter.name) {
                places.insert(reporter.name.clone(), *at);
            }
        }
        (state.plan, state.tidied) = (plan.spool, None);
        state.places = places;
        files.extend(news);
        files.retain(|name, _| state.places.contains_key(name));
        drop((state, files));
        for stranger in std::mem::take(&mut *lock(&self.foreign)) {
            self.take_over(&stranger);
        }
        // Those that somebody wants are delivered first.
        let doubtful = {
            let state = lock(&self.state);
            let spare = state.segments.iter().take(state.spare());
            spare.take_while(|segment| segment.first < state.doubtful).count()
        };
        self.remove(doubtful);
        self.tell_strangers();
        Ok(())
    }
}
