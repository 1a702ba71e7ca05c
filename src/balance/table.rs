//! The members of a pool as strategies see them: in the order of their ids, with what every choice
//! looks at side by side.

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
    Endpoint,
    ask::Ask,
    prefix::Memory,
    random::{Random, scale, spread},
    ring::Ring,
    state::State,
    trouble::{Bar, Probes},
};

/// How often health is copied from the registry, in milliseconds. The copy only orders the
/// candidates; a choice asks the registry itself.
const LOOK: u64 = 100;

/// Points of the ring that are looked at before a session goes to the least loaded.
const STEPS: usize = 256;

/// Requests that are never too many for a member: where there is little to do, a share of it is less
/// than one, and what is under way would send the session's next request elsewhere.
const ALWAYS: f64 = 2.0;

/// Picks for each member until the counts of recent picks are halved.
const RECENT: u64 = 64;

/// A crowd that was counted holds for a sixteenth as many choices as there are members, and not for
/// longer than so many milliseconds: a bound of 1.25 on the average moves by less than a tenth of a
/// request meanwhile. The crowd of a small pool is counted for each choice.
const COUNTED: (u64, u64) = (16, 5);

/// The members of a pool. A position in it is a member's number.
pub struct Table {
    /// The members, by id.
    pub members: Box<[Arc<Endpoint>]>,
    /// The same, as pingora-load-balancing knows them.
    pub backends: Box<[Backend]>,
    /// Their ids.
    ids: Box<[u32]>,
    seats: Box<[Seat]>,
    /// Whether they were healthy when last looked at.
    up: Box<[AtomicBool]>,
    looked: AtomicU64,
    /// Sums of the weights up to each of them, and whether all are equal.
    sums: Box<[u64]>,
    equal: bool,
    turn: AtomicU64,
    /// How often each was chosen of late, and how often any was.
    recent: Box<[AtomicU32]>,
    picks: AtomicU64,
    /// From when times are told.
    pub epoch: Instant,
    /// Chance.
    pub random: Random,
    /// How far above the average a member may be loaded.
    bound: f64,
    /// When readings of the load are stale, in milliseconds.
    pub stale: u64,
    /// Members that may be left alone at once.
    max_open: usize,
    ring: Option<Ring>,
    /// Who has seen what.
    pub memory: Option<Arc<Memory>>,
    /// The crowd as it was last counted, and how often it was asked for.
    counted: ArcSwapOption<Counted>,
    asked: AtomicU64,
}

struct Counted {
    crowd: Crowd,
    /// The question that it was counted for, and when that was.
    asked: u64,
    millis: u64,
}

/// What every choice looks at.
struct Seat {
    state: Arc<State>,
    weight: f64,
    /// One by the weight.
    per: f64,
}

/// What a table is made with.
pub struct Rules {
    /// How far above the average a member may be loaded.
    pub bound: f64,
    /// When readings of the load are stale.
    pub stale: Duration,
    /// Share of the members that may be left alone at once.
    pub max_ejected: f64,
    /// Whether sessions are bound to members.
    pub ring: bool,
    /// Where chance begins.
    pub seed: u64,
}

/// How much the members that can be chosen have to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Crowd {
    in_flight: f64,
    weight: f64,
    recent: f64,
    members: f64,
}

impl Default for Table {
    fn default() -> Self {
        let rules =
            Rules { bound: 1.0, stale: Duration::ZERO, max_ejected: 1.0, ring: false, seed: 0 };
        Self::new(Vec::new(), &rules, None)
    }
}

