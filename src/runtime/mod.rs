//! What a running gateway is made of: an immutable snapshot of the configuration, the place where
//! it is swapped, and what survives a swap.

pub mod buffers;
pub mod carry;
pub mod connections;
pub mod discovery;
pub mod drained;
mod endpoints;
pub mod explain;
mod handover;
pub mod live;
pub mod owners;
mod readiness;
mod script_requests;
pub mod serve;
pub mod snapshot;
pub mod tiers;
pub mod watch;

pub use carry::{Carry, Receivers, ReloadRequest};
pub use discovery::ListUpdate;
pub use live::Live;
pub use snapshot::Snapshot;
pub use tiers::Tiers;
