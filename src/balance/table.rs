//! The members of a pool as strategies see them: in the order of their ids, with the data that every
//! pick reads in adjacent memory.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use pingora_load_balancing::{Backend, selection::BackendIter};

use super::{
    ejection::{Ejection, Trials},
    endpoint::Endpoint,
    pick::Pick,
    prefix::PrefixMemory,
    random::{Random, scale, spread},
    ring::Ring,
    state::BackendState,
};

/// Milliseconds between two copies of the registry's health. The copy only orders the candidates; a
/// pick asks the registry itself.
const HEALTH_REFRESH: u64 = 100;

/// Points of the ring that are examined before a session goes to the least loaded member.
const RING_STEPS: usize = 256;

/// Requests that a member may always have. In an idle pool a member's share is less than one, so
/// without this a request in flight would send the session's next request elsewhere.
const MIN_BOUND: f64 = 2.0;

/// Picks per member after which the counts of recent picks are halved.
const RECENT_PICKS: u64 = 64;

/// A cached pool load serves a sixteenth as many picks as there are members, and at most this many
/// milliseconds: a bound of 1.25 on the average moves by less than a tenth of a request meanwhile.
/// Pools with fewer members compute the load for each pick.
const CACHED_LOAD: (u64, u64) = (16, 5);

/// The members of a pool. A member's number is its position in the table.
pub struct Table {
    /// The members, by id.
    pub members: Box<[Arc<Endpoint>]>,
    /// The same, as pingora-load-balancing knows them.
    pub backends: Box<[Backend]>,
    ids: Box<[u32]>,
    states: Box<[MemberState]>,
    /// The copy of the registry's health.
    up: Box<[AtomicBool]>,
    /// When health was last copied, in milliseconds since the epoch.
    refreshed: AtomicU64,
    /// Running sums of the weights, and whether all weights are equal.
    sums: Box<[u64]>,
    equal: bool,
    turn: AtomicU64,
    /// Recent picks of each member, and all picks.
    recent: Box<[AtomicU32]>,
    picks: AtomicU64,
    /// Times in milliseconds count from here.
    pub epoch: Instant,
    pub random: Random,
    /// Bound of a member's load as a multiple of the average.
    bound: f64,
    /// Age at which load readings are stale, in milliseconds.
    pub stale: u64,
    /// Members that may be ejected at the same time.
    max_ejected: usize,
    ring: Option<Ring>,
    /// Which member has seen which beginning of a conversation.
    pub memory: Option<Arc<PrefixMemory>>,
    cached_load: ArcSwapOption<CachedLoad>,
    /// How often the pool load was asked for.
    load_requests: AtomicU64,
}

struct CachedLoad {
    load: PoolLoad,
    /// The number of the load request that computed it.
    request: u64,
    millis: u64,
}

/// The part of a member that every pick reads.
struct MemberState {
    backend: Arc<BackendState>,
    weight: f64,
    /// 1 / weight.
    inverse_weight: f64,
}

/// The settings of a table.
pub struct TableOptions {
    /// Bound of a member's load as a multiple of the average.
    pub bound: f64,
    /// Age at which load readings are stale.
    pub stale: Duration,
    /// Share of the members that may be ejected at the same time.
    pub max_ejected: f64,
    /// Whether sessions are bound to members.
    pub ring: bool,
    /// Seed of the random numbers.
    pub seed: u64,
}

/// Sums over the members that can be picked.
#[derive(Clone, Copy, Debug, Default)]
pub struct PoolLoad {
    in_flight: f64,
    weight: f64,
    recent: f64,
    members: f64,
}

impl Default for Table {
    fn default() -> Self {
        let options = TableOptions {
            bound: 1.0,
            stale: Duration::ZERO,
            max_ejected: 1.0,
            ring: false,
            seed: 0,
        };
        Self::new(Vec::new(), &options, None)
    }
}