impl Table {
    /// A table of members with their weights. One that is named twice has both weights.
    pub fn new(
        mut members: Vec<(Arc<Endpoint>, u32)>,
        rules: &Rules,
        memory: Option<Arc<Memory>>,
    ) -> Self {
        members.sort_by_key(|(e, _)| e.id);
        members.dedup_by(|again, first| {
            let same = again.0.id == first.0.id;
            first.1 = if same { first.1.saturating_add(again.1) } else { first.1 };
            same
        });
        members.iter_mut().for_each(|(_, weight)| *weight = (*weight).max(1));
        let backends: Box<[_]> = members.iter().map(|(e, weight)| e.backend(*weight)).collect();
        let seat = |(e, weight): &(Arc<Endpoint>, u32)| {
            let weight = f64::from(*weight);
            Seat { state: Arc::clone(e.state()), weight, per: 1.0 / weight }
        };
        let sum = |sum: &mut u64, (_, weight): &(_, u32)| {
            *sum += u64::from(*weight);
            Some(*sum)
        };
        let share = rules.max_ejected * members.len() as f64;
        let max_open = if rules.max_ejected > 0.0 { (share as usize).max(1) } else { 0 };
        Self {
            backends,
            ids: members.iter().map(|(e, _)| e.id).collect(),
            seats: members.iter().map(seat).collect(),
            up: members.iter().map(|_| AtomicBool::new(true)).collect(),
            looked: AtomicU64::new(0),
            sums: members.iter().scan(0, sum).collect(),
            equal: members.iter().all(|(_, weight)| *weight == members[0].1),
            turn: AtomicU64::new(0),
            recent: members.iter().map(|_| AtomicU32::new(0)).collect(),
            picks: AtomicU64::new(0),
            epoch: members.first().map_or_else(Instant::now, |(e, _)| e.state().epoch()),
            random: Random::new(rules.seed),
            bound: rules.bound,
            stale: rules.stale.as_millis() as u64,
            max_open,
            ring: rules.ring.then(|| Ring::new(&members)),
            memory,
            counted: ArcSwapOption::empty(),
            asked: AtomicU64::new(0),
            members: members.into_iter().map(|(e, _)| e).collect(),
        }
    }

    /// Their ids, sorted.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// The number of the member with an id.
    pub fn number(&self, id: u32) -> Option<usize> {
        self.ids.binary_search(&id).ok()
    }

    /// Copies their health, now and then.
    pub fn look(&self, now: Instant, healthy: impl Fn(&Backend) -> bool) {
        let now = now.saturating_duration_since(self.epoch).as_millis() as u64 + LOOK;
        let (looked, relaxed) = (self.looked.load(Ordering::Relaxed), Ordering::Relaxed);
        if now < looked.saturating_add(LOOK)
            || self.looked.compare_exchange(looked, now, relaxed, relaxed).is_err()
        {
            return;
        }
        for (up, backend) in self.up.iter().zip(&self.backends) {
            up.store(healthy(backend), relaxed);
        }
    }

    /// Requests that are with a member.
    pub fn in_flight(&self, member: usize) -> f64 {
        self.seats[member].state.in_flight() as f64
    }

    /// What is known of a member.
    pub fn state(&self, member: usize) -> &State {
        &self.seats[member].state
    }

    /// A score in relation to a member's weight.
    pub fn by_weight(&self, member: usize, score: f64) -> f64 {
        score * self.seats[member].per
    }

    /// Requests in flight in relation to the weight.
    #[inline]
    pub fn load(&self, member: usize) -> f64 {
        self.by_weight(member, self.in_flight(member))
    }

    /// Whether a member can be chosen, as far as can be told at a glance.
    #[inline]
    pub fn fit(&self, member: usize, ask: &Ask<'_>) -> bool {
        let state = &self.seats[member].state;
        let gone = !self.up[member].load(Ordering::Relaxed)
            || state.draining.load(Ordering::Relaxed)
            || ask.tried(self.ids[member]);
        !gone && (!state.troubles.any() || self.bars(member, ask).is_none())
    }

    /// Why a member is left alone, if it is.
    #[inline]
    pub fn bars(&self, member: usize, ask: &Ask<'_>) -> Option<Bar> {
        if ask.spare {
            return None;
        }
        let troubles = &self.seats[member].state.troubles;
        match troubles.bars(&ask.matter(), true)? {
            Bar::Open(_) if !self.kept(member, ask) => None,
            bar => Some(bar),
        }
    }

    /// Lets a request through to a member, or not.
    ///
    /// # Errors
    /// Why not.
    pub fn admit(&self, member: usize, ask: &Ask<'_>) -> Result<Probes, Bar> {
        let troubles = &self.seats[member].state.troubles;
        if ask.spare || !troubles.any() {
            return Ok(Probes::default());
        }
        troubles.admit(&ask.matter(), self.kept(member, ask))
    }

