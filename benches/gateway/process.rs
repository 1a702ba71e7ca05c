//! Processes of the measurement, and what the system knows about them.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// A process with its children; all are killed when it is dropped.
pub struct Process {
    child: Child,
    errors: Option<PathBuf>,
}

/// How a process is started.
pub struct Start<'a> {
    pub program: &'a Path,
    pub arguments: &'a [&'a str],
    pub environment: &'a [(&'a str, &'a str)],
    /// The cores that it may use, as `taskset` takes them; `None`: all.
    pub cores: Option<String>,
    /// The file for what it prints as errors; `None`: they are discarded.
    pub errors: Option<PathBuf>,
}

impl Process {
    /// # Errors
    /// If the program cannot be run.
    pub fn start(start: Start<'_>) -> Result<Self, String> {
        let mut command = match &start.cores {
            Some(cores) => {
                let mut command = Command::new("taskset");
                command.args(["-c", cores]).arg(start.program);
                command
            }
            None => Command::new(start.program),
        };
        let errors = match &start.errors {
            Some(path) => Stdio::from(File::create(path).map_err(|e| e.to_string())?),
            None => Stdio::null(),
        };
        command
            .args(start.arguments)
            .envs(start.environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors);
        let child = command.spawn().map_err(|e| format!("{}: {e}", start.program.display()))?;
        Ok(Self { child, errors: start.errors })
    }

    /// # Errors
    /// If the process has ended.
    pub fn alive(&mut self) -> Result<(), String> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                Err(format!("the process has ended: {status}{}", self.last_words()))
            }
            Err(e) => Err(e.to_string()),
        }
    }

    /// The last line that it has printed as an error.
    fn last_words(&self) -> String {
        let text = self.errors.as_ref().and_then(|path| fs::read_to_string(path).ok());
        let line = text.as_deref().and_then(|text| text.trim_end().lines().last());
        line.map_or_else(String::new, |line| format!(": {line}"))
    }

    /// The ids of the process and of all its descendants (nginx works in a child).
    pub fn ids(&self) -> Vec<u32> {
        let mut ids = vec![self.child.id()];
        let mut next = 0;
        while let Some(id) = ids.get(next).copied() {
            for task in tasks(id) {
                let children = read(&format!("/proc/{id}/task/{task}/children"));
                ids.extend(children.split_whitespace().filter_map(|id| id.parse::<u32>().ok()));
            }
            next += 1;
        }
        ids
    }

    /// CPU time used so far.
    pub fn cpu(&self) -> Duration {
        /// A tick of `/proc/PID/stat`.
        const TICK: Duration = Duration::from_millis(10);
        let ticks = |id: u32| {
            let stat = read(&format!("/proc/{id}/stat"));
            // After the name in parentheses: user and system time are fields 14 and 15.
            let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or("").split(' ').collect();
            let field = |at: usize| fields.get(at).and_then(|f| f.parse::<u32>().ok()).unwrap_or(0);
            field(11) + field(12)
        };
        TICK * self.ids().into_iter().map(ticks).sum::<u32>()
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> f64 {
        let of = |id: u32| field(&read(&format!("/proc/{id}/status")), "VmRSS:");
        self.ids().into_iter().map(of).sum()
    }

    pub fn resident_mib(&self) -> f64 {
        self.resident_kib() / 1024.0
    }

    /// How often its threads gave up a core, or lost it.
    pub fn context_switches(&self) -> f64 {
        let of = |id: u32| -> f64 {
            let of_task = |task: u32| {
                let status = read(&format!("/proc/{id}/task/{task}/status"));
                field(&status, "voluntary_ctxt_switches:")
                    + field(&status, "nonvoluntary_ctxt_switches:")
            };
            tasks(id).into_iter().map(of_task).sum()
        };
        self.ids().into_iter().map(of).sum()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The children first: nginx's workers outlive a master that was killed.
        for id in self.ids().into_iter().skip(1) {
            let id = i32::try_from(id).ok().and_then(rustix::process::Pid::from_raw);
            if let Some(id) = id {
                rustix::process::kill_process(id, rustix::process::Signal::KILL).ok();
            }
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The ids of a process's threads.
fn tasks(id: u32) -> Vec<u32> {
    let entries = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// The number in the line of a status that begins with `name`.
fn field(status: &str, name: &str) -> f64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.unwrap_or(0.0)
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
