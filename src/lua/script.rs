//! A script: compiled once, and run wherever a request needs it.

use std::{
    fmt,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    call::Place,
    code::Code,
    interpreter::{self, Run},
    job::{Account, BRIEF, BRIEF_MEMORY, Failure, Job, Limits, Scope},
    journal::Journal,
    library::Library,
    permits::RunPermits,
    zone,
};

/// Number of runs beyond [`BRIEF`], minus those within it, from which on a script is no longer tried on
/// a serving thread.
const MAX_OVERRUNS: u32 = 3;

/// With a memory limit above this a script is never tried on a serving thread: a single instruction may
/// copy all of it.
const LARGE: usize = 16 << 20;

/// The library of scripts that are compiled without one.
static NO_LIBRARY: LazyLock<Arc<Library>> = LazyLock::new(Arc::default);

/// A compiled script with its limits.
pub struct Script {
    code: Code,
    limits: Limits,
    scope: Scope,
    /// Number of runs beyond [`BRIEF`], minus those within it; not below 0.
    overruns: AtomicU32,
    permits: RunPermits,
    stats: ScriptStats,
}

/// What the runs of a script needed, since it was compiled. A run that is started again elsewhere counts
/// once.
#[derive(Debug, Default)]
pub struct ScriptStats {
    /// Runs that have ended.
    pub calls: AtomicU64,
    /// Those that ended with an error of the script, or with an answer that cannot be used.
    pub errors: AtomicU64,
    /// Those that ended because of their time.
    pub time_limit: AtomicU64,
    /// Those that ended because of their memory.
    pub memory_limit: AtomicU64,
    /// Those that did not run, or ended, because too many run or wait.
    pub busy: AtomicU64,
    /// The time of all, including what they waited for.
    pub nanoseconds: AtomicU64,
    /// Runs that were started again on another thread.
    pub moved: AtomicU64,
}

impl ScriptStats {
    fn count<T>(&self, result: &Result<T, Failure>, time: Duration) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        let Err(failure) = result else { return };
        let counter = match failure {
            Failure::Time(_) => &self.time_limit,
            Failure::Memory(_) => &self.memory_limit,
            Failure::Error(_) | Failure::Answer(_) => &self.errors,
            Failure::Busy => &self.busy,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Script").field("name", &self.code.name).finish_non_exhaustive()
    }
}

impl Script {
    /// Compiles a text for the decision about a key, without a library. `name` is used in messages.
    ///
    /// # Errors
    /// The compiler's message, with the line.
    pub fn compile(name: &str, text: &str, limits: Limits) -> Result<Self, String> {
        Self::compile_with(name, text, limits, &NO_LIBRARY, Scope::AUTH)
    }

    /// Compiles a text. `name` is used in messages: `NAME:LINE: what is wrong`. The stage is not in them;
    /// it is in the lines that the script logs.
    ///
    /// # Errors
    /// The compiler's message, with the line.
    pub fn compile_with(
        name: &str,
        text: &str,
        limits: Limits,
        library: &Arc<Library>,
        scope: Scope,
    ) -> Result<Self, String> {
        Ok(Self {
            code: Code::compile(name, text, library, scope.http)?,
            limits,
            scope,
            overruns: AtomicU32::new(0),
            permits: RunPermits::new(),
            stats: ScriptStats::default(),
        })
    }

    /// Whether the text may read this field of a global.
    pub fn may_read(&self, global: &str, field: &str) -> bool {
        self.code.reads.wants_field(global, field)
    }

    /// Whether the text may read this global, or this word of the library. A module that the script
    /// requires cannot read the globals of the script.
    pub fn mentions(&self, name: &str) -> bool {
        self.code.reads.mentions(name)
    }

    /// The name of its stage.
    pub fn stage(&self) -> &'static str {
        self.scope.stage
    }

    pub fn limits(&self) -> Limits {
        self.limits
    }

    pub fn stats(&self) -> &ScriptStats {
        &self.stats
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
        let run = interpreter::run(&self.code, job, self.limits, Place::Here);
        self.stats.count(&run.result, run.account.time);
        (run.result, run.account)
    }

    /// Runs it for a request. A call that exceeds the brief limits, or that waits for something, is
    /// moved to another thread, so that other requests of this thread do not wait for it. A script that
    /// does so often runs there immediately.
    ///
    /// # Errors
    /// Why there is no answer. The lines that the script logged are written to the log in any case.
    pub async fn run<J: Job>(self: &Arc<Self>, job: &J) -> Result<J::Answer, Failure> {
        let journal = match self.runs_apart() {
            true => Journal::default(),
            false => match self.attempt(job) {
                Ok(result) => return result,
                Err(journal) => journal,
            },
        };
        // Boxed: the usual case must not carry the memory for the unusual one.
        Box::pin(self.run_long(job.own(), journal, Self::settle)).await
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
        let mut journal = Journal::default();
        if !self.runs_apart() {
            let run = interpreter::run(&self.code, job, self.limits.brief(), Place::Serving);
            match run.result {
                Err(Failure::Time(_)) => journal = run.journal,
                result => return result,
            }
        }
        Box::pin(self.run_long(job.own(), journal, |_, _| {})).await
    }

    /// Tries it within the brief limits. If it needs more: what it has done until then.
    fn attempt<J: Job>(&self, job: &J) -> Result<Result<J::Answer, Failure>, Journal> {
        let run = interpreter::run(&self.code, job, self.limits.brief(), Place::Serving);
        if matches!(run.result, Err(Failure::Time(_))) {
            self.overrun(true);
            self.stats.moved.fetch_add(1, Ordering::Relaxed);
            return Err(run.journal);
        }
        self.overrun(false);
        self.stats.count(&run.result, run.account.time);
        self.write_log(&run.account);
        Ok(run.result)
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
    /// script and for all together; a run that waits holds no permit.
    async fn run_long<J: Job + Send + 'static>(
        self: &Arc<Self>,
        job: J,
        journal: Journal,
        finish: fn(&Self, &Account),
    ) -> Result<J::Answer, Failure> {
        let wait = (self.limits.time * 10).max(Duration::from_secs(1));
        let Some(permit) = self.permits.acquire(wait).await else {
            let busy = Err(Failure::Busy);
            self.stats.count(&busy, Duration::ZERO);
            return busy;
        };
        let script = Arc::clone(self);
        elsewhere(move || {
            let place = Place::Elsewhere(journal, permit);
            let Run { result, account, .. } =
                interpreter::run(&script.code, &job, script.limits, place);
            script.stats.count(&result, account.time);
            finish(&script, &account);
            result
        })
        .await?
    }

    fn write_log(&self, account: &Account) {
        for line in &account.log {
            let (stage, name) = (self.scope.stage, &self.code.name);
            // Lines of auth scripts are as they always were.
            let (stage, gap) = if self.scope == Scope::AUTH { ("", "") } else { (stage, ": ") };
            log::log!(target: "lua", line.level, "{stage}{gap}{name}: {line}");
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
