//! What a running gateway is made of: an immutable snapshot of the configuration, the place where
//! it is swapped, and what lives on through a swap.

pub mod buffers;
pub mod carry;
pub mod connections;
pub mod discovery;
pub mod explain;
pub mod live;
pub mod serve;
pub mod snapshot;
pub mod tiers;
pub mod watch;

pub use carry::{Carry, Outlets, ReloadRequest};
pub use discovery::Taken;
pub use explain::Explains;
pub use live::Live;
pub use snapshot::Snapshot;
pub use tiers::Tiers;
