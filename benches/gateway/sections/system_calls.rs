//! How many system calls a request takes, counted by strace where it is installed.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    client::{Protocol, body},
    language::Language,
    load::{self, Load},
    target::{Bench, Target},
};

/// As many that what the server does without requests is lost among them.
const REQUESTS: usize = 2000;
const CLIENTS: usize = 4;

/// System calls of a request.
pub struct Calls {
    pub all: f64,
    pub futex: f64,
}

/// Counts the system calls of a server under a small load. `None` without strace, or without the
/// permission to use it.
pub async fn count(bench: &Bench, target: &mut Target) -> Result<Option<Calls>, String> {
    let Some(process) = &target.process else { return Ok(None) };
    let file = bench.folder.join("strace");
    let mut command = Command::new("strace");
    command.args(["-f", "-q", "-c", "-o"]).arg(&file).stdin(Stdio::null());
    for id in process.ids() {
        command.args(["-p", &id.to_string()]);
    }
    let Ok(mut strace) = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() else {
        return Ok(None);
    };
    // It attaches to one thread after the other.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let load = Load {
        body: body(1024, false),
        language: Language::Chat,
        clients: CLIENTS,
        time: Duration::ZERO,
        least: REQUESTS / CLIENTS,
        protocol: Protocol::Http1,
    };
    let round = load::round(target, &load).await;
    if let Some(id) = i32::try_from(strace.id()).ok().and_then(Pid::from_raw) {
        kill_process(id, Signal::INT).ok();
    }
    strace.wait().map_err(|e| e.to_string())?;
    let requests = round?.requests as f64;
    Ok(calls(&file).map(|calls| Calls { all: calls.all / requests, futex: calls.futex / requests }))
}

/// The sums of a table of `strace -c`: share, seconds, microseconds a call, calls, perhaps errors, name.
fn calls(file: &Path) -> Option<Calls> {
    let text = std::fs::read_to_string(file).ok()?;
    let mut sums = Calls { all: 0.0, futex: 0.0 };
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (Some(name), Some(count)) = (words.last(), words.get(3)) else { continue };
        let Ok(count) = count.parse::<f64>() else { continue };
        match *name {
            "total" => {}
            "futex" => {
                sums.futex += count;
                sums.all += count;
            }
            _ => sums.all += count,
        }
    }
    (sums.all > 0.0).then_some(sums)
}
