//! `models`, `routing`, `fallback` and `detection`: how requests find a backend, and what happens
//! when one fails.

mod balance;
mod failure;
mod models;
mod types;

pub use self::types::*;
pub use crate::config::choices::{CacheSalt, Strategy};
