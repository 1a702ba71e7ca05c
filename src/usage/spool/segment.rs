//! The segments of the log. The name of each file is the index of its first record. A short header is
//! followed by one record after the other.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{
    entry::Entry,
    frame::{self, Frame},
};

/// The file header: the kind of file and the version of its format.
const MAGIC: &[u8; 16] = b"llmproxy usage 1";

/// Bytes of the header.
pub const HEAD: u64 = MAGIC.len() as u64;

/// Bytes read at a time.
const WINDOW: usize = 256 << 10;

const SUFFIX: &str = "log";

/// A file of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub path: PathBuf,
    /// The index of its first record.
    pub first: u64,
    /// The size of the file.
    pub bytes: u64,
}

/// The segments in a folder, the oldest first. Subfolders with such a name are ignored.
///
/// # Errors
/// If the folder cannot be read.
pub fn list(folder: &Path) -> io::Result<Vec<Segment>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if path.extension().is_none_or(|e| e != SUFFIX) || name.len() != 20 {
            continue;
        }
        if let Ok(first) = name.parse() {
            // A file that is being removed has no metadata.
            let Ok(about) = entry.metadata() else { continue };
            if about.is_dir() {
                continue;
            }
            segments.push(Segment { path, first, bytes: about.len() });
        }
    }
    segments.sort_unstable_by_key(|segment| segment.first);
    Ok(segments)
}

/// Creates a folder that only its owner can read.
///
/// # Errors
/// If it cannot be created.
pub fn private_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// The path of the segment that begins with this index.
pub fn path(folder: &Path, first: u64) -> PathBuf {
    folder.join(format!("{first:020}.{SUFFIX}"))
}

/// Creates a segment that only its owner can read. It replaces a file of the same name.
///
/// # Errors
/// If it cannot be created. No file is left behind then.
pub fn create(folder: &Path, first: u64) -> io::Result<(File, Segment)> {
    let path = path(folder, first);
    let made = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .and_then(|file| file.write_all_at(MAGIC, 0).map(|()| file));
    match made {
        Ok(file) => Ok((file, Segment { path, first, bytes: HEAD })),
        Err(e) => {
            fs::remove_file(&path).ok();
            Err(e)
        }
    }
}

/// An item of a segment.
#[derive(Debug, PartialEq, Eq)]
pub enum SegmentItem {
    /// A record, and the offset after it.
    Record(Entry, u64),
    /// Unreadable bytes: offset and length.
    Damage(u64, u64),
}

/// Reads the items of a segment in order.
pub struct SegmentReader {
    file: File,
    /// The offset of `window[0]` in the file.
    base: u64,
    window: Vec<u8>,
    at: usize,
    /// Where to stop reading.
    end: u64,
}

impl SegmentReader {
    /// Begins at `from`, or after the header, and ends at `end`, or at the end of the file.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn open(path: &Path, from: Option<u64>, end: Option<u64>) -> io::Result<Self> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let end = end.map_or(len, |end| end.min(len));
        let mut reader = Self { file, base: 0, window: Vec::new(), at: 0, end };
        match from {
            Some(from) => reader.base = from.min(end),
            None => {
                // Without an intact header the records are found by their markers.
                reader.fill(HEAD as usize)?;
                if reader.window.starts_with(MAGIC) {
                    reader.at = MAGIC.len();
                }
            }
        }
        Ok(reader)
    }

    /// The offset of the next item.
    pub fn position(&self) -> u64 {
        self.base + self.at as u64
    }

    /// Reads until the window has `n` bytes ahead, or up to the end.
    fn fill(&mut self, n: usize) -> io::Result<()> {
        if self.window.len() - self.at >= n {
            return Ok(());
        }
        self.window.drain(..self.at);
        (self.base, self.at) = (self.base + self.at as u64, 0);
        let have = self.window.len();
        let missing = (self.end - self.base - have as u64).min((n.max(WINDOW) - have) as u64);
        self.window.resize(have + missing as usize, 0);
        self.file.read_exact_at(&mut self.window[have..], self.base + have as u64)
    }

    /// The next item; `None` at the end.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn next_item(&mut self) -> io::Result<Option<SegmentItem>> {
        let from = self.position();
        // Long damage is skipped window by window.
        loop {
            self.fill(frame::HEAD)?;
            if self.at == self.window.len() {
                return Ok(self.damage(from));
            }
            match frame::decode(&self.window, self.at) {
                Frame::Record { .. } if self.position() > from => return Ok(self.damage(from)),
                Frame::Record { index, time, json } => {
                    self.at = json.end;
                    let json = Bytes::copy_from_slice(&self.window[json]);
                    let entry = Entry { index, time, json };
                    return Ok(Some(SegmentItem::Record(entry, self.position())));
                }
                Frame::Damage(next) => self.at = next,
                Frame::Partial(n) => {
                    self.fill(n)?;
                    if self.window.len() - self.at < n {
                        // The rest is missing: the length is wrong, or the file ends here.
                        self.at = frame::next_marker(&self.window, self.at);
                    }
                }
            }
        }
    }

    fn damage(&self, from: u64) -> Option<SegmentItem> {
        (self.position() > from).then(|| SegmentItem::Damage(from, self.position() - from))
    }
}

