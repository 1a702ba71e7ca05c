//! Backends and how one of them is chosen: pools on pingora-load-balancing, with health shared
//! between all pools and carried over reloads.

mod ask;
mod budget;
mod circuit;
pub mod endpoint;
pub mod health;
pub mod heirs;
pub mod load;
pub mod pool;
pub mod prefix;
mod random;
mod ring;
pub mod state;
pub mod strategy;
mod table;
mod trouble;

pub use endpoint::Endpoint;
pub use health::Probe;
pub use pool::{Candidate, Choice, Nobody, Pool, PoolParts, Wish};
pub use state::{Lease, Suspicion};
pub use trouble::Evidence;
