//! Dead letters: records that a destination rejected, in a file from which they can be replayed.
//!
//! `dead/NAME.jsonl` has a line for each record. A replay first renames it to `NAME.replaying`, so that the
//! gateway can continue to append; records that it cannot deliver go back. Both hold the lock `NAME.lock`
//! while they rename files. The next replay continues an interrupted one.

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
pub struct DeadLetters {
    folder: PathBuf,
    name: String,
}

/// A record that could not be delivered.
#[derive(Debug, Deserialize)]
pub struct DeadLetter {
    /// When it became a dead letter: RFC 3339, UTC.
    pub at: String,
    /// Why it could not be delivered.
    pub why: String,
    /// Its index in the spool.
    pub index: u64,
    /// The record, unchanged.
    pub record: Box<RawValue>,
}

impl DeadLetter {
    pub fn entry(&self) -> Entry {
        let json = Bytes::copy_from_slice(self.record.get().as_bytes());
        let at: Result<Timestamp, _> = self.at.parse();
        Entry { index: self.index, time: at.map_or(0, Timestamp::as_millisecond), json }
    }
}

impl DeadLetters {
    /// The dead letters of a reporter in the folder of a spool. Opens nothing.
    pub fn open(folder: &Path, name: &str) -> Self {
        Self { folder: folder.join("dead"), name: name.to_owned() }
    }

    pub fn path(&self) -> PathBuf {
        self.file("jsonl")
    }

    /// The size of the files, including that of a running replay.
    pub fn bytes(&self) -> u64 {
        let files = [self.path(), self.file("replaying")];
        files.iter().filter_map(|path| fs::metadata(path).ok()).map(|about| about.len()).sum()
    }

    fn file(&self, extension: &str) -> PathBuf {
        self.folder.join(format!("{}.{extension}", self.name))
    }

