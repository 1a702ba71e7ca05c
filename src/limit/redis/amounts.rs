//! What was spent of amounts, as this replica has last heard: in the leased mode it need not ask
//! before each request.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use super::slices::{SLICES, Slices};
use crate::{
    base::lock,
    limit::claim::{Failed, Spend, Used},
};

/// Amounts of which something is known here.
const MOST: usize = 200_000;

/// The amounts, by what they are counted under.
#[derive(Default)]
pub struct Amounts(Mutex<Slices<String, Spent>>);

struct Spent {
    start: i64,
    amount: f64,
    at: Instant,
}

impl Spent {
    fn fresh(&self, lifetime: Duration, now: Instant) -> bool {
        now.saturating_duration_since(self.at) < lifetime
    }
}

impl Amounts {
    /// Whether the amounts are spent; nothing if that was heard too long ago of one of them.
    pub fn spent(
        &self,
        spends: &[Spend],
        lifetime: Duration,
        now: Instant,
    ) -> Option<Result<(), Failed>> {
        let mut known = lock(&self.0);
        for (index, spend) in spends.iter().enumerate() {
            let spent = known.of(&*spend.subject).get(&*spend.subject)?;
            if spent.start != spend.start || !spent.fresh(lifetime, now) {
                return None;
            }
            if spent.amount >= spend.limit {
                return Some(Err(Failed::Spent(index)));
            }
        }
        Some(Ok(()))
    }

    /// Notes what was told.
    pub fn note(&self, spends: &[Spend], told: &[f64], now: Instant) {
        let mut known = lock(&self.0);
        for (spend, &amount) in spends.iter().zip(told) {
            let known = known.of(&*spend.subject);
            if known.len() >= MOST / SLICES {
                known.clear();
            }
            let spent = Spent { start: spend.start, amount, at: now };
            known.insert(spend.subject.clone(), spent);
        }
    }

    /// Adds what a request spent, before Redis tells it.
    pub fn add(&self, spends: &[Spend], used: &Used) {
        let mut known = lock(&self.0);
        for spend in spends {
            if let Some(spent) = known.of(&*spend.subject).get_mut(&*spend.subject)
                && spent.start == spend.start
            {
                spent.amount += used.spent(spend.unit);
            }
        }
    }

    /// Forgets what was heard too long ago.
    pub fn tidy(&self, lifetime: Duration, now: Instant) {
        for slice in 0..SLICES {
            lock(&self.0).retain(slice, |_, spent| spent.fresh(lifetime, now));
        }
    }
}
