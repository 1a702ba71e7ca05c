//! The models that a backend has trouble with: those whose circuit counts failures or is open, and
//! those that it has no room for now. A backend without trouble is not locked at all.
//!
//! A failure may be the backend's or the request's: an engine that answers 500 to an image that it
//! cannot read works well for everyone else. So each model has a circuit for all callers, which opens
//! only by what more than one caller has met (or by what no request can cause, a refused connection),
//! and one for each caller with failures, which keeps only that caller away.

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::circuit::{Admission, Change, Circuit};
use crate::{base::lock, config::plan::CircuitPlan};

/// Models of one backend that are remembered. Clients choose names where a backend serves all.
const MOST: usize = 256;

/// Callers of one model that are remembered.
const MOST_CALLERS: usize = 64;

/// How long a busy backend is left alone that does not say for how long, and at most.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// How often it is looked for troubles that are over, of models that nobody asks for any more.
const SWEPT: Duration = Duration::from_secs(1);

/// What a failed request says about its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// No request can have caused it: no connection could be made.
    Unreachable,
    /// The same request succeeded at another backend.
    Compared,
    /// No other backend was asked: it may be the backend or the request.
    Open,
    /// Every backend that was asked failed it: the request is likely to be the cause.
    Everywhere,
}

/// What is asked of the troubles: a model, for a caller.
#[derive(Clone, Copy, Debug)]
pub struct Matter<'a> {
    /// The model, by the name that the backend knows.
    pub model: &'a str,
    /// Who calls, hashed.
    pub caller: u64,
    /// When.
    pub now: Instant,
}

/// The numbers of the probes that a request is: of the circuit for all, and of its caller's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Probes {
    /// Of the circuit for all callers.
    pub all: Option<u64>,
    /// Of the caller's own.
    pub own: Option<u64>,
}

impl Probes {
    /// Whether it is one.
    pub fn any(self) -> bool {
        self.all.is_some() || self.own.is_some()
    }
}

/// What an outcome has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changes {
    /// For all callers.
    pub all: Change,
    /// For the one who called.
    pub own: Change,
}

impl Changes {
    /// Nothing.
    pub const NONE: Self = Self { all: Change::None, own: Change::None };
}

/// Why a backend is left alone, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// It has failed.
    Open(Duration),
    /// It has no room.
    Busy(Duration),
}

impl Bar {
    /// How long.
    pub fn wait(self) -> Duration {
        match self {
            Self::Open(wait) | Self::Busy(wait) => wait,
        }
    }
}

/// The troubles of one backend.
#[derive(Debug, Default)]
pub struct Troubles {
    models: Mutex<Models>,
    /// As many as `models` has.
    known: AtomicUsize,
}

#[derive(Debug, Default)]
struct Models {
    by_name: HashMap<Box<str>, Trouble>,
    /// When it was last looked for those that are over.
    swept: Option<Instant>,
}

#[derive(Debug)]
struct Trouble {
    circuit: Circuit,
    /// Those of single callers, with when each was last heard of.
    own: HashMap<u64, (Circuit, Instant)>,
    /// Callers whose requests have failed, and when each last did.
    witnesses: HashMap<u64, Instant>,
    /// Callers for whom there was no room, and until when there is none.
    busy: HashMap<u64, Instant>,
    seen: Instant,
}

impl Troubles {
    /// Whether there is any.
    pub fn any(&self) -> bool {
        self.known.load(Ordering::Relaxed) > 0
    }

    /// Whether a request would be let through. A circuit that is not `kept` bars nobody.
    pub fn bars(&self, matter: &Matter<'_>, kept: bool) -> Option<Bar> {
        if !self.any() {
            return None;
        }
        let models = lock(&self.models);
        models.by_name.get(matter.model).and_then(|trouble| trouble.bars(matter, kept))
    }