    /// Whether the open circuit of a member is kept open. Of too many, the first ones are.
    #[inline]
    fn kept(&self, member: usize, ask: &Ask<'_>) -> bool {
        if self.max_open >= self.len() {
            return true;
        }
        let Some(since) = self.seats[member].state.troubles.since(ask.model, ask.caller) else {
            return true;
        };
        let last = ask.last_kept.get_or_init(|| {
            let since = |(seat, id): (&Seat, &u32)| {
                Some((seat.state.troubles.since(ask.model, ask.caller)?, *id))
            };
            let mut open: Vec<_> = self.seats.iter().zip(&self.ids).filter_map(since).collect();
            open.sort_unstable();
            open.get(self.max_open.checked_sub(1)?).or(open.last()).copied()
        });
        last.is_some_and(|last| (since, self.ids[member]) <= last)
    }

    /// The member that can be chosen with the lowest score; of equal ones the first from `start`.
    #[inline]
    pub fn least(
        &self,
        start: usize,
        ask: &Ask<'_>,
        score: impl Fn(usize) -> f64,
    ) -> Option<usize> {
        let mut best = None;
        let mut lowest = f64::INFINITY;
        self.from(start).for_each(|member| {
            let score = score(member);
            if score < lowest && self.fit(member, ask) {
                (best, lowest) = (Some(member), score);
            }
        });
        best
    }

    /// The one that can be chosen with the least to do; equal ones take turns.
    pub fn least_loaded(&self, ask: &Ask<'_>) -> Option<usize> {
        self.least(self.turn_fit(ask), ask, |member| self.load(member))
    }

    /// All members, in a circle. To be gone through by `for_each`, which makes two plain loops of it.
    #[inline]
    pub fn from(&self, start: usize) -> impl Iterator<Item = usize> {
        (start..self.len()).chain(0..start)
    }

    /// Whose turn it is, of those that can be chosen: else the neighbours of those that cannot would
    /// have their turns as well.
    pub fn turn_fit(&self, ask: &Ask<'_>) -> usize {
        let mut turns = (0..8 * self.len().min(1)).map(|_| self.turn());
        turns.find(|member| self.fit(*member, ask)).or_else(|| self.draw_fit(ask)).unwrap_or(0)
    }

    /// Whose turn it is: each in proportion to its weight, evenly spread.
    fn turn(&self) -> usize {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        if self.equal {
            return (turn % self.len().max(1) as u64) as usize;
        }
        self.at(scale(spread(turn), self.sums.last().copied().unwrap_or(1)))
    }

    /// A member by chance, in proportion to the weights.
    fn draw(&self) -> usize {
        let end = self.sums.last().copied().unwrap_or(1);
        if self.equal {
            return self.random.below(self.len().max(1) as u64) as usize;
        }
        self.at(self.random.below(end))
    }

    /// The same, of those that can be chosen, if a few attempts find one.
    pub fn draw_fit(&self, ask: &Ask<'_>) -> Option<usize> {
        (0..8 * self.len().min(1)).map(|_| self.draw()).find(|member| self.fit(*member, ask))
    }

    fn at(&self, point: u64) -> usize {
        self.sums.partition_point(|sum| *sum <= point).min(self.len().saturating_sub(1))
    }

    /// How much the members that can be chosen have to do: of a large pool nearly so.
    pub fn crowd(&self, ask: &Ask<'_>) -> Crowd {
        // What another try leaves out is not what all others see.
        if ask.again() {
            return self.count(ask).0;
        }
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        let (choices, millis) = (self.len() as u64 / COUNTED.0, COUNTED.1);
        let counted = self.counted.load();
        if let Some(counted) = &*counted {
            let since = asked.saturating_sub(counted.asked);
            if since < choices && ask.millis <= counted.millis + millis {
                // Those that asked have been sent somewhere.
                let since = since as f64;
                let Crowd { in_flight, recent, .. } = counted.crowd;
                let (in_flight, recent) = (in_flight + since, recent + since);
                return Crowd { in_flight, recent, ..counted.crowd };
            }
        }
        let (crowd, barred) = self.count(ask);
        // Nor what is left alone for the sake of one model, if that is much.
        if choices > 0 && barred as u64 <= choices {
            let counted = Counted { crowd, asked, millis: ask.millis };
            self.counted.store(Some(Arc::new(counted)));
        }
        crowd
    }

