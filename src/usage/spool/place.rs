//! The place of a reporter in the log, kept in a small file of its own. It is written over in two
//! turns, so that one that was cut off leaves the one before it, and needs no room on a disk that
//! is full.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Bytes of one of the two: place 8, turn 8, checksum 4, nothing 4.
const SLOT: usize = 24;

/// A file with a place.
pub struct PlaceFile {
    file: File,
    turn: u64,
}

/// What a file with a place says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The place.
    At(u64),
    /// There is no file.
    Nothing,
    /// It cannot be understood.
    Damaged,
}

/// The folder for these files in that of the spool.
pub fn folder(spool: &Path) -> PathBuf {
    spool.join("places")
}

/// What is kept of a reporter.
///
/// # Errors
/// If the file is there and cannot be read.
pub fn read(spool: &Path, reporter: &str) -> io::Result<Kept> {
    match fs::read(folder(spool).join(reporter)) {
        Ok(bytes) => Ok(newest(&bytes).map_or(Kept::Damaged, |(place, _)| Kept::At(place))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Kept::Nothing),
        Err(e) => Err(e),
    }
}

/// All reporters of which something is kept.
///
/// # Errors
/// If the folder is there and cannot be read.
pub fn all(spool: &Path) -> io::Result<Vec<(String, Kept)>> {
    let names = match fs::read_dir(folder(spool)) {
        Ok(entries) => entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut all = Vec::new();
    for name in names {
        let kept = read(spool, &name)?;
        all.push((name, kept));
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
    bytes.chunks_exact(SLOT).filter_map(slot).max_by_key(|(_, turn)| *turn)
}

impl PlaceFile {
    /// Opens the file of a reporter, or makes it; and its place, in a log that goes from `first` to
    /// `end`. One that is new begins at the end.
    ///
    /// # Errors
    /// If that cannot be.
    pub fn open(spool: &Path, reporter: &str, (first, end): (u64, u64)) -> io::Result<(Self, u64)> {
        let path = folder(spool).join(reporter);
        let kept = read(spool, reporter)?;
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        let turn = newest(&fs::read(&path)?).map_or(0, |(_, turn)| turn);
        let mut place = Self { file, turn };
        let at = match kept {
            Kept::At(at) => return Ok((place, at)),
            Kept::Damaged => {
                log::warn!("the place of usage reporter {reporter} is damaged: all is sent again");
                first
            }
            Kept::Nothing => {
                log::info!("usage reporter {reporter} is new: it begins with record #{end}");
                end
            }
        };
        place.keep(at)?;
        // Without its file it would be new once more after a power failure, and begin at the end.
        place.file.sync_all()?;
        File::open(folder(spool))?.sync_all()?;
        Ok((place, at))
    }

    /// Keeps a place.
    ///
    /// # Errors
    /// If it cannot be written; the one before it stays.
    pub fn keep(&mut self, place: u64) -> io::Result<()> {
        let turn = self.turn + 1;
        let mut slot = [0; SLOT];
        slot[..8].copy_from_slice(&place.to_le_bytes());
        slot[8..16].copy_from_slice(&turn.to_le_bytes());
        let sum = crc32fast::hash(&slot[..16]);
        slot[16..20].copy_from_slice(&sum.to_le_bytes());
        self.file.write_all_at(&slot, (turn % 2) * SLOT as u64)?;
        self.turn = turn;
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
        assert_eq!(read(spool.path(), "a").unwrap(), Kept::Nothing);
        let mut place = PlaceFile::open(spool.path(), "a", (3, 7)).unwrap().0;
        for at in [5, 8, 13] {
            place.keep(at).unwrap();
        }
        assert_eq!(read(spool.path(), "a").unwrap(), Kept::At(13));
        // Cut off while it was written: the fourth stands in the first half.
        let path = folder(spool.path()).join("a");
        let mut bytes = fs::read(&path).unwrap();
        bytes[2] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(read(spool.path(), "a").unwrap(), Kept::At(8));
        PlaceFile::open(spool.path(), "a", (3, 7)).unwrap().0.keep(21).unwrap();
        assert_eq!(all(spool.path()).unwrap(), [("a".to_owned(), Kept::At(21))]);
        fs::write(&path, "nonsense").unwrap();
        assert_eq!(read(spool.path(), "a").unwrap(), Kept::Damaged);
        for (name, at) in [("a", 3), ("b", 7)] {
            assert_eq!(PlaceFile::open(spool.path(), name, (3, 7)).unwrap().1, at);
            assert_eq!(read(spool.path(), name).unwrap(), Kept::At(at));
        }
    }
}
