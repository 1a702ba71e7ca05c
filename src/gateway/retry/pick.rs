//! Which backend the next attempt goes to.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{RetryPolicy, RouteChoice, RoutingView, pause};
use crate::{
    balance::{Candidate, NoBackend, PickRequest, PickedBackend, Pool},
    config::plan::{PrefixPlan, Strategy},
    gateway::{
        affinity,
        attempt::Attempt,
        timeline::{self, Search, Timeline},
    },
    route::{Route, Split, Tier},
};

/// A backend, and how it was found.
pub struct PlannedAttempt {
    /// The backend.
    pub choice: PickedBackend,
    /// The model's name there; `None`: as the client says.
    pub model: Option<Arc<str>>,
    /// Tiers before the one that it was found in.
    pub tier: usize,
    /// Its pool.
    pub pool: usize,
    /// The states of the pool's backends, if the timeline has them.
    pub candidates: Vec<Candidate>,
}

/// What comes next.
pub enum Next {
    /// An attempt at this backend.
    Attempt(Box<PlannedAttempt>),
    /// A pause.
    Pause(Duration),
    /// No further attempt.
    NoBackend(NoBackend),
}

impl RetryPolicy {
    /// What comes next.
    pub fn next(&mut self, view: &RoutingView<'_>, timeline: &mut Timeline) -> Next {
        if let Some(pause) = self.pause.take() {
            return Next::Pause(pause);
        }
        let now = Instant::now();
        let none = match self.pick(view, timeline, now) {
            Ok(picked) => {
                if self.begun == 0 {
                    self.paying = Some(picked.pool);
                    view.snapshot.pools[picked.pool].earn();
                } else if !self.afford(view, picked.pool, now) {
                    return Next::NoBackend(NoBackend::default());
                }
                return Next::Attempt(Box::new(picked));
            }
            Err(none) => none,
        };
        match self.wait_for(view, none) {
            Some(pause) => Next::Pause(pause),
            None => Next::NoBackend(none),
        }
    }

    /// Puts back a pause that was not made.
    pub fn postpone(&mut self, pause: Duration) {
        self.pause = Some(pause);
    }

    /// Looks for a backend for a second attempt beside the present one, in the same tier: the other
    /// tiers are for failures. It is paid for as a retry.
    pub fn second(
        &mut self,
        present: &Attempt,
        view: &RoutingView<'_>,
        timeline: &mut Timeline,
    ) -> Option<Box<PlannedAttempt>> {
        self.exclude(present, false);
        let now = Instant::now();
        let picked = self.pick(view, timeline, now).ok()?;
        if picked.tier != present.tier || !self.afford(view, picked.pool, now) {
            return None;
        }
        self.left = self.left.saturating_sub(1);
        Some(Box::new(picked))
    }

    /// The picked backend is passed over: its languages cannot say the request.
    pub fn pass_over(&mut self, picked: PlannedAttempt) {
        let PlannedAttempt { choice, model, .. } = picked;
        self.unable.add(choice.endpoint.id, model, false);
    }

    /// What scripts choose is written here.
    pub fn choice_mut(&mut self) -> &mut RouteChoice {
        self.choice.get_or_insert_default()
    }

    /// The states of the backends of a split, as the next pick would see them.
    pub fn candidates(
        &mut self,
        view: &RoutingView<'_>,
        split: &Split,
        now: Instant,
        most: usize,
    ) -> Vec<Candidate> {
        let pool = &view.snapshot.pools[split.pool];
        let excluded = self.excluded_in(pool, self.model_of(split).as_deref());
        let request = self.request(view, split, &excluded, now);
        pool.candidates(&request, most)
    }

    /// Only this backend has what the request refers to.
    pub fn bind(&mut self, owner: u32) {
        self.owner = Some(owner);
    }

    /// The picked backend gets its attempt.
    pub fn start(
        &mut self,
        picked: PlannedAttempt,
        view: &RoutingView<'_>,
        timeline: &mut Timeline,
    ) -> Attempt {
        let PlannedAttempt { choice, model, tier, pool, candidates } = picked;
        let explains = view.carry.explains.capacity() > 0;
        let span = explains.then(|| {
            let search = Search { tier, pool, model: model.clone(), candidates };
            timeline.begin(view.request.arrived, search, Arc::clone(&choice.endpoint.name))
        });
        self.begun += 1;
        self.tier = tier;
        if let Some(reason) = self.reason.take() {
            self.retries += 1;
            view.carry.metrics.retries.with_label_values(&[reason]).inc();
        }
        Attempt::new(choice, model, tier, span)
    }

