//! A pool: the backends that serve one set of models.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt;
use pingora_load_balancing::{Backend, Backends, HealthRegistry, discovery::Static};

use super::{
    Endpoint,
    ask::{self, Ask},
    budget::Budget,
    heirs::Heritage,
    prefix::Memory,
    state::Lease,
    strategy::{self, Balancer},
    table::{Rules, Table},
    trouble::Bar,
};
use crate::config::{
    choices::StreamUsage,
    plan::{BalancePlan, BudgetPlan, CircuitPlan, Strategy},
};

/// What a choice goes by.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// The model, by the name that the backend knows.
    pub model: &'a str,
    /// Who calls, hashed: what only this caller's requests meet, keeps only this caller away.
    pub caller: u64,
    /// No other backend can take the place of the pool's only one: circuits and pauses are ignored.
    pub spare: bool,
    /// What binds the request to a backend, hashed; `None`: nothing.
    pub session: Option<u64>,
    /// How the conversation begins: each hash stands for all that comes before its end. The
    /// shortest beginning first; empty where the pool's strategy does not ask for it.
    pub blocks: &'a [u64],
    /// Ids of backends that are not wanted.
    pub tried: &'a [u32],
    /// The time.
    pub now: Instant,
}

/// A backend that was chosen, and the request's place there.
pub struct Choice {
    /// The backend.
    pub endpoint: Arc<Endpoint>,
    /// The place.
    pub lease: Lease,
}

/// There is no backend to choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nobody {
    /// When the first of those that are left alone is tried again, if there is any.
    pub retry_after: Option<Duration>,
}

/// How one backend stood when a choice was made.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Its name.
    pub backend: String,
    /// By what the strategy compares; lower is better. `None` where it compares nothing.
    pub score: Option<f64>,
    /// Why it could not be chosen: `unhealthy`, `draining`, `tried`, `open`, `busy`, `overloaded`;
    /// `None`: it could.
    pub barred: Option<&'static str>,
}

/// What a pool is made with, beside its members.
#[derive(Clone, Copy)]
pub struct PoolParts<'a> {
    /// How it balances.
    pub balance: &'a BalancePlan,
    /// When its backends are left alone.
    pub circuit: &'a CircuitPlan,
    /// Its retries.
    pub budget: &'a BudgetPlan,
    /// From one reading of the engines' load to the next.
    pub load_interval: Duration,
    /// Health of the backends.
    pub registry: &'a Arc<HealthRegistry>,
    /// Without probes every backend counts as healthy, whatever earlier probes found.
    pub probed: bool,
    /// The pools of the generation before that it goes on from.
    pub heritage: Heritage<'a>,
    /// Where chance begins.
    pub seed: u64,
}

/// A set of backends and the strategy that chooses among them.
pub struct Pool {
    /// In the order in which they were given.
    members: Vec<Arc<Endpoint>>,
    table: Arc<Table>,
    balancer: Box<dyn Balancer>,
    probed: bool,
    balance: BalancePlan,
    circuit: CircuitPlan,
    budget: Budget,
    /// The ways in which its backends want to be asked for usage.
    asks: Vec<StreamUsage>,
}