    /// Lets a request through or not, perhaps to find out whether the backend works.
    ///
    /// # Errors
    /// Why not.
    pub fn admit(&self, matter: &Matter<'_>, kept: bool) -> Result<Probes, Bar> {
        if !self.any() {
            return Ok(Probes::default());
        }
        let mut models = lock(&self.models);
        let Some(trouble) = models.by_name.get_mut(matter.model) else {
            return Ok(Probes::default());
        };
        if let Some(bar) = trouble.bars(matter, kept) {
            return Err(bar);
        }
        let probe = |circuit: &mut Circuit| match circuit.admit(matter.now) {
            Admission::Probe(probe) => Some(probe),
            Admission::Pass | Admission::Barred(_) => None,
        };
        let own = trouble.own.get_mut(&matter.caller);
        Ok(Probes {
            all: probe(&mut trouble.circuit),
            own: own.and_then(|(circuit, _)| probe(circuit)),
        })
    }

    /// A request went well.
    pub fn good(&self, matter: &Matter<'_>, plan: &CircuitPlan, probes: Probes) -> Changes {
        if !self.any() {
            return Changes::NONE;
        }
        let now = matter.now;
        let models = &mut *lock(&self.models);
        let mut changes = Changes::NONE;
        if let Some(trouble) = models.by_name.get_mut(matter.model) {
            changes.all = trouble.circuit.good(now, plan, probes.all);
            if let Some((circuit, seen)) = trouble.own.get_mut(&matter.caller) {
                *seen = now;
                changes.own = circuit.good(now, plan, probes.own);
            }
            if trouble.over(now, plan) {
                models.by_name.remove(matter.model);
            }
        }
        // The others only now and then: many answers are good, and each holds the lock.
        if models.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= SWEPT) {
            models.swept = Some(now);
            models.by_name.retain(|_, trouble| !trouble.over(now, plan));
        }
        self.known.store(models.by_name.len(), Ordering::Relaxed);
        changes
    }

    /// A request failed.
    pub fn failed(&self, matter: &Matter<'_>, plan: &CircuitPlan, evidence: Evidence) -> Changes {
        if plan.consecutive.is_none() {
            return Changes::NONE;
        }
        self.with(matter, |trouble| trouble.failed(matter, plan, evidence))
    }

    /// A request failed that was to find out whether the backend works. A caller who is known to meet
    /// failures does not decide for the others.
    pub fn probe_failed(
        &self,
        matter: &Matter<'_>,
        plan: &CircuitPlan,
        probes: Probes,
        unreachable: bool,
    ) {
        if let Some(trouble) = lock(&self.models).by_name.get_mut(matter.model) {
            if let (Some((circuit, _)), Some(_)) = (trouble.own.get_mut(&matter.caller), probes.own)
            {
                circuit.failed(matter.now, plan, probes.own, true);
            }
            let known = trouble.witnesses.get(&matter.caller);
            let biased = !unreachable
                && known.is_some_and(|at| matter.now.saturating_duration_since(*at) < plan.window);
            match probes.all {
                Some(probe) if biased => trouble.circuit.release(probe),
                Some(_) => _ = trouble.circuit.failed(matter.now, plan, probes.all, true),
                None => {}
            }
            // With breaking switched off meanwhile, nothing was decided.
            if plan.consecutive.is_none() {
                trouble.release(matter.caller, probes);
            }
        }
    }

    /// The backend has no room for the model: for this caller, until a second one is told the same.
    /// What is too large for a backend at all is refused in these words too.
    pub fn busy(&self, matter: &Matter<'_>, pause: Option<Duration>) {
        let until = matter.now + pause.unwrap_or(PAUSE).min(LONGEST_PAUSE);
        self.with(matter, |trouble| {
            trouble.busy.retain(|_, until| *until > matter.now);
            if trouble.busy.len() < MOST_CALLERS || trouble.busy.contains_key(&matter.caller) {
                let known = trouble.busy.entry(matter.caller).or_insert(until);
                *known = until.max(*known);
            }
        });
    }

    /// A request that was to find out whether the backend works did not.
    pub fn release(&self, model: &str, caller: u64, probes: Probes) {
        if let Some(trouble) = lock(&self.models).by_name.get_mut(model) {
            trouble.release(caller, probes);
        }
    }

    /// Since when a circuit that bars a caller from a model has not been closed.
    pub fn since(&self, model: &str, caller: u64) -> Option<Instant> {
        if !self.any() {
            return None;
        }
        let models = lock(&self.models);
        let trouble = models.by_name.get(model)?;
        let own = trouble.own.get(&caller).and_then(|(circuit, _)| circuit.since());
        trouble.circuit.since().into_iter().chain(own).min()
    }

    /// Models with a circuit that is not closed.
    pub fn open(&self) -> usize {
        if !self.any() {
            return 0;
        }
        let open = |trouble: &&Trouble| trouble.since().is_some();
        lock(&self.models).by_name.values().filter(open).count()
    }

    fn with<T>(&self, matter: &Matter<'_>, act: impl FnOnce(&mut Trouble) -> T) -> T {
        let models = &mut lock(&self.models).by_name;
        if !models.contains_key(matter.model) && models.len() >= MOST {
            // The one that has been quiet for longest goes; an open one only if all are.
            let oldest = models.iter().min_by_key(|(_, t)| (t.since().is_some(), t.seen));
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                models.remove(&oldest);
            }
        }
        let fresh = || Trouble::new(matter.now);
        let trouble = models.entry(matter.model.into()).or_insert_with(fresh);
        trouble.seen = matter.now;
        let done = act(trouble);
        self.known.store(models.len(), Ordering::Relaxed);
        done
    }
}

