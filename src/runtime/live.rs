//! The current snapshot.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::Snapshot;

/// Holds the snapshot that new requests get.
pub struct Live(ArcSwap<Snapshot>);

impl Live {
    /// Starts with a first snapshot.
    pub fn new(first: Snapshot) -> Self {
        Self(ArcSwap::from_pointee(first))
    }

    /// The snapshot for a request, pinned for as long as the request holds it.
    pub fn load(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }

    /// Puts the next one in its place. Requests under way keep theirs.
    pub fn swap(&self, next: Snapshot) {
        self.0.store(Arc::new(next));
    }
}
