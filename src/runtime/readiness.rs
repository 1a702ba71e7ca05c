//! Whether the gateway is ready for new traffic.

use std::sync::atomic::Ordering;

use super::{carry::Carry, snapshot::Snapshot};

impl Carry {
    /// Whether the gateway is ready for new traffic with this configuration.
    ///
    /// # Errors
    /// Why not, as `/ready` answers it.
    pub fn ready(&self, snapshot: &Snapshot) -> Result<(), &'static str> {
        match () {
            () if self.draining.load(Ordering::Relaxed) => Err("draining\n"),
            () if self.usage.refuses() => Err("no room for usage records\n"),
            () if !snapshot.ready() => Err("no healthy backend\n"),
            () => Ok(()),
        }
    }
}
