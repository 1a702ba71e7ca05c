//! Ejection: for which models and callers a backend gets no requests now, because it failed or had no
//! room. A backend without ejections is not locked at all.
//!
//! A failure may be caused by the backend or by the request: an engine that answers 500 to an image
//! that it cannot read works well for all other requests. So each model has a circuit for all callers,
//! which opens only by what several callers have met (or by what no request can cause, a refused
//! connection), and one circuit for each caller with failures, which affects only that caller.

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::circuit::{Admission, Circuit, Transition};
use crate::{base::lock, config::plan::CircuitPlan};

/// Models of one backend that are tracked. Clients choose the names where a backend serves any model.
const MAX_MODELS: usize = 256;

/// Callers of one model that are tracked.
const MAX_CALLERS: usize = 64;

/// How long a busy backend is ejected if it does not say how long, and the longest pause.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// Time between two searches for records that are over, of models that are no longer requested.
const SWEEP: Duration = Duration::from_secs(1);

/// What a failed request says about its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// No request can cause it: no connection could be made.
    Unreachable,
    /// The same request succeeded at another backend.
    SucceededElsewhere,
    /// No other backend was tried: the backend or the request may be the cause.
    Inconclusive,
    /// Every backend that was tried failed: the request is likely to be the cause.
    FailedEverywhere,
}

/// What an outcome or a question is about: a model and a caller, at a time.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// The model, by the name that the backend knows.
    pub model: &'a str,
    /// Hash of the caller.
    pub caller: u64,
    pub now: Instant,
}

/// The numbers of the trials that a request is, for the half-open circuits that it passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trials {
    /// Of the circuit for all callers.
    pub all: Option<u64>,
    /// Of the caller's own circuit.
    pub own: Option<u64>,
}

impl Trials {
    /// Whether the request is a trial.
    pub fn any(self) -> bool {
        self.all.is_some() || self.own.is_some()
    }
}

/// How an outcome has changed the circuits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transitions {
    /// Of the circuit for all callers.
    pub all: Transition,
    /// Of the caller's own circuit.
    pub own: Transition,
}

impl Transitions {
    pub const NONE: Self = Self { all: Transition::None, own: Transition::None };
}

/// Why a backend is ejected, and how long it still is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ejection {
    /// It failed: a circuit is open.
    Open(Duration),
    /// It had no room.
    Busy(Duration),
}

impl Ejection {
    pub fn remaining(self) -> Duration {
        match self {
            Self::Open(remaining) | Self::Busy(remaining) => remaining,
        }
    }
}

/// The ejections of one backend, by model.
#[derive(Debug, Default)]
pub struct Ejections {
    models: Mutex<Models>,
    /// The number of `models`, readable without the lock.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Models {
    by_name: HashMap<Box<str>, ModelRecord>,
    /// When records that are over were last removed.
    swept: Option<Instant>,
}

#[derive(Debug)]
struct ModelRecord {
    /// The circuit for all callers.
    circuit: Circuit,
    /// The circuits of single callers, and when each was last used.
    own: HashMap<u64, (Circuit, Instant)>,
    /// Callers whose requests have failed, and when each last did.
    failed_callers: HashMap<u64, Instant>,
    /// Callers that the backend had no room for, and until when they are ejected.
    busy: HashMap<u64, Instant>,
    /// When the record was last changed.
    seen: Instant,
}

