//! A look at the log on disk from outside: while a gateway writes it, and when none does. Nothing is
//! changed.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{
    Entry, foreign,
    place::{self, Kept},
    segment::{self, Segment, Step, Walk},
};

/// A log as it was when it was opened; records that are added to its last file are seen.
pub struct Archive {
    folder: PathBuf,
    segments: Vec<Segment>,
}

/// What stands in a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Records that can be read.
    pub records: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// What cannot be read.
    pub damage: Vec<Damage>,
    /// Records that are missing.
    pub gaps: Vec<Gap>,
    /// Files beside the segments that look like some, and that nobody reads.
    pub strangers: Vec<PathBuf>,
    /// Bytes at the end that are not a whole record: what a crash has left, or what is being
    /// written.
    pub torn: u64,
}

/// Bytes that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// Where they begin.
    pub offset: u64,
    /// How many there are.
    pub bytes: u64,
}

/// Records that are missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gap {
    /// In the log: from an index on, so many.
    Log {
        /// The first one.
        from: u64,
        /// How many.
        lost: u64,
    },
    /// In the numbers that a run of the gateway gave: they never came into the log.
    Sequence {
        /// The run.
        process: String,
        /// The first number.
        from: u64,
        /// How many.
        lost: u64,
    },
    /// A record comes with a number that was expected later or earlier.
    Order {
        /// Its index.
        index: u64,
    },
}

#[derive(Deserialize)]
struct Numbered<'a> {
    #[serde(borrow)]
    process: std::borrow::Cow<'a, str>,
    sequence: u64,
}

impl Archive {
    /// Opens the log in a folder.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open(folder: &Path) -> Result<Self, String> {
        let segments = segment::list(folder)
            .map_err(|e| format!("cannot read the folder {}: {e}", folder.display()))?;
        Ok(Self { folder: folder.to_owned(), segments })
    }

    /// Its files, from the oldest on.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Files that look like segments and are none. One that a gateway begins meanwhile is one.
    fn strangers(&self) -> Vec<PathBuf> {
        let now = segment::list(&self.folder).unwrap_or_default();
        foreign::strangers(&self.folder, &now).unwrap_or_default()
    }

    /// The size of all of them.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// The index of the first record, and that of the next one that will be added.
    ///
    /// # Errors
    /// If the last file cannot be read.
    pub fn bounds(&self) -> Result<(u64, u64), String> {
        let Some(last) = self.segments.last() else { return Ok((0, 0)) };
        let mut end = last.first;
        let mut walk = open(last)?;
        while let Some(step) = walk.step().map_err(|e| unreadable(last, &e))? {
            if let Step::Record(entry, _) = step {
                end = entry.index + 1;
            }
        }
        Ok((self.segments[0].first, end))
    }

    /// The places of all reporters that were ever here; `None`: its file is damaged.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn places(&self) -> Result<Vec<(String, Option<u64>)>, String> {
        let all = place::all(&self.folder)
            .map_err(|e| format!("cannot read {}: {e}", place::folder(&self.folder).display()))?;
        let place = |kept| match kept {
            Kept::At(place) => Some(place),
            Kept::Nothing | Kept::Damaged => None,
        };
        Ok(all.into_iter().map(|(name, kept)| (name, place(kept))).collect())
    }

    /// All records from an index on, as far as they can be read. Segments that are removed meanwhile
    /// are passed over.
    pub fn records(&self, from: u64) -> Records<'_> {
        let at = self.segments.partition_point(|segment| segment.first <= from);
        Records { rest: &self.segments[at.saturating_sub(1)..], walk: None, from }
    }

    /// Reads everything. `progress` is told of the bytes that were read since it was last told.
    /// Segments that are removed meanwhile are passed over.
    ///
    /// # Errors
    /// If a file cannot be read at all.
    pub fn verify(&self, progress: &mut dyn FnMut(u64)) -> Result<Verdict, String> {
        let mut verdict = Verdict { strangers: self.strangers(), ..Verdict::default() };
        let mut next: Option<u64> = None;
        let mut numbers: BTreeMap<String, u64> = BTreeMap::new();
        for (i, segment) in self.segments.iter().enumerate() {
            let mut walk = match Walk::open(&segment.path, None, None) {
                Ok(walk) => walk,
                // Removed meanwhile, with all before it: now the log begins behind it.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    (next, numbers) = (None, BTreeMap::new());
                    continue;
                }
                Err(e) => return Err(unreadable(segment, &e)),
            };
            let mut told = 0;
            // A log that has lost its beginning is one whose oldest records are no longer needed.
            verdict.expect(*next.get_or_insert(segment.first), segment.first);
            next = Some(segment.first);
            let mut tail = 0;
            while let Some(step) = walk.step().map_err(|e| unreadable(segment, &e))? {
                let position = walk.position();
                progress(position - told);
                told = position;
                match step {
                    Step::Record(entry, _) => {
                        verdict.expect(next.unwrap_or(entry.index), entry.index);
                        next = Some(entry.index + 1);
                        verdict.records += 1;
                        verdict.number(&entry, &mut numbers);
                    }
                    Step::Damage(offset, bytes) => {
                        let path = segment.path.clone();
                        verdict.damage.push(Damage { path, offset, bytes });
                        tail = if position >= segment.bytes { bytes } else { 0 };
                    }
                }
            }
            verdict.bytes += told;
            if tail > 0 && i + 1 == self.segments.len() {
                verdict.damage.pop();
                verdict.torn = tail;
            }
        }
        Ok(verdict)
    }
}

