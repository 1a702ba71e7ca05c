//! When a backend that fails is left alone: the circuit of one backend and model. The clock is an
//! argument.

use std::time::{Duration, Instant};

use crate::config::plan::CircuitPlan;

/// Parts of the window in which requests are counted.
const SLOTS: usize = 10;

/// What to tell those who come while another request tries the backend out.
const WHILE_PROBED: Duration = Duration::from_secs(1);

/// A circuit.
#[derive(Debug)]
pub struct Circuit {
    stage: Stage,
    /// Failures in a row.
    row: u32,
    window: Window,
    /// Numbers the probes, so that only the one that is out decides.
    probes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Closed,
    Open { since: Instant, until: Instant },
    HalfOpen { since: Instant, probe: Option<u64> },
}

/// Whether a request may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may.
    Pass,
    /// It may, and finds out whether the backend works again.
    Probe(u64),
    /// It may not, for so long.
    Barred(Duration),
}

/// What the outcome of a request has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing that others would see.
    None,
    /// The backend is left alone from now on.
    Opened,
    /// It is used again.
    Closed,
}

impl Circuit {
    /// A closed one.
    pub fn new(now: Instant) -> Self {
        Self { stage: Stage::Closed, row: 0, window: Window::new(now), probes: 0 }
    }

    /// Whether a request would be barred, and for how long.
    pub fn bars(&self, now: Instant) -> Option<Duration> {
        match self.stage {
            Stage::Open { until, .. } if now < until => Some(until - now),
            Stage::HalfOpen { probe: Some(_), .. } => Some(WHILE_PROBED),
            _ => None,
        }
    }

    /// Lets a request pass or not. After the pause one passes at a time.
    pub fn admit(&mut self, now: Instant) -> Admission {
        if let Some(wait) = self.bars(now) {
            return Admission::Barred(wait);
        }
        match self.stage {
            Stage::Closed => Admission::Pass,
            Stage::Open { since, .. } | Stage::HalfOpen { since, .. } => {
                self.probes += 1;
                self.stage = Stage::HalfOpen { since, probe: Some(self.probes) };
                Admission::Probe(self.probes)
            }
        }
    }

    /// A request went well.
    pub fn good(&mut self, now: Instant, plan: &CircuitPlan, probe: Option<u64>) -> Change {
        match self.stage {
            Stage::Closed => {
                self.row = 0;
                self.window.count(now, plan.window, false);
                Change::None
            }
            Stage::HalfOpen { probe: Some(out), .. } if probe == Some(out) => {
                self.stage = Stage::Closed;
                self.row = 0;
                self.window = Window::new(now);
                Change::Closed
            }
            // It began before the circuit opened, or in spite of it.
            _ => Change::None,
        }
    }

    /// A request failed. `enough`: what is known of the failures says that they are the backend's.
    /// Else they are only counted.
    pub fn failed(
        &mut self,
        now: Instant,
        plan: &CircuitPlan,
        probe: Option<u64>,
        enough: bool,
    ) -> Change {
        let Some(consecutive) = plan.consecutive else { return Change::None };
        let until = now + plan.cooldown;
        match self.stage {
            Stage::Closed => {
                self.row = self.row.saturating_add(1);
                self.window.count(now, plan.window, true);
                let (requests, failures) = self.window.sum();
                let often = requests >= plan.min_requests.max(1)
                    && f64::from(failures) >= plan.rate * f64::from(requests);
                if !enough || self.row < consecutive && !often {
                    return Change::None;
                }
                self.stage = Stage::Open { since: now, until };
                Change::Opened
            }
            Stage::HalfOpen { since, probe: Some(out) } if probe == Some(out) => {
                self.stage = Stage::Open { since, until };
                Change::None
            }
            _ => Change::None,
        }
    }

    /// The request that was to find out did not.
    pub fn release(&mut self, probe: u64) {
        if let Stage::HalfOpen { since, probe: Some(out) } = self.stage
            && out == probe
        {
            self.stage = Stage::HalfOpen { since, probe: None };
        }
    }

    /// Since when it has not been closed.
    pub fn since(&self) -> Option<Instant> {
        match self.stage {
            Stage::Closed => None,
            Stage::Open { since, .. } | Stage::HalfOpen { since, .. } => Some(since),
        }
    }

    /// Whether it remembers nothing that a new one would not know.
    pub fn idle(&mut self, now: Instant, plan: &CircuitPlan) -> bool {
        self.window.roll(now, plan.window);
        // A row is forgotten with its window: what failed an hour ago says nothing.
        self.stage == Stage::Closed && self.window.sum().1 == 0
    }
}

