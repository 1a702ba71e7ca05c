//! A circuit breaker: closed, open after failures, then half-open, when one trial at a time may pass.
//! The clock is an argument.

use std::time::{Duration, Instant};

use crate::config::plan::CircuitPlan;

/// Parts of the window in which requests are counted.
const SLOTS: usize = 10;

/// The wait to suggest while a trial is under way.
const WHILE_TRIED: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Circuit {
    stage: Stage,
    /// Consecutive failures.
    consecutive: u32,
    window: Window,
    /// The number of the last trial: only the trial under way decides.
    trials: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Closed,
    Open { since: Instant, until: Instant },
    HalfOpen { since: Instant, trial: Option<u64> },
}

/// Whether a request may pass the circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Pass,
    /// It may, as a trial with this number.
    Trial(u64),
    /// It may not, for this long.
    Rejected(Duration),
}

/// How the outcome of a request has changed a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// Neither opened nor closed.
    None,
    Opened,
    Closed,
}

impl Circuit {
    /// A closed circuit.
    pub fn new(now: Instant) -> Self {
        Self { stage: Stage::Closed, consecutive: 0, window: Window::new(now), trials: 0 }
    }

    /// How long a request would be rejected; `None`: it would pass.
    pub fn remaining(&self, now: Instant) -> Option<Duration> {
        match self.stage {
            Stage::Open { until, .. } if now < until => Some(until - now),
            Stage::HalfOpen { trial: Some(_), .. } => Some(WHILE_TRIED),
            _ => None,
        }
    }

    /// Admits a request or not. After the cooldown one trial at a time passes.
    pub fn admit(&mut self, now: Instant) -> Admission {
        if let Some(wait) = self.remaining(now) {
            return Admission::Rejected(wait);
        }
        match self.stage {
            Stage::Closed => Admission::Pass,
            Stage::Open { since, .. } | Stage::HalfOpen { since, .. } => {
                self.trials += 1;
                self.stage = Stage::HalfOpen { since, trial: Some(self.trials) };
                Admission::Trial(self.trials)
            }
        }
    }

    /// Records a request that succeeded.
    pub fn good(&mut self, now: Instant, plan: &CircuitPlan, trial: Option<u64>) -> Transition {
        match self.stage {
            Stage::Closed => {
                self.consecutive = 0;
                self.window.count(now, plan.window, false);
                Transition::None
            }
            Stage::HalfOpen { trial: Some(out), .. } if trial == Some(out) => {
                self.stage = Stage::Closed;
                self.consecutive = 0;
                self.window = Window::new(now);
                Transition::Closed
            }
            // It began before the circuit opened, or ignored it.
            _ => Transition::None,
        }
    }

    /// Records a failed request. `may_open`: the evidence is that the failures are the backend's fault;
    /// otherwise they are only counted.
    pub fn failed(
        &mut self,
        now: Instant,
        plan: &CircuitPlan,
        trial: Option<u64>,
        may_open: bool,
    ) -> Transition {
        let Some(consecutive) = plan.consecutive else { return Transition::None };
        let until = now + plan.cooldown;
        match self.stage {
            Stage::Closed => {
                self.consecutive = self.consecutive.saturating_add(1);
                self.window.count(now, plan.window, true);
                let (requests, failures) = self.window.sum();
                let often = requests >= plan.min_requests.max(1)
                    && f64::from(failures) >= plan.rate * f64::from(requests);
                if !may_open || self.consecutive < consecutive && !often {
                    return Transition::None;
                }
                self.stage = Stage::Open { since: now, until };
                Transition::Opened
            }
            Stage::HalfOpen { since, trial: Some(out) } if trial == Some(out) => {
                self.stage = Stage::Open { since, until };
                Transition::None
            }
            _ => Transition::None,
        }
    }

    /// Releases a trial that came to no result.
    pub fn release(&mut self, trial: u64) {
        if let Stage::HalfOpen { since, trial: Some(out) } = self.stage
            && out == trial
        {
            self.stage = Stage::HalfOpen { since, trial: None };
        }
    }

    /// Since when it has not been closed.
    pub fn since(&self) -> Option<Instant> {
        match self.stage {
            Stage::Closed => None,
            Stage::Open { since, .. } | Stage::HalfOpen { since, .. } => Some(since),
        }
    }

    /// Whether it holds nothing that a new circuit would not.
    pub fn idle(&mut self, now: Instant, plan: &CircuitPlan) -> bool {
        self.window.roll(now, plan.window);
        // Consecutive failures are forgotten with the window: what failed an hour ago says nothing.
        self.stage == Stage::Closed && self.window.sum().1 == 0
    }
}

/// Requests and failures of a sliding window.
#[derive(Debug)]
struct Window {
    slots: [(u32, u32); SLOTS],
    newest: usize,
    /// When the newest slot began.
    began: Instant,
}

impl Window {
    fn new(now: Instant) -> Self {
        Self { slots: [(0, 0); SLOTS], newest: 0, began: now }
    }

    fn count(&mut self, now: Instant, length: Duration, failed: bool) {
        self.roll(now, length);
        let slot = &mut self.slots[self.newest];
        slot.0 = slot.0.saturating_add(1);
        slot.1 = slot.1.saturating_add(u32::from(failed));
    }

