//! What this process holds in Redis: each holding has a name, and is renewed while it is live.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use super::mode::Mode;
use crate::{
    base::lock,
    limit::{
        bucket::Rate,
        claim::{Claim, ClaimKind, Dim},
    },
};

/// The holds of one request.
pub struct Holding {
    number: u64,
    /// Its name, unique among all replicas.
    pub id: String,
    pub holds: Vec<Hold>,
}

/// Units or a slot, held in one bucket.
pub struct Hold {
    pub mode: Mode,
    /// The bucket.
    pub name: String,
    pub rate: Rate,
    pub dim: Dim,
    /// Units.
    pub amount: u64,
}

impl Hold {
    fn new(claim: &Claim) -> Self {
        Self {
            mode: Mode::exact(claim),
            name: claim.name.clone(),
            rate: claim.rate,
            dim: claim.dim,
            amount: claim.amount,
        }
    }
}

/// All holdings of this process.
pub struct Holdings {
    /// A random number that identifies the process.
    process: u64,
    next: AtomicU64,
    live: Mutex<HashMap<u64, Arc<Holding>>>,
}

impl Default for Holdings {
    fn default() -> Self {
        Self { process: rand::random(), next: AtomicU64::new(0), live: Mutex::default() }
    }
}

impl Holdings {
    /// A holding that is not live yet. `reservations`: token reservations are held in Redis too.
    pub fn draft(&self, claims: &[Claim], reservations: bool) -> Arc<Holding> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let held = |claim: &&Claim| match claim.dim.kind() {
            ClaimKind::Take => false,
            ClaimKind::Reserve => reservations,
            ClaimKind::Slot => true,
        };
        let holds = claims.iter().filter(held).map(Hold::new).collect();
        Arc::new(Holding { number, id: format!("{:x}-{number:x}", self.process), holds })
    }

    /// Starts its renewal.
    pub fn begin(&self, holding: &Arc<Holding>) {
        if !holding.holds.is_empty() {
            lock(&self.live).insert(holding.number, Arc::clone(holding));
        }
    }

    /// Ends its renewal.
    pub fn end(&self, holding: &Holding) {
        if !holding.holds.is_empty() {
            let mut live = lock(&self.live);
            live.remove(&holding.number);
            let few = live.len() * 4 + 64;
            if live.capacity() > few {
                live.shrink_to(few / 2);
            }
        }
    }

    pub fn is_live(&self, holding: &Holding) -> bool {
        lock(&self.live).contains_key(&holding.number)
    }

    pub fn all(&self) -> Vec<Arc<Holding>> {
        lock(&self.live).values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_only_taken_is_not_held() {
        let holdings = Holdings::default();
        let claims = [Dim::RequestsPerMinute, Dim::Tokens, Dim::Concurrent].map(Claim::of_five);
        let exact = holdings.draft(&claims, true);
        let leased = holdings.draft(&claims, false);
        assert_ne!(exact.id, leased.id);
        assert_eq!(exact.holds.len(), 2);
        assert_eq!(leased.holds.len(), 1);
        holdings.begin(&exact);
        holdings.begin(&holdings.draft(&claims[..1], true));
        assert_eq!(holdings.all().len(), 1);
        holdings.end(&exact);
        assert_eq!(holdings.all().len(), 0);
    }
}