    /// Takes a retry from the budget of the pool that was asked first; `pool` if none was.
    fn afford(&mut self, view: &RoutingView<'_>, pool: usize, now: Instant) -> bool {
        let paying = *self.paying.get_or_insert(pool);
        let can = view.snapshot.pools[paying].afford_retry(now);
        if !can {
            log::debug!("request {}: the retry budget is used up", view.request.id);
            view.carry.metrics.retry_budget_exhausted.inc();
        }
        can
    }

    /// How long to wait when no backend is available: until one of those that are cooling down is
    /// tried again, or until those are that have failed this request. The attempt that follows was
    /// paid for.
    fn wait_for(&mut self, view: &RoutingView<'_>, none: NoBackend) -> Option<Duration> {
        let retry = &view.snapshot.plan.routing.retry;
        let backoff = retry.again.filter(|_| self.waits < retry.max_retries)?;
        let round =
            (!self.excluded.is_empty()).then(|| pause(&backoff, self.rounds, rand::random()));
        let open = none.retry_after.filter(|wait| *wait <= backoff.max);
        let wait = round.into_iter().chain(open).min()?;
        self.waits += 1;
        self.rounds += 1;
        self.excluded.clear();
        Some(wait.max(Duration::from_millis(1)))
    }

    /// Picks a backend by the route: tier by tier, in each by chance and weight.
    fn pick(
        &mut self,
        view: &RoutingView<'_>,
        timeline: &mut Timeline,
        now: Instant,
    ) -> Result<PlannedAttempt, NoBackend> {
        let Some(Route { tiers, .. }) = view.route else {
            return Err(NoBackend::default());
        };
        // The last attempt goes to the next tier, if that has not been asked yet.
        let last = self.begun > 0 && self.left == 0 && self.tier + 1 < tiers.len();
        let first = if last { self.tier + 1 } else { 0 };
        let mut soonest: Option<Duration> = None;
        for number in (first..tiers.len()).chain(0..first) {
            let tier = &tiers[number];
            let session = self.choice.as_ref().and_then(|choice| choice.session);
            for split in in_turn(&tier.splits, draw(view, tier, session)) {
                match self.pick_of(view, timeline, now, (number, split)) {
                    Ok(picked) => return Ok(picked),
                    Err(none) => soonest = soonest.into_iter().chain(none.retry_after).min(),
                }
            }
        }
        Err(NoBackend { retry_after: soonest })
    }

    /// Picks a backend of one split of a tier.
    fn pick_of(
        &mut self,
        view: &RoutingView<'_>,
        timeline: &mut Timeline,
        now: Instant,
        (tier, split): (usize, &Split),
    ) -> Result<PlannedAttempt, NoBackend> {
        let pool = &view.snapshot.pools[split.pool];
        let balance = pool.balance();
        if balance.strategy == Strategy::PrefixAffinity {
            self.hash_beginnings(view, split.model.as_ref(), &balance.prefix);
        }
        self.caller.get_or_insert_with(|| affinity::caller(view.caller, view.request));
        let model = self.model_of(split);
        let excluded = self.excluded_in(pool, model.as_deref());
        let request = self.request(view, split, &excluded, now);
        let explains = &view.carry.explains;
        // As they stand before one is chosen; a sole one is of interest only if it is not.
        let candidates = match pool.len() > 1 {
            true => timeline::candidates(explains, pool, &request),
            false => Vec::new(),
        };
        match pool.pick(&request) {
            Ok(choice) => Ok(PlannedAttempt { choice, tier, pool: split.pool, model, candidates }),
            Err(none) => {
                let candidates = timeline::barred(explains, pool, &request);
                let pool = split.pool;
                timeline.no_backend(view.request.arrived, Search { tier, pool, model, candidates });
                Err(none)
            }
        }
    }

    /// The model's name at the backends of a split, if it is not the client's.
    pub(super) fn model_of(&self, split: &Split) -> Option<Arc<str>> {
        let chosen = || self.choice.as_ref().and_then(|choice| choice.model.clone());
        split.model.clone().or_else(chosen)
    }

