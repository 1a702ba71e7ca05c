//! Lua 5.4 for operators: scripts are compiled once, and run in a sandbox with limits on time and
//! memory.
//!
//! `prelude.lua` builds the environment of a script. The policy that runs a script defines its globals
//! and the meaning of its answer with a [`Job`].
//!
//! The sandbox has no `io`, `package`, `load`, `dofile`, `debug`, `coroutine`; `os` has `time`, `date`,
//! `clock` and `difftime`; `require` loads the modules of the configuration only. Every call gets its
//! own globals, and the libraries that they refer to cannot be changed, so that a call cannot affect the
//! next one. An instruction hook checks the time. C functions, during which no hook runs, are replaced
//! (patterns, `table`, dates) or bounded by the memory limit.
//!
//! What scripts reach beyond their values is a [`Library`]: names of the environment, modules, a store,
//! requests to other servers. `words.rs` lists all words of the language.

mod call;
mod clock;
mod code;
mod date;
mod dates;
#[cfg(test)]
mod effect_tests;
mod effects;
mod header;
mod interpreter;
mod job;
mod journal;
pub mod json;
mod library;
mod memory;
mod modules;
mod natives;
mod origin;
mod outside;
mod pattern;
mod permits;
mod reads;
mod script;
mod settings;
#[cfg(test)]
mod tests;
mod texts;
#[cfg(test)]
mod word_tests;
pub mod words;
mod zone;

pub use job::{Account, Failure, Globals, HTTP_STAGES, Job, Limits, LogLine, Scope};
pub use library::Library;
pub use memory::ScriptStore;
pub use mlua::{Either, Error, Lua, Result, Table, Value};
pub use modules::{LoadedModules, Modules};
pub use origin::Origin;
pub use outside::HttpObserver;
pub use reads::GLOBALS;
pub use script::{Script, ScriptStats};
pub use settings::{HttpSettings, StoreSettings};