impl Verdict {
    /// Whether nothing is damaged, nothing is missing, and everything belongs there.
    pub fn is_good(&self) -> bool {
        self.damage.is_empty() && self.gaps.is_empty() && self.strangers.is_empty()
    }

    /// Notes what lies between the index that should come and the one that came.
    fn expect(&mut self, next: u64, index: u64) {
        match index.checked_sub(next) {
            Some(0) => {}
            Some(lost) => self.gaps.push(Gap::Log { from: next, lost }),
            None => self.gaps.push(Gap::Order { index }),
        }
    }

    fn number(&mut self, entry: &Entry, numbers: &mut BTreeMap<String, u64>) {
        let Ok(Numbered { process, sequence }) = serde_json::from_slice(&entry.json) else {
            return;
        };
        // The first one that is seen of a process may not be its first: those before it may have
        // been delivered and removed.
        match numbers.get_mut(&*process) {
            None => {
                numbers.insert(process.into_owned(), sequence);
            }
            Some(last) => {
                match sequence.checked_sub(*last + 1) {
                    Some(0) => {}
                    Some(lost) => {
                        let process = process.into_owned();
                        self.gaps.push(Gap::Sequence { process, from: *last + 1, lost });
                    }
                    None => self.gaps.push(Gap::Order { index: entry.index }),
                }
                *last = sequence;
            }
        }
    }
}

/// Goes along the records of a log.
pub struct Records<'a> {
    rest: &'a [Segment],
    walk: Option<Walk>,
    from: u64,
}

impl Iterator for Records<'_> {
    type Item = Result<Entry, String>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let segment = self.rest.first()?;
            let walk = match &mut self.walk {
                Some(walk) => walk,
                None => match Walk::open(&segment.path, None, None) {
                    Ok(walk) => self.walk.insert(walk),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {
                        self.rest = &self.rest[1..];
                        continue;
                    }
                    Err(e) => {
                        self.rest = &[];
                        return Some(Err(unreadable(segment, &e)));
                    }
                },
            };
            match walk.step() {
                Ok(Some(Step::Record(entry, _))) if entry.index >= self.from => {
                    return Some(Ok(entry));
                }
                Ok(Some(_)) => {}
                Ok(None) => (self.rest, self.walk) = (&self.rest[1..], None),
                Err(e) => {
                    self.rest = &[];
                    return Some(Err(unreadable(segment, &e)));
                }
            }
        }
    }
}

fn open(segment: &Segment) -> Result<Walk, String> {
    Walk::open(&segment.path, None, None).map_err(|e| unreadable(segment, &e))
}

fn unreadable(segment: &Segment, e: &io::Error) -> String {
    format!("cannot read {}: {e}", segment.path.display())
}