impl Table {
    /// A table of members with their weights. The weights of a member that is named twice are added.
    pub fn new(
        mut members: Vec<(Arc<Endpoint>, u32)>,
        options: &TableOptions,
        memory: Option<Arc<PrefixMemory>>,
    ) -> Self {
        members.sort_by_key(|(e, _)| e.id);
        members.dedup_by(|again, first| {
            let same = again.0.id == first.0.id;
            first.1 = if same { first.1.saturating_add(again.1) } else { first.1 };
            same
        });
        members.iter_mut().for_each(|(_, weight)| *weight = (*weight).max(1));
        let backends: Box<[_]> = members.iter().map(|(e, weight)| e.backend(*weight)).collect();
        let state = |(e, weight): &(Arc<Endpoint>, u32)| {
            let weight = f64::from(*weight);
            MemberState { backend: Arc::clone(e.state()), weight, inverse_weight: 1.0 / weight }
        };
        let sum = |sum: &mut u64, (_, weight): &(_, u32)| {
            *sum += u64::from(*weight);
            Some(*sum)
        };
        let share = options.max_ejected * members.len() as f64;
        let max_ejected = if options.max_ejected > 0.0 { (share as usize).max(1) } else { 0 };
        Self {
            backends,
            ids: members.iter().map(|(e, _)| e.id).collect(),
            states: members.iter().map(state).collect(),
            up: members.iter().map(|_| AtomicBool::new(true)).collect(),
            refreshed: AtomicU64::new(0),
            sums: members.iter().scan(0, sum).collect(),
            equal: members.iter().all(|(_, weight)| *weight == members[0].1),
            turn: AtomicU64::new(0),
            recent: members.iter().map(|_| AtomicU32::new(0)).collect(),
            picks: AtomicU64::new(0),
            epoch: members.first().map_or_else(Instant::now, |(e, _)| e.state().epoch()),
            random: Random::new(options.seed),
            bound: options.bound,
            stale: options.stale.as_millis() as u64,
            max_ejected,
            ring: options.ring.then(|| Ring::new(&members)),
            memory,
            cached_load: ArcSwapOption::empty(),
            load_requests: AtomicU64::new(0),
            members: members.into_iter().map(|(e, _)| e).collect(),
        }
    }

    /// The members' ids, sorted.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// The number of the member with an id.
    pub fn number(&self, id: u32) -> Option<usize> {
        self.ids.binary_search(&id).ok()
    }

    /// Copies the registry's health if the copy is too old.
    pub fn refresh_health(&self, now: Instant, healthy: impl Fn(&Backend) -> bool) {
        let now = now.saturating_duration_since(self.epoch).as_millis() as u64 + HEALTH_REFRESH;
        let (last, relaxed) = (self.refreshed.load(Ordering::Relaxed), Ordering::Relaxed);
        if now < last.saturating_add(HEALTH_REFRESH)
            || self.refreshed.compare_exchange(last, now, relaxed, relaxed).is_err()
        {
            return;
        }
        for (up, backend) in self.up.iter().zip(&self.backends) {
            up.store(healthy(backend), relaxed);
        }
    }

    /// Requests that a member is serving.
    pub fn in_flight(&self, member: usize) -> f64 {
        self.states[member].backend.in_flight() as f64
    }

    pub fn state(&self, member: usize) -> &BackendState {
        &self.states[member].backend
    }

    /// A score divided by a member's weight.
    pub fn by_weight(&self, member: usize, score: f64) -> f64 {
        score * self.states[member].inverse_weight
    }

    /// Requests in flight divided by the weight.
    #[inline]
    pub fn load(&self, member: usize) -> f64 {
        self.by_weight(member, self.in_flight(member))
    }

    /// Whether a member is healthy, by its copied health.
    pub fn is_up(&self, member: usize) -> bool {
        self.up[member].load(Ordering::Relaxed)
    }

    /// Whether a member can be picked, by its copied health and its circuits. The pick itself decides
    /// by the registry's health and by admission.
    #[inline]
    pub fn is_eligible(&self, member: usize, pick: &Pick<'_>) -> bool {
        let state = &self.states[member].backend;
        let gone = !self.up[member].load(Ordering::Relaxed)
            || state.draining.load(Ordering::Relaxed)
            || pick.excludes(self.ids[member]);
        !gone && (!state.ejections.any() || self.ejection(member, pick).is_none())
    }

    /// Why a member is ejected, if it is.
    #[inline]
    pub fn ejection(&self, member: usize, pick: &Pick<'_>) -> Option<Ejection> {
        if pick.request.ignore_ejections {
            return None;
        }
        let ejections = &self.states[member].backend.ejections;
        if !ejections.any() {
            return None;
        }
        match ejections.ejection(&pick.scope(), true)? {
            Ejection::Open(_) if !self.may_eject(member, pick) => None,
            ejection => Some(ejection),
        }
    }

    /// Admits a request to a member.
    ///
    /// # Errors
    /// Why the member is ejected.
    pub fn admit(&self, member: usize, pick: &Pick<'_>) -> Result<Trials, Ejection> {
        let ejections = &self.states[member].backend.ejections;
        if pick.request.ignore_ejections || !ejections.any() {
            return Ok(Trials::default());
        }
        ejections.admit(&pick.scope(), self.may_eject(member, pick))
    }

