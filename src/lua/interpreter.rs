//! Interpreters: one for each thread, used again and again, thrown away after a failure.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    time::{Duration, Instant},
};

use mlua::{
    Error, Function, HookTriggers, Lua, LuaOptions, StdLib, Table, Value, VmState, chunk::ChunkMode,
};

use super::{
    json, natives,
    script::{Account, Failure, Globals, Job, Limits, Script},
};

/// Instructions between two looks at the clock.
const LOOK: u32 = 40;

/// From so many bytes on the clock is looked at before every instruction: a single one may then
/// compare or copy megabytes.
const LARGE: usize = 256 << 10;

/// Scripts that an interpreter keeps loaded; after so many reloads it starts over.
const LOADED: usize = 64;

/// Characters of an error that are told.
const LONGEST_ERROR: usize = 500;

/// Time, and what is left of it. Shared by the hook and by natives that work for long.
#[derive(Clone)]
pub struct Clock(Rc<Times>);

struct Times {
    end: Cell<Instant>,
    over: Cell<bool>,
    /// Bytes in use from which on the script is watched closely.
    large: Cell<usize>,
    /// Bytes in use from which on the script counts as one that takes too long.
    most: Cell<usize>,
    /// Bytes in use that the script may not have.
    limit: Cell<usize>,
}

impl Clock {
    fn new() -> Self {
        Self(Rc::new(Times {
            end: Cell::new(Instant::now()),
            over: Cell::new(false),
            large: Cell::new(usize::MAX),
            most: Cell::new(usize::MAX),
            limit: Cell::new(usize::MAX),
        }))
    }

    fn start(&self, limits: Limits, at_rest: usize) {
        self.0.end.set(Instant::now() + limits.time);
        self.0.over.set(false);
        self.0.large.set(at_rest + LARGE);
        self.0.most.set(limits.brief_memory.map_or(usize::MAX, |most| at_rest + most));
        self.0.limit.set(at_rest + limits.memory);
    }

    /// Looks at time and memory, before so many bytes more are made in one go.
    ///
    /// # Errors
    /// If the script must end, or may not have that much.
    pub fn reserve(&self, lua: &Lua, bytes: usize) -> mlua::Result<()> {
        let used = lua.used_memory();
        if self.over() || used.saturating_add(bytes) > self.0.most.get() {
            return Err(self.end(lua));
        }
        if used.saturating_add(bytes) > self.0.limit.get() {
            return Err(Error::MemoryError("not enough memory".to_owned()));
        }
        Ok(())
    }

    /// Looks at time and memory.
    ///
    /// # Errors
    /// If the script must end.
    pub fn look(&self, lua: &Lua) -> mlua::Result<()> {
        let used = lua.used_memory();
        if self.over() || used > self.0.most.get() {
            return Err(self.end(lua));
        }
        if used > self.0.large.get() {
            self.0.large.set(usize::MAX);
            watch(lua, self, 1)?;
        }
        Ok(())
    }

    /// Whether the time is over.
    pub fn over(&self) -> bool {
        if !self.0.over.get() && Instant::now() >= self.0.end.get() {
            self.0.over.set(true);
        }
        self.0.over.get()
    }

    /// Ends the script: this error, and from now on one at every instruction, so that no `pcall`
    /// can go on after it.
    pub fn end(&self, lua: &Lua) -> Error {
        self.0.over.set(true);
        watch(lua, self, 1).err().unwrap_or_else(|| Error::runtime("out of time"))
    }
}

/// Watches the clock every so many instructions.
fn watch(lua: &Lua, clock: &Clock, every: u32) -> mlua::Result<()> {
    let clock = clock.clone();
    let triggers = HookTriggers::new().every_nth_instruction(every);
    lua.set_global_hook(triggers, move |lua, _| {
        if every == 1 && clock.over() {
            return Err(Error::runtime("out of time"));
        }
        clock.look(lua).map(|()| VmState::Continue)
    })
}

struct Interpreter {
    lua: Lua,
    clock: Clock,
    log: natives::Log,
    /// Metatable of a call's globals.
    meta: Table,
    /// Metatable of a table of headers.
    headers: Table,
    loaded: HashMap<u64, Function>,
    /// The one that ran last, most often the only one.
    last: Option<(u64, Function)>,
    /// Bytes in use before the first call.
    at_rest: usize,
}

thread_local! {
    static HERE: RefCell<Option<Interpreter>> = const { RefCell::new(None) };
}

/// Runs a script on this thread.
pub fn run<J: Job>(
    script: &Script,
    job: &J,
    limits: Limits,
) -> (Result<J::Answer, Failure>, Account) {
    let began = Instant::now();
    let mut account = Account::default();
    let kept = HERE.with_borrow_mut(Option::take).filter(|i| i.loaded.len() < LOADED);
    let made = kept.map_or_else(Interpreter::new, Ok);
    let result = made.map_err(|e| Failure::Error(plain(&e))).and_then(|mut interpreter| {
        let result = interpreter.call(script, job, limits, &mut account);
        // After a failure nobody knows what is left of its values.
        if !matches!(result, Err(Failure::Time(_) | Failure::Memory(_))) {
            HERE.with_borrow_mut(|here| *here = Some(interpreter));
        }
        result
    });
    account.time = began.elapsed();
    (result, account)
}