thread_local! {
    /// The key of the choice that this thread is making.
    static KEY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Pool {
    /// A pool of these backends, with their weights in it.
    pub fn new(members: Vec<(Arc<Endpoint>, u32)>, parts: &PoolParts<'_>) -> Self {
        let balance = parts.balance;
        let rules = Rules {
            bound: balance.bound,
            stale: 3 * parts.load_interval,
            max_ejected: parts.circuit.max_ejected,
            ring: balance.affinity.is_some() || balance.strategy == Strategy::ConsistentHash,
            seed: parts.seed,
        };
        let memory = (balance.strategy == Strategy::PrefixAffinity).then(|| {
            let room = balance.prefix.remembered;
            let old = parts.heritage.closest.and_then(|old| old.table.memory.as_ref());
            let old = old.filter(|memory| memory.has_room_for(room));
            old.map_or_else(|| Arc::new(Memory::new(room)), Arc::clone)
        });
        let mut shown: Vec<Arc<Endpoint>> = Vec::with_capacity(members.len());
        let mut seen = BTreeSet::new();
        shown.extend(members.iter().filter(|(e, _)| seen.insert(e.id)).map(|(e, _)| Arc::clone(e)));
        let table = Table::new(members, &rules, memory);
        if let Some(old) = parts.heritage.closest {
            table.inherit(&old.table);
        }
        let table = Arc::new(table);
        let set: BTreeSet<_> = table.backends.iter().cloned().collect();
        let registry = Arc::clone(parts.registry);
        let backends = Backends::new_with_health_registry(Static::new(set), registry);
        let balancer = strategy::balancer(balance.strategy, backends, &table);
        balancer
            .start()
            .now_or_never()
            .expect("a static list does not wait")
            .expect("a static list does not fail");
        let mut asks: Vec<_> = shown.iter().map(|e| e.plan.stream_usage).collect();
        asks.dedup();
        Self {
            members: shown,
            table,
            balancer,
            probed: parts.probed,
            balance: balance.clone(),
            circuit: *parts.circuit,
            budget: budget(parts),
            asks,
        }
    }

    /// Ids of its backends, sorted.
    pub fn ids(&self) -> &[u32] {
        self.table.ids()
    }

    /// Chooses a backend and takes a place there.
    ///
    /// # Errors
    /// If there is none to choose.
    pub fn pick(&self, wish: &Wish<'_>) -> Result<Choice, Nobody> {
        self.asking(wish, |key, ask| self.choose(key, ask).ok_or_else(|| self.nobody(ask)))
            .unwrap_or_else(|| Err(Nobody::default()))
    }

    /// Does something with a wish that strategies can read.
    fn asking<T>(&self, wish: &Wish<'_>, act: impl FnOnce(&[u8], &Ask<'_>) -> T) -> Option<T> {
        self.table.look(wish.now, |backend| self.healthy(backend));
        KEY.with_borrow_mut(|key| {
            ask::write(wish, self.table.epoch, key);
            Ask::read(key, self.table.epoch).map(|ask| act(key, &ask))
        })
    }

    fn choose(&self, key: &[u8], ask: &Ask<'_>) -> Option<Choice> {
        let table = &*self.table;
        let chosen = Cell::new(None);
        let accept = |backend: &Backend, healthy: bool| {
            let Some(member) = table.number(Endpoint::id_of(backend)) else { return false };
            let endpoint = &table.members[member];
            let down = self.probed && !healthy;
            if down || endpoint.draining() || ask.tried(endpoint.id) {
                return false;
            }
            let admitted = table.admit(member, ask);
            chosen.set(admitted.ok().map(|probes| (member, probes)));
            chosen.get().is_some()
        };
        let at_home = self.home(ask).is_some_and(|member| {
            let backend = &table.backends[member];
            accept(backend, self.healthy(backend))
        });
        if !at_home {
            // Each backend is offered once, after the choices of the strategy.
            let most = table.len() + strategy::CHOICES;
            self.balancer.select(key, most, &accept)?;
        }
        let (member, probes) = chosen.get()?;
        self.balancer.chosen(table, member, ask);
        let endpoint = Arc::clone(&table.members[member]);
        let lease = endpoint.state().lease((ask.model, ask.caller), self.circuit, probes);
        Some(Choice { endpoint, lease })
    }

    /// Where the request belongs that is bound to a backend, if that is not overloaded.
    fn home(&self, ask: &Ask<'_>) -> Option<usize> {
        if self.balance.affinity.is_none() || self.balance.strategy == Strategy::ConsistentHash {
            return None;
        }
        let home = self.table.home(ask, |_| true)?;
        self.table.within(home, &self.table.crowd(ask)).then_some(home)
    }

    /// Nobody could be chosen: when one might be.
    fn nobody(&self, ask: &Ask<'_>) -> Nobody {
        let waits = (0..self.table.len()).filter_map(|member| {
            let endpoint = &self.table.members[member];
            let usable = self.healthy(&self.table.backends[member])
                && !endpoint.draining()
                && !ask.tried(endpoint.id);
            usable.then(|| self.table.bars(member, ask)).flatten().map(Bar::wait)
        });
        Nobody { retry_after: waits.min() }
    }

    /// How its backends stand, for the story of a request. At most `most` of them.
    pub fn candidates(&self, wish: &Wish<'_>, most: usize) -> Vec<Candidate> {
        let told = self.asking(wish, |_, ask| {
            let crowd = self.balance_by_bound(ask).then(|| self.table.count(ask).0);
            let one = |endpoint: &Arc<Endpoint>| {
                let member = self.table.number(endpoint.id)?;
                let barred = if !self.healthy(&self.table.backends[member]) {
                    Some("unhealthy")
                } else if endpoint.draining() {
                    Some("draining")
                } else if ask.tried(endpoint.id) {
                    Some("tried")
                } else {
                    match self.table.bars(member, ask) {
                        Some(Bar::Open(_)) => Some("open"),
                        Some(Bar::Busy(_)) => Some("busy"),
                        None => crowd
                            .filter(|crowd| !self.table.within(member, crowd))
                            .map(|_| "overloaded"),
                    }
                };
                let score = self.balancer.score(&self.table, member, ask);
                Some(Candidate { backend: endpoint.name.clone(), score, barred })
            };
            self.members.iter().take(most).filter_map(one).collect()
        });
        told.unwrap_or_default()
    }

    /// Whether a request goes where it belongs only within the bound.
    fn balance_by_bound(&self, ask: &Ask<'_>) -> bool {
        match self.balance.strategy {
            Strategy::PrefixAffinity => true,
            Strategy::ConsistentHash => ask.session.is_some(),
            _ => self.balance.affinity.is_some() && ask.session.is_some(),
        }
    }

    /// A request has come: it earns a part of a retry.
    pub fn earn(&self) {
        self.budget.earn();
    }

    /// Whether the pool can afford a retry; takes it.
    pub fn afford_retry(&self, now: Instant) -> bool {
        self.budget.afford(now)
    }

    /// Its plan.
    pub fn balance(&self) -> &BalancePlan {
        &self.balance
    }

    /// Whether one of its backends wants to be asked for usage in this way.
    pub fn asks(&self, usage: StreamUsage) -> bool {
        self.asks.contains(&usage)
    }

    fn healthy(&self, backend: &Backend) -> bool {
        !self.probed || self.balancer.healthy(backend)
    }

    /// The backends with their health.
    pub fn health(&self) -> impl Iterator<Item = (&Arc<Endpoint>, bool)> {
        let healthy = |e: &Arc<Endpoint>| {
            let member = self.table.number(e.id);
            member.is_some_and(|member| self.healthy(&self.table.backends[member]))
        };
        self.members.iter().map(move |e| (e, healthy(e)))
    }

    /// The backends, and whether they may be chosen.
    pub fn members(&self) -> impl Iterator<Item = (&Arc<Endpoint>, bool)> {
        self.health().map(|(e, healthy)| (e, healthy && !e.draining()))
    }

    /// How many backends it has.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// It has no backend.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether there is a backend to choose, as far as probes and operators say.
    pub fn ready(&self) -> bool {
        self.members().any(|(_, healthy)| healthy)
    }
}

/// The budget of a pool that may take another one's place, or have come from one.
fn budget(parts: &PoolParts<'_>) -> Budget {
    let now = Instant::now();
    let budget = Budget::new(parts.budget, now);
    match (parts.heritage.sole, parts.heritage.closest) {
        (Some(old), _) => budget.instead_of(&old.budget),
        (None, Some(old)) => budget.like(&old.budget, now),
        (None, None) => budget,
    }
}

#[cfg(test)]
mod tests;
