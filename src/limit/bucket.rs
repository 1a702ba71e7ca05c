//! A token bucket as pure arithmetic: the clock is an argument.
//!
//! A bucket stores the time at which it will be full again (GCRA's "theoretical arrival time"), so
//! that it needs only two numbers and a change of rate or capacity needs no conversion. Held units,
//! of which the used part is not known yet, are stored apart from taken units, so that releasing
//! them is exact whatever happened in between.

/// Time in sixteenths of a nanosecond since an origin that the owner of the clock chooses: precise
/// enough for rates of a billion per minute, and sufficient for 36 years.
pub type Ticks = u64;

/// Ticks per second.
pub const SECOND: Ticks = 16_000_000_000;

/// How fast a bucket fills, and its capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Time per unit.
    pub interval: Ticks,
    /// Units in a full bucket.
    pub capacity: u64,
}

impl Rate {
    /// `amount` units per `period` ticks; `capacity` may be taken at once.
    pub fn new(amount: f64, period: Ticks, capacity: f64) -> Self {
        // Rounded up: never faster than configured.
        let interval = (period as f64 / amount).ceil().max(1.0) as Ticks;
        Self { interval, capacity: (capacity.round() as u64).max(1) }
    }

    /// The time in which this many units are added.
    pub fn span(self, units: u64) -> Ticks {
        self.interval.saturating_mul(units)
    }
}

/// One bucket. A new one is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// When it is full again, if nothing more is taken.
    full_at: Ticks,
    held: u64,
}

impl Bucket {
    /// Time until `amount` units are available (and not held); zero if they are. Nothing is taken. An
    /// amount above the capacity is treated as the capacity.
    pub fn wait(&self, rate: Rate, amount: u64, now: Ticks) -> Ticks {
        let amount = amount.min(rate.capacity);
        let missing = self.missing(now).saturating_add(rate.span(self.held.saturating_add(amount)));
        missing.saturating_sub(rate.span(rate.capacity))
    }

    /// Takes units. Units that are not available become a debt.
    pub fn take(&mut self, rate: Rate, amount: u64, now: Ticks) {
        self.full_at = self.full_at.max(now).saturating_add(rate.span(amount));
    }

    pub fn hold(&mut self, amount: u64) {
        self.held = self.held.saturating_add(amount);
    }

    pub fn release(&mut self, amount: u64) {
        self.held = self.held.saturating_sub(amount);
    }

    pub fn held(&self) -> u64 {
        self.held
    }

    /// Units that are available and not held.
    pub fn left(&self, rate: Rate, now: Ticks) -> u64 {
        let available = rate.span(rate.capacity).saturating_sub(self.missing(now)) / rate.interval;
        available.saturating_sub(self.held)
    }

    /// The time until it is full, held units not counted.
    pub fn missing(&self, now: Ticks) -> Ticks {
        self.full_at.saturating_sub(now)
    }

