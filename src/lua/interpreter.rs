//! Interpreters: one per thread, reused, and discarded after a failure.

use std::{
    cell::RefCell,
    collections::HashMap,
    time::{Duration, Instant},
};

use mlua::{Error, Function, Lua, LuaOptions, StdLib, Table, Value, chunk::ChunkMode};

use super::{
    clock::Clock,
    code::{Code, message},
    job::{Account, Failure, Globals, Job, Limits},
    json, natives,
};

/// Scripts that an interpreter keeps loaded. A script gets a new id with each reload; after this many
/// the interpreter is replaced.
const LOADED: usize = 64;

struct Interpreter {
    lua: Lua,
    clock: Clock,
    log: natives::Log,
    /// Metatable of a call's globals.
    meta: Table,
    /// Metatable of header tables.
    headers: Table,
    loaded: HashMap<u64, Function>,
    /// The script that ran last, which is usually the only one.
    last: Option<(u64, Function)>,
    /// Bytes in use before the first call.
    at_rest: usize,
}

thread_local! {
    static HERE: RefCell<Option<Interpreter>> = const { RefCell::new(None) };
}

/// Runs a script on this thread.
pub fn run<J: Job>(code: &Code, job: &J, limits: Limits) -> (Result<J::Answer, Failure>, Account) {
    let began = Instant::now();
    let mut account = Account::default();
    let kept = HERE.with_borrow_mut(Option::take).filter(|i| i.loaded.len() < LOADED);
    let made = kept.map_or_else(Interpreter::new, Ok);
    let result = made.map_err(|e| Failure::Error(message(&e))).and_then(|mut interpreter| {
        let result = interpreter.call(code, job, limits, &mut account);
        // After such a failure the state of its values is unknown.
        if !matches!(result, Err(Failure::Time(_) | Failure::Memory(_))) {
            HERE.with_borrow_mut(|here| *here = Some(interpreter));
        }
        result
    });
    account.time = began.elapsed();
    (result, account)
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
        clock.watch(&lua)?;
        let at_rest = lua.used_memory();
        Ok(Self { lua, clock, log, meta, headers, loaded: HashMap::new(), last: None, at_rest })
    }

    fn call<J: Job>(
        &mut self,
        code: &Code,
        job: &J,
        limits: Limits,
        account: &mut Account,
    ) -> Result<J::Answer, Failure> {
        let failure = |e: Error, over: bool| match e {
            _ if over => Failure::Time(limits.time),
            e if is_memory(&e) => Failure::Memory(limits.memory),
            e => Failure::Error(message(&e)),
        };
        let function = self.function(code).map_err(|e| failure(e, false))?;
        let before = self.lua.used_memory();
        // The limit is set only while the script runs. Without one mlua does not have to guard every
        // value that is passed in or out, which costs more than the values themselves.
        let env = self.globals(code, job).map_err(|e| failure(e, false))?;
        let limit = |bytes| self.lua.set_memory_limit(bytes).map(drop);
        limit(self.at_rest + limits.memory).map_err(|e| failure(e, false))?;
        self.clock.start(limits, self.at_rest);
        let result = function.call::<Value>(env);
        limit(0).map_err(|e| failure(e, false))?;
        // Also if the script has caught the error that should have ended it.
        let over = self.clock.over();
        if self.clock.watches_closely() {
            self.clock.watch(&self.lua).map_err(|e| failure(e, over))?;
        }
        let result = match result {
            Ok(_) if over => Err(Failure::Time(limits.time)),
            Ok(value) => job.answer(value).map_err(Failure::Answer),
            Err(e) => Err(failure(e, over)),
        };
        account.memory = self.lua.used_memory().saturating_sub(before);
        account.log = self.log.take();
        result
    }

    fn globals<J: Job>(&self, code: &Code, job: &J) -> mlua::Result<Table> {
        let table = self.lua.create_table_with_capacity(0, 5)?;
        let globals = Globals { lua: &self.lua, table: &table, headers: &self.headers, code };
        job.globals(&globals)?;
        table.set_metatable(Some(self.meta.clone()))?;
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

fn is_memory(error: &Error) -> bool {
    match error {
        Error::MemoryError(_) => true,
        Error::CallbackError { cause, .. } => is_memory(cause),
        _ => false,
    }
}