impl Ejections {
    /// Whether any model has a record.
    pub fn any(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Whether a request would be ejected now. Circuits are ignored unless they `may_eject`.
    pub fn ejection(&self, scope: &Scope<'_>, may_eject: bool) -> Option<Ejection> {
        if !self.any() {
            return None;
        }
        let models = lock(&self.models);
        models.by_name.get(scope.model).and_then(|record| record.ejection(scope, may_eject))
    }

    /// Admits a request, perhaps as a trial of half-open circuits.
    ///
    /// # Errors
    /// Why it is ejected.
    pub fn admit(&self, scope: &Scope<'_>, may_eject: bool) -> Result<Trials, Ejection> {
        if !self.any() {
            return Ok(Trials::default());
        }
        let mut models = lock(&self.models);
        let Some(record) = models.by_name.get_mut(scope.model) else {
            return Ok(Trials::default());
        };
        if let Some(ejection) = record.ejection(scope, may_eject) {
            return Err(ejection);
        }
        let trial = |circuit: &mut Circuit| match circuit.admit(scope.now) {
            Admission::Trial(trial) => Some(trial),
            Admission::Pass | Admission::Rejected(_) => None,
        };
        let own = record.own.get_mut(&scope.caller);
        Ok(Trials {
            all: trial(&mut record.circuit),
            own: own.and_then(|(circuit, _)| trial(circuit)),
        })
    }

    /// Records a request that succeeded.
    pub fn good(&self, scope: &Scope<'_>, plan: &CircuitPlan, trials: Trials) -> Transitions {
        if !self.any() {
            return Transitions::NONE;
        }
        let now = scope.now;
        let models = &mut *lock(&self.models);
        let mut transitions = Transitions::NONE;
        if let Some(record) = models.by_name.get_mut(scope.model) {
            transitions.all = record.circuit.good(now, plan, trials.all);
            if let Some((circuit, seen)) = record.own.get_mut(&scope.caller) {
                *seen = now;
                transitions.own = circuit.good(now, plan, trials.own);
            }
            if record.is_over(now, plan) {
                models.by_name.remove(scope.model);
            }
        }
        // The other models only once in a while: most answers are good, and each holds the lock.
        if models.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= SWEEP) {
            models.swept = Some(now);
            models.by_name.retain(|_, record| !record.is_over(now, plan));
        }
        self.count.store(models.by_name.len(), Ordering::Relaxed);
        transitions
    }

    /// Records a failed request.
    pub fn failed(&self, scope: &Scope<'_>, plan: &CircuitPlan, evidence: Evidence) -> Transitions {
        if plan.consecutive.is_none() {
            return Transitions::NONE;
        }
        self.with(scope, |record| record.failed(scope, plan, evidence))
    }

    /// Records a failed trial. A caller whose requests failed before does not decide for the others.
    pub fn trial_failed(
        &self,
        scope: &Scope<'_>,
        plan: &CircuitPlan,
        trials: Trials,
        unreachable: bool,
    ) {
        if let Some(record) = lock(&self.models).by_name.get_mut(scope.model) {
            if let (Some((circuit, _)), Some(_)) = (record.own.get_mut(&scope.caller), trials.own) {
                circuit.failed(scope.now, plan, trials.own, true);
            }
            let known = record.failed_callers.get(&scope.caller);
            let biased = !unreachable
                && known.is_some_and(|at| scope.now.saturating_duration_since(*at) < plan.window);
            match trials.all {
                Some(trial) if biased => record.circuit.release(trial),
                Some(_) => _ = record.circuit.failed(scope.now, plan, trials.all, true),
                None => {}
            }
            // Circuit breaking was switched off meanwhile: the trial decides nothing.
            if plan.consecutive.is_none() {
                record.release(scope.caller, trials);
            }
        }
    }

    /// The backend has no room for the model. Only this caller is ejected until a second one gets the
    /// same answer: a backend also gives it to a request that is too large for it.
    pub fn busy(&self, scope: &Scope<'_>, pause: Option<Duration>) {
        let until = scope.now + pause.unwrap_or(PAUSE).min(LONGEST_PAUSE);
        self.with(scope, |record| {
            record.busy.retain(|_, until| *until > scope.now);
            if record.busy.len() < MAX_CALLERS || record.busy.contains_key(&scope.caller) {
                let known = record.busy.entry(scope.caller).or_insert(until);
                *known = until.max(*known);
            }
        });
    }

    /// Releases trials that came to no result.
    pub fn release(&self, model: &str, caller: u64, trials: Trials) {
        if let Some(record) = lock(&self.models).by_name.get_mut(model) {
            record.release(caller, trials);
        }
    }

    /// Since when a circuit for this model and caller has not been closed.
    pub fn since(&self, model: &str, caller: u64) -> Option<Instant> {
        if !self.any() {
            return None;
        }
        let models = lock(&self.models);
        let record = models.by_name.get(model)?;
        let own = record.own.get(&caller).and_then(|(circuit, _)| circuit.since());
        record.circuit.since().into_iter().chain(own).min()
    }