    /// Whether it equals a new bucket.
    pub fn idle(&self, now: Ticks) -> bool {
        self.held == 0 && self.full_at <= now
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What may happen to a bucket, and how much later than the event before.
    #[derive(Clone, Debug)]
    enum Event {
        Take(u64),
        /// Held now, and later settled with the second amount.
        Reserve(u64, u64),
        /// Ends the oldest reservation: with its used amount, or with nothing.
        Settle,
        Abandon,
    }

    fn events() -> impl Strategy<Value = Vec<(u64, Event)>> {
        let event = prop_oneof![
            (1..40u64).prop_map(Event::Take),
            (1..40u64, 0..=100u64).prop_map(|(n, percent)| Event::Reserve(n, n * percent / 100)),
            Just(Event::Settle),
            Just(Event::Abandon),
        ];
        prop::collection::vec((0..3 * SECOND, event), 1..120)
    }

    proptest! {
        /// Over any window, never more than rate x time + burst: also where reservations come to
        /// less than was held, or to nothing.
        #[test]
        fn never_more_than_the_rate_and_a_burst(
            events in events(),
            per_second in 1..50u64,
            capacity in 1..60u64,
        ) {
            let rate = Rate::new(per_second as f64, SECOND, capacity as f64);
            let mut bucket = Bucket::default();
            let mut now = 0;
            let mut held = std::collections::VecDeque::new();
            let mut taken: Vec<(Ticks, u64)> = Vec::new();
            for (pause, event) in events {
                now += pause;
                match event {
                    Event::Take(n) if bucket.wait(rate, n, now) == 0 && n <= capacity => {
                        bucket.take(rate, n, now);
                        taken.push((now, n));
                    }
                    Event::Reserve(n, used) if bucket.wait(rate, n, now) == 0 && n <= capacity => {
                        bucket.hold(n);
                        held.push_back((n, used));
                    }
                    Event::Settle => if let Some((n, used)) = held.pop_front() {
                        bucket.release(n);
                        bucket.take(rate, used, now);
                        taken.push((now, used));
                    },
                    Event::Abandon => if let Some((n, _)) = held.pop_front() {
                        bucket.release(n);
                    },
                    Event::Take(_) | Event::Reserve(..) => {}
                }
            }
            for (i, (from, _)) in taken.iter().enumerate() {
                let mut sum = 0;
                for (to, n) in &taken[i..] {
                    sum += n;
                    let come = (to - from) as f64 / SECOND as f64 * per_second as f64;
                    prop_assert!(sum as f64 <= capacity as f64 + come + 1e-6);
                }
            }
        }

        /// A reservation that is given back leaves no trace, whatever was taken meanwhile.
        #[test]
        fn what_is_given_back_leaves_no_trace(
            amounts in prop::collection::vec((0..SECOND, 1..20u64), 0..20),
            given_back in 1..20u64,
        ) {
            let rate = Rate::new(10.0, SECOND, 20.0);
            let (mut with, mut without) = (Bucket::default(), Bucket::default());
            with.hold(given_back);
            let mut now = 0;
            for (pause, n) in amounts {
                now += pause;
                with.take(rate, n, now);
                without.take(rate, n, now);
            }
            with.release(given_back);
            prop_assert_eq!(with, without);
        }

        /// The reported rest can be taken, and no more.
        #[test]
        fn what_is_left_can_be_taken(taken in 0..30u64, held in 0..30u64, pause in 0..SECOND * 2) {
            let rate = Rate::new(7.0, SECOND, 30.0);
            let mut bucket = Bucket::default();
            bucket.take(rate, taken, 0);
            bucket.hold(held);
            let left = bucket.left(rate, pause);
            if left > 0 {
                prop_assert_eq!(bucket.wait(rate, left, pause), 0);
            }
            if left < rate.capacity {
                let wait = bucket.wait(rate, left + 1, pause);
                prop_assert!(wait > 0);
                // It is available after the reported wait, if nothing is held.
                bucket.release(held);
                let wait = bucket.wait(rate, left + 1, pause);
                prop_assert_eq!(bucket.wait(rate, left + 1, pause + wait), 0);
            }
        }
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let rate = Rate::new(3.0, SECOND, 6.0);
        let mut bucket = Bucket::default();
        for _ in 0..6 {
            assert_eq!(bucket.wait(rate, 1, 0), 0);
            bucket.take(rate, 1, 0);
        }
        let wait = bucket.wait(rate, 1, 0);
        assert_eq!(wait, rate.interval);
        assert_eq!(bucket.left(rate, wait - 1), 0);
        assert_eq!(bucket.left(rate, wait), 1);
        assert!(bucket.idle(rate.span(6)) && !bucket.idle(rate.span(6) - 1));
    }

    #[test]
    fn more_than_it_holds_passes_when_it_is_full_and_is_owed() {
        let rate = Rate::new(10.0, SECOND, 10.0);
        let mut bucket = Bucket::default();
        assert_eq!(bucket.wait(rate, 500, 0), 0);
        bucket.take(rate, 500, 0);
        assert_eq!(bucket.wait(rate, 1, 0), rate.span(491));
    }
}
