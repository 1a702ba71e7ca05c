//! The files of the log. Each is called by the index of its first record, begins with a short head,
//! and holds one record after the other.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{
    Entry,
    frame::{self, Found},
};

/// How every file begins: what it is, and the version of its form.
const MAGIC: &[u8; 16] = b"llmproxy usage 1";

/// Bytes of the head.
pub const HEAD: u64 = MAGIC.len() as u64;

/// How much is read at a time.
const WINDOW: usize = 256 << 10;

const SUFFIX: &str = "log";

/// A file of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it is.
    pub path: PathBuf,
    /// The index of its first record.
    pub first: u64,
    /// Its size.
    pub bytes: u64,
}

/// The files in a folder, from the oldest on. A folder of such a name is none.
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
            // One that is being removed is not there.
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

/// Makes a folder, for nobody else to read.
///
/// # Errors
/// If that cannot be.
pub fn private_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// The name of a file.
pub fn path(folder: &Path, first: u64) -> PathBuf {
    folder.join(format!("{first:020}.{SUFFIX}"))
}

/// Begins a file, for nobody else to read. One of this name without a record gives way to it.
///
/// # Errors
/// If that cannot be. Nothing is left behind then.
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

/// What comes next in a file.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// A record, and where the next one begins.
    Record(Entry, u64),
    /// So many bytes from a place on cannot be read.
    Damage(u64, u64),
}

/// Goes along a file.
pub struct Walk {
    file: File,
    /// The place of `window[0]`.
    base: u64,
    window: Vec<u8>,
    at: usize,
    /// What lies behind is not looked at.
    end: u64,
}

impl Walk {
    /// Begins at `from`, or behind the head, and ends at `end`, or at the end of the file.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn open(path: &Path, from: Option<u64>, end: Option<u64>) -> io::Result<Self> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let end = end.map_or(len, |end| end.min(len));
        let mut walk = Self { file, base: 0, window: Vec::new(), at: 0, end };
        match from {
            Some(from) => walk.base = from.min(end),
            None => {
                // A head that is damaged is as good as none: records are found by their markers.
                walk.want(HEAD as usize)?;
                if walk.window.starts_with(MAGIC) {
                    walk.at = MAGIC.len();
                }
            }
        }
        Ok(walk)
    }

    /// Where the next step begins.
    pub fn position(&self) -> u64 {
        self.base + self.at as u64
    }

    /// Reads until `n` bytes lie before us, or all that there are.
    fn want(&mut self, n: usize) -> io::Result<()> {
        if self.window.len() - self.at >= n {
            return Ok(());
        }
        self.window.drain(..self.at);
        (self.base, self.at) = (self.base + self.at as u64, 0);
        let have = self.window.len();
        let there = (self.end - self.base - have as u64).min((n.max(WINDOW) - have) as u64);
        self.window.resize(have + there as usize, 0);
        self.file.read_exact_at(&mut self.window[have..], self.base + have as u64)
    }

    /// The next step; `None` at the end.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn step(&mut self) -> io::Result<Option<Step>> {
        let from = self.position();
        // Bytes in which nothing can be read are passed over window by window.
        loop {
            self.want(frame::HEAD)?;
            if self.at == self.window.len() {
                return Ok(self.damage(from));
            }
            match frame::look(&self.window, self.at) {
                Found::Record { .. } if self.position() > from => return Ok(self.damage(from)),
                Found::Record { index, time, json } => {
                    self.at = json.end;
                    let json = Bytes::copy_from_slice(&self.window[json]);
                    let entry = Entry { index, time, json };
                    return Ok(Some(Step::Record(entry, self.position())));
                }
                Found::Damage(next) => self.at = next,
                Found::Part(n) => {
                    self.want(n)?;
                    if self.window.len() - self.at < n {
                        // It never comes: its length is wrong, or the file ends here.
                        self.at = frame::next_marker(&self.window, self.at);
                    }
                }
            }
        }
    }

    fn damage(&self, from: u64) -> Option<Step> {
        (self.position() > from).then(|| Step::Damage(from, self.position() - from))
    }
}

/// Whether there is a record in a file.
///
/// # Errors
/// If it cannot be read. One that is not there is no error.
pub fn has_records(path: &Path) -> io::Result<bool> {
    let mut walk = match Walk::open(path, None, None) {
        Ok(walk) => walk,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    while let Some(step) = walk.step()? {
        if matches!(step, Step::Record(..)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Opens the last segment to go on in it. What a crash has left half written is cut off. Returns
/// the index of the next record as well.
///
/// # Errors
/// If that cannot be.
pub fn mend(last: &mut Segment) -> io::Result<(File, u64)> {
    let mut walk = Walk::open(&last.path, None, None)?;
    let (mut next, mut whole) = (last.first, walk.position());
    while let Some(step) = walk.step()? {
        if let Step::Record(entry, position) = step {
            (next, whole) = (entry.index + 1, position);
        }
    }
    let file = OpenOptions::new().read(true).write(true).open(&last.path)?;
    if whole < HEAD {
        // Not even its beginning was written.
        let (file, begun) = create(last.path.parent().unwrap_or(Path::new(".")), next)?;
        *last = begun;
        return Ok((file, next));
    }
    if last.bytes > whole {
        let cut = last.bytes - whole;
        log::warn!("{}: {cut} bytes at its end were half written, cut off", last.path.display());
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
        entries.iter().for_each(|entry| frame::write(&mut bytes, entry));
        file.write_all_at(&bytes, HEAD).unwrap();
        segment.path
    }

    fn steps(path: &Path) -> Vec<Step> {
        let mut walk = Walk::open(path, None, None).unwrap();
        std::iter::from_fn(|| walk.step().unwrap()).collect()
    }

    #[test]
    fn records_of_all_sizes_are_read_from_one_window_to_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let sizes = [0, 1, WINDOW - frame::HEAD, WINDOW, 3 * WINDOW + 1, 7];
        let entries: Vec<_> = (3..).zip(sizes).map(|(index, size)| entry(index, size)).collect();
        let path = file(folder.path(), &entries);
        let read: Vec<_> = steps(&path)
            .into_iter()
            .map(|step| match step {
                Step::Record(entry, _) => entry,
                Step::Damage(..) => panic!("nothing is damaged"),
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
        assert_eq!(steps[1], Step::Damage(HEAD + size, 29 * size));
        let Step::Record(entry, _) = &steps[2] else { panic!("a record") };
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
        assert!(matches!(steps[0], Step::Damage(0, _)));
    }

    #[test]
    fn what_stands_behind_the_end_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let entries: Vec<_> = (0..3).map(|index| entry(index, 10)).collect();
        let path = file(folder.path(), &entries);
        let size = frame::size(&entries[0]);
        let mut walk = Walk::open(&path, Some(HEAD + size), Some(HEAD + 2 * size)).unwrap();
        let step = walk.step().unwrap();
        assert_eq!(step, Some(Step::Record(entries[1].clone(), HEAD + 2 * size)));
        assert_eq!(walk.step().unwrap(), None);
    }
}
