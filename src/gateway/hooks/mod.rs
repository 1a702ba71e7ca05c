//! The operator's scripts at their stages: what each sees, and what becomes of what it returns. And the
//! guards and prompts, which stand at the same places.
//!
//! A stage is a file. `state` is what scripts leave in the request, `words` what all of them see of it,
//! `run` the loop over the scripts of a stage.

pub mod answer;
mod apply;
pub mod auth;
pub mod begin;
pub mod complete;
mod delivered;
mod described;
pub mod error;
mod events;
pub mod guards;
pub mod limits;
pub mod request;
pub mod route;
mod run;
pub mod state;
mod trace;
pub mod upstream;
pub mod usage;
mod words;
