//! A script: compiled once, and run wherever a request needs it.

use std::{
    fmt,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::sync::Semaphore;

use super::{
    code::Code,
    interpreter,
    job::{Account, BRIEF, BRIEF_MEMORY, Failure, Job, Limits},
    zone,
};

/// Number of runs beyond [`BRIEF`], minus those within it, from which on a script is no longer tried on
/// a serving thread.
const MAX_OVERRUNS: u32 = 3;

/// Concurrent runs of one script on other threads, if the processors allow that many.
const LONG_RUNS: usize = 4;

/// With a memory limit above this a script is never tried on a serving thread: a single instruction may
/// copy all of it.
const LARGE: usize = 16 << 20;

/// Bounds the runs of all scripts on other threads to half of the processors, so that the threads that
/// serve requests keep the other half.
static ALL_LONG_RUNS: LazyLock<LongRuns> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runs = (cores / 2).max(1);
    LongRuns { runs, permits: Arc::new(Semaphore::new(runs)) }
});

struct LongRuns {
    runs: usize,
    permits: Arc<Semaphore>,
}

/// A compiled script with its limits.
pub struct Script {
    code: Code,
    limits: Limits,
    /// Number of runs beyond [`BRIEF`], minus those within it; not below 0.
    overruns: AtomicU32,
    permits: Arc<Semaphore>,
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Script").field("name", &self.code.name).finish_non_exhaustive()
    }
}

impl Script {
    /// Compiles a text. `name` is used in messages.
    ///
    /// # Errors
    /// The compiler's message, with the line.
    pub fn compile(name: &str, text: &str, limits: Limits) -> Result<Self, String> {
        Ok(Self {
            code: Code::compile(name, text)?,
            limits,
            overruns: AtomicU32::new(0),
            // No more than run at all: others would only wait for the same permits.
            permits: Arc::new(Semaphore::new(LONG_RUNS.min(ALL_LONG_RUNS.runs))),
        })
    }

    /// The time zone of the process, if it is unknown and the text uses it.
    pub fn unknown_zone(text: &str) -> Option<&'static str> {
        zone::unknown().filter(|_| zone::is_used(text))
    }

    pub fn name(&self) -> &str {
        &self.code.name
    }

    /// Unique in the process.
    pub fn id(&self) -> u64 {
        self.code.id
    }

    /// Whether its answer for the same data is always the same: it reads neither the request nor the
    /// clock nor chance, and logs nothing.
    pub fn depends_on_data_alone(&self) -> bool {
        self.code.depends_on_data_alone
    }

    /// Runs it on this thread with its full limits.
    pub fn run_here<J: Job>(&self, job: &J) -> (Result<J::Answer, Failure>, Account) {
        interpreter::run(&self.code, job, self.limits)
    }

    /// Runs it for a request. A call that exceeds the brief limits is moved to another thread, so that
    /// other requests of this thread do not wait for it. A script that does so often runs there
    /// immediately.
    ///
    /// # Errors
    /// Why there is no answer. The lines that the script logged are written to the log in any case.
    pub async fn run<J: Job>(self: &Arc<Self>, job: &J) -> Result<J::Answer, Failure> {
        if !self.runs_apart()
            && let Some(result) = self.attempt(job)
        {
            return result;
        }
        // Boxed: the usual case must not carry the memory for the unusual one.
        Box::pin(self.run_long(job.own(), Self::settle)).await
    }

    /// Whether it runs on another thread immediately.
    fn runs_apart(&self) -> bool {
        self.limits.memory > LARGE || self.overruns.load(Ordering::Relaxed) >= MAX_OVERRUNS
    }

    /// Runs it for something other than a request: its log lines are dropped, and its duration does not
    /// affect requests.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn run_quietly<J: Job>(self: &Arc<Self>, job: &J) -> Result<J::Answer, Failure> {
        if !self.runs_apart() {
            match interpreter::run(&self.code, job, self.limits.brief()).0 {
                Err(Failure::Time(_)) => {}
                result => return result,
            }
        }
        Box::pin(self.run_long(job.own(), |_, _| {})).await
    }

    /// Tries it within the brief limits; `None` if it needs more.
    fn attempt<J: Job>(&self, job: &J) -> Option<Result<J::Answer, Failure>> {
        let (result, account) = interpreter::run(&self.code, job, self.limits.brief());
        if matches!(result, Err(Failure::Time(_))) {
            self.overrun(true);
            return None;
        }
        self.overrun(false);
        self.write_log(&account);
        Some(result)
    }

    /// Records whether a run exceeded the brief limits.
    fn overrun(&self, over: bool) {
        let known =
            |n: u32| if over { (n < 2 * MAX_OVERRUNS).then_some(n + 1) } else { n.checked_sub(1) };
        self.overruns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, known).ok();
    }

    /// After a run for a request on another thread.
    fn settle(&self, account: &Account) {
        self.overrun(account.time >= BRIEF || account.memory >= BRIEF_MEMORY);
        self.write_log(account);
    }

    /// Runs it with its full limits on another thread. The number of concurrent runs is bounded for each
    /// script and for all together; a run that waits for its script holds no permit of the others.
    async fn run_long<J: Job + Send + 'static>(
        self: &Arc<Self>,
        job: J,
        finish: fn(&Self, &Account),
    ) -> Result<J::Answer, Failure> {
        let wait = (self.limits.time * 10).max(Duration::from_secs(1));
        let permits = async {
            let own = Arc::clone(&self.permits).acquire_owned().await.ok()?;
            let shared = Arc::clone(&ALL_LONG_RUNS.permits).acquire_owned().await.ok()?;
            Some((own, shared))
        };
        let Ok(Some(permits)) = tokio::time::timeout(wait, permits).await else {
            return Err(Failure::Busy);
        };
        let script = Arc::clone(self);
        elsewhere(move || {
            let (result, account) = script.run_here(&job);
            finish(&script, &account);
            drop(permits);
            result
        })
        .await?
    }

    fn write_log(&self, account: &Account) {
        for line in &account.log {
            log::info!(target: "lua", "{}: {line}", self.code.name);
        }
    }
}

/// Runs something on a thread that serves no requests.
async fn elsewhere<T: Send + 'static>(
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(run).await;
    done.map_err(|_| Failure::Error("it panicked".to_owned()))
}
