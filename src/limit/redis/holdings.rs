//! What this process holds in Redis: known by name, renewed while it lasts, ended for certain.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{Action, RedisCounter, script::Mode};
use crate::{
    base::lock,
    limit::{
        bucket::Rate,
        claim::{Claim, Dim, Kind, Spend, Used},
    },
};

/// Holdings that are renewed with one call: it must not keep Redis from others for long.
const BATCH: usize = 100;

/// The longest that the first pause is before it is tried again to end a lease. The pauses double,
/// and make up about the time for which holds last: then they end by themselves.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// What is held for one request.
pub struct Holding {
    number: u64,
    /// Its name, unlike that of any other of all replicas.
    pub id: String,
    /// What is held.
    pub holds: Vec<Hold>,
}

/// Units or a place, held in one bucket.
pub struct Hold {
    /// Which of the two.
    pub mode: Mode,
    /// Where.
    pub name: String,
    /// How it fills.
    pub rate: Rate,
    /// What it counts.
    pub dim: Dim,
    /// How many units.
    pub amount: u64,
}

impl Hold {
    fn of(claim: &Claim) -> Self {
        Self {
            mode: Mode::exact(claim),
            name: claim.name.clone(),
            rate: claim.rate,
            dim: claim.dim,
            amount: claim.amount,
        }
    }
}

/// The leases of this process.
pub struct Holdings {
    /// Unlike that of any other process.
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
    /// A lease that is not live yet, for claims that are held in Redis: of reservations only if
    /// they are asked for exactly.
    pub fn draft(&self, claims: &[Claim], reservations: bool) -> Arc<Holding> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let held = |claim: &&Claim| match claim.dim.kind() {
            Kind::Take => false,
            Kind::Reserve => reservations,
            Kind::Slot => true,
        };
        let holds = claims.iter().filter(held).map(Hold::of).collect();
        Arc::new(Holding { number, id: format!("{:x}-{number:x}", self.process), holds })
    }

    /// From now on it is renewed.
    pub fn begin(&self, lease: &Arc<Holding>) {
        if !lease.holds.is_empty() {
            lock(&self.live).insert(lease.number, Arc::clone(lease));
        }
    }

    /// From now on it is not.
    pub fn end(&self, lease: &Holding) {
        if !lease.holds.is_empty() {
            let mut live = lock(&self.live);
            live.remove(&lease.number);
            let few = live.len() * 4 + 64;
            if live.capacity() > few {
                live.shrink_to(few / 2);
            }
        }
    }

    fn is_live(&self, lease: &Holding) -> bool {
        lock(&self.live).contains_key(&lease.number)
    }

    fn all(&self) -> Vec<Arc<Holding>> {
        lock(&self.live).values().cloned().collect()
    }
}

/// Renews what is held, as long as someone has the counter or holds something.
pub async fn renew(counter: Weak<RedisCounter>, ttl: Duration) {
    let mut pause = ttl / 3;
    loop {
        tokio::time::sleep(pause).await;
        let Some(counter) = counter.upgrade() else { return };
        pause = ttl / 3;
        for batch in counter.holdings.all().chunks(BATCH) {
            // While others were renewed it may have ended, too long ago for Redis to remember.
            let still = |lease: &&Arc<Holding>| counter.holdings.is_live(lease);
            let batch: Vec<_> = batch.iter().filter(still).cloned().collect();
            if let Err(error) = counter.speaker.renew(&batch).await {
                counter.tell(Action::Renew, &error.why);
                // Again before what is held ends.
                pause = ttl / 10;
                break;
            }
        }
    }
}

/// Ends a lease, also if Redis is away for a moment.
pub async fn settle(counter: &RedisCounter, lease: &Holding, spends: &[Spend], used: &Used) {
    let ttl = counter.settings.ttl;
    let mut pause = FIRST_PAUSE.min(ttl / 32);
    let mut paused = Duration::ZERO;
    loop {
        let told = counter.speaker.settle(lease, spends, used, pause).await;
        let Err(error) = told else { return };
        counter.tell(Action::Settle, &error.why);
        if paused + pause > ttl {
            return;
        }
        tokio::time::sleep(pause).await;
        paused += pause;
        pause *= 2;
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
