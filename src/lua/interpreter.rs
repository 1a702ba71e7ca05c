//! Interpreters: one per thread, reused, and discarded after a failure.

use std::{
    cell::RefCell,
    collections::HashMap,
    time::{Duration, Instant},
};

use mlua::{
    Error, Function, Lua, LuaOptions, StdLib, Table, Value,
    chunk::ChunkMode,
    state::{GcIncParams, GcMode},
};

use super::{
    call::{Call, Place},
    clock::Clock,
    code::Code,
    job::{Account, Failure, Globals, Job, Limits},
    journal::Journal,
    json, natives,
    reads::message,
};

/// Scripts that an interpreter keeps loaded. A script gets a new id with each reload; after this many
/// the interpreter is replaced.
const LOADED: usize = 64;

/// Bytes of new values after which garbage is collected a little, as a power of two.
const GC_STEP: i32 = 9;

struct Interpreter {
    lua: Lua,
    clock: Clock,
    call: Call,
    log: natives::Log,
    words: Words,
    /// For scripts that set no globals.
    shared: SharedGlobals,
    loaded: HashMap<u64, Function>,
    /// The script that ran last, which is usually the only one.
    last: Option<(u64, Function)>,
    /// Bytes in use before the first call.
    at_rest: usize,
}

/// What the prelude makes for the calls.
struct Words {
    /// Metatable of a call's own globals.
    meta: Table,
    /// Metatable of header tables.
    headers: Table,
    /// Metatables of tables that can be called as functions, by the name of the function.
    callables: Table,
    /// The word `http`, for the scripts that may use it.
    http: Table,
}

/// Globals for call after call of scripts that set none: cheaper than a table for every call. Empty
/// between calls.
struct SharedGlobals {
    /// What the job sets.
    inputs: Table,
    /// What the script sees: itself empty, it shows the inputs and behind them the library.
    view: Table,
    /// Metatable of `view`.
    meta: Table,
}

thread_local! {
    static HERE: RefCell<Option<Box<Interpreter>>> = const { RefCell::new(None) };
}

/// The result of a run.
pub struct Run<T> {
    pub result: Result<T, Failure>,
    pub account: Account,
    /// What it has done, if it did not end on a serving thread.
    pub journal: Journal,
}

/// Runs a script on this thread.
pub fn run<J: Job>(code: &Code, job: &J, limits: Limits, place: Place) -> Run<J::Answer> {
    let began = Instant::now();
    let mut account = Account::default();
    let mut journal = Journal::default();
    let kept = HERE.with_borrow_mut(Option::take).filter(|i| i.loaded.len() < LOADED);
    let made = kept.map_or_else(|| Interpreter::new().map(Box::new), Ok);
    let result = made.map_err(|e| Failure::Error(message(&e))).and_then(|mut interpreter| {
        interpreter.call.begin(place, code.library.as_ref(), code.http);
        let result = interpreter.call(code, job, limits, &mut account);
        interpreter.call.end();
        // After such a failure the state of its values is unknown.
        if matches!(result, Err(Failure::Time(_) | Failure::Memory(_) | Failure::Busy)) {
            journal = interpreter.call.take_journal();
        } else {
            HERE.with_borrow_mut(|here| *here = Some(interpreter));
        }
        result
    });
    account.time = began.elapsed();
    Run { result, account, journal }
}

impl Interpreter {
    fn new() -> mlua::Result<Self> {
        let libraries = StdLib::TABLE | StdLib::STRING | StdLib::MATH | StdLib::OS;
        let lua = Lua::new_with(libraries, LuaOptions::default())?;
        // Small steps: one must not use up the time of the call in which it happens to be due.
        lua.gc_set_mode(GcMode::Incremental(GcIncParams::default().step_size(GC_STEP)));
        let clock = Clock::new();
        let call = Call::new(clock.clone());
        let log = natives::Log::default();
        json::prepare(&lua)?;
        let native = natives::table(&lua, &call, &log)?;
        let prelude = lua.load(include_str!("prelude.lua")).set_name("=prelude");
        let made = prelude.call::<Table>(native)?;
        let made = |name: &str| made.raw_get::<Table>(name);
        let words = Words {
            meta: made("meta")?,
            headers: made("headers")?,
            callables: made("callables")?,
            http: made("http")?,
        };
        let (inputs, meta) = (made("inputs")?, made("only_read")?);
        let shared = SharedGlobals { inputs, view: lua.create_table()?, meta };
        shared.view.set_metatable(Some(shared.meta.clone()))?;
        clock.watch(&lua)?;
        let at_rest = lua.used_memory();
        let loaded = HashMap::new();
        Ok(Self { lua, clock, call, log, words, shared, loaded, last: None, at_rest })
    }