    /// Whether the open circuit of a member ejects it: among too many, those that opened first do.
    #[inline]
    fn may_eject(&self, member: usize, pick: &Pick<'_>) -> bool {
        if self.max_ejected >= self.len() {
            return true;
        }
        let open_since = |state: &MemberState| {
            state.backend.ejections.since(pick.request.model, pick.request.caller)
        };
        let Some(since) = open_since(&self.states[member]) else {
            return true;
        };
        let last = pick.last_ejecting.get_or_init(|| {
            let since = |(state, id): (&MemberState, &u32)| Some((open_since(state)?, *id));
            let mut open: Vec<_> = self.states.iter().zip(&self.ids).filter_map(since).collect();
            open.sort_unstable();
            open.get(self.max_ejected.checked_sub(1)?).or(open.last()).copied()
        });
        last.is_some_and(|last| (since, self.ids[member]) <= last)
    }

    /// The eligible member with the lowest score; among equal ones the first from `start`.
    #[inline]
    pub fn least(
        &self,
        start: usize,
        pick: &Pick<'_>,
        score: impl Fn(usize) -> f64,
    ) -> Option<usize> {
        let mut best = None;
        let mut lowest = f64::INFINITY;
        self.from(start).for_each(|member| {
            let score = score(member);
            if score < lowest && self.is_eligible(member, pick) {
                (best, lowest) = (Some(member), score);
            }
        });
        best
    }

    /// The eligible member with the lowest load; equal ones take turns.
    pub fn least_loaded(&self, pick: &Pick<'_>) -> Option<usize> {
        self.least(self.next_eligible(pick), pick, |member| self.load(member))
    }

    /// All members, beginning at `start`. Use it with `for_each`, which compiles to two plain loops.
    #[inline]
    pub fn from(&self, start: usize) -> impl Iterator<Item = usize> {
        (start..self.len()).chain(0..start)
    }

    /// The eligible member whose turn it is. An ineligible member's turns are spread over all others;
    /// otherwise its neighbour would get them.
    pub fn next_eligible(&self, pick: &Pick<'_>) -> usize {
        let mut turns = (0..8 * self.len().min(1)).map(|_| self.next_turn());
        turns
            .find(|member| self.is_eligible(*member, pick))
            .or_else(|| self.draw_eligible(pick))
            .unwrap_or(0)
    }

    /// The member whose turn it is: each in proportion to its weight, evenly spread.
    fn next_turn(&self) -> usize {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        if self.equal {
            return (turn % self.len().max(1) as u64) as usize;
        }
        self.at(scale(spread(turn), self.sums.last().copied().unwrap_or(1)))
    }

    /// A random member, in proportion to the weights.
    fn draw(&self) -> usize {
        let end = self.sums.last().copied().unwrap_or(1);
        if self.equal {
            return self.random.below(self.len().max(1) as u64) as usize;
        }
        self.at(self.random.below(end))
    }

    /// A random eligible member, if a few draws find one.
    pub fn draw_eligible(&self, pick: &Pick<'_>) -> Option<usize> {
        (0..8 * self.len().min(1))
            .map(|_| self.draw())
            .find(|member| self.is_eligible(*member, pick))
    }

    fn at(&self, point: u64) -> usize {
        self.sums.partition_point(|sum| *sum <= point).min(self.len().saturating_sub(1))
    }

    /// The load of the pool. In a large pool it may be a few picks old.
    pub fn pool_load(&self, pick: &Pick<'_>) -> PoolLoad {
        // A retry excludes backends that other requests see.
        if !pick.request.excluded.is_empty() {
            return self.compute_load(pick).0;
        }
        let request = self.load_requests.fetch_add(1, Ordering::Relaxed);
        let (most, millis) = (self.len() as u64 / CACHED_LOAD.0, CACHED_LOAD.1);
        let cached = self.cached_load.load();
        if let Some(cached) = &*cached {
            let since = request.saturating_sub(cached.request);
            if since < most && pick.millis <= cached.millis + millis {
                // Each of the picks since then has added a request.
                let since = since as f64;
                let PoolLoad { in_flight, recent, .. } = cached.load;
                let (in_flight, recent) = (in_flight + since, recent + since);
                return PoolLoad { in_flight, recent, ..cached.load };
            }
        }
        let (load, ejected) = self.compute_load(pick);
        // Members that are ejected for one model only distort the load for others if they are many.
        if most > 0 && ejected as u64 <= most {
            let cached = CachedLoad { load, request, millis: pick.millis };
            self.cached_load.store(Some(Arc::new(cached)));
        }
        load
    }