impl Trouble {
    fn new(now: Instant) -> Self {
        Self {
            circuit: Circuit::new(now),
            own: HashMap::new(),
            witnesses: HashMap::new(),
            busy: HashMap::new(),
            seen: now,
        }
    }

    fn bars(&self, matter: &Matter<'_>, kept: bool) -> Option<Bar> {
        let now = matter.now;
        match self.busy_until(matter.caller, now) {
            Some(until) => Some(Bar::Busy(until - now)),
            _ if kept => {
                let own = self.own.get(&matter.caller);
                let own = own.and_then(|(circuit, _)| circuit.bars(now));
                self.circuit.bars(now).max(own).map(Bar::Open)
            }
            _ => None,
        }
    }

    /// Until when there is no room for a caller: as this one was told, and as long as two others were.
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

    fn failed(&mut self, matter: &Matter<'_>, plan: &CircuitPlan, evidence: Evidence) -> Changes {
        let &Matter { caller, now, .. } = matter;
        if evidence == Evidence::Unreachable {
            let all = self.circuit.failed(now, plan, None, true);
            return Changes { all, own: Change::None };
        }
        self.witnesses.retain(|_, at| now.saturating_duration_since(*at) < plan.window);
        let first = !self.witnesses.contains_key(&caller);
        if !first || self.witnesses.len() < MOST_CALLERS {
            self.witnesses.insert(caller, now);
        }
        let mut changes = Changes::NONE;
        // What may be the request's fault counts once for each caller in the window.
        if first || evidence == Evidence::Compared {
            let enough = self.witnesses.len() > 1;
            changes.all = self.circuit.failed(now, plan, None, enough);
        }
        if evidence != Evidence::Everywhere {
            changes.own = self.own(caller, now).failed(now, plan, None, true);
        }
        changes
    }

    /// A caller's own circuit.
    fn own(&mut self, caller: u64, now: Instant) -> &mut Circuit {
        if !self.own.contains_key(&caller) && self.own.len() >= MOST_CALLERS {
            let oldest = self.own.iter().min_by_key(|(_, (c, seen))| (c.since().is_some(), *seen));
            if let Some(oldest) = oldest.map(|(caller, _)| *caller) {
                self.own.remove(&oldest);
            }
        }
        let (circuit, seen) = self.own.entry(caller).or_insert_with(|| (Circuit::new(now), now));
        *seen = now;
        circuit
    }

