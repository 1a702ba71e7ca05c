//! Dead letters: records that could not be delivered, in a file from which they can be replayed.
//!
//! `dead/NAME.jsonl` holds a line for each. A replay first renames it to `NAME.replaying`, so that
//! the gateway can go on adding meanwhile; what it does not get rid of goes back. Both hold the
//! lock `NAME.lock` while they change which file is which. A replay that was interrupted is taken
//! up again by the next one.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::spool::Entry;

/// The dead letters of one reporter.
#[derive(Clone, Debug)]
pub struct Letters {
    folder: PathBuf,
    name: String,
}

/// A record that could not be delivered.
#[derive(Debug, Deserialize)]
pub struct Letter {
    /// When it was put aside: RFC 3339, UTC.
    pub at: String,
    /// Why.
    pub why: String,
    /// Where it stood in the spool.
    pub index: u64,
    /// The record as it was.
    pub record: Box<RawValue>,
}

impl Letter {
    /// The record, to be delivered again.
    pub fn entry(&self) -> Entry {
        let json = Bytes::copy_from_slice(self.record.get().as_bytes());
        let at: Result<Timestamp, _> = self.at.parse();
        Entry { index: self.index, time: at.map_or(0, Timestamp::as_millisecond), json }
    }
}

impl Letters {
    /// The letters of a reporter in the folder of a spool. Nothing is made or read yet.
    pub fn open(folder: &Path, name: &str) -> Self {
        Self { folder: folder.join("dead"), name: name.to_owned() }
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.file("jsonl")
    }

    /// How many bytes of them there are, those of a replay that is under way included. Nothing of
    /// them is read.
    pub fn bytes(&self) -> u64 {
        let files = [self.path(), self.file("replaying")];
        files.iter().filter_map(|path| fs::metadata(path).ok()).map(|about| about.len()).sum()
    }

    fn file(&self, extension: &str) -> PathBuf {
        self.folder.join(format!("{}.{extension}", self.name))
    }

    /// Adds records and forces them to the disk. They may be there twice if the process ends before
    /// the place of the reporter is kept.
    ///
    /// # Errors
    /// If they could not be written. What was written of them is taken back, if that can be.
    pub fn append(&self, records: &[Entry], why: &str) -> io::Result<()> {
        let at = format!("{:.3}", Timestamp::now());
        let mut lines = Vec::new();
        for record in records {
            #[derive(Serialize)]
            struct Head<'a> {
                at: &'a str,
                why: &'a str,
                index: u64,
            }
            serde_json::to_writer(&mut lines, &Head { at: &at, why, index: record.index })?;
            // Further: the record byte for byte, whatever it is.
            lines.pop();
            lines.extend_from_slice(b",\"record\":");
            lines.extend_from_slice(&record.json);
            lines.extend_from_slice(b"}\n");
        }
        let _lock = self.lock()?;
        self.add(|file| file.write_all(&lines))
    }

    /// Adds lines: all of them or none. The lock is held.
    fn add(&self, write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>) -> io::Result<()> {
        let path = self.path();
        let new = !path.try_exists()?;
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path)?;
        let size = file.seek(SeekFrom::End(0))?;
        let written = end_line(&mut file, size)
            .and_then(|()| {
                let mut lines = BufWriter::new(&file);
                write(&mut lines)?;
                lines.flush()
            })
            .and_then(|()| file.sync_all());
        if written.is_err() {
            file.set_len(size).ok();
        } else if new {
            self.sync_folder()?;
        }
        written
    }

    /// All letters, those of an interrupted replay first.
    ///
    /// # Errors
    /// If a file cannot be opened; one that is not there has none.
    pub fn read(&self) -> io::Result<Reading> {
        let mut files = Vec::new();
        for path in [self.file("replaying"), self.path()] {
            match File::open(path) {
                Ok(file) => files.push(file),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Reading::of(files))
    }

    /// Takes letters away to be replayed: those of an interrupted replay, or else all there are.
    /// `None`: there are none. Those that come meanwhile are for the next time.
    ///
    /// # Errors
    /// If the files cannot be used, or another replay is under way.
    pub fn take(&self) -> io::Result<Option<Taken>> {
        let path = self.file("replaying");
        // Nothing is made just to find that there is nothing.
        if !path.try_exists()? && !self.path().try_exists()? {
            return Ok(None);
        }
        let _lock = self.lock()?;
        if !path.try_exists()? {
            match fs::rename(self.path(), &path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                renamed => renamed?,
            }
            self.sync_folder()?;
        }
        let file = File::open(&path)?;
        if file.try_lock().is_err() {
            return Err(io::Error::other("another replay is under way"));
        }
        Ok(Some(Taken { letters: self.clone(), file }))
    }

    fn lock(&self) -> io::Result<File> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let path = self.file("lock");
        let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        lock.lock()?;
        Ok(lock)
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }
}

