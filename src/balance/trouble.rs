//! The models that a backend has trouble with: those whose circuit counts failures or is open, and
//! those that it has no room for now. A backend without trouble is not locked at all.

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

/// How long a busy backend is left alone that does not say for how long, and at most.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// How often it is looked for troubles that are over, of models that nobody asks for any more.
const SWEPT: Duration = Duration::from_secs(1);

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
    /// No room until then.
    busy: Option<Instant>,
    seen: Instant,
}

impl Troubles {
    /// Whether there is any.
    pub fn any(&self) -> bool {
        self.known.load(Ordering::Relaxed) > 0
    }

    /// Whether a request would be let through. A circuit that is not `kept` bars nobody.
    pub fn bars(&self, model: &str, now: Instant, kept: bool) -> Option<Bar> {
        if !self.any() {
            return None;
        }
        let models = lock(&self.models);
        models.by_name.get(model).and_then(|trouble| trouble.bars(now, kept))
    }

    /// Lets a request through or not; a number if it is to find out whether the backend works.
    ///
    /// # Errors
    /// Why not.
    pub fn admit(&self, model: &str, now: Instant, kept: bool) -> Result<Option<u64>, Bar> {
        if !self.any() {
            return Ok(None);
        }
        let mut models = lock(&self.models);
        let Some(trouble) = models.by_name.get_mut(model) else { return Ok(None) };
        if let Some(bar) = trouble.bars(now, kept) {
            return Err(bar);
        }
        match trouble.circuit.admit(now) {
            Admission::Probe(probe) => Ok(Some(probe)),
            Admission::Barred(wait) if kept => Err(Bar::Open(wait)),
            Admission::Pass | Admission::Barred(_) => Ok(None),
        }
    }

    /// A request went well.
    pub fn good(
        &self,
        model: &str,
        now: Instant,
        plan: &CircuitPlan,
        probe: Option<u64>,
    ) -> Change {
        if !self.any() {
            return Change::None;
        }
        let models = &mut *lock(&self.models);
        let mut change = Change::None;
        if let Some(trouble) = models.by_name.get_mut(model) {
            change = trouble.circuit.good(now, plan, probe);
            if trouble.over(now, plan) {
                models.by_name.remove(model);
            }
        }
        // The others only now and then: many answers are good, and each holds the lock.
        if models.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= SWEPT) {
            models.swept = Some(now);
            models.by_name.retain(|_, trouble| !trouble.over(now, plan));
        }
        self.known.store(models.by_name.len(), Ordering::Relaxed);
        change
    }

    /// A request failed.
    pub fn failed(
        &self,
        model: &str,
        now: Instant,
        plan: &CircuitPlan,
        probe: Option<u64>,
    ) -> Change {
        if plan.consecutive.is_none() {
            return Change::None;
        }
        self.with(model, now, |trouble| trouble.circuit.failed(now, plan, probe))
    }

    /// The backend has no room for the model.
    pub fn busy(&self, model: &str, now: Instant, pause: Option<Duration>) {
        let until = now + pause.unwrap_or(PAUSE).min(LONGEST_PAUSE);
        self.with(model, now, |trouble| trouble.busy = trouble.busy.max(Some(until)));
    }

    /// A request that was to find out whether the backend works did not.
    pub fn release(&self, model: &str, probe: u64) {
        if let Some(trouble) = lock(&self.models).by_name.get_mut(model) {
            trouble.circuit.release(probe);
        }
    }

    /// Since when the circuit of a model has not been closed.
    pub fn since(&self, model: &str) -> Option<Instant> {
        if !self.any() {
            return None;
        }
        lock(&self.models).by_name.get(model)?.circuit.since()
    }

    /// Models whose circuits are not closed.
    pub fn open(&self) -> usize {
        if !self.any() {
            return 0;
        }
        lock(&self.models).by_name.values().filter(|t| t.circuit.since().is_some()).count()
    }

    fn with<T>(&self, model: &str, now: Instant, act: impl FnOnce(&mut Trouble) -> T) -> T {
        let models = &mut lock(&self.models).by_name;
        if !models.contains_key(model) && models.len() >= MOST {
            // The one that has been quiet for longest goes; an open one only if all are.
            let oldest = models.iter().min_by_key(|(_, t)| (t.circuit.since().is_some(), t.seen));
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                models.remove(&oldest);
            }
        }
        let fresh = || Trouble { circuit: Circuit::new(now), busy: None, seen: now };
        let trouble = models.entry(model.into()).or_insert_with(fresh);
        trouble.seen = now;
        let done = act(trouble);
        self.known.store(models.len(), Ordering::Relaxed);
        done
    }
}

impl Trouble {
    fn bars(&self, now: Instant, kept: bool) -> Option<Bar> {
        match self.busy {
            Some(until) if now < until => Some(Bar::Busy(until - now)),
            _ if kept => self.circuit.bars(now).map(Bar::Open),
            _ => None,
        }
    }

    fn over(&mut self, now: Instant, plan: &CircuitPlan) -> bool {
        self.busy.is_none_or(|until| until <= now) && self.circuit.idle(now, plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_busy_backend_is_left_alone_for_a_while_and_has_not_failed() {
        let (troubles, now) = (Troubles::default(), Instant::now());
        (0..100).for_each(|_| troubles.busy("m", now, None));
        assert_eq!(troubles.admit("m", now, true), Err(Bar::Busy(SECOND)));
        assert_eq!(troubles.admit("other", now, true), Ok(None));
        assert_eq!(troubles.admit("m", now + SECOND, true), Ok(None));
        troubles.busy("m", now, Some(SECOND * 3600));
        assert_eq!(troubles.admit("m", now, true), Err(Bar::Busy(SECOND * 600)));
        assert_eq!(troubles.open(), 0);
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let (troubles, now, plan) = (Troubles::default(), Instant::now(), CircuitPlan::default());
        troubles.failed("m", now, &plan, None);
        troubles.busy("n", now, None);
        assert!(troubles.any());
        troubles.good("m", now + SECOND * 100, &plan, None);
        assert!(!troubles.any());
        // One's own at once, the others within a second.
        let later = now + SECOND * 100;
        ["m", "n"].iter().for_each(|model| troubles.busy(model, later, Some(SECOND / 4)));
        troubles.good("m", later + SECOND / 2, &plan, None);
        assert_eq!(troubles.known.load(Ordering::Relaxed), 1);
        troubles.good("m", later + SECOND, &plan, None);
        assert!(!troubles.any());
    }

    #[test]
    fn names_are_not_collected_without_end() {
        let (troubles, now, plan) = (Troubles::default(), Instant::now(), CircuitPlan::default());
        (0..5).for_each(|_| assert!(troubles.bars("bad", now, true).is_none()));
        (0..5).for_each(|_| _ = troubles.failed("bad", now, &plan, None));
        for n in 0..1000u32 {
            troubles.failed(&format!("m{n}"), now + SECOND, &plan, None);
        }
        assert_eq!(lock(&troubles.models).by_name.len(), MOST);
        // The one that matters is still there.
        assert!(matches!(troubles.bars("bad", now + SECOND, true), Some(Bar::Open(_))));
    }
}
