//! Words that every other module speaks: ids, refusals, faults, usage counts, secrets.
//!
//! Nothing here knows about HTTP servers, configuration files or Pingora.

pub mod duration;
pub mod fault;
pub mod ids;
pub mod rejection;
pub mod secret;
pub mod usage;

pub use fault::{Fault, FaultKind, Side};
pub use ids::RequestId;
pub use rejection::Rejection;
pub use secret::Secret;
pub use usage::{Outcome, TokenCounts, UsageSource};