    /// The number of models with a circuit that is not closed.
    pub fn open(&self) -> usize {
        if !self.any() {
            return 0;
        }
        let open = |record: &&ModelRecord| record.since().is_some();
        lock(&self.models).by_name.values().filter(open).count()
    }

    fn with<T>(&self, scope: &Scope<'_>, act: impl FnOnce(&mut ModelRecord) -> T) -> T {
        let models = &mut lock(&self.models).by_name;
        if !models.contains_key(scope.model) && models.len() >= MAX_MODELS {
            // The record that was not changed for longest is removed; an open one only if all are open.
            let oldest = models.iter().min_by_key(|(_, t)| (t.since().is_some(), t.seen));
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                models.remove(&oldest);
            }
        }
        let fresh = || ModelRecord::new(scope.now);
        let record = models.entry(scope.model.into()).or_insert_with(fresh);
        record.seen = scope.now;
        let done = act(record);
        self.count.store(models.len(), Ordering::Relaxed);
        done
    }
}

impl ModelRecord {
    fn new(now: Instant) -> Self {
        Self {
            circuit: Circuit::new(now),
            own: HashMap::new(),
            failed_callers: HashMap::new(),
            busy: HashMap::new(),
            seen: now,
        }
    }

    fn ejection(&self, scope: &Scope<'_>, may_eject: bool) -> Option<Ejection> {
        let now = scope.now;
        match self.busy_until(scope.caller, now) {
            Some(until) => Some(Ejection::Busy(until - now)),
            _ if may_eject => {
                let own = self.own.get(&scope.caller);
                let own = own.and_then(|(circuit, _)| circuit.remaining(now));
                self.circuit.remaining(now).max(own).map(Ejection::Open)
            }
            _ => None,
        }
    }

    /// Until when a caller is ejected as busy: by its own pause, and by the second longest of all
    /// callers' pauses.
    fn busy_until(&self, caller: u64, now: Instant) -> Option<Instant> {
        let mut latest: [Option<Instant>; 2] = [None; 2];
        for until in self.busy.values().copied().filter(|until| *until > now) {
            if Some(until) > latest[0] {
                latest = [Some(until), latest[0]];
            } else {
                latest[1] = latest[1].max(Some(until));
            }
        }
        let own = self.busy.get(&caller).copied().filter(|until| *until > now);
        own.max(latest[1])
    }

    fn failed(&mut self, scope: &Scope<'_>, plan: &CircuitPlan, evidence: Evidence) -> Transitions {
        let &Scope { caller, now, .. } = scope;
        if evidence == Evidence::Unreachable {
            let all = self.circuit.failed(now, plan, None, true);
            return Transitions { all, own: Transition::None };
        }
        self.failed_callers.retain(|_, at| now.saturating_duration_since(*at) < plan.window);
        let first = !self.failed_callers.contains_key(&caller);
        if !first || self.failed_callers.len() < MAX_CALLERS {
            self.failed_callers.insert(caller, now);
        }
        let mut transitions = Transitions::NONE;
        // A failure that the request may have caused counts once per caller and window.
        if first || evidence == Evidence::SucceededElsewhere {
            let enough = self.failed_callers.len() > 1;
            transitions.all = self.circuit.failed(now, plan, None, enough);
        }
        if evidence != Evidence::FailedEverywhere {
            transitions.own = self.own(caller, now).failed(now, plan, None, true);
        }
        transitions
    }

    /// The circuit of a caller.
    fn own(&mut self, caller: u64, now: Instant) -> &mut Circuit {
        if !self.own.contains_key(&caller) && self.own.len() >= MAX_CALLERS {
            let oldest = self.own.iter().min_by_key(|(_, (c, seen))| (c.since().is_some(), *seen));
            if let Some(oldest) = oldest.map(|(caller, _)| *caller) {
                self.own.remove(&oldest);
            }
        }
        let (circuit, seen) = self.own.entry(caller).or_insert_with(|| (Circuit::new(now), now));
        *seen = now;
        circuit
    }

    fn release(&mut self, caller: u64, trials: Trials) {
        if let Some(trial) = trials.all {
            self.circuit.release(trial);
        }
        if let (Some(trial), Some((circuit, _))) = (trials.own, self.own.get_mut(&caller)) {
            circuit.release(trial);
        }
    }