    fn release(&mut self, caller: u64, probes: Probes) {
        if let Some(probe) = probes.all {
            self.circuit.release(probe);
        }
        if let (Some(probe), Some((circuit, _))) = (probes.own, self.own.get_mut(&caller)) {
            circuit.release(probe);
        }
    }

    /// Since when the first of its circuits has not been closed.
    fn since(&self) -> Option<Instant> {
        let own = self.own.values().filter_map(|(circuit, _)| circuit.since());
        self.circuit.since().into_iter().chain(own).min()
    }

    fn over(&mut self, now: Instant, plan: &CircuitPlan) -> bool {
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
    const PASS: Result<Probes, Bar> = Ok(Probes { all: None, own: None });

    fn plan() -> CircuitPlan {
        CircuitPlan { consecutive: Some(3), min_requests: 10, ..CircuitPlan::default() }
    }

    fn matter(caller: u64, now: Instant) -> Matter<'static> {
        Matter { model: "m", caller, now }
    }

    #[test]
    fn a_busy_backend_is_left_alone_for_a_while_and_has_not_failed() {
        let (troubles, now) = (Troubles::default(), Instant::now());
        let at = |after| matter(1, now + after);
        (0..100).for_each(|_| troubles.busy(&at(Duration::ZERO), None));
        assert_eq!(troubles.admit(&at(Duration::ZERO), true), Err(Bar::Busy(SECOND)));
        assert_eq!(troubles.admit(&Matter { model: "other", ..at(Duration::ZERO) }, true), PASS);
        assert_eq!(troubles.admit(&at(SECOND), true), PASS);
        troubles.busy(&at(Duration::ZERO), Some(SECOND * 3600));
        assert_eq!(troubles.admit(&at(Duration::ZERO), true), Err(Bar::Busy(SECOND * 600)));
        assert_eq!(troubles.open(), 0);
    }

    #[test]
    fn a_backend_is_busy_for_all_when_two_callers_are_told_so() {
        let (troubles, now) = (Troubles::default(), Instant::now());
        let barred =
            |caller, after: u32| troubles.bars(&matter(caller, now + SECOND * after), true);
        (0..9).for_each(|_| troubles.busy(&matter(1, now), Some(SECOND * 60)));
        assert_eq!((barred(1, 0), barred(2, 0)), (Some(Bar::Busy(SECOND * 60)), None));
        troubles.busy(&matter(2, now), Some(SECOND * 10));
        assert_eq!(barred(3, 0), Some(Bar::Busy(SECOND * 10)));
        assert_eq!((barred(1, 20), barred(3, 20)), (Some(Bar::Busy(SECOND * 40)), None));
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let (troubles, now, plan) = (Troubles::default(), Instant::now(), CircuitPlan::default());
        let of = |model, now| Matter { model, caller: 1, now };
        troubles.failed(&of("m", now), &plan, Evidence::Open);
        troubles.busy(&of("n", now), None);
        assert!(troubles.any());
        let later = now + SECOND * 100;
        troubles.good(&of("m", later), &plan, Probes::default());
        assert!(!troubles.any());
        // One's own at once, the others within a second.
        ["m", "n"].iter().for_each(|m| troubles.busy(&of(m, later), Some(SECOND / 4)));
        troubles.good(&of("m", later + SECOND / 2), &plan, Probes::default());
        assert_eq!(troubles.known.load(Ordering::Relaxed), 1);
        troubles.good(&of("m", later + SECOND), &plan, Probes::default());
        assert!(!troubles.any());
    }

    #[test]
    fn names_are_not_collected_without_end() {
        let (troubles, now, plan) = (Troubles::default(), Instant::now(), CircuitPlan::default());
        let bad = |now| Matter { model: "bad", caller: 1, now };
        assert!(troubles.bars(&bad(now), true).is_none());
        (0..5).for_each(|_| _ = troubles.failed(&bad(now), &plan, Evidence::Unreachable));
        for n in 0..1000u32 {
            let model = format!("m{n}");
            let matter = Matter { model: &model, caller: 1, now: now + SECOND };
            troubles.failed(&matter, &plan, Evidence::Open);
        }
        assert_eq!(lock(&troubles.models).by_name.len(), MOST);
        // The one that matters is still there.
        assert!(matches!(troubles.bars(&bad(now + SECOND), true), Some(Bar::Open(_))));
        // Nor are callers.
        for caller in 0..1000 {
            troubles.failed(&matter(caller, now), &plan, Evidence::Open);
        }
        let models = lock(&troubles.models);
        let trouble = &models.by_name["m"];
        assert_eq!((trouble.own.len(), trouble.witnesses.len()), (MOST_CALLERS, MOST_CALLERS));
    }