    fn call<J: Job>(
        &mut self,
        code: &Code,
        job: &J,
        limits: Limits,
        account: &mut Account,
    ) -> Result<J::Answer, Failure> {
        let failure = |e: Error| classified(&e, limits);
        let function = self.function(code).map_err(failure)?;
        let before = self.lua.used_memory();
        let result = if code.has_own_globals() {
            let globals = self.own_globals().map_err(failure)?;
            self.execute(&function, code, job, limits, (&globals, &globals))
        } else {
            let shared = (&self.shared.inputs, &self.shared.view);
            let result = self.execute(&function, code, job, limits, shared);
            self.shared.reset(&self.lua, code).map_err(failure)?;
            result
        };
        let answer = result.and_then(|value| job.answer(value).map_err(Failure::Answer));
        account.memory = self.lua.used_memory().saturating_sub(before);
        account.log = self.log.take();
        answer
    }

    /// Sets the globals of a call and runs it. `inputs` is the table that the job fills, `globals` the
    /// one that the script gets.
    fn execute<J: Job>(
        &self,
        function: &Function,
        code: &Code,
        job: &J,
        limits: Limits,
        (inputs, globals): (&Table, &Table),
    ) -> Result<Value, Failure> {
        let failure = |e: Error| classified(&e, limits);
        // The limit is set only while the script runs. Without one mlua does not have to guard every
        // value that is passed in or out, which costs more than the values themselves.
        let (headers, callables) = (&self.words.headers, &self.words.callables);
        let to_set = Globals { lua: &self.lua, table: inputs, headers, callables, code };
        job.globals(&to_set).map_err(failure)?;
        if code.http {
            inputs.raw_set("http", &self.words.http).map_err(failure)?;
        }
        let limit = |bytes| self.lua.set_memory_limit(bytes).map(drop);
        limit(self.at_rest + limits.memory).map_err(failure)?;
        self.clock.start(limits, self.at_rest);
        let result = function.call::<Value>(globals);
        limit(0).map_err(failure)?;
        // Also if the script has caught the error that should have ended it.
        if self.call.is_busy() {
            return Err(Failure::Busy);
        }
        let over = self.clock.over();
        if self.clock.watches_closely() {
            let watched = self.clock.watch(&self.lua);
            watched.map_err(|e| if over { Failure::Time(limits.time) } else { failure(e) })?;
        }
        if over { Err(Failure::Time(limits.time)) } else { result.map_err(failure) }
    }

    /// Globals for a single call.
    fn own_globals(&self) -> mlua::Result<Table> {
        let table = self.lua.create_table_with_capacity(0, 5)?;
        table.set_metatable(Some(self.words.meta.clone()))?;
        Ok(table)
    }

    fn function(&mut self, code: &Code) -> mlua::Result<Function> {
        if let Some((id, last)) = &self.last
            && *id == code.id
        {
            return Ok(last.clone());
        }
        if let Some(known) = self.loaded.get(&code.id) {
            self.last = Some((code.id, known.clone()));
            return Ok(known.clone());
        }
        let once = Limits { time: Duration::from_secs(1), ..Limits::default() };
        self.clock.start(once, self.at_rest);
        let chunk = self.lua.load(&code.bytecode).set_mode(ChunkMode::Binary);
        let function = chunk.call::<Function>(())?;
        self.loaded.insert(code.id, function.clone());
        self.lua.gc_collect()?;
        self.at_rest = self.lua.used_memory();
        Ok(function)
    }
}

impl SharedGlobals {
    /// Removes what a call has left. A table that the script has filled is replaced.
    fn reset(&mut self, lua: &Lua, code: &Code) -> mlua::Result<()> {
        self.inputs.clear()?;
        if !self.view.is_empty() {
            code.sets_globals();
            self.view = lua.create_table()?;
            self.view.set_metatable(Some(self.meta.clone()))?;
        }
        Ok(())
    }
}

/// Why a call failed, if not for its time.
fn classified(error: &Error, limits: Limits) -> Failure {
    match is_memory(error) {
        true => Failure::Memory(limits.memory),
        false => Failure::Error(message(error)),
    }
}

fn is_memory(error: &Error) -> bool {
    match error {
        Error::MemoryError(_) => true,
        Error::CallbackError { cause, .. } => is_memory(cause),
        _ => false,
    }
}

/// The names of all words of an interpreter.
#[cfg(test)]
pub fn all_words() -> Vec<String> {
    fn add(prefix: &str, table: &Table, words: &mut Vec<String>) {
        for pair in table.pairs::<String, Value>() {
            let (name, value) = pair.unwrap();
            let name = format!("{prefix}{name}");
            let library = value.as_table().and_then(Table::metatable);
            let inside = library.and_then(|meta| meta.raw_get::<Value>("__index").ok());
            match inside {
                Some(Value::Table(inside)) => {
                    if name == "log" {
                        words.push(name.clone());
                    }
                    add(&format!("{name}."), &inside, words);
                }
                _ => words.push(name),
            }
        }
    }
    let interpreter = Interpreter::new().unwrap();
    let mut words = Vec::new();
    let base = interpreter.words.meta.raw_get::<Table>("__index").unwrap();
    base.raw_set("http", &interpreter.words.http).unwrap();
    add("", &base, &mut words);
    words.sort();
    words
}
