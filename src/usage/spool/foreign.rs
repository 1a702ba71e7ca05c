//! Foreign files in the folder of a spool: a segment of another gateway, one restored from a backup, a
//! copy under another name. Their indexes clash with those of the log, so that either their records or
//! those of the log would never be read.
//!
//! They are found when the log is opened. Their records are appended to the log, except those that the
//! log has at the same index, and the file is moved to the folder `foreign`. Receivers that got such a
//! record before recognize it by its `record_id`.

use std::{
    collections::HashSet,
    fs,
    hash::{BuildHasher, RandomState},
    io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{
    entry::Entry,
    segment::{self, Segment, SegmentItem, SegmentReader},
};

/// Bytes at the end of a segment that are searched first for its last record.
const TAIL: u64 = 64 << 10;

/// A segment, with its first and last record.
struct InspectedSegment {
    segment: Segment,
    /// The index of the record after the file header, if that record is intact.
    begin: Option<u64>,
    /// The index of the last record.
    last: Option<u64>,
    /// Unreadable bytes follow the last record.
    torn: bool,
    /// The gateway processes that wrote the first and the last record.
    processes: [Option<String>; 2],
}

impl InspectedSegment {
    fn read(segment: Segment) -> io::Result<Self> {
        let mut reader = SegmentReader::open(&segment.path, None, None)?;
        let start = reader.position();
        let begin = match reader.next_item()? {
            Some(SegmentItem::Record(entry, _)) if start == segment::HEAD => Some(entry),
            _ => None,
        };
        let (last, torn) = last_record(&segment)?;
        let processes = [begin.as_ref().and_then(process), last.as_ref().and_then(process)];
        let (begin, last) = (begin.map(|entry| entry.index), last.map(|entry| entry.index));
        Ok(Self { segment, begin, last, torn, processes })
    }

    /// Whether the file name is not the index of the first record.
    fn is_misnamed(&self) -> bool {
        self.begin.is_some_and(|begin| begin != self.segment.first)
            || self.last.is_some_and(|last| last < self.segment.first)
    }

    /// The index after the last record.
    fn end(&self) -> u64 {
        self.last.map_or(self.segment.first, |last| last + 1)
    }

    /// Whether the gap before `next` can be one of the log itself: this segment is damaged at its end, or
    /// one gateway process wrote the records on both sides.
    fn explains_gap(&self, next: &Self) -> bool {
        let (one, two) = (&self.processes[1], &next.processes[0]);
        self.torn || one.is_some() && one == two
    }
}

/// The gateway process that wrote a record.
fn process(entry: &Entry) -> Option<String> {
    #[derive(Deserialize)]
    struct ProcessField {
        process: String,
    }
    serde_json::from_slice(&entry.json).ok().map(|field: ProcessField| field.process)
}

/// The last record, and whether unreadable bytes follow it.
fn last_record(segment: &Segment) -> io::Result<(Option<Entry>, bool)> {
    let mut tail = TAIL;
    loop {
        let from = segment.bytes.saturating_sub(tail);
        let mut reader = SegmentReader::open(&segment.path, Some(from), None)?;
        let (mut last, mut torn) = (None, false);
        while let Some(next_item) = reader.next_item()? {
            torn = match next_item {
                SegmentItem::Record(entry, _) => {
                    last = Some(entry);
                    false
                }
                SegmentItem::Damage(..) => true,
            };
        }
        if last.is_some() || from == 0 {
            return Ok((last, torn));
        }
        tail = tail.saturating_mul(16);
    }
}

/// The segments of a folder: those of the log, and foreign ones.
#[derive(Debug, Default)]
pub struct Survey {
    /// The segments of the log, the oldest first.
    pub own: Vec<Segment>,
    pub foreign: Vec<Segment>,
    /// Runs of missing records between two segments of the log: the first missing index, and the index
    /// after the last.
    pub gaps: Vec<(u64, u64)>,
    /// Segments before this index may be foreign: an unexplained gap follows them.
    pub doubtful: u64,
}

/// Sorts the segments of a folder, which come in the order of their names. `furthest` is the position of
/// the reporter that is furthest ahead. An unreadable segment belongs to the log if it fits between the
/// others; otherwise it is in none of the lists and stays where it is.
pub fn survey(segments: Vec<Segment>, furthest: u64) -> Survey {
    let mut survey = Survey::default();
    let (mut seen, mut unread): (Vec<InspectedSegment>, Vec<Segment>) = Default::default();
    for segment in segments {
        match InspectedSegment::read(segment.clone()) {
            Ok(looked) if looked.is_misnamed() => survey.foreign.push(looked.segment),
            Ok(looked) => seen.push(looked),
            Err(e) => {
                let shown = segment.path.display();
                log::error!("cannot read {shown} in the folder of the usage spool: {e}");
                unread.push(segment);
            }
        }
    }
    while let Some(at) = overlap(&seen, furthest) {
        survey.foreign.push(seen.remove(at).segment);
    }
    unread.retain(|segment| {
        let behind = seen.partition_point(|seen| seen.segment.first <= segment.first);
        let before = behind.checked_sub(1).map(|before| seen[before].end());
        behind < seen.len() && before.is_none_or(|end| end <= segment.first)
    });
    let is_gap = |one: &InspectedSegment, two: &InspectedSegment| {
        let gap = one.end()..two.segment.first;
        !gap.is_empty() && !unread.iter().any(|segment| gap.contains(&segment.first))
    };
    if let [.., one, two] = &seen[..]
        && is_gap(one, two)
        && !one.explains_gap(two)
        && two.last.is_some()
        && two.segment.first > furthest
    {
        // A new segment begins at the end of the log or at the furthest position.
        survey.foreign.extend(seen.pop().map(|seen| seen.segment));
    }
    for pair in seen.windows(2).filter(|pair| is_gap(&pair[0], &pair[1])) {
        let (end, next) = (pair[0].end(), pair[1].segment.first);
        survey.gaps.push((end, next));
        if !pair[0].explains_gap(&pair[1]) {
            survey.doubtful = next;
        }
    }
    // Unreadable segments may contain any records.
    if let Some(hidden) = unread.last() {
        let behind = seen.iter().map(|seen| seen.segment.first).find(|first| *first > hidden.first);
        survey.doubtful = survey.doubtful.max(behind.unwrap_or(0));
    }
    survey.own = seen.into_iter().map(|seen| seen.segment).chain(unread).collect();
    survey.own.sort_unstable_by_key(|segment| segment.first);
    survey
}

/// The foreign one of the first two overlapping segments: the log has no gap between its files, and does
/// not end before `furthest`, the position up to which a reporter has delivered.
fn overlap(seen: &[InspectedSegment], furthest: u64) -> Option<usize> {
    let at = seen.windows(2).position(|pair| pair[0].end() > pair[1].segment.first)?;
    let (one, two) = (&seen[at], &seen[at + 1]);
    let before = at.checked_sub(1).map(|before| seen[before].end());
    let next = seen.get(at + 2).map(|next| next.segment.first);
    let second = if next == Some(one.end()) {
        true
    } else if before == Some(two.segment.first) {
        false
    } else if before == Some(one.segment.first) {
        true
    } else if next == Some(two.end()) {
        false
    } else {
        one.end() >= furthest
    };
    Some(at + usize::from(second))
}

/// The records of a foreign segment that the log does not have at the same index.
///
/// # Errors
/// If a file cannot be read.
pub fn missing_records(foreign: &Segment, own: &[Segment]) -> io::Result<Vec<Entry>> {
    let hash = RandomState::new();
    let mut entries = Vec::new();
    let mut reader = SegmentReader::open(&foreign.path, None, None)?;
    while let Some(next_item) = reader.next_item()? {
        if let SegmentItem::Record(entry, _) = next_item {
            entries.push(entry);
        }
    }
    let indexes = entries.iter().map(|entry| entry.index);
    let (Some(least), Some(most)) = (indexes.clone().min(), indexes.max()) else {
        return Ok(entries);
    };
    let mut known = HashSet::new();
    for (at, segment) in own.iter().enumerate() {
        let before = own.get(at + 1).is_some_and(|next| next.first <= least);
        if before || segment.first > most {
            continue;
        }
        // If a segment cannot be read, a record may be added twice, which is harmless.
        let Ok(mut reader) = SegmentReader::open(&segment.path, None, None) else { continue };
        while let Some(next_item) = reader.next_item()? {
            if let SegmentItem::Record(entry, _) = next_item {
                known.insert((entry.index, hash.hash_one(&entry.json)));
            }
        }
    }
    entries.retain(|entry| !known.contains(&(entry.index, hash.hash_one(&entry.json))));
    Ok(entries)
}

/// The folder for foreign files.
pub fn folder(spool: &Path) -> PathBuf {
    spool.join("foreign")
}

/// Moves a file to the folder for foreign files, under an unused name, and returns its new path.
///
/// # Errors
/// If the file cannot be moved; it then stays.
pub fn set_aside(spool: &Path, path: &Path) -> io::Result<PathBuf> {
    let folder = folder(spool);
    segment::private_folder(&folder)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for n in 0_u32.. {
        let aside = match n {
            0 => folder.join(&name),
            n => folder.join(format!("{name}.{n}")),
        };
        if !aside.exists() {
            fs::rename(path, &aside)?;
            return Ok(aside);
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Files that look like segments but are not in `own`, so that the gateway does not read them.
///
/// # Errors
/// If the folder cannot be read.
pub fn unread_files(spool: &Path, own: &[Segment]) -> io::Result<Vec<PathBuf>> {
    let own: HashSet<_> = own.iter().map(|segment| segment.path.as_path()).collect();
    let mut unread = Vec::new();
    for entry in fs::read_dir(spool)? {
        let path = entry?.path();
        let named = path.file_name().is_some_and(|name| name.to_string_lossy().contains(".log"));
        if named && path.is_file() && !own.contains(path.as_path()) {
            unread.push(path);
        }
    }
    unread.sort_unstable();
    Ok(unread)
}

/// How many files are in the folder for foreign files.
pub fn count_set_aside(spool: &Path) -> usize {
    fs::read_dir(folder(spool)).map_or(0, |entries| entries.flatten().count())
}
