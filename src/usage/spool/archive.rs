//! Read-only access to the log on disk, while a gateway writes it or while none runs.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{
    entry::Entry,
    foreign,
    position::{self, SavedPosition},
    segment::{self, Segment, SegmentItem, SegmentReader},
};

/// The segments of a log when it was opened. Records that are added to the last of them later are read
/// too.
pub struct Archive {
    folder: PathBuf,
    segments: Vec<Segment>,
}

/// The result of [`Archive::verify`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Readable records.
    pub records: u64,
    pub bytes: u64,
    pub damage: Vec<Damage>,
    pub gaps: Vec<Gap>,
    /// Files that look like segments and that the gateway does not read.
    pub unread_files: Vec<PathBuf>,
    /// Bytes of an incomplete record at the end: left by a crash, or being written.
    pub torn: u64,
}

/// Bytes that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub path: PathBuf,
    pub offset: u64,
    pub bytes: u64,
}

/// A run of missing records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gap {
    /// `lost` indexes of the log are missing.
    Log { from: u64, lost: u64 },
    /// `lost` sequence numbers of one gateway process are missing: these records never reached the log.
    Sequence { process: String, from: u64, lost: u64 },
    /// The record at `index` is out of order.
    Order { index: u64 },
}

#[derive(Deserialize)]
struct SequenceFields<'a> {
    #[serde(borrow)]
    process: std::borrow::Cow<'a, str>,
    sequence: u64,
}

impl Archive {
    /// # Errors
    /// If the folder cannot be read.
    pub fn open(folder: &Path) -> Result<Self, String> {
        let segments = segment::list(folder)
            .map_err(|e| format!("cannot read the folder {}: {e}", folder.display()))?;
        Ok(Self { folder: folder.to_owned(), segments })
    }

    /// The segments, the oldest first.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Files that look like segments but are not. A segment that a gateway began since is not among them.
    fn unread_files(&self) -> Vec<PathBuf> {
        let now = segment::list(&self.folder).unwrap_or_default();
        foreign::unread_files(&self.folder, &now).unwrap_or_default()
    }

    /// The size of all segments.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// The index of the first record, and the index after the last record.
    ///
    /// # Errors
    /// If the last file cannot be read.
    pub fn bounds(&self) -> Result<(u64, u64), String> {
        let Some(last) = self.segments.last() else { return Ok((0, 0)) };
        let mut end = last.first;
        let mut reader = open(last)?;
        while let Some(next_item) = reader.next_item().map_err(|e| unreadable(last, &e))? {
            if let SegmentItem::Record(entry, _) = next_item {
                end = entry.index + 1;
            }
        }
        Ok((self.segments[0].first, end))
    }

    /// The positions of all reporters that ever used this spool; `None`: the file is damaged.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn positions(&self) -> Result<Vec<(String, Option<u64>)>, String> {
        let all = position::all(&self.folder).map_err(|e| {
            format!("cannot read {}: {e}", position::folder(&self.folder).display())
        })?;
        let place = |kept| match kept {
            SavedPosition::At(place) => Some(place),
            SavedPosition::Missing | SavedPosition::Damaged => None,
        };
        Ok(all.into_iter().map(|(name, kept)| (name, place(kept))).collect())
    }

    /// All readable records from an index on. Segments that are removed meanwhile are skipped.
    pub fn records(&self, from: u64) -> Records<'_> {
        let at = self.segments.partition_point(|segment| segment.first <= from);
        Records { rest: &self.segments[at.saturating_sub(1)..], reader: None, from }
    }

    /// Reads everything. `progress` gets the number of bytes that were read since its last call. Segments
    /// that are removed meanwhile are skipped.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn verify(&self, progress: &mut dyn FnMut(u64)) -> Result<Verification, String> {
        let mut verdict =
            Verification { unread_files: self.unread_files(), ..Verification::default() };
        let mut next: Option<u64> = None;
        let mut numbers: BTreeMap<String, u64> = BTreeMap::new();
        for (i, segment) in self.segments.iter().enumerate() {
            let mut reader = match SegmentReader::open(&segment.path, None, None) {
                Ok(reader) => reader,
                // Removed meanwhile, with all segments before it: the log now begins after it.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    (next, numbers) = (None, BTreeMap::new());
                    continue;
                }
                Err(e) => return Err(unreadable(segment, &e)),
            };
            let mut reported = 0;
            // The beginning of the log may be gone: delivered records are removed.
            verdict.expect(*next.get_or_insert(segment.first), segment.first);
            next = Some(segment.first);
            let mut tail = 0;
            while let Some(next_item) = reader.next_item().map_err(|e| unreadable(segment, &e))? {
                let position = reader.position();
                progress(position - reported);
                reported = position;
                match next_item {
                    SegmentItem::Record(entry, _) => {
                        verdict.expect(next.unwrap_or(entry.index), entry.index);
                        next = Some(entry.index + 1);
                        verdict.records += 1;
                        verdict.number(&entry, &mut numbers);
                    }
                    SegmentItem::Damage(offset, bytes) => {
                        let path = segment.path.clone();
                        verdict.damage.push(Damage { path, offset, bytes });
                        tail = if position >= segment.bytes { bytes } else { 0 };
                    }
                }
            }
            verdict.bytes += reported;
            if tail > 0 && i + 1 == self.segments.len() {
                verdict.damage.pop();
                verdict.torn = tail;
            }
        }
        Ok(verdict)
    }
}

impl Verification {
    /// Whether nothing is damaged or missing, and every file belongs to the log.
    pub fn is_intact(&self) -> bool {
        self.damage.is_empty() && self.gaps.is_empty() && self.unread_files.is_empty()
    }

    /// Records a gap between the expected index and the actual one.
    fn expect(&mut self, next: u64, index: u64) {
        match index.checked_sub(next) {
            Some(0) => {}
            Some(lost) => self.gaps.push(Gap::Log { from: next, lost }),
            None => self.gaps.push(Gap::Order { index }),
        }
    }

    fn number(&mut self, entry: &Entry, numbers: &mut BTreeMap<String, u64>) {
        let Ok(SequenceFields { process, sequence }) = serde_json::from_slice(&entry.json) else {
            return;
        };
        // The first record of a process may be gone: delivered records are removed.
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

/// Iterates over the records of a log.
pub struct Records<'a> {
    rest: &'a [Segment],
    reader: Option<SegmentReader>,
    from: u64,
}

impl Iterator for Records<'_> {
    type Item = Result<Entry, String>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let segment = self.rest.first()?;
            let reader = match &mut self.reader {
                Some(reader) => reader,
                None => match SegmentReader::open(&segment.path, None, None) {
                    Ok(reader) => self.reader.insert(reader),
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
            match reader.next_item() {
                Ok(Some(SegmentItem::Record(entry, _))) if entry.index >= self.from => {
                    return Some(Ok(entry));
                }
                Ok(Some(_)) => {}
                Ok(None) => (self.rest, self.reader) = (&self.rest[1..], None),
                Err(e) => {
                    self.rest = &[];
                    return Some(Err(unreadable(segment, &e)));
                }
            }
        }
    }
}

fn open(segment: &Segment) -> Result<SegmentReader, String> {
    SegmentReader::open(&segment.path, None, None).map_err(|e| unreadable(segment, &e))
}

fn unreadable(segment: &Segment, e: &io::Error) -> String {
    format!("cannot read {}: {e}", segment.path.display())
}
