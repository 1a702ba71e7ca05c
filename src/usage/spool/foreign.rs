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
}

impl Seen {
    fn look(segment: Segment) -> io::Result<Self> {
        let mut walk = Walk::open(&segment.path, None, None)?;
        let start = walk.position();
        let begin = match walk.step()? {
            Some(Step::Record(entry, _)) if start == segment::HEAD => Some(entry.index),
            _ => None,
        };
        let last = last_index(&segment)?;
        Ok(Self { segment, begin, last })
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
}

fn last_index(segment: &Segment) -> io::Result<Option<u64>> {
    let mut tail = TAIL;
    loop {
        let from = segment.bytes.saturating_sub(tail);
        let mut walk = Walk::open(&segment.path, Some(from), None)?;
        let mut last = None;
        while let Some(step) = walk.step()? {
            if let Step::Record(entry, _) = step {
                last = Some(entry.index);
            }
        }
        if last.is_some() || from == 0 {
            return Ok(last);
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
}

/// Looks at the segments of a folder, which are in the order of their names. `furthest` is the place
/// of the reporter that has got most.
///
/// # Errors
/// If one of them cannot be read.
pub fn survey(segments: Vec<Segment>, furthest: u64) -> io::Result<Survey> {
    let mut survey = Survey::default();
    let mut seen = Vec::new();
    for segment in segments {
        let looked = Seen::look(segment)?;
        match looked.is_misnamed() {
            true => survey.foreign.push(looked.segment),
            false => seen.push(looked),
        }
    }
    while let Some(at) = overlap(&seen, furthest) {
        survey.foreign.push(seen.remove(at).segment);
    }
    let pairs = seen.windows(2).map(|pair| (pair[0].end(), pair[1].segment.first));
    survey.gaps = pairs.filter(|(end, next)| end < next).collect();
    survey.own = seen.into_iter().map(|seen| seen.segment).collect();
    Ok(survey)
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
        let mut walk = Walk::open(&segment.path, None, None)?;
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
