//! The current snapshot.

use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;

use super::{carry::Carry, handover, snapshot::Snapshot};
use crate::base::lock;

/// Holds the snapshot that new requests get.
pub struct Live {
    current: ArcSwap<Snapshot>,
    /// Snapshots are built one at a time, each from the one that it replaces.
    building: Mutex<()>,
}

impl Live {
    pub fn new(first: Snapshot) -> Self {
        first.endpoints.iter().for_each(|endpoint| endpoint.activate());
        Self { current: ArcSwap::from_pointee(first), building: Mutex::default() }
    }

    /// The snapshot for a request, pinned for as long as the request holds it.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Runs `work` with the current snapshot, which is not replaced before `work` returns.
    pub fn while_current<T>(&self, work: impl FnOnce(&Snapshot) -> T) -> T {
        let _building = lock(&self.building);
        work(&self.load())
    }

    /// Builds the next snapshot from the current one and replaces the current one with it. Requests in
    /// flight keep theirs. `None`: there is no next one.
    pub fn replace(
        &self,
        carry: &Carry,
        next: impl FnOnce(&Snapshot) -> Option<Snapshot>,
    ) -> Option<Arc<Snapshot>> {
        let _building = lock(&self.building);
        let old = self.load();
        let next = Arc::new(next(&old)?);
        carry.probe.set(next.plan.health_check.clone(), &next.endpoints);
        self.current.store(Arc::clone(&next));
        handover::finish(&old, &next, carry);
        Some(next)
    }
}
