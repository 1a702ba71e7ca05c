//! One call of a script: its limits, its globals, its answer.

use std::{fmt, time::Duration};

use http::HeaderMap;
use mlua::{Lua, Table, Value};

use super::{code::Code, header::canonical};

/// The limits of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Wall time.
    pub time: Duration,
    /// Bytes for its values, in addition to the interpreter's own.
    pub memory: usize,
    /// Bytes beyond which the call is treated as one that takes too long.
    pub(super) brief_memory: Option<usize>,
}

impl Limits {
    pub fn new(time: Duration, memory: usize) -> Self {
        Self { time, memory, brief_memory: None }
    }

    /// The limits on a thread that serves requests. A call that needs more is started again on another
    /// thread: its effects are recorded, so nothing is done twice (see `journal.rs`). The script does not
    /// notice, because there is no error that it could catch.
    pub(super) fn brief(self) -> Self {
        Self { time: BRIEF.min(self.time), brief_memory: Some(BRIEF_MEMORY), ..self }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::new(Duration::from_millis(100), 10 << 20)
    }
}

/// See [`Limits::brief`].
pub(super) const BRIEF: Duration = Duration::from_millis(1);
pub(super) const BRIEF_MEMORY: usize = 1 << 20;

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It ran for longer than this.
    Time(Duration),
    /// It needed more than this many bytes.
    Memory(usize),
    /// It raised an error.
    Error(String),
    /// The job rejected its answer.
    Answer(String),
    /// Too many slow calls are running.
    Busy,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(limit) => write!(f, "it ran for longer than {limit:?}"),
            Self::Memory(limit) => write!(f, "it needed more than {limit} bytes of memory"),
            Self::Error(why) => f.write_str(why),
            Self::Answer(why) => write!(f, "its answer cannot be used: {why}"),
            Self::Busy => f.write_str("too many slow calls of it are running"),
        }
    }
}

/// The input of a call and the type of its answer.
pub trait Job {
    type Answer: Send + 'static;
    /// The same job for another thread.
    type Owned: Job<Answer = Self::Answer> + Send + 'static;

    /// Sets the globals of the call.
    ///
    /// # Errors
    /// If the interpreter has no memory for them.
    fn globals(&self, globals: &Globals<'_>) -> mlua::Result<()>;

    /// Reads the value that the script returned.
    ///
    /// # Errors
    /// Why it is not a valid answer.
    fn answer(&self, returned: Value) -> Result<Self::Answer, String>;

    /// A copy that borrows nothing.
    fn own(&self) -> Self::Owned;
}

/// Where a script is used: which words it has, and how it is called in messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The name of the stage.
    pub stage: &'static str,
    /// Whether the script may send requests to other servers.
    pub http: bool,
}

/// The stages whose scripts may use `http`: they decide before a backend is asked.
pub const HTTP_STAGES: [&str; 4] = ["on_request", "on_auth", "rate_limit", "on_route"];

impl Scope {
    /// The decision about a key.
    pub const AUTH: Self = Self { stage: "auth", http: true };

    /// The scope of a stage, by its name.
    pub fn of_stage(stage: &'static str) -> Self {
        Self { stage, http: HTTP_STAGES.contains(&stage) }
    }
}

/// The globals of a call, while a job sets them.
pub struct Globals<'a> {
    pub lua: &'a Lua,
    pub table: &'a Table,
    /// The metatable for header tables, which makes their names not case-sensitive.
    pub headers: &'a Table,
    pub(super) callables: &'a Table,
    pub(super) code: &'a Code,
}

impl Globals<'_> {
    /// Header fields as scripts see them. Of several fields with the same name the first is used.
    ///
    /// # Errors
    /// If the script's memory is used up.
    pub fn header_table(&self, fields: &HeaderMap) -> mlua::Result<Table> {
        let table = self.lua.create_table_with_capacity(0, fields.keys_len())?;
        for name in fields.keys() {
            if let Some(value) = fields.get(name) {
                let name = self.lua.create_string(canonical(name.as_str().as_bytes()))?;
                table.raw_set(name, self.lua.create_string(value.as_bytes())?)?;
            }
        }
        table.set_metatable(Some(self.headers.clone()))?;
        Ok(table)
    }

    /// Whether the script can use this global. If not, it need not be set.
    pub fn wants(&self, name: &str) -> bool {
        self.code.reads.wants(name)
    }

    /// Whether the script can use this field of a global. If not, it need not be set.
    pub fn wants_field(&self, global: &str, field: &str) -> bool {
        self.code.reads.wants_field(global, field)
    }

    /// Makes a table callable as the function of this name: `error`, or `log`. For a global that has
    /// the name of a function.
    ///
    /// # Errors
    /// If the interpreter has no memory for it.
    pub fn callable(&self, table: &Table, word: &str) -> mlua::Result<()> {
        table.set_metatable(self.callables.raw_get::<Option<Table>>(word)?)
    }
}

/// A line that a script logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    pub level: log::Level,
    pub text: String,
}

impl fmt::Display for LogLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The resources that a call used, and its log.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// Wall time, including what the call waited for.
    pub time: Duration,
    /// Bytes of its values, including those not yet collected.
    pub memory: usize,
    /// Lines that it logged.
    pub log: Vec<LogLine>,
}

impl Account {
    /// Whether a thread that serves requests may do such a call itself.
    pub fn is_brief(&self) -> bool {
        self.time < BRIEF && self.memory < BRIEF_MEMORY
    }
}
