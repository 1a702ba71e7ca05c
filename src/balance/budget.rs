//! How many retries a pool can afford, so that a fleet that fails is not asked twice as much.
//!
//! Every request earns a part of a retry, and a few a second are free. What is not used is kept:
//! up to what ten seconds and a hundred requests bring, and at least one. A pool starts with that.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::config::plan::BudgetPlan;

/// Retries are counted in millionths.
const RETRY: f64 = 1e6;

/// The budget of a pool.
#[derive(Debug)]
pub struct Budget {
    /// Millionths of retries.
    earned: i64,
    /// The same, a microsecond.
    per_microsecond: f64,
    /// The most that is kept.
    capacity: i64,
    purse: Arc<Purse>,
}

/// What there is at present.
#[derive(Debug)]
struct Purse {
    kept: AtomicI64,
    began: Instant,
    /// Until when, in microseconds from `began`, the free ones have been given.
    given: AtomicU64,
}

impl Budget {
    /// A full one.
    pub fn new(plan: &BudgetPlan, now: Instant) -> Self {
        let capacity = (Self::capacity(plan) * RETRY) as i64;
        Self {
            earned: (plan.ratio * RETRY) as i64,
            per_microsecond: plan.min_per_second,
            capacity,
            purse: Arc::new(Purse::new(capacity, now)),
        }
    }

    /// Goes on with the budget of a pool whose place this one takes: both spend of the same, as long
    /// as requests of the earlier pool are under way.
    #[must_use]
    pub fn instead_of(self, old: &Self) -> Self {
        Self { purse: Arc::clone(&old.purse), ..self }
    }

    /// Begins with as much as another one has.
    #[must_use]
    pub fn like(self, old: &Self, now: Instant) -> Self {
        old.give(now);
        let kept = old.purse.kept.load(Ordering::Relaxed).min(self.capacity);
        Self { purse: Arc::new(Purse::new(kept, now)), ..self }
    }

    /// Retries that are kept at most.
    pub fn capacity(plan: &BudgetPlan) -> f64 {
        let most = 10.0 * plan.min_per_second + 100.0 * plan.ratio;
        // A whole one at least: else what is earned could never be spent.
        if most > 0.0 { most.max(1.0) } else { 0.0 }
    }

    /// A request has come.
    pub fn earn(&self) {
        self.add(self.earned);
    }

    /// Takes a retry, if there is one.
    pub fn afford(&self, now: Instant) -> bool {
        self.give(now);
        let price = RETRY as i64;
        let take = |kept: i64| (kept >= price).then_some(kept - price);
        self.purse.kept.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Gives the free ones of the time that has passed. Of two that come at once, one gives.
    fn give(&self, now: Instant) {
        let Purse { began, given: last, .. } = &*self.purse;
        let until = now.saturating_duration_since(*began).as_micros() as u64;
        let given = last.load(Ordering::Relaxed);
        // Not for less than a millisecond, so that no part of a millionth is lost each time.
        if until < given.saturating_add(Duration::from_millis(1).as_micros() as u64) {
            return;
        }
        let (relaxed, mine) = (Ordering::Relaxed, (until - given) as f64);
        if last.compare_exchange(given, until, relaxed, relaxed).is_ok() {
            self.add((mine * self.per_microsecond).min(self.capacity as f64) as i64);
        }
    }

    fn add(&self, more: i64) {
        let add = |kept: i64| (kept < self.capacity).then(|| (kept + more).min(self.capacity));
        // A full budget is only read.
        self.purse.kept.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok();
    }
}

impl Purse {
    fn new(kept: i64, began: Instant) -> Self {
        Self { kept: AtomicI64::new(kept), began, given: AtomicU64::new(0) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn earns_with_requests_and_with_time() {
        let now = Instant::now();
        let budget = Budget::new(&BudgetPlan { ratio: 0.2, min_per_second: 1.0 }, now);
        let all = |now| (0..1000).take_while(|_| budget.afford(now)).count();
        assert_eq!(all(now), 30);
        (0..50).for_each(|_| budget.earn());
        assert_eq!(all(now), 10);
        assert_eq!(all(now + Duration::from_secs(4)), 4);
        assert_eq!(all(now + Duration::from_secs(4000)), 30);
    }

    #[test]
    fn a_pool_that_is_built_anew_has_not_more_than_before() {
        let now = Instant::now();
        let plan = BudgetPlan { ratio: 0.2, min_per_second: 1.0 };
        let old = Budget::new(&plan, now);
        assert_eq!((0..25).filter(|_| old.afford(now)).count(), 25);
        let next = Budget::new(&plan, now).instead_of(&old);
        assert!((0..3).all(|_| next.afford(now)) && old.afford(now));
        let beside = Budget::new(&plan, now).like(&old, now);
        assert_eq!((0..9).filter(|_| beside.afford(now)).count(), 1);
        assert!(next.afford(now) && !old.afford(now) && !next.afford(now));
        let later = now + Duration::from_secs(2);
        assert_eq!((0..9).filter(|_| next.afford(later) || old.afford(later)).count(), 2);
    }

    #[test]
    fn a_small_budget_affords_a_retry_once_it_is_earned() {
        let now = Instant::now();
        let budget = Budget::new(&BudgetPlan { ratio: 0.005, min_per_second: 0.0 }, now);
        assert!(budget.afford(now) && !budget.afford(now));
        (0..199).for_each(|_| budget.earn());
        assert!(!budget.afford(now));
        budget.earn();
        assert!(budget.afford(now));
    }

    #[test]
    fn nothing_is_affordable_without_a_budget() {
        let now = Instant::now();
        let budget = Budget::new(&BudgetPlan { ratio: 0.0, min_per_second: 0.0 }, now);
        budget.earn();
        assert!(!budget.afford(now + Duration::from_secs(100)));
    }

    proptest! {
        #[test]
        fn retries_stay_within_the_budget(
            ratio in 0.0f64..1.0,
            min_per_second in 0.0f64..20.0,
            steps in prop::collection::vec((0u64..300, any::<bool>()), 1..400),
        ) {
            let plan = BudgetPlan { ratio, min_per_second };
            let began = Instant::now();
            let budget = Budget::new(&plan, began);
            let (mut now, mut requests, mut retries) = (began, 0.0, 0.0);
            for (millis, request) in steps {
                now += Duration::from_millis(millis);
                if request {
                    budget.earn();
                    requests += 1.0;
                } else if budget.afford(now) {
                    retries += 1.0;
                }
                let seconds = (now - began).as_secs_f64();
                let most = Budget::capacity(&plan) + ratio * requests + min_per_second * seconds;
                prop_assert!(retries <= most + 1e-3, "{retries} of {most}");
            }
        }
    }
}