/// Whether a file contains a record. A file that does not exist contains none.
///
/// # Errors
/// If it cannot be read.
pub fn has_records(path: &Path) -> io::Result<bool> {
    let mut reader = match SegmentReader::open(path, None, None) {
        Ok(reader) => reader,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    while let Some(next_item) = reader.next_item()? {
        if matches!(next_item, SegmentItem::Record(..)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Opens the last segment for appending, and cuts off an incomplete record that a crash has left. Returns
/// the file and the index of the next record.
///
/// # Errors
/// If the file cannot be read or truncated.
pub fn recover(last: &mut Segment) -> io::Result<(File, u64)> {
    let mut reader = SegmentReader::open(&last.path, None, None)?;
    let (mut next, mut whole) = (last.first, reader.position());
    while let Some(next_item) = reader.next_item()? {
        if let SegmentItem::Record(entry, position) = next_item {
            (next, whole) = (entry.index + 1, position);
        }
    }
    let file = OpenOptions::new().read(true).write(true).open(&last.path)?;
    if whole < HEAD {
        // Not even the header is intact.
        let (file, begun) = create(last.path.parent().unwrap_or(Path::new(".")), next)?;
        *last = begun;
        return Ok((file, next));
    }
    if last.bytes > whole {
        let cut = last.bytes - whole;
        log::warn!(
            "{}: cut off {cut} bytes of an incomplete record at its end",
            last.path.display()
        );
        file.set_len(whole)?;
    }
    last.bytes = whole;
    Ok((file, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, size: usize) -> Entry {
        Entry { index, time: 5, json: vec![b'j'; size].into() }
    }

    fn file(folder: &Path, entries: &[Entry]) -> PathBuf {
        let (file, segment) = create(folder, entries.first().map_or(0, |e| e.index)).unwrap();
        let mut bytes = Vec::new();
        entries.iter().for_each(|entry| frame::encode(&mut bytes, entry));
        file.write_all_at(&bytes, HEAD).unwrap();
        segment.path
    }

    fn steps(path: &Path) -> Vec<SegmentItem> {
        let mut reader = SegmentReader::open(path, None, None).unwrap();
        std::iter::from_fn(|| reader.next_item().unwrap()).collect()
    }

    #[test]
    fn records_of_all_sizes_are_read_from_one_window_to_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let sizes = [0, 1, WINDOW - frame::HEAD, WINDOW, 3 * WINDOW + 1, 7];
        let entries: Vec<_> = (3..).zip(sizes).map(|(index, size)| entry(index, size)).collect();
        let path = file(folder.path(), &entries);
        let read: Vec<_> = steps(&path)
            .into_iter()
            .map(|next_item| match next_item {
                SegmentItem::Record(entry, _) => entry,
                SegmentItem::Damage(..) => panic!("nothing is damaged"),
            })
            .collect();
        assert!(read == entries);
        assert_eq!(list(folder.path()).unwrap()[0].first, 3);
    }

    #[test]
    fn a_damaged_stretch_is_told_once_and_what_follows_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let entries: Vec<_> = (0..40).map(|index| entry(index, 20_000)).collect();
        let path = file(folder.path(), &entries);
        let size = frame::size(&entries[0]);
        let mut bytes = fs::read(&path).unwrap();
        // From the middle of the second to the middle of the thirtieth.
        let (from, to) = (HEAD + size + size / 2, HEAD + 29 * size + size / 2);
        bytes[from as usize..to as usize].fill(0);
        fs::write(&path, bytes).unwrap();
        let steps = steps(&path);
        assert_eq!(steps.len(), 1 + 1 + 10);
        assert_eq!(steps[1], SegmentItem::Damage(HEAD + size, 29 * size));
        let SegmentItem::Record(entry, _) = &steps[2] else { panic!("a record") };
        assert_eq!(entry.index, 30);
    }

    #[test]
    fn a_length_that_is_wrong_and_a_head_that_is_gone_cost_no_other_record() {
        let folder = tempfile::tempdir().unwrap();
        let entries: Vec<_> = (0..3).map(|index| entry(index, 10)).collect();
        let path = file(folder.path(), &entries);
        let mut bytes = fs::read(&path).unwrap();
        // The first record says that it is a mebibyte long.
        bytes[HEAD as usize + 6] = 0x10;
        bytes[..8].fill(b'?');
        fs::write(&path, bytes).unwrap();
        let steps = steps(&path);
        assert_eq!(steps.len(), 3, "{steps:?}");
        assert!(matches!(steps[0], SegmentItem::Damage(0, _)));
    }

    #[test]
    fn what_stands_behind_the_end_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let entries: Vec<_> = (0..3).map(|index| entry(index, 10)).collect();
        let path = file(folder.path(), &entries);
        let size = frame::size(&entries[0]);
        let mut reader =
            SegmentReader::open(&path, Some(HEAD + size), Some(HEAD + 2 * size)).unwrap();
        let next_item = reader.next_item().unwrap();
        assert_eq!(next_item, Some(SegmentItem::Record(entries[1].clone(), HEAD + 2 * size)));
        assert_eq!(reader.next_item().unwrap(), None);
    }
}