    /// The backends of a pool that must not be picked.
    fn excluded_in(&self, pool: &Pool, model: Option<&str>) -> Vec<u32> {
        let mut excluded: Vec<u32> =
            self.excluded.with(model).chain(self.unable.with(model)).collect();
        let ids = || pool.members().map(|(endpoint, _)| endpoint.id);
        if let Some(owner) = self.owner {
            excluded.extend(ids().filter(|id| *id != owner));
        }
        if self.choice.is_some() {
            excluded.extend(ids().filter(|id| !self.allows(*id)));
        }
        excluded
    }

    /// Whether scripts allow a backend.
    pub(super) fn allows(&self, id: u32) -> bool {
        let allowed = self.choice.as_ref().and_then(|choice| choice.allowed.as_ref());
        allowed.is_none_or(|allowed| allowed.contains(&id))
    }

    /// What a pool is asked for.
    fn request<'a>(
        &'a self,
        view: &RoutingView<'a>,
        split: &'a Split,
        excluded: &'a [u32],
        now: Instant,
    ) -> PickRequest<'a> {
        let balance = view.snapshot.pools[split.pool].balance();
        let choice = self.choice.as_deref();
        let asked = view.request.model.as_deref().unwrap_or_default();
        let chosen = choice.and_then(|choice| choice.model.as_deref());
        let session = choice.and_then(|choice| choice.session);
        PickRequest {
            model: split.model.as_deref().or(chosen).unwrap_or(asked),
            caller: self.caller.unwrap_or_default(),
            ignore_ejections: self.is_spared(view),
            session: session
                .or_else(|| affinity::session(view.headers, view.caller, view.request, balance)),
            blocks: self.beginnings.as_ref().map_or(&[], |(_, _, blocks)| blocks.as_slice()),
            excluded,
            strategy: choice.and_then(|choice| choice.strategy),
            binds: session.is_some(),
            now,
        }
    }

    /// Hashes how the conversation begins, unless that was done for this model before.
    fn hash_beginnings(
        &mut self,
        view: &RoutingView<'_>,
        model: Option<&Arc<str>>,
        plan: &PrefixPlan,
    ) {
        let known = self.beginnings.as_ref();
        if known.is_none_or(|(known, by, _)| known.as_ref() != model || by != plan) {
            let asked = view.request.model.as_deref().unwrap_or_default();
            let name = model.map_or(asked, |model| model);
            let blocks = view.body.beginnings(name, plan.block, plan.blocks);
            self.beginnings = Some((model.cloned(), *plan, blocks));
        }
    }
}

/// Whether there is a tier with more than one backend that could be chosen.
pub fn has_several(view: &RoutingView<'_>) -> bool {
    view.route.iter().flat_map(|route| &route.tiers).any(|tier| {
        let pools = tier.splits.iter().map(|split| &view.snapshot.pools[split.pool]);
        let mut up = pools.flat_map(|pool| pool.members()).filter(|(_, up)| *up);
        let first = up.next().map(|(e, _)| e.id);
        up.any(|(e, _)| Some(e.id) != first)
    })
}

/// Where the choice among the splits of a tier falls: requests that belong together take the same.
fn draw(view: &RoutingView<'_>, tier: &Tier, session: Option<u64>) -> u64 {
    let [first, _, ..] = tier.splits.as_slice() else { return 0 };
    let total: u64 = tier.splits.iter().map(|s| u64::from(s.weight)).sum();
    let balance = view.snapshot.pools[first.pool].balance();
    let own = || affinity::session(view.headers, view.caller, view.request, balance);
    session.or_else(own).unwrap_or_else(rand::random) % total.max(1)
}

/// The splits, from the one on that `drawn` falls to (below the sum of the weights).
fn in_turn(splits: &[Split], drawn: u64) -> impl Iterator<Item = &Split> {
    let mut sum = 0;
    let first = splits.iter().position(|s| {
        sum += u64::from(s.weight);
        drawn < sum
    });
    let (before, from) = splits.split_at(first.unwrap_or(0));
    from.iter().chain(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_are_drawn_by_weight_and_all_are_asked() {
        let split = |weight, pool| Split { weight, pool, model: None };
        let splits = [split(95, 0), split(5, 1)];
        let order = |drawn| in_turn(&splits, drawn).map(|s| s.pool).collect::<Vec<_>>();
        assert_eq!((order(0), order(94), order(95)), (vec![0, 1], vec![0, 1], vec![1, 0]));
    }
}
