//! The current snapshot.

use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;

use super::{Carry, Snapshot, discovery};
use crate::base::lock;

/// Holds the snapshot that new requests get.
pub struct Live {
    current: ArcSwap<Snapshot>,
    /// One is built at a time, from the one that it takes the place of.
    building: Mutex<()>,
}

impl Live {
    /// Starts with a first snapshot.
    pub fn new(first: Snapshot) -> Self {
        first.endpoints.iter().for_each(|endpoint| endpoint.enter());
        Self { current: ArcSwap::from_pointee(first), building: Mutex::default() }
    }

    /// The snapshot for a request, pinned for as long as the request holds it.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Does something that must be over before another snapshot takes this one's place.
    pub fn steady<T>(&self, work: impl FnOnce(&Snapshot) -> T) -> T {
        let _building = lock(&self.building);
        work(&self.load())
    }

    /// Builds the next snapshot from the current one and puts it in its place, if there is a next
    /// one. Requests under way keep theirs.
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
        discovery::took_over(&old, &next, carry);
        Some(next)
    }
}
