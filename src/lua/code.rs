//! Compiling scripts.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mlua::{Error, Lua, LuaOptions, StdLib, chunk::ChunkMode};

use crate::base::without_mark;

/// Longest error message in characters.
const LONGEST_ERROR: usize = 500;

/// Names of globals that are created only for scripts that mention them.
const OPTIONAL: [&str; 5] = ["api_key", "data", "key", "request", "metadata"];

/// A compiled script.
pub struct Code {
    /// Unique in the process.
    pub id: u64,
    pub name: String,
    /// Bytecode of a function that returns the script as a function of its globals.
    pub bytecode: Vec<u8>,
    /// The optional globals that the text mentions.
    pub mentions: Vec<&'static str>,
    /// Whether a call can reach the table of its globals, or has set one: then every call gets a new
    /// table.
    own_globals: AtomicBool,
}

impl Code {
    /// Compiles a text. `name` is used in messages.
    ///
    /// # Errors
    /// The compiler's message, with the line.
    pub fn compile(name: &str, text: &str) -> Result<Self, String> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let text = without_mark(text);
        let bytecode = bytecode(name, text)?;
        // With `_ENV` a script can reach a global without its name.
        let dynamic = text.contains("_ENV");
        let mentions = OPTIONAL.into_iter().filter(|name| dynamic || text.contains(name)).collect();
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let own_globals = AtomicBool::new(dynamic);
        Ok(Self { id, name: name.to_owned(), bytecode, mentions, own_globals })
    }

    pub fn has_own_globals(&self) -> bool {
        self.own_globals.load(Ordering::Relaxed)
    }

    /// A call has set a global: others will too.
    pub fn sets_globals(&self) {
        self.own_globals.store(true, Ordering::Relaxed);
    }
}

/// Compiles a text to a function that returns the script as a function of its globals: `_ENV` is an
/// argument, so that every call has its own.
fn bytecode(name: &str, text: &str) -> Result<Vec<u8>, String> {
    let lua = Lua::new_with(StdLib::NONE, LuaOptions::default()).map_err(|e| message(&e))?;
    let load = |text: String| {
        lua.load(text).set_name(format!("={name}")).set_mode(ChunkMode::Text).into_function()
    };
    // First on its own: a text that is a valid chunk cannot close the function around it.
    load(text.to_owned()).map_err(|e| message(&e))?;
    let whole = load(format!("return function(_ENV, ...) {text}\nend")).map_err(|e| message(&e))?;
    Ok(whole.dump(false))
}

/// The message of an error without its traceback, on one line.
pub fn message(error: &Error) -> String {
    let text = match error {
        Error::CallbackError { cause, .. } => return message(cause),
        Error::RuntimeError(text) | Error::MemoryError(text) => text.clone(),
        Error::SyntaxError { message, .. } => message.clone(),
        other => other.to_string(),
    };
    let text = text.split("\nstack traceback:").next().unwrap_or_default();
    text.chars().take(LONGEST_ERROR).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
