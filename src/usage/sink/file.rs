//! The file sink: one record a line, synced to disk before the delivery succeeds.
//!
//! Several processes may write the same file, such as a gateway and a replay: each locks it while it
//! appends a batch. If another program moves the file away (logrotate), a new one is created.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;

use super::delivery::{DeliveryError, Sink};
use crate::{base::lock, config::plan::FilePlan, usage::spool::Entry};

/// How long to wait for the lock of another process.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two attempts to lock the file.
const PAUSE: Duration = Duration::from_millis(5);

/// Bytes read at a time to find the beginning of an incomplete line.
const BLOCK: u64 = 64 * 1024;

/// Appends records to a file.
pub struct FileSink(Arc<SharedFile>);

struct SharedFile {
    plan: FilePlan,
    /// Kept open between batches.
    file: Mutex<Option<File>>,
}

impl FileSink {
    /// The first batch opens the file, and creates it if it does not exist.
    pub fn new(plan: FilePlan) -> Self {
        Self(Arc::new(SharedFile { plan, file: Mutex::default() }))
    }
}

#[async_trait]
impl Sink for FileSink {
    async fn deliver(&self, records: &[Entry]) -> Result<(), DeliveryError> {
        let mut text = Vec::with_capacity(records.iter().map(|r| r.json.len() + 1).sum());
        for record in records {
            text.extend_from_slice(&record.json);
            text.push(b'\n');
        }
        let file = Arc::clone(&self.0);
        // Runs to its end even if the delivery is given up.
        let added = tokio::task::spawn_blocking(move || file.append(&text)).await;
        added
            .map_err(io::Error::other)
            .flatten()
            .map_err(|e| DeliveryError::unavailable(format!("{}: {e}", self.0.plan.path.display())))
    }
}

impl SharedFile {
    /// Appends all lines or none.
    fn append(&self, text: &[u8]) -> io::Result<()> {
        let mut kept = lock(&self.file);
        // After an error the file is opened again.
        let mut open = kept.take();
        let file = loop {
            let file = match open.take() {
                Some(file) => file,
                None => self.open()?,
            };
            lock_exclusive(&file)?;
            let is = file.metadata()?;
            if !is_same_file(&is, &self.plan.path) {
                continue;
            }
            if !is.is_file() {
                // A terminal or a pipe can neither be truncated nor moved.
                (&file).write_all(text)?;
                break file;
            }
            let size = end_line(&file, is.len())?;
            if size > 0 && size + text.len() as u64 > self.plan.max_size {
                self.rotate()?;
                continue;
            }
            if let Err(e) = (&file).write_all(text).and_then(|()| file.sync_data()) {
                // The batch will come again: none of its lines may stay, not even half of one.
                file.set_len(size).ok();
                return Err(e);
            }
            break file;
        };
        // If unlocking fails, closing the file unlocks it.
        if file.unlock().is_ok() {
            *kept = Some(file);
        }
        Ok(())
    }

    fn open(&self) -> io::Result<File> {
        let path = &self.plan.path;
        let mut options = OpenOptions::new();
        options.read(true).append(true).mode(0o600);
        match options.open(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let folder = folder_of(path);
                DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
                let file = options.create(true).open(path)?;
                // Without this a power failure may remove the file.
                File::open(folder)?.sync_all()?;
                Ok(file)
            }
            opened => opened,
        }
    }

    /// Renames the file and the rotated files before it. The caller holds the lock.
    fn rotate(&self) -> io::Result<()> {
        // Moves the target of a symbolic link, not the link.
        let path = fs::canonicalize(&self.plan.path)?;
        if self.plan.max_files == 0 {
            return fs::remove_file(path);
        }
        let mut free = 1;
        while free < self.plan.max_files && rotated(&path, free).symlink_metadata().is_ok() {
            free += 1;
        }
        for n in (1..free).rev() {
            fs::rename(rotated(&path, n), rotated(&path, n + 1))?;
        }
        fs::rename(&path, rotated(&path, 1))
    }
}

/// The name of the `n`th rotated file.
fn rotated(path: &Path, n: usize) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{n}"));
    name.into()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether an open file is still the one at a path.
