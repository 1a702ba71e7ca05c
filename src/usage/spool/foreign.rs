//! Files in the folder of a spool that do not belong there: a segment of another gateway, one that
//! was put back from a backup, a copy under another name. Their indexes clash with those of the log,
//! so that nobody would ever read their records, or nobody those of the log itself.
//!
//! They are found when the log is opened. Their records are added to the log as new ones, unless it
//! has the same ones in their place, and the file is put aside. Whoever has got a record before
//! knows it by its id.

use std::{
    collections::HashSet,
    fs,
    hash::{BuildHasher, RandomState},
    io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{
    Entry,
    segment::{self, Segment, Step, Walk},
};

/// How much of the end of a segment is looked at first for its last record.
const TAIL: u64 = 64 << 10;

/// A segment, and the records that stand in it.
struct Seen {
    segment: Segment,
    /// The index of the record behind the head, if that one is whole.
    begin: Option<u64>,
    /// The index of the last record.
    last: Option<u64>,
    /// Something that cannot be read stands behind the last record.
    torn: bool,
    /// The runs of a gateway that made the record behind the head and the last one.
    processes: [Option<String>; 2],
}

impl Seen {
    fn look(segment: Segment) -> io::Result<Self> {
        let mut walk = Walk::open(&segment.path, None, None)?;
        let start = walk.position();
        let begin = match walk.step()? {
            Some(Step::Record(entry, _)) if start == segment::HEAD => Some(entry),
            _ => None,
        };
        let (last, torn) = last_record(&segment)?;
        let processes = [begin.as_ref().and_then(process), last.as_ref().and_then(process)];
        let (begin, last) = (begin.map(|entry| entry.index), last.map(|entry| entry.index));
        Ok(Self { segment, begin, last, torn, processes })
    }

    /// Whether its name is that of its first record.
    fn is_misnamed(&self) -> bool {
        self.begin.is_some_and(|begin| begin != self.segment.first)
            || self.last.is_some_and(|last| last < self.segment.first)
    }

    /// The index with which the next segment begins.
    fn end(&self) -> u64 {
        self.last.map_or(self.segment.first, |last| last + 1)
    }

    /// Whether a gap before `next` is one of the log itself: something is damaged, or one run of the
    /// gateway made the records on both sides.
    fn explains_gap(&self, next: &Self) -> bool {
        let (one, two) = (&self.processes[1], &next.processes[0]);
        self.torn || one.is_some() && one == two
    }
}

/// The run of a gateway that made a record.
fn process(entry: &Entry) -> Option<String> {
    #[derive(Deserialize)]
    struct Made {
        process: String,
    }
    serde_json::from_slice(&entry.json).ok().map(|made: Made| made.process)
}

/// The last record, and whether anything stands behind it.
fn last_record(segment: &Segment) -> io::Result<(Option<Entry>, bool)> {
    let mut tail = TAIL;
    loop {
        let from = segment.bytes.saturating_sub(tail);
        let mut walk = Walk::open(&segment.path, Some(from), None)?;
        let (mut last, mut torn) = (None, false);
        while let Some(step) = walk.step()? {
            torn = match step {
                Step::Record(entry, _) => {
                    last = Some(entry);
                    false
                }
                Step::Damage(..) => true,
            };
        }
        if last.is_some() || from == 0 {
            return Ok((last, torn));
        }
        tail = tail.saturating_mul(16);
    }
}

/// The segments of a folder, told apart.
#[derive(Debug, Default)]
pub struct Survey {
    /// Those of the log, from the oldest on.
    pub own: Vec<Segment>,
    /// Those that do not belong to it.
    pub foreign: Vec<Segment>,
    /// Where records are missing between two segments of the log: the first one, and the one behind
    /// the last.
    pub gaps: Vec<(u64, u64)>,
    /// What lies before this index may not be the log's own: a gap follows that nothing explains.
    pub doubtful: u64,
}

/// Looks at the segments of a folder, which are in the order of their names. `furthest` is the place
/// of the reporter that has got most. One that cannot be read is the log's own where the others leave
/// room for it, and otherwise in none of the lists: it stays where it is.
pub fn survey(segments: Vec<Segment>, furthest: u64) -> Survey {
    let mut survey = Survey::default();
    let (mut seen, mut unread): (Vec<Seen>, Vec<Segment>) = Default::default();
    for segment in segments {
        match Seen::look(segment.clone()) {
            Ok(looked) if looked.is_misnamed() => survey.foreign.push(looked.segment),
            Ok(looked) => seen.push(looked),
            Err(e) => {
                let shown = segment.path.display();
                log::error!("{shown} in the folder of the spool cannot be read: {e}");
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
    let is_gap = |one: &Seen, two: &Seen| {
        let gap = one.end()..two.segment.first;
        !gap.is_empty() && !unread.iter().any(|segment| gap.contains(&segment.first))
    };
    if let [.., one, two] = &seen[..]
        && is_gap(one, two)
        && !one.explains_gap(two)
        && two.last.is_some()
        && two.segment.first > furthest
    {
        // The log goes on at its end, or at the furthest place.
        survey.foreign.extend(seen.pop().map(|seen| seen.segment));
    }
    for pair in seen.windows(2).filter(|pair| is_gap(&pair[0], &pair[1])) {
        let (end, next) = (pair[0].end(), pair[1].segment.first);
        survey.gaps.push((end, next));
        if !pair[0].explains_gap(&pair[1]) {
            survey.doubtful = next;
        }
    }
    // Nobody knows what stands in one that cannot be read.
    if let Some(hidden) = unread.last() {
        let behind = seen.iter().map(|seen| seen.segment.first).find(|first| *first > hidden.first);
        survey.doubtful = survey.doubtful.max(behind.unwrap_or(0));
    }
    survey.own = seen.into_iter().map(|seen| seen.segment).chain(unread).collect();
    survey.own.sort_unstable_by_key(|segment| segment.first);
    survey
}

/// Of the first two segments that clash the one that does not belong to the log: the log goes on
/// without a gap from file to file, and does not end before `furthest`, up to which somebody has got
/// its records.
fn overlap(seen: &[Seen], furthest: u64) -> Option<usize> {
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

/// The records of a foreign segment that do not stand in the log under the same index.
///
/// # Errors
/// If a file cannot be read.
pub fn news(foreign: &Segment, own: &[Segment]) -> io::Result<Vec<Entry>> {
    let hash = RandomState::new();
    let mut entries = Vec::new();
    let mut walk = Walk::open(&foreign.path, None, None)?;
    while let Some(step) = walk.step()? {
        if let Step::Record(entry, _) = step {
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
        // What cannot be read now does not have to be: at worst a record is there twice.
        let Ok(mut walk) = Walk::open(&segment.path, None, None) else { continue };
        while let Some(step) = walk.step()? {
            if let Step::Record(entry, _) = step {
                known.insert((entry.index, hash.hash_one(&entry.json)));
            }
        }
    }
    entries.retain(|entry| !known.contains(&(entry.index, hash.hash_one(&entry.json))));
    Ok(entries)
}

/// Where files are put that do not belong to a spool.
pub fn folder(spool: &Path) -> PathBuf {
    spool.join("foreign")
}

/// Puts a file aside, under a name that nothing has there; where it is then.
///
/// # Errors
/// If that cannot be; it is where it was.
pub fn put_aside(spool: &Path, path: &Path) -> io::Result<PathBuf> {
    let folder = folder(spool);
    segment::private_folder(&folder)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for turn in 0_u32.. {
        let aside = match turn {
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

/// Files beside the segments `own` that look like some, and that nobody reads.
///
/// # Errors
/// If the folder cannot be read.
pub fn strangers(spool: &Path, own: &[Segment]) -> io::Result<Vec<PathBuf>> {
    let own: HashSet<_> = own.iter().map(|segment| segment.path.as_path()).collect();
    let mut strangers = Vec::new();
    for entry in fs::read_dir(spool)? {
        let path = entry?.path();
        let named = path.file_name().is_some_and(|name| name.to_string_lossy().contains(".log"));
        if named && path.is_file() && !own.contains(path.as_path()) {
            strangers.push(path);
        }
    }
    strangers.sort_unstable();
    Ok(strangers)
}

/// How many files were put aside and are still there.
pub fn put_aside_before(spool: &Path) -> usize {
    fs::read_dir(folder(spool)).map_or(0, |entries| entries.flatten().count())
}