/// Ends a line that was left half written, so that it spoils no other.
fn end_line(file: &mut File, size: u64) -> io::Result<()> {
    let mut last = [b'\n'];
    if size > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    match last {
        [b'\n'] => Ok(()),
        _ => file.write_all(b"\n"),
    }
}

/// Letters that were taken away. If it is dropped, the next replay takes them up.
#[derive(Debug)]
pub struct Taken {
    letters: Letters,
    /// Locked: one replay at a time.
    file: File,
}

impl Taken {
    /// The letters.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read(&self) -> io::Result<Reading> {
        Ok(Reading::of(vec![File::open(self.letters.file("replaying"))?]))
    }

    /// Ends the replay: letters that are to be kept go back, and so do lines that cannot be read;
    /// the others are gone.
    ///
    /// # Errors
    /// If that cannot be written. Nothing is lost then, but the next replay begins anew.
    pub fn finish(self, mut keep: impl FnMut(&Letter) -> bool) -> io::Result<()> {
        let mut file = BufReader::new(&self.file);
        file.rewind()?;
        // One at a time: there may be more than fit into memory.
        let mut next = |line: &mut Vec<u8>| -> io::Result<bool> {
            loop {
                line.clear();
                if file.read_until(b'\n', line)? == 0 {
                    return Ok(false);
                }
                let letter: Result<Letter, _> = serde_json::from_slice(line);
                if letter.map_or(true, |letter| keep(&letter)) {
                    line.truncate(line.strip_suffix(b"\n").map_or(line.len(), <[u8]>::len));
                    line.push(b'\n');
                    return Ok(true);
                }
            }
        };
        let _lock = self.letters.lock()?;
        let mut line = Vec::new();
        if next(&mut line)? {
            self.letters.add(|file| {
                file.write_all(&line)?;
                while next(&mut line)? {
                    file.write_all(&line)?;
                }
                Ok(())
            })?;
        }
        fs::remove_file(self.letters.file("replaying"))?;
        self.letters.sync_folder()
    }
}

/// Goes along letters. Lines that are damaged are left out.
#[derive(Debug)]
pub struct Reading {
    files: std::vec::IntoIter<File>,
    file: Option<BufReader<File>>,
    line: Vec<u8>,
    damaged: u64,
}

impl Reading {
    fn of(files: Vec<File>) -> Self {
        let mut files = files.into_iter();
        let file = files.next().map(BufReader::new);
        Self { files, file, line: Vec::new(), damaged: 0 }
    }

    /// How many lines were left out so far.
    pub fn damaged(&self) -> u64 {
        self.damaged
    }
}