fn is_same_file(is: &fs::Metadata, path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == (is.dev(), is.ino()))
}

/// Locks a file until it is unlocked or closed.
fn lock_exclusive(file: &File) -> io::Result<()> {
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if start.elapsed() < PATIENCE => {
                std::thread::sleep(PAUSE);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::other("another process holds a lock on it"));
            }
            // Some file systems have no locks.
            Err(TryLockError::Error(e)) if e.kind() != ErrorKind::Unsupported => return Err(e),
            Ok(()) | Err(TryLockError::Error(_)) => return Ok(()),
        }
    }
}

/// Makes a file end with a complete line, and returns its new size. An incomplete line, left by a crash,
/// is cut off: its record was not delivered and comes again. A complete record without a newline, as an
/// editor may leave it, gets one.
fn end_line(file: &File, size: u64) -> io::Result<u64> {
    let mut last = [0];
    if size == 0 {
        return Ok(0);
    }
    file.read_exact_at(&mut last, size - 1)?;
    if last == *b"\n" {
        return Ok(size);
    }
    let (mut tail, mut start) = (Vec::new(), size);
    let begin = loop {
        let from = start.saturating_sub(BLOCK);
        let mut block = vec![0; (start - from) as usize];
        file.read_exact_at(&mut block, from)?;
        block.append(&mut tail);
        (tail, start) = (block, from);
        match memchr::memrchr(b'\n', &tail) {
            Some(end) => break end + 1,
            None if start == 0 => break 0,
            None => {}
        }
    };
    if serde_json::from_slice::<serde::de::IgnoredAny>(&tail[begin..]).is_ok() {
        let mut file = file;
        file.write_all(b"\n")?;
        return Ok(size + 1);
    }
    let whole = start + begin as u64;
    file.set_len(whole)?;
    log::warn!(
        "an incomplete line of {} bytes was cut off the end of a file of usage records",
        size - whole
    );
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use bytes::Bytes;

    use super::*;

    fn lines(path: &Path, max_size: u64, max_files: usize) -> FileSink {
        FileSink::new(FilePlan { path: path.to_owned(), max_size, max_files })
    }

    fn record(n: u64) -> Entry {
        let json = Bytes::from(format!(r#"{{"record_id":"rec_{n:04}"}}"#));
        Entry { index: n, time: 0, json }
    }

    /// Bytes of a line of [`record`].
    const LINE: u64 = 25;

    fn batch(of: std::ops::Range<u64>) -> Vec<Entry> {
        of.map(record).collect()
    }

    /// The numbers of the records in a file.
    fn numbers(path: &Path) -> Vec<u64> {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
        text.lines().map(|line| line[18..22].parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn a_file_and_its_folder_are_made_for_nobody_else_to_read() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a/b/usage.jsonl");
        let sink = lines(&path, 1 << 20, 3);
        sink.deliver(&batch(0..2)).await.unwrap();
        sink.deliver(&batch(2..3)).await.unwrap();
        assert_eq!(numbers(&path), [0, 1, 2]);
        assert_eq!(fs::metadata(&path).unwrap().len(), 3 * LINE);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&temp.path().join("a/b"))), (0o600, 0o700));
        assert_eq!(mode(&temp.path().join("a")), 0o700);
    }

    #[tokio::test]
    async fn files_are_rotated_and_so_many_kept() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("usage.jsonl");
        let sink = lines(&path, 2 * LINE, 2);
        for n in 0..7 {
            sink.deliver(&batch(n..n + 1)).await.unwrap();
        }
        assert_eq!(numbers(&path), [6]);
        assert_eq!(numbers(&rotated(&path, 1)), [4, 5]);
        assert_eq!(numbers(&rotated(&path, 2)), [2, 3]);
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 3);
        // More than a file may hold is written all the same, and not divided.
        sink.deliver(&batch(10..15)).await.unwrap();
        sink.deliver(&batch(15..16)).await.unwrap();
        assert_eq!(numbers(&path), [15]);
        assert_eq!(numbers(&rotated(&path, 1)), [10, 11, 12, 13, 14]);
        assert_eq!(numbers(&rotated(&path, 2)), [6]);
    }

    #[tokio::test]
    async fn without_earlier_files_it_begins_anew() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("usage.jsonl");
        let sink = lines(&path, 2 * LINE, 0);
        for n in 0..3 {
            sink.deliver(&batch(n..n + 1)).await.unwrap();
        }
        assert_eq!(numbers(&path), [2]);
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn half_a_line_is_cut_and_a_whole_one_is_ended() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("usage.jsonl");
        let whole = |n| format!("{}\n", String::from_utf8(record(n).json.to_vec()).unwrap());
        for half in ["{\"rec", "{", "\0\0\0\0", &format!("{{\"x\":\"{}", "y".repeat(200_000))] {
            fs::write(&path, whole(1) + half).unwrap();
            lines(&path, 1 << 20, 3).deliver(&batch(2..3)).await.unwrap();
            assert_eq!(numbers(&path), [1, 2]);
            // Nothing but half a line.
            fs::write(&path, half).unwrap();
            lines(&path, 1 << 20, 3).deliver(&batch(2..3)).await.unwrap();
            assert_eq!(numbers(&path), [2]);
        }
        fs::write(&path, whole(1) + whole(2).trim_end()).unwrap();
        lines(&path, 1 << 20, 3).deliver(&batch(3..4)).await.unwrap();
        assert_eq!(numbers(&path), [1, 2, 3]);
    }

    #[tokio::test]
    async fn a_file_that_is_moved_or_cut_by_others_is_noticed() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("usage.jsonl");
        let sink = lines(&path, 1 << 20, 3);
        sink.deliver(&batch(0..1)).await.unwrap();
        let moved = temp.path().join("moved");
        fs::rename(&path, &moved).unwrap();
        sink.deliver(&batch(1..2)).await.unwrap();
        assert_eq!((numbers(&moved), numbers(&path)), (vec![0], vec![1]));
        fs::remove_file(&path).unwrap();
        sink.deliver(&batch(2..3)).await.unwrap();
        assert_eq!(numbers(&path), [2]);
        // As logrotate does with `copytruncate`.
        fs::write(&path, "").unwrap();
        sink.deliver(&batch(3..4)).await.unwrap();
        assert_eq!(numbers(&path), [3]);
    }

    #[tokio::test]
    async fn a_disk_that_takes_nothing_is_told_and_may_help_later() {
        let full = lines(Path::new("/dev/full"), 1 << 20, 3);
        for _ in 0..2 {
            let failure = full.deliver(&batch(0..1)).await.unwrap_err();
            let why = "/dev/full: No space left on device (os error 28)";
            assert_eq!(failure, DeliveryError::unavailable(why));
        }
        let temp = tempfile::tempdir().unwrap();
        let in_the_way = temp.path().join("file");
        fs::write(&in_the_way, "").unwrap();
        let path = in_the_way.join("usage.jsonl");
        let sink = lines(&path, 1 << 20, 3);
        let failure = sink.deliver(&batch(0..1)).await.unwrap_err();
        assert!(matches!(failure, DeliveryError::Unavailable { .. }), "{failure:?}");
        fs::remove_file(&in_the_way).unwrap();
        sink.deliver(&batch(0..1)).await.unwrap();
        assert_eq!(numbers(&path), [0]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn two_that_write_the_same_file_lose_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("usage.jsonl");
        let write = |from: u64| {
            let sink = lines(&path, 10 * LINE, 1000);
            async move {
                for n in from..from + 100 {
                    sink.deliver(&batch(n..n + 1)).await.unwrap();
                }
            }
        };
        let (one, two) = (tokio::spawn(write(0)), tokio::spawn(write(100)));
        one.await.unwrap();
        two.await.unwrap();
        let files = fs::read_dir(temp.path()).unwrap().map(|file| file.unwrap().path());
        let mut all = Vec::new();
        for file in files {
            let part = numbers(&file);
            assert!(part.len() <= 10, "{part:?}");
            all.extend(part);
        }
        all.sort_unstable();
        assert_eq!(all, (0..200).collect::<Vec<_>>());
    }
}
