//! Words that every other module speaks: ids, refusals, faults, usage counts, secrets.
//!
//! Nothing here knows about HTTP servers, configuration files or Pingora.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub mod duration;
pub mod fault;
pub mod ids;
pub mod ip;
pub mod limits;
pub mod machine;
pub mod model;
pub mod period;
pub mod principal;
pub mod rejection;
pub mod secret;
pub mod terms;
pub mod text;
pub mod usage;

pub use fault::{Fault, FaultKind, Side};
pub use ids::RequestId;
pub use model::ModelPattern;
pub use period::ResetPeriod;
pub use principal::{Allowance, Principal};
pub use rejection::Rejection;
pub use secret::Secret;
pub use text::without_mark;
pub use usage::{Outcome, TokenCounts, UsageSource, Used};

/// Takes a lock. What it protects here is whole after every statement, so that a panic elsewhere
/// is no reason to stop.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