    /// The load of the pool now, and how many members are not eligible because of failures.
    pub fn compute_load(&self, pick: &Pick<'_>) -> (PoolLoad, usize) {
        let (mut load, mut ejected) = (PoolLoad::default(), 0);
        for (member, state) in self.states.iter().enumerate() {
            if !self.is_eligible(member, pick) {
                ejected += usize::from(state.backend.ejections.any());
                continue;
            }
            load.in_flight += state.backend.in_flight() as f64;
            load.weight += state.weight;
            load.recent += f64::from(self.recent[member].load(Ordering::Relaxed));
            load.members += 1.0;
        }
        (load, ejected)
    }

    /// Whether a member would still be within the bound with one request more.
    #[inline]
    pub fn is_within_bound(&self, member: usize, load: &PoolLoad) -> bool {
        let share = self.states[member].weight / load.weight;
        let most = (self.bound * (load.in_flight + 1.0) * share).ceil();
        self.in_flight(member) < most.max(MIN_BOUND)
    }

    /// Whether a member has not had more than its share of the recent picks. Only checked in a busy
    /// pool: an engine that answers sooner, because it has cached the prompts, has few requests in
    /// flight and would get even more for that.
    #[inline]
    pub fn is_within_recent_share(&self, member: usize, load: &PoolLoad) -> bool {
        if load.in_flight < load.members {
            return true;
        }
        let share = self.states[member].weight / load.weight;
        // A little less than the bound, because counts that are halved lag behind.
        let bound = 1.0 + (self.bound - 1.0) * 0.9;
        let recent = f64::from(self.recent[member].load(Ordering::Relaxed));
        recent < bound * (load.recent + 1.0) * share
    }

    /// Continues the turns and recent picks of the table of the previous generation.
    pub fn inherit(&self, old: &Self) {
        let relaxed = Ordering::Relaxed;
        self.turn.store(old.turn.load(relaxed), relaxed);
        for (id, recent) in self.ids.iter().zip(&self.recent) {
            let before = old.number(*id).map(|member| old.recent[member].load(relaxed));
            recent.store(before.unwrap_or(0), relaxed);
        }
    }

    /// Counts a pick of a member.
    pub fn count_pick(&self, member: usize) {
        self.recent[member].fetch_add(1, Ordering::Relaxed);
        let picks = self.picks.fetch_add(1, Ordering::Relaxed) + 1;
        if picks.is_multiple_of(RECENT_PICKS * self.len() as u64) {
            for recent in &self.recent {
                let seen = recent.load(Ordering::Relaxed);
                recent.fetch_sub(seen / 2, Ordering::Relaxed);
            }
        }
    }

    /// The first member on the ring, from the session's point on, that is eligible and `accepted`.
    pub fn ring_member(&self, pick: &Pick<'_>, accepted: impl Fn(usize) -> bool) -> Option<usize> {
        let mut points = self.ring.as_ref()?.from(pick.request.session?).take(RING_STEPS);
        points.find(|member| self.is_eligible(*member, pick) && accepted(*member))
    }
}

/// The backends that a strategy offers: those that it prefers, then all members, the healthy and
/// least loaded first.
pub struct Offers {
    table: Arc<Table>,
    preferred: [Option<usize>; 2],
    /// The others are sorted by it.
    score: fn(&Table, usize) -> f64,
    step: usize,
    others: Vec<usize>,
}

impl Offers {
    pub fn new(
        table: &Arc<Table>,
        preferred: [Option<usize>; 2],
        score: fn(&Table, usize) -> f64,
    ) -> Self {
        Self { table: Arc::clone(table), preferred, score, step: 0, others: Vec::new() }
    }

    /// Sorts the others. Rarely needed, because the first offer is nearly always accepted.
    fn sort(&mut self) {
        let table = &*self.table;
        let first = table.draw();
        let key = |member: &usize| {
            let down = !table.up[*member].load(Ordering::Relaxed);
            (down, (self.score)(table, *member))
        };
        let members = (first..table.len()).chain(0..first.min(table.len()));
        let mut others: Vec<_> = members.map(|member| (key(&member), member)).collect();
        others.sort_by(|((down, a), _), ((other, b), _)| down.cmp(other).then(a.total_cmp(b)));
        self.others = others.into_iter().map(|(_, member)| member).collect();
    }
}

impl BackendIter for Offers {
    fn next(&mut self) -> Option<&Backend> {
        while let Some(preferred) = self.preferred.get(self.step) {
            self.step += 1;
            if let Some(member) = *preferred {
                return self.table.backends.get(member);
            }
        }
        let other = self.step - self.preferred.len();
        if other == 0 {
            self.sort();
        }
        self.step += 1;
        self.table.backends.get(*self.others.get(other)?)
    }
}
