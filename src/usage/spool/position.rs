//! The position of a reporter in the log, saved in a small file of its own. Two slots are overwritten in
//! counter, so that an interrupted write leaves the previous position, and a full disk does not matter.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Bytes of a slot: position 8, counter 8, checksum 4, unused 4.
const SLOT: usize = 24;

/// The file of one reporter.
pub struct PositionFile {
    file: File,
    counter: u64,
}

/// What such a file contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SavedPosition {
    At(u64),
    /// The file does not exist.
    Missing,
    /// No slot is intact.
    Damaged,
}

/// The folder for these files.
pub fn folder(spool: &Path) -> PathBuf {
    spool.join("places")
}

/// # Errors
/// If the file exists and cannot be read.
pub fn read(spool: &Path, reporter: &str) -> io::Result<SavedPosition> {
    match fs::read(folder(spool).join(reporter)) {
        Ok(bytes) => Ok(newest(&bytes)
            .map_or(SavedPosition::Damaged, |(position, _)| SavedPosition::At(position))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(SavedPosition::Missing),
        Err(e) => Err(e),
    }
}

/// All reporters with a file, by name.
///
/// # Errors
/// If the folder exists and cannot be read.
pub fn all(spool: &Path) -> io::Result<Vec<(String, SavedPosition)>> {
    let names = match fs::read_dir(folder(spool)) {
        Ok(entries) => entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut all = Vec::new();
    for name in names {
        let saved = read(spool, &name)?;
        all.push((name, saved));
    }
    all.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(all)
}

fn newest(bytes: &[u8]) -> Option<(u64, u64)> {
    let slot = |bytes: &[u8]| {
        let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let sum = u32::from_le_bytes(bytes.get(16..20)?.try_into().ok()?);
        (crc32fast::hash(bytes.get(..16)?) == sum).then_some((number(0)?, number(8)?))
    };
    bytes.chunks_exact(SLOT).filter_map(slot).max_by_key(|(_, counter)| *counter)
}

impl PositionFile {
    /// Opens or creates the file of a reporter and returns its position in a log that reaches from `first`
    /// to `end`. A new reporter begins at the end.
    ///
    /// # Errors
    /// If the file cannot be used.
    pub fn open(spool: &Path, reporter: &str, (first, end): (u64, u64)) -> io::Result<(Self, u64)> {
        let path = folder(spool).join(reporter);
        let saved = read(spool, reporter)?;
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        let counter = newest(&fs::read(&path)?).map_or(0, |(_, counter)| counter);
        let mut position = Self { file, counter };
        let at = match saved {
            SavedPosition::At(at) => return Ok((position, at)),
            SavedPosition::Damaged => {
                log::warn!(
                    "the saved position of usage reporter {reporter} is damaged: it sends all records again"
                );
                first
            }
            SavedPosition::Missing => {
                log::info!("usage reporter {reporter} is new: it starts with record #{end}");
                end
            }
        };
        position.save(at)?;
        // If a power failure removed the file, the reporter would be new again and skip records.
        position.file.sync_all()?;
        File::open(folder(spool))?.sync_all()?;
        Ok((position, at))
    }

    /// # Errors
    /// If it cannot be written; the previous position then stays.
    pub fn save(&mut self, position: u64) -> io::Result<()> {
        let counter = self.counter + 1;
        let mut slot = [0; SLOT];
        slot[..8].copy_from_slice(&position.to_le_bytes());
        slot[8..16].copy_from_slice(&counter.to_le_bytes());
        let sum = crc32fast::hash(&slot[..16]);
        slot[16..20].copy_from_slice(&sum.to_le_bytes());
        self.file.write_all_at(&slot, (counter % 2) * SLOT as u64)?;
        self.counter = counter;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_place_that_is_whole_counts() {
        let spool = tempfile::tempdir().unwrap();
        fs::create_dir(folder(spool.path())).unwrap();
        assert_eq!(read(spool.path(), "a").unwrap(), SavedPosition::Missing);
        let mut position = PositionFile::open(spool.path(), "a", (3, 7)).unwrap().0;
        for at in [5, 8, 13] {
            position.save(at).unwrap();
        }
        assert_eq!(read(spool.path(), "a").unwrap(), SavedPosition::At(13));
        // An interrupted write: the last position was written to the first slot.
        let path = folder(spool.path()).join("a");
        let mut bytes = fs::read(&path).unwrap();
        bytes[2] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(read(spool.path(), "a").unwrap(), SavedPosition::At(8));
        PositionFile::open(spool.path(), "a", (3, 7)).unwrap().0.save(21).unwrap();
        assert_eq!(all(spool.path()).unwrap(), [("a".to_owned(), SavedPosition::At(21))]);
        fs::write(&path, "nonsense").unwrap();
        assert_eq!(read(spool.path(), "a").unwrap(), SavedPosition::Damaged);
        for (name, at) in [("a", 3), ("b", 7)] {
            assert_eq!(PositionFile::open(spool.path(), name, (3, 7)).unwrap().1, at);
            assert_eq!(read(spool.path(), name).unwrap(), SavedPosition::At(at));
        }
    }
}
