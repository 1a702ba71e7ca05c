//! Backends and how one of them is picked: pools on pingora-load-balancing. All pools share the
//! backends' health, which survives reloads.

mod budget;
mod circuit;
mod ejection;
pub mod endpoint;
pub mod health;
pub mod load;
mod pick;
pub mod pool;
pub mod pool_continuity;
pub mod prefix;
mod random;
mod ring;
pub mod state;
pub mod strategy;
mod table;

pub use ejection::Evidence;
pub use endpoint::Endpoint;
pub use health::Probe;
pub use pick::{Candidate, NoBackend, PickRequest, PickedBackend};
pub use pool::{Pool, PoolOptions, Predecessor};
pub use state::{Lease, UnsettledFailure};
