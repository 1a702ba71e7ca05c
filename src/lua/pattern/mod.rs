//! Lua 5.4 string patterns on byte strings. Every unit of work counts against a budget that can stop
//! it: Lua's own matcher, in C, backtracks without running any hook, so that one hostile pattern on a
//! long subject could block a thread for as long as it likes.

mod budget;
mod class;
mod failure;
mod matcher;
mod plain;
mod replace;
mod search;
#[cfg(test)]
mod tests;

pub use self::{
    budget::Budget,
    failure::Failure,
    matcher::{Capture, Match},
    plain::{find_plain, is_plain},
    replace::{SubstituteError, expand, substitute},
    search::{find, next},
};
