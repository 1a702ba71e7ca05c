//! A script: compiled once, run wherever a request needs it.

use std::{
    fmt,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use mlua::{Lua, Table, Value};
use tokio::sync::Semaphore;

use super::{interpreter, zone};
use crate::base::without_mark;

/// How long and how large a script may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Wall time of one call.
    pub time: Duration,
    /// Bytes that its values may take, beside the interpreter's own.
    pub memory: usize,
    /// Bytes beyond which a call counts as one that takes too long.
    pub(super) brief_memory: Option<usize>,
}

impl Limits {
    /// Limits of a whole call.
    pub fn new(time: Duration, memory: usize) -> Self {
        Self { time, memory, brief_memory: None }
    }

    /// What a call may take of a thread that serves requests. One that needs more is begun again
    /// on a thread of its own: it has no effect but its answer, so that nothing is done twice.
    /// What the script sees is the same: there is no error that it could catch.
    fn brief(self) -> Self {
        Self { time: BRIEF.min(self.time), brief_memory: Some(BRIEF_MEMORY), ..self }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::new(Duration::from_millis(100), 10 << 20)
    }
}

/// See [`Limits::brief`].
const BRIEF: Duration = Duration::from_millis(1);
const BRIEF_MEMORY: usize = 1 << 20;

/// Runs beyond [`BRIEF`], less those within, from which on a script is no longer tried on a serving
/// thread.
const PATIENCE: u32 = 3;

/// Runs of one script at a time on threads of their own, as far as there is room for them.
const LONG_RUNS: usize = 4;

/// From so much memory on a script is never tried on a serving thread: a single instruction may copy
/// all of it.
const LARGE: usize = 16 << 20;

/// Runs of all scripts together on threads of their own: half of the processors, so that the threads
/// that serve requests have the other half however many scripts work for long.
static ROOM: LazyLock<Room> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runs = (cores / 2).max(1);
    Room { runs, places: Arc::new(Semaphore::new(runs)) }
});

struct Room {
    runs: usize,
    places: Arc<Semaphore>,
}

/// A compiled script.
pub struct Script {
    id: u64,
    name: String,
    /// Bytecode of a function that returns the script as a function of its globals.
    code: Vec<u8>,
    limits: Limits,
    /// Names that the text mentions: a global that it never names is not made.
    mentions: Vec<&'static str>,
    overruns: AtomicU32,
    places: Arc<Semaphore>,
}

/// Names of globals that are only made for scripts that mention them.
const OPTIONAL: [&str; 5] = ["api_key", "data", "key", "request", "metadata"];

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It ran for longer than this.
    Time(Duration),
    /// It wanted more memory than so many bytes.
    Memory(usize),
    /// It raised an error.
    Error(String),
    /// It answered something that cannot be understood.
    Answer(String),
    /// Too many calls that take long are under way.
    Busy,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(limit) => write!(f, "it ran for longer than {limit:?}"),
            Self::Memory(limit) => write!(f, "it needed more than {limit} bytes of memory"),
            Self::Error(why) => f.write_str(why),
            Self::Answer(why) => write!(f, "its answer cannot be used: {why}"),
            Self::Busy => f.write_str("too many slow runs of it are under way"),
        }
    }
}

/// One call: what the script is given, and how its answer is read.
pub trait Job {
    /// What the answer is read into.
    type Answer: Send + 'static;
    /// The same call for another thread.
    type Owned: Job<Answer = Self::Answer> + Send + 'static;

    /// Sets the call's globals.
    ///
    /// # Errors
    /// If the interpreter has no memory for them.
    fn globals(&self, globals: &Globals<'_>) -> mlua::Result<()>;

    /// Reads what the script returned.
    ///
    /// # Errors
    /// Why it cannot be understood.
    fn answer(&self, returned: Value) -> Result<Self::Answer, String>;

    /// A copy that borrows nothing.
    fn own(&self) -> Self::Owned;
}

/// The globals of a call, being filled in.
pub struct Globals<'a> {
    /// The interpreter.
    pub lua: &'a Lua,
    /// The table of globals.
    pub table: &'a Table,
    /// The metatable for tables of header fields: names in any case find their field.
    pub headers: &'a Table,
    pub(super) script: &'a Script,
}

impl Globals<'_> {
    /// Whether the script can see this global at all; if not, it need not be made.
    pub fn wants(&self, name: &str) -> bool {
        self.script.mentions.contains(&name)
    }
}