    /// Since when the first of its circuits has not been closed.
    fn since(&self) -> Option<Instant> {
        let own = self.own.values().filter_map(|(circuit, _)| circuit.since());
        self.circuit.since().into_iter().chain(own).min()
    }

    /// Whether the record holds nothing that a new one would not.
    fn is_over(&mut self, now: Instant, plan: &CircuitPlan) -> bool {
        self.own.retain(|_, (circuit, _)| !circuit.idle(now, plan));
        self.busy.values().all(|until| *until <= now)
            && self.own.is_empty()
            && self.circuit.idle(now, plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const PASS: Result<Trials, Ejection> = Ok(Trials { all: None, own: None });

    fn plan() -> CircuitPlan {
        CircuitPlan { consecutive: Some(3), min_requests: 10, ..CircuitPlan::default() }
    }

    fn scope(caller: u64, now: Instant) -> Scope<'static> {
        Scope { model: "m", caller, now }
    }

    #[test]
    fn a_busy_backend_is_left_alone_for_a_while_and_has_not_failed() {
        let (ejections, now) = (Ejections::default(), Instant::now());
        let at = |after| scope(1, now + after);
        (0..100).for_each(|_| ejections.busy(&at(Duration::ZERO), None));
        assert_eq!(ejections.admit(&at(Duration::ZERO), true), Err(Ejection::Busy(SECOND)));
        assert_eq!(ejections.admit(&Scope { model: "other", ..at(Duration::ZERO) }, true), PASS);
        assert_eq!(ejections.admit(&at(SECOND), true), PASS);
        ejections.busy(&at(Duration::ZERO), Some(SECOND * 3600));
        assert_eq!(ejections.admit(&at(Duration::ZERO), true), Err(Ejection::Busy(SECOND * 600)));
        assert_eq!(ejections.open(), 0);
    }

    #[test]
    fn a_backend_is_busy_for_all_when_two_callers_are_told_so() {
        let (ejections, now) = (Ejections::default(), Instant::now());
        let barred =
            |caller, after: u32| ejections.ejection(&scope(caller, now + SECOND * after), true);
        (0..9).for_each(|_| ejections.busy(&scope(1, now), Some(SECOND * 60)));
        assert_eq!((barred(1, 0), barred(2, 0)), (Some(Ejection::Busy(SECOND * 60)), None));
        ejections.busy(&scope(2, now), Some(SECOND * 10));
        assert_eq!(barred(3, 0), Some(Ejection::Busy(SECOND * 10)));
        assert_eq!((barred(1, 20), barred(3, 20)), (Some(Ejection::Busy(SECOND * 40)), None));
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let (ejections, now, plan) = (Ejections::default(), Instant::now(), CircuitPlan::default());
        let of = |model, now| Scope { model, caller: 1, now };
        ejections.failed(&of("m", now), &plan, Evidence::Inconclusive);
        ejections.busy(&of("n", now), None);
        assert!(ejections.any());
        let later = now + SECOND * 100;
        ejections.good(&of("m", later), &plan, Trials::default());
        assert!(!ejections.any());
        // One's own at once, the others within a second.
        ["m", "n"].iter().for_each(|m| ejections.busy(&of(m, later), Some(SECOND / 4)));
        ejections.good(&of("m", later + SECOND / 2), &plan, Trials::default());
        assert_eq!(ejections.count.load(Ordering::Relaxed), 1);
        ejections.good(&of("m", later + SECOND), &plan, Trials::default());
        assert!(!ejections.any());
    }

    #[test]
    fn names_are_not_collected_without_end() {
        let (ejections, now, plan) = (Ejections::default(), Instant::now(), CircuitPlan::default());
        let bad = |now| Scope { model: "bad", caller: 1, now };
        assert!(ejections.ejection(&bad(now), true).is_none());
        (0..5).for_each(|_| _ = ejections.failed(&bad(now), &plan, Evidence::Unreachable));
        for n in 0..1000u32 {
            let model = format!("m{n}");
            let scope = Scope { model: &model, caller: 1, now: now + SECOND };
            ejections.failed(&scope, &plan, Evidence::Inconclusive);
        }
        assert_eq!(lock(&ejections.models).by_name.len(), MAX_MODELS);
        // The one that matters is still there.
        assert!(matches!(ejections.ejection(&bad(now + SECOND), true), Some(Ejection::Open(_))));
        // Nor are callers.
        for caller in 0..1000 {
            ejections.failed(&scope(caller, now), &plan, Evidence::Inconclusive);
        }
        let models = lock(&ejections.models);
        let record = &models.by_name["m"];
        assert_eq!((record.own.len(), record.failed_callers.len()), (MAX_CALLERS, MAX_CALLERS));
    }

    /// Whether a caller is barred after each of these has failed so often, in turn.
    fn barred(evidence: Evidence, callers: &[u64], times: u32, other: u64) -> bool {
        let (ejections, now) = (Ejections::default(), Instant::now());
        for _ in 0..times {
            for caller in callers {
                ejections.failed(&scope(*caller, now), &plan(), evidence);
            }
        }
        ejections.ejection(&scope(other, now), true).is_some()
    }

    #[test]
    fn one_caller_ejects_for_no_other() {
        for evidence in
            [Evidence::SucceededElsewhere, Evidence::Inconclusive, Evidence::FailedEverywhere]
        {
            assert!(!barred(evidence, &[1], 1000, 2), "{evidence:?}");
        }
        // What others do well is no reason to send on what this one asks.
        assert!(
            barred(Evidence::SucceededElsewhere, &[1], 3, 1)
                && barred(Evidence::Inconclusive, &[1], 3, 1)
        );
        // A request that fails everywhere says nothing about any of the backends.
        assert!(!barred(Evidence::FailedEverywhere, &[1], 1000, 1));
    }

    #[test]
    fn what_several_callers_meet_is_the_backend() {
        assert!(
            barred(Evidence::SucceededElsewhere, &[1, 2], 2, 3),
            "compared: it is enough that two do"
        );
        for evidence in [Evidence::Inconclusive, Evidence::FailedEverywhere] {
            assert!(!barred(evidence, &[1, 2], 1000, 3), "{evidence:?}: each counts once");
            assert!(barred(evidence, &[1, 2, 3], 1, 4), "{evidence:?}");
        }
        assert!(barred(Evidence::Unreachable, &[1], 3, 2));
    }

    #[test]
    fn a_caller_counts_again_after_the_window() {
        let (ejections, now) = (Ejections::default(), Instant::now());
        let open = |after: Duration| {
            ejections.failed(&scope(1, now + after), &plan(), Evidence::FailedEverywhere);
            ejections.failed(&scope(2, now + after), &plan(), Evidence::FailedEverywhere);
            ejections.ejection(&scope(3, now + after), true).is_some()
        };
        assert!(!open(Duration::ZERO) && !open(plan().window / 2));
        assert!(open(plan().window * 2), "no request has succeeded in between");
    }

    #[test]
    fn a_caller_that_failed_before_does_not_keep_a_circuit_open_for_others() {
        let (ejections, now) = (Ejections::default(), Instant::now());
        (1..=3).for_each(|c| {
            _ = ejections.failed(&scope(c, now), &plan(), Evidence::FailedEverywhere)
        });
        // Still within the window in which it has failed.
        let plan = CircuitPlan { window: SECOND * 1000, ..plan() };
        let later = now + plan.cooldown;
        let trials = ejections.admit(&scope(1, later), true).unwrap();
        assert!(trials.all.is_some());
        ejections.trial_failed(&scope(1, later), &plan, trials, false);
        let trials = ejections.admit(&scope(9, later), true).unwrap();
        assert!(trials.all.is_some(), "the next one finds out");
        let closed = ejections.good(&scope(9, later), &plan, trials);
        assert_eq!(closed.all, Transition::Closed);
        // One of whom nothing is known decides.
        (1..=3).for_each(|c| _ = ejections.failed(&scope(c, later), &plan, Evidence::Unreachable));
        let again = later + plan.cooldown;
        let trials = ejections.admit(&scope(9, again), true).unwrap();
        ejections.trial_failed(&scope(9, again), &plan, trials, false);
        assert!(matches!(ejections.ejection(&scope(1, again), true), Some(Ejection::Open(_))));
    }
}
