//! A program under callgrind, and what it counted.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How long a program may take to end.
const END: Duration = Duration::from_secs(60);

/// What a run took.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    pub instructions: u64,
    pub allocations: u64,
    pub system_calls: u64,
}

/// A program under callgrind.
pub struct Run {
    child: Child,
    profile: PathBuf,
    trace: PathBuf,
}

impl Run {
    /// Starts it.
    pub fn start(folder: &Path, program: &Path, arguments: &[String]) -> Self {
        let (profile, trace) = (folder.join("callgrind.out"), folder.join("valgrind.log"));
        let child = Command::new("valgrind")
            .arg("--tool=callgrind")
            .arg(format!("--callgrind-out-file={}", profile.display()))
            .arg("--trace-syscalls=yes")
            .arg(format!("--log-file={}", trace.display()))
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("stderr.log")).unwrap())
            .spawn()
            .unwrap_or_else(|e| panic!("valgrind cannot be started: {e}"));
        Self { child, profile, trace }
    }

    /// Ends it.
    pub fn end(mut self) -> Counts {
        let pid = self.child.id().to_string();
        // SIGINT: Pingora drains at SIGTERM, which takes minutes.
        Command::new("kill").args(["-INT", &pid]).status().unwrap();
        let start = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < END, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        let (instructions, allocations) = read_profile(&self.profile);
        Counts { instructions, allocations, system_calls: read_trace(&self.trace) }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Functions that allocate: of the C library and of jemalloc.
const ALLOCATES: [&str; 11] = [
    "malloc",
    "calloc",
    "realloc",
    "posix_memalign",
    "aligned_alloc",
    "_rjem_malloc",
    "_rjem_mallocx",
    "_rjem_calloc",
    "_rjem_realloc",
    "_rjem_rallocx",
    "_rjem_aligned_alloc",
];

/// The thread of Pingora that counts time: it runs the more often, the longer a run takes.
const TICKS: &str = "TimerManager::clock_thread";

/// All instructions of a profile, and all calls of functions that allocate. The format is described
/// in valgrind's manual, "Callgrind Format Specification".
fn read_profile(file: &Path) -> (u64, u64) {
    let text = String::from_utf8_lossy(&fs::read(file).unwrap()).into_owned();
    let mut names: HashMap<&str, &str> = HashMap::new();
    let (mut instructions, mut allocations, mut callee) = (0, 0, "");
    let mut ticks: u64 = 0;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(function) = line.strip_prefix("fn=").or(line.strip_prefix("cfn=")) {
            // A name is written once: `(7) malloc`, then `(7)`.
            let (id, name) = function.split_once(' ').unwrap_or((function, ""));
            if !name.is_empty() {
                names.insert(id, name);
            }
            callee = names.get(id).copied().unwrap_or(name);
        } else if let Some(calls) = line.strip_prefix("calls=") {
            // Recursive cycles have a number: `malloc'2`.
            let name = callee.split('\'').next().unwrap_or(callee);
            if ALLOCATES.contains(&name) {
                allocations += first_number(calls);
            }
            // The next line has where it is called and what the calls cost.
            if name.contains(TICKS) {
                let cost = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
                ticks += cost.unwrap_or(0);
            }
        } else if let Some(total) = line.strip_prefix("totals: ") {
            instructions = first_number(total);
        }
    }
    assert!(instructions > 0, "{} has no total", file.display());
    (instructions - ticks, allocations)
}

fn first_number(text: &str) -> u64 {
    text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or_default()
}

/// System calls for connections, of which a line of the trace has each. Others are left out: waiting
/// for events depends on how fast the peers are, and valgrind has the clock read by system calls.
const ABOUT_CONNECTIONS: [&str; 9] = [
    "sys_recvfrom",
    "sys_recvmsg",
    "sys_sendto",
    "sys_sendmsg",
    "sys_writev",
    "sys_readv",
    "sys_getpeername",
    "sys_getsockopt",
    "sys_epoll_ctl",
];

fn read_trace(file: &Path) -> u64 {
    let text = String::from_utf8_lossy(&fs::read(file).unwrap()).into_owned();
    // `SYSCALL[24757,9](45) sys_recvfrom ( 24, ...`
    let calls = text.lines().filter_map(|line| line.strip_prefix("SYSCALL[")?.split(' ').nth(1));
    calls.filter(|call| ABOUT_CONNECTIONS.contains(call)).count() as u64
}