impl Iterator for Reading {
    type Item = io::Result<Letter>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let file = self.file.as_mut()?;
            self.line.clear();
            match file.read_until(b'\n', &mut self.line) {
                Err(e) => {
                    self.file = None;
                    return Some(Err(e));
                }
                Ok(0) => self.file = self.files.next().map(BufReader::new),
                Ok(_) => match serde_json::from_slice(&self.line) {
                    Ok(letter) => return Some(Ok(letter)),
                    Err(_) => self.damaged += 1,
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn entry(index: u64) -> Entry {
        let json = format!(r#"{{"record_id":"rec_{index}", "cost":1.10}}"#).into();
        Entry { index, time: 0, json }
    }

    fn indexes(reading: Reading) -> Vec<u64> {
        reading.map(|letter| letter.unwrap().index).collect()
    }

    #[test]
    fn what_is_put_aside_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let letters = Letters::open(folder.path(), "billing");
        assert_eq!(indexes(letters.read().unwrap()), [0_u64; 0]);
        assert!(letters.take().unwrap().is_none());
        assert!(!folder.path().join("dead").exists());
        letters.append(&[entry(3), entry(4)], "answered \"422\"").unwrap();
        let all: Vec<_> = letters.read().unwrap().map(Result::unwrap).collect();
        assert_eq!(all[0].why, "answered \"422\"");
        assert_eq!(all[1].record.get(), r#"{"record_id":"rec_4", "cost":1.10}"#);
        assert_eq!(all[1].entry().json, entry(4).json);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&letters.path()), 0o600);
        assert_eq!(mode(&folder.path().join("dead")), 0o700);
    }

    #[test]
    fn damaged_and_half_lines_are_counted_and_spoil_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let letters = Letters::open(folder.path(), "billing");
        letters.append(&[entry(1)], "away").unwrap();
        let mut file = OpenOptions::new().append(true).open(letters.path()).unwrap();
        file.write_all(b"\xff\n{\"at\":\"2026-").unwrap();
        letters.append(&[entry(2)], "away").unwrap();
        let mut reading = letters.read().unwrap();
        let found: Vec<_> = reading.by_ref().map(|letter| letter.unwrap().index).collect();
        assert_eq!((found, reading.damaged()), (vec![1, 2], 2));
        // They do not go away unseen either.
        letters.take().unwrap().unwrap().finish(|_| false).unwrap();
        let mut reading = letters.read().unwrap();
        assert_eq!((reading.by_ref().count(), reading.damaged()), (0, 2));
    }

    #[test]
    fn a_replay_loses_nothing_that_comes_meanwhile_or_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let letters = Letters::open(folder.path(), "billing");
        letters.append(&[entry(1), entry(2)], "away").unwrap();
        let taken = letters.take().unwrap().unwrap();
        assert_eq!(letters.take().unwrap_err().to_string(), "another replay is under way");
        letters.append(&[entry(3)], "away").unwrap();
        assert_eq!(indexes(taken.read().unwrap()), [1, 2]);
        assert_eq!(indexes(letters.read().unwrap()), [1, 2, 3]);

        // One that is interrupted is taken up again.
        drop(taken);
        let taken = letters.take().unwrap().unwrap();
        assert_eq!(indexes(taken.read().unwrap()), [1, 2]);
        let size = |name: &str| fs::metadata(folder.path().join("dead").join(name)).unwrap().len();
        assert_eq!(letters.bytes(), size("billing.jsonl") + size("billing.replaying"));
        taken.finish(|letter| letter.index == 2).unwrap();
        assert_eq!(letters.bytes(), size("billing.jsonl"));
        assert_eq!(indexes(letters.read().unwrap()), [3, 2]);
        letters.take().unwrap().unwrap().finish(|_| false).unwrap();
        assert!(letters.take().unwrap().is_none());
        assert_eq!(letters.bytes(), 0);
    }

    #[test]
    fn letters_go_back_one_at_a_time_and_each_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let letters = Letters::open(folder.path(), "billing");
        let all: Vec<_> = (0..5000).map(entry).collect();
        letters.append(&all, "away").unwrap();
        let before = fs::read_to_string(letters.path()).unwrap();
        let taken = letters.take().unwrap().unwrap();
        // When the second one is asked for, the first is not in memory any more.
        let path = letters.path();
        let mut written = Vec::new();
        taken
            .finish(|letter| {
                written.push(fs::metadata(&path).map_or(0, |about| about.len()));
                letter.index % 5 != 0
            })
            .unwrap();
        assert!(written.iter().any(|n| (1..before.len() as u64 / 2).contains(n)), "{written:?}");
        let kept = before.lines().enumerate().filter(|(i, _)| i % 5 != 0);
        let after = fs::read_to_string(letters.path()).unwrap();
        assert!(after.lines().eq(kept.map(|(_, line)| line)));
        assert!(after.ends_with('\n'));
    }

    #[test]
    fn what_cannot_be_written_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("dead"), "in the way").unwrap();
        assert!(Letters::open(folder.path(), "billing").append(&[entry(1)], "away").is_err());
    }
}
