//! Amounts spent, as Redis last reported them to this replica: in the leased mode it does not ask
//! before each request.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use super::sharded_map::{SHARDS, ShardedMap};
use crate::{
    base::lock,
    limit::claim::{Charge, FailedClaim, Spend},
};

/// Largest number of amounts that are remembered.
const MOST: usize = 200_000;

/// The amounts by subject.
#[derive(Default)]
pub struct Amounts(Mutex<ShardedMap<String, KnownAmount>>);

struct KnownAmount {
    start: i64,
    amount: f64,
    at: Instant,
}

impl KnownAmount {
    fn fresh(&self, lifetime: Duration, now: Instant) -> bool {
        now.saturating_duration_since(self.at) < lifetime
    }
}

impl Amounts {
    /// Checks that no amount is used up; `None` if the last report of one of them is too old.
    pub fn check(
        &self,
        spends: &[Spend],
        lifetime: Duration,
        now: Instant,
    ) -> Option<Result<(), FailedClaim>> {
        let mut known = lock(&self.0);
        for (index, spend) in spends.iter().enumerate() {
            let spent = known.shard(&*spend.subject).get(&*spend.subject)?;
            if spent.start != spend.start || !spent.fresh(lifetime, now) {
                return None;
            }
            if spent.amount >= spend.limit {
                return Some(Err(FailedClaim::Amount(index)));
            }
        }
        Some(Ok(()))
    }

    /// Records what Redis has reported.
    pub fn note(&self, spends: &[Spend], reported: &[f64], now: Instant) {
        let mut known = lock(&self.0);
        for (spend, &amount) in spends.iter().zip(reported) {
            let known = known.shard(&*spend.subject);
            if known.len() >= MOST / SHARDS {
                known.clear();
            }
            let spent = KnownAmount { start: spend.start, amount, at: now };
            known.insert(spend.subject.clone(), spent);
        }
    }

    /// Adds what a request is charged, before Redis reports it.
    pub fn add(&self, spends: &[Spend], charge: &Charge) {
        let mut known = lock(&self.0);
        for spend in spends {
            if let Some(spent) = known.shard(&*spend.subject).get_mut(&*spend.subject)
                && spent.start == spend.start
            {
                spent.amount += charge.amount(spend.unit);
            }
        }
    }

    /// Removes reports that are too old.
    pub fn tidy(&self, lifetime: Duration, now: Instant) {
        for shard in 0..SHARDS {
            lock(&self.0).retain(shard, |_, spent| spent.fresh(lifetime, now));
        }
    }
}