    /// Drops the slots that are too old.
    fn roll(&mut self, now: Instant, length: Duration) {
        let step = (length / SLOTS as u32).max(Duration::from_millis(1));
        let passed = now.saturating_duration_since(self.began).as_nanos() / step.as_nanos();
        if passed >= SLOTS as u128 {
            *self = Self::new(now);
            return;
        }
        for _ in 0..passed {
            self.newest = (self.newest + 1) % SLOTS;
            self.slots[self.newest] = (0, 0);
            self.began += step;
        }
    }

    fn sum(&self) -> (u32, u32) {
        self.slots.iter().fold((0, 0), |(r, f), slot| {
            (u32::saturating_add(r, slot.0), u32::saturating_add(f, slot.1))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn plan() -> CircuitPlan {
        CircuitPlan { consecutive: Some(3), min_requests: 10, ..CircuitPlan::default() }
    }

    fn open(now: Instant) -> Circuit {
        let mut circuit = Circuit::new(now);
        for _ in 0..3 {
            circuit.failed(now, &plan(), None, true);
        }
        circuit
    }

    #[test]
    fn failures_in_a_row_open_it() {
        let now = Instant::now();
        let mut circuit = Circuit::new(now);
        assert_eq!(circuit.failed(now, &plan(), None, true), Transition::None);
        assert_eq!(circuit.failed(now, &plan(), None, true), Transition::None);
        circuit.good(now, &plan(), None);
        assert_eq!(circuit.failed(now, &plan(), None, true), Transition::None);
        assert_eq!(circuit.failed(now, &plan(), None, true), Transition::None);
        assert_eq!(circuit.failed(now, &plan(), None, true), Transition::Opened);
        assert_eq!(circuit.admit(now + 10 * SECOND), Admission::Rejected(20 * SECOND));
    }

    #[test]
    fn a_half_of_the_requests_opens_it_but_not_of_a_few() {
        let now = Instant::now();
        let mut circuit = Circuit::new(now);
        let mut transitions = Vec::new();
        for n in 0..5 {
            transitions.push(circuit.good(now + SECOND * n, &plan(), None));
            transitions.push(circuit.failed(now + SECOND * n, &plan(), None, true));
        }
        assert_eq!(transitions.pop(), Some(Transition::Opened));
        assert!(transitions.iter().all(|c| *c == Transition::None));
        // The same failures over a time longer than the window.
        let mut circuit = Circuit::new(now);
        for n in 0..20 {
            circuit.good(now + SECOND * 10 * n, &plan(), None);
            assert_eq!(
                circuit.failed(now + SECOND * 10 * n, &plan(), None, true),
                Transition::None
            );
        }
    }

    #[test]
    fn one_request_at_a_time_finds_out() {
        let now = Instant::now();
        let mut circuit = open(now);
        let later = now + 30 * SECOND;
        let Admission::Trial(trial) = circuit.admit(later) else { panic!("no trial") };
        assert!(matches!(circuit.admit(later), Admission::Rejected(_)));
        // One that began earlier decides nothing.
        assert_eq!(circuit.good(later, &plan(), None), Transition::None);
        circuit.failed(later, &plan(), Some(trial), true);
        assert_eq!(circuit.admit(later + SECOND), Admission::Rejected(29 * SECOND));
        let Admission::Trial(trial) = circuit.admit(later + 30 * SECOND) else { panic!() };
        circuit.release(trial);
        let Admission::Trial(trial) = circuit.admit(later + 30 * SECOND) else { panic!() };
        assert_eq!(circuit.good(later + 31 * SECOND, &plan(), Some(trial)), Transition::Closed);
        assert_eq!(circuit.admit(later + 31 * SECOND), Admission::Pass);
        assert!(circuit.idle(later + 31 * SECOND, &plan()));
    }

    #[test]
    fn breaking_can_be_off() {
        let now = Instant::now();
        let off = CircuitPlan { consecutive: None, ..plan() };
        let mut circuit = Circuit::new(now);
        assert!((0..100).all(|_| circuit.failed(now, &off, None, true) == Transition::None));
        assert_eq!(circuit.admit(now), Admission::Pass);
    }

    proptest! {
        /// Whatever comes in whatever order: there is at most one trial, and none before the cooldown is
        /// over.
        #[test]
        fn never_two_trials(steps in prop::collection::vec((0u8..5, 0u64..20), 1..200)) {
            let mut now = Instant::now();
            let mut circuit = Circuit::new(now);
            let mut out: Option<u64> = None;
            let mut opened: Option<Instant> = None;
            for (step, seconds) in steps {
                now += SECOND * seconds as u32;
                match step {
                    0 | 1 => match circuit.admit(now) {
                        Admission::Trial(trial) => {
                            prop_assert_eq!(out, None);
                            prop_assert!(opened.is_some_and(|at| now >= at + plan().cooldown));
                            out = Some(trial);
                        }
                        Admission::Pass => prop_assert_eq!(opened, None),
                        Admission::Rejected(_) => prop_assert!(opened.is_some()),
                    },
                    2 => {
                        let trial = out.take();
                        if circuit.good(now, &plan(), trial) == Transition::Closed {
                            prop_assert!(trial.is_some());
                            opened = None;
                        }
                    }
                    3 => {
                        let trial = out.take();
                        let change = circuit.failed(now, &plan(), trial, true);
                        if change == Transition::Opened || trial.is_some() {
                            opened = Some(now);
                        }
                    }
                    _ => {
                        if let Some(trial) = out.take() {
                            circuit.release(trial);
                        }
                    }
                }
            }
        }
    }
}