    /// Whether a caller is barred after each of these has failed so often, in turn.
    fn barred(evidence: Evidence, callers: &[u64], times: u32, who: u64) -> bool {
        let (troubles, now) = (Troubles::default(), Instant::now());
        for _ in 0..times {
            for caller in callers {
                troubles.failed(&matter(*caller, now), &plan(), evidence);
            }
        }
        troubles.bars(&matter(who, now), true).is_some()
    }

    #[test]
    fn one_caller_keeps_nobody_else_away() {
        for evidence in [Evidence::Compared, Evidence::Open, Evidence::Everywhere] {
            assert!(!barred(evidence, &[1], 1000, 2), "{evidence:?}");
        }
        // What others do well is no reason to send on what this one asks.
        assert!(barred(Evidence::Compared, &[1], 3, 1) && barred(Evidence::Open, &[1], 3, 1));
        // A request that fails everywhere says nothing about any of the backends.
        assert!(!barred(Evidence::Everywhere, &[1], 1000, 1));
    }

    #[test]
    fn what_several_callers_meet_is_the_backend() {
        assert!(barred(Evidence::Compared, &[1, 2], 2, 3), "compared: it is enough that two do");
        for evidence in [Evidence::Open, Evidence::Everywhere] {
            assert!(!barred(evidence, &[1, 2], 1000, 3), "{evidence:?}: each counts once");
            assert!(barred(evidence, &[1, 2, 3], 1, 4), "{evidence:?}");
        }
        assert!(barred(Evidence::Unreachable, &[1], 3, 2));
    }

    #[test]
    fn a_caller_counts_again_after_the_window() {
        let (troubles, now) = (Troubles::default(), Instant::now());
        let open = |after: Duration| {
            troubles.failed(&matter(1, now + after), &plan(), Evidence::Everywhere);
            troubles.failed(&matter(2, now + after), &plan(), Evidence::Everywhere);
            troubles.bars(&matter(3, now + after), true).is_some()
        };
        assert!(!open(Duration::ZERO) && !open(plan().window / 2));
        assert!(open(plan().window * 2), "nothing has gone well in between");
    }

    #[test]
    fn a_known_witness_does_not_keep_a_circuit_open_for_others() {
        let (troubles, now) = (Troubles::default(), Instant::now());
        (1..=3).for_each(|c| _ = troubles.failed(&matter(c, now), &plan(), Evidence::Everywhere));
        // Still within the window in which it has failed.
        let plan = CircuitPlan { window: SECOND * 1000, ..plan() };
        let later = now + plan.cooldown;
        let probes = troubles.admit(&matter(1, later), true).unwrap();
        assert!(probes.all.is_some());
        troubles.probe_failed(&matter(1, later), &plan, probes, false);
        let probes = troubles.admit(&matter(9, later), true).unwrap();
        assert!(probes.all.is_some(), "the next one finds out");
        let closed = troubles.good(&matter(9, later), &plan, probes);
        assert_eq!(closed.all, Change::Closed);
        // One of whom nothing is known decides.
        (1..=3).for_each(|c| _ = troubles.failed(&matter(c, later), &plan, Evidence::Unreachable));
        let again = later + plan.cooldown;
        let probes = troubles.admit(&matter(9, again), true).unwrap();
        troubles.probe_failed(&matter(9, again), &plan, probes, false);
        assert!(matches!(troubles.bars(&matter(1, again), true), Some(Bar::Open(_))));
    }
}