    /// Appends records and syncs them to disk. They may be appended twice if the process ends before the
    /// position of the reporter is saved.
    ///
    /// # Errors
    /// If they could not be written. A partial write is undone if possible.
    pub fn append(&self, records: &[Entry], why: &str) -> io::Result<()> {
        let at = format!("{:.3}", Timestamp::now());
        let mut lines = Vec::new();
        for record in records {
            #[derive(Serialize)]
            struct LetterFields<'a> {
                at: &'a str,
                why: &'a str,
                index: u64,
            }
            serde_json::to_writer(&mut lines, &LetterFields { at: &at, why, index: record.index })?;
            // The record follows byte for byte, whatever it is.
            lines.pop();
            lines.extend_from_slice(b",\"record\":");
            lines.extend_from_slice(&record.json);
            lines.extend_from_slice(b"}\n");
        }
        let _lock = self.lock()?;
        self.add(|file| file.write_all(&lines))
    }

    /// Appends all lines or none. The caller holds the lock.
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

    /// All dead letters, those of an interrupted replay first. A file that does not exist has none.
    ///
    /// # Errors
    /// If a file cannot be opened.
    pub fn read(&self) -> io::Result<LetterReader> {
        let mut files = Vec::new();
        for path in [self.file("replaying"), self.path()] {
            match File::open(path) {
                Ok(file) => files.push(file),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(LetterReader::new(files))
    }

    /// Begins a replay: of the letters of an interrupted replay, or else of all letters. `None`: there are
    /// none. Letters that arrive later are left for the next replay.
    ///
    /// # Errors
    /// If the files cannot be used, or another replay is running.
    pub fn take(&self) -> io::Result<Option<Replay>> {
        let path = self.file("replaying");
        // Without letters no folder is created.
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
            return Err(io::Error::other("another replay is running"));
        }
        Ok(Some(Replay { letters: self.clone(), file }))
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

/// Ends an incomplete line, so that the next line is readable.
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

/// A running replay. If it is dropped, the next replay continues it.
#[derive(Debug)]
pub struct Replay {
    letters: DeadLetters,
    /// Locked, so that only one replay runs at a time.
    file: File,
}

impl Replay {
    /// The letters to replay.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read(&self) -> io::Result<LetterReader> {
        Ok(LetterReader::new(vec![File::open(self.letters.file("replaying"))?]))
    }

    /// Ends the replay: letters for which `keep` is true and unreadable lines go back, the others are
    /// removed.
    ///
    /// # Errors
    /// If the files cannot be written. Nothing is lost then, but the next replay starts over.
    pub fn finish(self, mut keep: impl FnMut(&DeadLetter) -> bool) -> io::Result<()> {
        let mut file = BufReader::new(&self.file);
        file.rewind()?;
        // Line by line: the file may not fit into memory.
        let mut next = |line: &mut Vec<u8>| -> io::Result<bool> {
            loop {
                line.clear();
                if file.read_until(b'\n', line)? == 0 {
                    return Ok(false);
                }
                let letter: Result<DeadLetter, _> = serde_json::from_slice(line);
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

/// Iterates over dead letters. Damaged lines are skipped and counted.
#[derive(Debug)]
pub struct LetterReader {
    files: std::vec::IntoIter<File>,
    file: Option<BufReader<File>>,
    line: Vec<u8>,
    damaged: u64,
}

impl LetterReader {
    fn new(files: Vec<File>) -> Self {
        let mut files = files.into_iter();
        let file = files.next().map(BufReader::new);
        Self { files, file, line: Vec::new(), damaged: 0 }
    }

    /// Damaged lines so far.
    pub fn damaged(&self) -> u64 {
        self.damaged
    }
}

impl Iterator for LetterReader {
    type Item = io::Result<DeadLetter>;

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

    fn indexes(reader: LetterReader) -> Vec<u64> {
        reader.map(|letter| letter.unwrap().index).collect()
    }

    #[test]
    fn what_is_put_aside_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let letters = DeadLetters::open(folder.path(), "billing");
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
        let letters = DeadLetters::open(folder.path(), "billing");
        letters.append(&[entry(1)], "away").unwrap();
        let mut file = OpenOptions::new().append(true).open(letters.path()).unwrap();
        file.write_all(b"\xff\n{\"at\":\"2026-").unwrap();
        letters.append(&[entry(2)], "away").unwrap();
        let mut reader = letters.read().unwrap();
        let found: Vec<_> = reader.by_ref().map(|letter| letter.unwrap().index).collect();
        assert_eq!((found, reader.damaged()), (vec![1, 2], 2));
        // A replay keeps them.
        letters.take().unwrap().unwrap().finish(|_| false).unwrap();
        let mut reader = letters.read().unwrap();
        assert_eq!((reader.by_ref().count(), reader.damaged()), (0, 2));
    }

    #[test]
    fn a_replay_loses_nothing_that_comes_meanwhile_or_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let letters = DeadLetters::open(folder.path(), "billing");
        letters.append(&[entry(1), entry(2)], "away").unwrap();
        let replay = letters.take().unwrap().unwrap();
        assert_eq!(letters.take().unwrap_err().to_string(), "another replay is running");
        letters.append(&[entry(3)], "away").unwrap();
        assert_eq!(indexes(replay.read().unwrap()), [1, 2]);
        assert_eq!(indexes(letters.read().unwrap()), [1, 2, 3]);

        // The next replay continues an interrupted one.
        drop(replay);
        let replay = letters.take().unwrap().unwrap();
        assert_eq!(indexes(replay.read().unwrap()), [1, 2]);
        let size = |name: &str| fs::metadata(folder.path().join("dead").join(name)).unwrap().len();
        assert_eq!(letters.bytes(), size("billing.jsonl") + size("billing.replaying"));
        replay.finish(|letter| letter.index == 2).unwrap();
        assert_eq!(letters.bytes(), size("billing.jsonl"));
        assert_eq!(indexes(letters.read().unwrap()), [3, 2]);
        letters.take().unwrap().unwrap().finish(|_| false).unwrap();
        assert!(letters.take().unwrap().is_none());
        assert_eq!(letters.bytes(), 0);
    }

    #[test]
    fn letters_go_back_one_at_a_time_and_each_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let letters = DeadLetters::open(folder.path(), "billing");
        let all: Vec<_> = (0..5000).map(entry).collect();
        letters.append(&all, "away").unwrap();
        let before = fs::read_to_string(letters.path()).unwrap();
        let replay = letters.take().unwrap().unwrap();
        // The letters go back one at a time: the first is written before the last is read.
        let path = letters.path();
        let mut written = Vec::new();
        replay
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
        assert!(DeadLetters::open(folder.path(), "billing").append(&[entry(1)], "away").is_err());
    }
}