/// Compiles a text to the bytecode of a function that returns the script as a function of its
/// globals: `_ENV` is an argument, so that every call can have its own.
pub fn compile(name: &str, text: &str) -> Result<Vec<u8>, String> {
    let lua = Lua::new_with(StdLib::NONE, LuaOptions::default()).map_err(|e| plain(&e))?;
    let load = |text: String| {
        lua.load(text).set_name(format!("={name}")).set_mode(ChunkMode::Text).into_function()
    };
    // On its own first: what is a chunk by itself cannot close the function around it.
    load(text.to_owned()).map_err(|e| plain(&e))?;
    let whole = load(format!("return function(_ENV, ...) {text}\nend")).map_err(|e| plain(&e))?;
    Ok(whole.dump(false))
}

impl Interpreter {
    fn new() -> mlua::Result<Self> {
        let libraries = StdLib::TABLE | StdLib::STRING | StdLib::MATH | StdLib::OS;
        let lua = Lua::new_with(libraries, LuaOptions::default())?;
        let clock = Clock::new();
        let log = natives::Log::default();
        json::prepare(&lua)?;
        let native = natives::table(&lua, &clock, &log)?;
        let prelude = lua.load(include_str!("prelude.lua")).set_name("=prelude");
        let (meta, headers) = prelude.call::<(Table, Table)>(native)?;
        watch(&lua, &clock, LOOK)?;
        let at_rest = lua.used_memory();
        Ok(Self { lua, clock, log, meta, headers, loaded: HashMap::new(), last: None, at_rest })
    }

    fn call<J: Job>(
        &mut self,
        script: &Script,
        job: &J,
        limits: Limits,
        account: &mut Account,
    ) -> Result<J::Answer, Failure> {
        let told = |e: Error, over: bool| match e {
            _ if over => Failure::Time(limits.time),
            e if is_memory(&e) => Failure::Memory(limits.memory),
            e => Failure::Error(plain(&e)),
        };
        let function = self.function(script).map_err(|e| told(e, false))?;
        let before = self.lua.used_memory();
        // The limit is for what the script does. Without one mlua need not guard every value that
        // is handed in or out, which costs more than the values themselves.
        let env = self.globals(script, job).map_err(|e| told(e, false))?;
        let limit = |bytes| self.lua.set_memory_limit(bytes).map(drop);
        limit(self.at_rest + limits.memory).map_err(|e| told(e, false))?;
        self.clock.start(limits, self.at_rest);
        let result = function.call::<Value>(env);
        limit(0).map_err(|e| told(e, false))?;
        // Also where it has caught the error that should have ended it.
        let over = self.clock.over();
        if self.clock.0.large.get() == usize::MAX {
            watch(&self.lua, &self.clock, LOOK).map_err(|e| told(e, over))?;
        }
        let result = match result {
            Ok(_) if over => Err(Failure::Time(limits.time)),
            Ok(value) => job.answer(value).map_err(Failure::Answer),
            Err(e) => Err(told(e, over)),
        };
        account.memory = self.lua.used_memory().saturating_sub(before);
        account.log = self.log.take();
        result
    }

    fn globals<J: Job>(&self, script: &Script, job: &J) -> mlua::Result<Table> {
        let table = self.lua.create_table_with_capacity(0, 5)?;
        let globals = Globals { lua: &self.lua, table: &table, headers: &self.headers, script };
        job.globals(&globals)?;
        table.set_metatable(Some(self.meta.clone()))?;
        Ok(table)
    }

    fn function(&mut self, script: &Script) -> mlua::Result<Function> {
        if let Some((id, last)) = &self.last
            && *id == script.id()
        {
            return Ok(last.clone());
        }
        if let Some(known) = self.loaded.get(&script.id()) {
            self.last = Some((script.id(), known.clone()));
            return Ok(known.clone());
        }
        let once = Limits { time: Duration::from_secs(1), ..Limits::default() };
        self.clock.start(once, self.at_rest);
        let chunk = self.lua.load(script.code()).set_mode(ChunkMode::Binary);
        let function = chunk.call::<Function>(())?;
        self.loaded.insert(script.id(), function.clone());
        self.lua.gc_collect()?;
        self.at_rest = self.lua.used_memory();
        Ok(function)
    }
}

fn is_memory(error: &Error) -> bool {
    match error {
        Error::MemoryError(_) => true,
        Error::CallbackError { cause, .. } => is_memory(cause),
        _ => false,
    }
}

/// The error without a traceback, on one line.
fn plain(error: &Error) -> String {
    let text = match error {
        Error::CallbackError { cause, .. } => return plain(cause),
        Error::RuntimeError(text) | Error::MemoryError(text) => text.clone(),
        Error::SyntaxError { message, .. } => message.clone(),
        other => other.to_string(),
    };
    let text = text.split("\nstack traceback:").next().unwrap_or_default();
    text.chars().take(LONGEST_ERROR).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
