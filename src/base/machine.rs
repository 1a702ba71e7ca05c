//! Limits that the machine or the container sets for the process: memory and open files.

use std::{fs, path::Path};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Bytes of memory that the process may use: the limit of its control group, or the memory of the
/// machine. `None` if neither is known.
pub fn memory() -> Option<u64> {
    let group = || {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
        limit(&Path::new("/sys/fs/cgroup").join(path).join("memory.max"))
    };
    [
        group(),
        // In a container its own group is the root.
        limit(Path::new("/sys/fs/cgroup/memory.max")),
        limit(Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes")),
        fs::read_to_string("/proc/meminfo").ok().as_deref().and_then(total),
    ]
    .into_iter()
    .flatten()
    .min()
}

/// Reads a limit of a control group; `max` means none.
fn limit(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// How many files the process may have open, once [`raise_open_files`] was called.
pub fn open_files() -> usize {
    /// For a system that sets no limit.
    const MANY: u64 = 1 << 20;
    let most = getrlimit(Resource::Nofile).maximum.unwrap_or(MANY);
    usize::try_from(most).unwrap_or(usize::MAX)
}

/// Raises the soft limit of open files to the hard limit. The soft limit is low by default for
/// programs that use `select`, which cannot handle larger numbers.
pub fn raise_open_files() {
    let limits = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limits.maximum, ..limits };
    if let Err(e) = setrlimit(Resource::Nofile, raised) {
        log::warn!("cannot raise the limit of open files: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_linux_says() {
        assert_eq!(total("MemTotal:        2048 kB\nMemFree: 1 kB\n"), Some(2 << 20));
        assert_eq!(total("MemFree: 1 kB\n"), None);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("memory.max");
        for (text, bytes) in [("max\n", None), ("1048576\n", Some(1 << 20))] {
            fs::write(&file, text).unwrap();
            assert_eq!(limit(&file), bytes, "{text}");
        }
        assert!(memory().unwrap() > 1 << 20);
        assert!(open_files() >= 64);
    }
}
