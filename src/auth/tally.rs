//! Usage that is not yet counted in the stores of the keys. For each key one count at a time is under
//! way; usage that is added meanwhile is summed up and counted after it.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex},
};

use serde_json::{Map, Value};
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};

use super::credential::KeyDigest;
use crate::base::{KeyUsage, lock};

/// Concurrent counts in one store.
const COUNTS: usize = 64;

/// Learns the result of a count.
pub trait CountObserver: Send + Sync {
    /// The store has counted usage of a key. `fields` are the key's current data.
    fn counted(&self, digest: &KeyDigest, fields: &Map<String, Value>);
}

/// Usage that is not yet counted in one store.
pub struct Tally {
    sums: Mutex<HashMap<KeyDigest, Sum>>,
    permits: Semaphore,
}

impl Default for Tally {
    fn default() -> Self {
        Self { sums: Mutex::default(), permits: Semaphore::new(COUNTS) }
    }
}

/// Usage of one key that is not yet counted.
#[derive(Default)]
struct Sum {
    pending: Pending,
    observers: Vec<Arc<dyn CountObserver>>,
}

/// Usage that is not yet counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pending {
    /// Not sent yet.
    pub waiting: KeyUsage,
    /// Sent to the store, without an answer so far.
    pub sent: KeyUsage,
}

impl Tally {
    /// Adds usage of a key. `true` if nothing was pending: the caller must start a count.
    pub fn add<O: CountObserver + 'static>(
        &self,
        digest: &KeyDigest,
        usage: KeyUsage,
        observer: &Arc<O>,
    ) -> bool {
        let mut sums = lock(&self.sums);
        let (sum, first) = match sums.entry(*digest) {
            Entry::Occupied(known) => (known.into_mut(), false),
            Entry::Vacant(free) => (free.insert(Sum::default()), true),
        };
        sum.pending.waiting += usage;
        sum.observe(observer);
        first
    }

    /// Adds an observer of the pending count, if there is one.
    pub fn observe<O: CountObserver + 'static>(&self, digest: &KeyDigest, observer: &Arc<O>) {
        if let Some(sum) = lock(&self.sums).get_mut(digest) {
            sum.observe(observer);
        }
    }

    /// Pending usage of a key.
    pub fn pending(&self, digest: &KeyDigest) -> Pending {
        lock(&self.sums).get(digest).map(|sum| sum.pending).unwrap_or_default()
    }

    /// Takes the waiting usage, to send it. `None` if there is none: the count is finished.
    pub fn begin(&self, digest: &KeyDigest) -> Option<KeyUsage> {
        let mut sums = lock(&self.sums);
        let sum = sums.get_mut(digest)?;
        if sum.pending.waiting.is_zero() {
            sums.remove(digest);
            return None;
        }
        sum.pending.sent = std::mem::take(&mut sum.pending.waiting);
        Some(sum.pending.sent)
    }

    /// The sent usage has been counted or is given up. Returns the observers.
    pub fn settled(&self, digest: &KeyDigest) -> Vec<Arc<dyn CountObserver>> {
        let mut sums = lock(&self.sums);
        let Some(sum) = sums.get_mut(digest) else { return Vec::new() };
        sum.pending.sent = KeyUsage::default();
        sum.observers.clone()
    }

    /// Waits until another count may run in this store.
    pub async fn permit(&self) -> Result<SemaphorePermit<'_>, AcquireError> {
        self.permits.acquire().await
    }
}

impl Sum {
    fn observe<O: CountObserver + 'static>(&mut self, observer: &Arc<O>) {
        let same = |known: &Arc<dyn CountObserver>| {
            std::ptr::addr_eq(Arc::as_ptr(known), Arc::as_ptr(observer))
        };
        if !self.observers.iter().any(same) {
            self.observers.push(Arc::clone(observer) as Arc<dyn CountObserver>);
        }
    }
}
