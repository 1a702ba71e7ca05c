//! The machine: its description, its cores, and the open files that it allows.

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};

/// Which cores do what. Each measured process is on the last core or cores; the load and the backend
/// use the others.
pub struct Cores {
    count: usize,
    /// Whether processes can be kept on cores at all.
    pinned: bool,
}

impl Cores {
    pub fn new() -> Self {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        Self { count, pinned: count > 1 && output("taskset", &["-V"]).is_some() }
    }

    /// The cores of a process with this many threads, as `taskset` takes them.
    pub fn measured(&self, threads: usize) -> Option<String> {
        let first = self.count.saturating_sub(threads);
        self.pinned.then(|| range(first, self.count - 1))
    }

    /// The cores of the load.
    pub fn load(&self) -> Option<String> {
        self.pinned.then(|| range(0, self.count - 2))
    }

    /// How many cores the load has.
    pub fn load_count(&self) -> usize {
        (self.count - usize::from(self.pinned)).max(1)
    }

    /// Keeps this process off the measured core.
    pub fn pin_self(&self) {
        if let Some(cores) = self.load() {
            output("taskset", &["-a", "-c", "-p", &cores, &std::process::id().to_string()]);
        }
    }
}

fn range(first: usize, last: usize) -> String {
    if first == last { last.to_string() } else { format!("{first}-{last}") }
}

/// What a command prints; `None` if it cannot be run or fails.
pub fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let run = Command::new(program).args(arguments).output().ok()?;
    run.status.success().then(|| String::from_utf8_lossy(&run.stdout).trim().to_owned())
}

/// How many streams a process can pass on at the same time: each needs two open files.
pub fn most_streams() -> usize {
    /// For listeners, files, and connections to everything else.
    const OTHERS: usize = 400;
    (llmproxy::base::machine::open_files().saturating_sub(OTHERS)) / 2
}

/// The machine and the build, for the raw results.
pub fn describe(cores: &Cores) -> Value {
    let git = |arguments: &[&str]| output("git", arguments).unwrap_or_default();
    let changed = if git(&["status", "--porcelain", "--untracked-files=no"]).is_empty() {
        ""
    } else {
        " with changes"
    };
    json!({
        "cpu": cpu(),
        "cores": cores.count,
        "memory_gib": memory_gib(),
        "kernel": read("/proc/sys/kernel/osrelease"),
        "rustc": output("rustc", &["--version"]).unwrap_or_default(),
        "profile": profile(),
        "date": jiff::Zoned::now().date().to_string(),
        "commit": format!("{}{changed}", git(&["rev-parse", "--short", "HEAD"])),
        "open_files": llmproxy::base::machine::open_files(),
    })
}

/// The same in a line, for tables.
pub fn sentence(machine: &Value) -> String {
    let text = |key: &str| machine[key].as_str().unwrap_or("?").to_owned();
    format!(
        "{}, commit {}, profile {}: {}, {} cores, {} GiB, Linux {}, {}.",
        text("date"),
        text("commit"),
        text("profile"),
        text("cpu"),
        machine["cores"],
        machine["memory_gib"],
        text("kernel"),
        text("rustc"),
    )
}

fn cpu() -> String {
    let all = read("/proc/cpuinfo");
    let name = all.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.to_owned())
}

fn memory_gib() -> u64 {
    let all = read("/proc/meminfo");
    let kib = all.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    });
    (kib.unwrap_or(0) + (1 << 19)) >> 20
}

/// The profile is the folder that Cargo builds into: `target/PROFILE/deps/gateway-HASH`.
fn profile() -> String {
    let program = std::env::current_exe().unwrap_or_default();
    let folder = program.parent().and_then(Path::parent).and_then(Path::file_name);
    folder.map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}