/// Requests and failures of the last while.
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
        assert_eq!(circuit.failed(now, &plan(), None, true), Change::None);
        assert_eq!(circuit.failed(now, &plan(), None, true), Change::None);
        circuit.good(now, &plan(), None);
        assert_eq!(circuit.failed(now, &plan(), None, true), Change::None);
        assert_eq!(circuit.failed(now, &plan(), None, true), Change::None);
        assert_eq!(circuit.failed(now, &plan(), None, true), Change::Opened);
        assert_eq!(circuit.admit(now + 10 * SECOND), Admission::Barred(20 * SECOND));
    }

    #[test]
    fn a_half_of_the_requests_opens_it_but_not_of_a_few() {
        let now = Instant::now();
        let mut circuit = Circuit::new(now);
        let mut changes = Vec::new();
        for n in 0..5 {
            changes.push(circuit.good(now + SECOND * n, &plan(), None));
            changes.push(circuit.failed(now + SECOND * n, &plan(), None, true));
        }
        assert_eq!(changes.pop(), Some(Change::Opened));
        assert!(changes.iter().all(|c| *c == Change::None));
        // The same failures over a time longer than the window.
        let mut circuit = Circuit::new(now);
        for n in 0..20 {
            circuit.good(now + SECOND * 10 * n, &plan(), None);
            assert_eq!(circuit.failed(now + SECOND * 10 * n, &plan(), None, true), Change::None);
        }
    }

    #[test]
    fn one_request_at_a_time_finds_out() {
        let now = Instant::now();
        let mut circuit = open(now);
        let later = now + 30 * SECOND;
        let Admission::Probe(probe) = circuit.admit(later) else { panic!("no probe") };
        assert!(matches!(circuit.admit(later), Admission::Barred(_)));
        // One that began earlier decides nothing.
        assert_eq!(circuit.good(later, &plan(), None), Change::None);
        circuit.failed(later, &plan(), Some(probe), true);
        assert_eq!(circuit.admit(later + SECOND), Admission::Barred(29 * SECOND));
        let Admission::Probe(probe) = circuit.admit(later + 30 * SECOND) else { panic!() };
        circuit.release(probe);
        let Admission::Probe(probe) = circuit.admit(later + 30 * SECOND) else { panic!() };
        assert_eq!(circuit.good(later + 31 * SECOND, &plan(), Some(probe)), Change::Closed);
        assert_eq!(circuit.admit(later + 31 * SECOND), Admission::Pass);
        assert!(circuit.idle(later + 31 * SECOND, &plan()));
    }

    #[test]
    fn breaking_can_be_off() {
        let now = Instant::now();
        let off = CircuitPlan { consecutive: None, ..plan() };
        let mut circuit = Circuit::new(now);
        assert!((0..100).all(|_| circuit.failed(now, &off, None, true) == Change::None));
        assert_eq!(circuit.admit(now), Admission::Pass);
    }

    proptest! {
        /// Whatever comes in whatever order: there is at most one probe, and nobody passes before
        /// the pause is over.
        #[test]
        fn never_two_probes(steps in prop::collection::vec((0u8..5, 0u64..20), 1..200)) {
            let mut now = Instant::now();
            let mut circuit = Circuit::new(now);
            let mut out: Option<u64> = None;
            let mut opened: Option<Instant> = None;
            for (step, seconds) in steps {
                now += SECOND * seconds as u32;
                match step {
                    0 | 1 => match circuit.admit(now) {
                        Admission::Probe(probe) => {
                            prop_assert_eq!(out, None);
                            prop_assert!(opened.is_some_and(|at| now >= at + plan().cooldown));
                            out = Some(probe);
                        }
                        Admission::Pass => prop_assert_eq!(opened, None),
                        Admission::Barred(_) => prop_assert!(opened.is_some()),
                    },
                    2 => {
                        let probe = out.take();
                        if circuit.good(now, &plan(), probe) == Change::Closed {
                            prop_assert!(probe.is_some());
                            opened = None;
                        }
                    }
                    3 => {
                        let probe = out.take();
                        let change = circuit.failed(now, &plan(), probe, true);
                        if change == Change::Opened || probe.is_some() {
                            opened = Some(now);
                        }
                    }
                    _ => {
                        if let Some(probe) = out.take() {
                            circuit.release(probe);
                        }
                    }
                }
            }
        }
    }
}