/// What a call took.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// Wall time.
    pub time: Duration,
    /// Bytes that its values took, until they were collected.
    pub memory: usize,
    /// What it logged.
    pub log: Vec<String>,
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Script").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Script {
    /// Compiles a text. `name` stands in messages.
    ///
    /// # Errors
    /// The compiler's message, with the line.
    pub fn compile(name: &str, text: &str, limits: Limits) -> Result<Self, String> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let text = without_mark(text);
        let code = interpreter::compile(name, text)?;
        // Whoever says `_ENV` can reach a global without its name.
        let dynamic = text.contains("_ENV");
        let mentions = OPTIONAL.into_iter().filter(|name| dynamic || text.contains(name)).collect();
        Ok(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            name: name.to_owned(),
            code,
            limits,
            mentions,
            overruns: AtomicU32::new(0),
            // No more than there is room for: the others of all scripts wait for the same room.
            places: Arc::new(Semaphore::new(LONG_RUNS.min(ROOM.runs))),
        })
    }

    /// The time zone of the process, if it is not known and the text asks for it.
    pub fn unknown_zone(text: &str) -> Option<&'static str> {
        zone::unknown().filter(|_| zone::is_asked_for(text))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn code(&self) -> &[u8] {
        &self.code
    }

    /// Runs it on this thread, with all of its limits, and says what that took.
    pub fn run_here<J: Job>(&self, job: &J) -> (Result<J::Answer, Failure>, Account) {
        interpreter::run(self, job, self.limits)
    }

    /// Runs it for a request. A call that takes more than a moment is moved to another thread, so
    /// that other requests of this thread do not wait for it. A script that often does so is tried
    /// there at once.
    ///
    /// # Errors
    /// Why there is no answer; what the script logged is in the log then as well.
    pub async fn run<J: Job>(self: &Arc<Self>, job: &J) -> Result<J::Answer, Failure> {
        if !self.runs_apart()
            && let Some(result) = self.attempt(job)
        {
            return result;
        }
        // Boxed: the usual way must not carry the room for the unusual.
        Box::pin(self.run_long(job.own(), Self::settle)).await
    }

    /// Whether it is not tried on a serving thread.
    fn runs_apart(&self) -> bool {
        self.limits.memory > LARGE || self.overruns.load(Ordering::Relaxed) >= PATIENCE
    }

    /// Runs it for a question that is no request: nothing of it is in the log, and how long it takes
    /// changes nothing for requests.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn run_quietly<J: Job>(self: &Arc<Self>, job: &J) -> Result<J::Answer, Failure> {
        if !self.runs_apart() {
            match interpreter::run(self, job, self.limits.brief()).0 {
                Err(Failure::Time(_)) => {}
                result => return result,
            }
        }
        Box::pin(self.run_long(job.own(), |_, _| {})).await
    }

    /// Tries it within the brief limits; `None` if it needs more.
    fn attempt<J: Job>(&self, job: &J) -> Option<Result<J::Answer, Failure>> {
        let (result, account) = interpreter::run(self, job, self.limits.brief());
        if matches!(result, Err(Failure::Time(_))) {
            self.overrun(true);
            return None;
        }
        self.overrun(false);
        self.tell(&account);
        Some(result)
    }

    /// Notes whether a run took more than a moment.
    fn overrun(&self, over: bool) {
        let known =
            |n: u32| if over { (n < 2 * PATIENCE).then_some(n + 1) } else { n.checked_sub(1) };
        self.overruns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, known).ok();
    }

    /// After a run for a request on another thread.
    fn settle(&self, account: &Account) {
        self.overrun(account.time >= BRIEF || account.memory >= BRIEF_MEMORY);
        self.tell(account);
    }

    /// Runs it with all of its limits. Only few such runs are under way at a time, of each script and
    /// of all together; who waits for the one does not take the room of the other.
    async fn run_long<J: Job + Send + 'static>(
        self: &Arc<Self>,
        job: J,
        tell: fn(&Self, &Account),
    ) -> Result<J::Answer, Failure> {
        let wait = (self.limits.time * 10).max(Duration::from_secs(1));
        let places = async {
            let own = Arc::clone(&self.places).acquire_owned().await.ok()?;
            let room = Arc::clone(&ROOM.places).acquire_owned().await.ok()?;
            Some((own, room))
        };
        let Ok(Some(places)) = tokio::time::timeout(wait, places).await else {
            return Err(Failure::Busy);
        };
        let script = Arc::clone(self);
        elsewhere(move || {
            let (result, account) = script.run_here(&job);
            tell(&script, &account);
            drop(places);
            result
        })
        .await?
    }

    fn tell(&self, account: &Account) {
        for line in &account.log {
            log::info!(target: "lua", "{}: {line}", self.name);
        }
    }
}

/// Runs something on a thread that serves no requests.
async fn elsewhere<T: Send + 'static>(
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(run).await;
    done.map_err(|_| Failure::Error("it ended in a panic".to_owned()))
}