    /// The same, counted now, and how many are left alone.
    pub fn count(&self, ask: &Ask<'_>) -> (Crowd, usize) {
        let (mut crowd, mut barred) = (Crowd::default(), 0);
        for (member, seat) in self.seats.iter().enumerate() {
            if !self.fit(member, ask) {
                barred += usize::from(seat.state.troubles.any());
                continue;
            }
            crowd.in_flight += seat.state.in_flight() as f64;
            crowd.weight += seat.weight;
            crowd.recent += f64::from(self.recent[member].load(Ordering::Relaxed));
            crowd.members += 1.0;
        }
        (crowd, barred)
    }

    /// Whether a member would still be within the bound with one request more.
    #[inline]
    pub fn within(&self, member: usize, crowd: &Crowd) -> bool {
        let share = self.seats[member].weight / crowd.weight;
        let most = (self.bound * (crowd.in_flight + 1.0) * share).ceil();
        self.in_flight(member) < most.max(ALWAYS)
    }

    /// Whether a member has not been chosen too often of late. Only a busy pool cares: an engine that
    /// answers sooner, because it has seen the prompts, has few requests in flight and would be
    /// chosen for that.
    #[inline]
    pub fn rested(&self, member: usize, crowd: &Crowd) -> bool {
        if crowd.in_flight < crowd.members {
            return true;
        }
        let share = self.seats[member].weight / crowd.weight;
        // A little less than the bound, because counts that are halved lag behind.
        let bound = 1.0 + (self.bound - 1.0) * 0.9;
        let recent = f64::from(self.recent[member].load(Ordering::Relaxed));
        recent < bound * (crowd.recent + 1.0) * share
    }

    /// Goes on where the table of the generation before has been.
    pub fn inherit(&self, old: &Self) {
        let relaxed = Ordering::Relaxed;
        self.turn.store(old.turn.load(relaxed), relaxed);
        for (id, recent) in self.ids.iter().zip(&self.recent) {
            let before = old.number(*id).map(|member| old.recent[member].load(relaxed));
            recent.store(before.unwrap_or(0), relaxed);
        }
    }

    /// A member has been chosen.
    pub fn chosen(&self, member: usize) {
        self.recent[member].fetch_add(1, Ordering::Relaxed);
        let picks = self.picks.fetch_add(1, Ordering::Relaxed) + 1;
        if picks.is_multiple_of(RECENT * self.len() as u64) {
            for recent in &self.recent {
                let seen = recent.load(Ordering::Relaxed);
                recent.fetch_sub(seen / 2, Ordering::Relaxed);
            }
        }
    }

    /// Where a session belongs, of those that can be chosen and that `wanted` takes.
    pub fn home(&self, ask: &Ask<'_>, wanted: impl Fn(usize) -> bool) -> Option<usize> {
        let mut points = self.ring.as_ref()?.from(ask.session?).take(STEPS);
        points.find(|member| self.fit(*member, ask) && wanted(*member))
    }
}

/// What a strategy offers: its choices, then all members, those that look well first.
pub struct Offers {
    table: Arc<Table>,
    choices: [Option<usize>; 2],
    /// By what the others are sorted.
    score: fn(&Table, usize) -> f64,
    step: usize,
    others: Vec<usize>,
}

impl Offers {
    /// Offers of one or two choices, and then of the others by a score.
    pub fn new(
        table: &Arc<Table>,
        choices: [Option<usize>; 2],
        score: fn(&Table, usize) -> f64,
    ) -> Self {
        Self { table: Arc::clone(table), choices, score, step: 0, others: Vec::new() }
    }

    /// Sorts the others: seldom needed, because the first choice is nearly always taken.
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
        while let Some(choice) = self.choices.get(self.step) {
            self.step += 1;
            if let Some(member) = *choice {
                return self.table.backends.get(member);
            }
        }
        let other = self.step - self.choices.len();
        if other == 0 {
            self.sort();
        }
        self.step += 1;
        self.table.backends.get(*self.others.get(other)?)
    }
}
