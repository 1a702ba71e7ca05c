//! Lua 5.4 for operators: scripts compiled once, run in a sandbox with limits of time and memory.
//!
//! What a script finds around it is built by `prelude.lua`; what a script means (which globals it
//! is given, what its answer says) is the business of the policies that run it, by a [`Job`].
//!
//! The sandbox, in short: no `io`, `package`, `require`, `load`, `dofile`, `debug`, `coroutine`;
//! `os` has `time`, `date`, `clock` and `difftime`. Every call gets globals of its own, and what
//! they lead to cannot be changed, so that nothing is left behind for the next call. An instruction
//! hook watches the clock; what runs in C, where no hook runs, is replaced (patterns, `table`) or
//! bounded by the memory limit.

mod interpreter;
pub mod json;
mod natives;
mod pattern;
mod script;
mod zone;

pub use mlua::{Error, Lua, Result, Table, Value};
pub use natives::canonical;
pub use script::{Account, Failure, Globals, Job, Limits, Script};
