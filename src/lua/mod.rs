//! Lua 5.4 for operators: scripts are compiled once, and run in a sandbox with limits on time and
//! memory.
//!
//! `prelude.lua` builds the environment of a script. The policy that runs a script defines its globals
//! and the meaning of its answer with a [`Job`].
//!
//! The sandbox has no `io`, `package`, `require`, `load`, `dofile`, `debug`, `coroutine`; `os` has
//! `time`, `date`, `clock` and `difftime`. Every call gets its own globals, and the libraries that they
//! refer to cannot be changed, so that a call cannot affect the next one. An instruction hook checks
//! the time. C functions, during which no hook runs, are replaced (patterns, `table`) or bounded by the
//! memory limit.

mod clock;
mod code;
mod interpreter;
mod job;
pub mod json;
mod natives;
mod pattern;
mod script;
#[cfg(test)]
mod tests;
mod zone;

pub use job::{Account, Failure, Globals, Job, Limits};
pub use mlua::{Either, Error, Lua, Result, Table, Value};
pub use natives::canonical;
pub use script::Script;
