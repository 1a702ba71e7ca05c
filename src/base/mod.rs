//! Types that every other module uses: ids, rejections, faults, usage counts, secrets.
//!
//! Nothing here depends on HTTP servers, configuration files or Pingora.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub mod access_field;
pub mod allowance;
pub mod duration;
pub mod fault;
pub mod ids;
pub mod ip;
pub mod limits;
pub mod machine;
pub mod model;
pub mod number;
pub mod period;
pub mod principal;
pub mod rejection;
pub mod render;
pub mod secret;
pub mod stage;
pub mod terms;
pub mod text;
pub mod tls_version;
pub mod usage;

pub use access_field::AccessField;
pub use allowance::{Allowance, Quota};
pub use fault::{Fault, FaultKind, Side};
pub use ids::RequestId;
pub use model::ModelPattern;
pub use period::ResetPeriod;
pub use principal::Principal;
pub use rejection::{Rejection, RejectionKind};
pub use secret::Secret;
pub use stage::{Stage, Stages};
pub use text::without_mark;
pub use tls_version::TlsVersion;
pub use usage::{KeyUsage, Outcome, TokenCounts, UsageSource};

/// Takes a lock and ignores poisoning: in this program protected data is consistent after every
/// statement, so a panic elsewhere is no reason to stop.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
