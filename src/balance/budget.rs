//! The retry budget of a pool, which keeps retries from doubling the load of a failing fleet.
//!
//! Every request earns a fraction of a retry, and time earns a few per second. Unused retries
//! accumulate, up to what ten seconds and a hundred requests earn, and at least one. A pool starts
//! with a full budget.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::config::plan::BudgetPlan;

/// One retry; balances are in millionths of a retry.
const RETRY: f64 = 1e6;

#[derive(Debug)]
pub struct Budget {
    /// Earned by one request, in millionths.
    per_request: i64,
    /// Earned in one microsecond, in millionths.
    per_microsecond: f64,
    /// In millionths.
    capacity: i64,
    account: Arc<Account>,
}

/// The retries that are available.
#[derive(Debug)]
struct Account {
    /// In millionths.
    balance: AtomicI64,
    began: Instant,
    /// Up to when earnings by time were credited, in microseconds from `began`.
    credited: AtomicU64,
}

impl Budget {
    /// A full budget.
    pub fn new(plan: &BudgetPlan, now: Instant) -> Self {
        let capacity = (Self::capacity(plan) * RETRY) as i64;
        Self {
            per_request: (plan.ratio * RETRY) as i64,
            per_microsecond: plan.min_per_second,
            capacity,
            account: Arc::new(Account::new(capacity, now)),
        }
    }

    /// Shares the account of the pool that this one replaces: requests of the old pool that are under
    /// way spend from it as well.
    #[must_use]
    pub fn shared_with(self, old: &Self) -> Self {
        Self { account: Arc::clone(&old.account), ..self }
    }

    /// Starts with the balance of another budget.
    #[must_use]
    pub fn starting_as(self, old: &Self, now: Instant) -> Self {
        old.credit(now);
        let balance = old.account.balance.load(Ordering::Relaxed).min(self.capacity);
        Self { account: Arc::new(Account::new(balance, now)), ..self }
    }

    /// The most retries that accumulate.
    pub fn capacity(plan: &BudgetPlan) -> f64 {
        let most = 10.0 * plan.min_per_second + 100.0 * plan.ratio;
        // At least one: otherwise earnings could never be spent.
        if most > 0.0 { most.max(1.0) } else { 0.0 }
    }

    /// Adds what one request earns.
    pub fn earn(&self) {
        self.add(self.per_request);
    }

    /// Takes a retry, if there is one.
    pub fn afford(&self, now: Instant) -> bool {
        self.credit(now);
        let price = RETRY as i64;
        let take = |balance: i64| (balance >= price).then_some(balance - price);
        self.account.balance.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Credits the earnings of the time that has passed. Of concurrent calls, one credits.
    fn credit(&self, now: Instant) {
        let Account { began, credited, .. } = &*self.account;
        let until = now.saturating_duration_since(*began).as_micros() as u64;
        let last = credited.load(Ordering::Relaxed);
        // Not for less than a millisecond, so that rounding loses nothing.
        if until < last.saturating_add(Duration::from_millis(1).as_micros() as u64) {
            return;
        }
        let (relaxed, passed) = (Ordering::Relaxed, (until - last) as f64);
        if credited.compare_exchange(last, until, relaxed, relaxed).is_ok() {
            self.add((passed * self.per_microsecond).min(self.capacity as f64) as i64);
        }
    }

    fn add(&self, more: i64) {
        let add =
            |balance: i64| (balance < self.capacity).then(|| (balance + more).min(self.capacity));
        // A full account is only read.
        self.account.balance.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok();
    }
}

impl Account {
    fn new(balance: i64, began: Instant) -> Self {
        Self { balance: AtomicI64::new(balance), began, credited: AtomicU64::new(0) }
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
    fn a_rebuilt_pool_has_no_more_than_before() {
        let now = Instant::now();
        let plan = BudgetPlan { ratio: 0.2, min_per_second: 1.0 };
        let old = Budget::new(&plan, now);
        assert_eq!((0..25).filter(|_| old.afford(now)).count(), 25);
        let next = Budget::new(&plan, now).shared_with(&old);
        assert!((0..3).all(|_| next.afford(now)) && old.afford(now));
        let beside = Budget::new(&plan, now).starting_as(&old, now);
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
