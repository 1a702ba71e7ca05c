//! Backends and how one of them is chosen: pools on pingora-load-balancing, with health shared
//! between all pools and carried over reloads.

pub mod endpoint;
pub mod health;
pub mod pool;
pub mod strategy;

pub use endpoint::{Endpoint, Lease};
pub use health::Probe;
pub use pool::{Candidate, Choice, Nobody, Pool, Wish};
