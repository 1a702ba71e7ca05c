//! A pool: the backends that serve one set of models.

use std::{
    cell::Cell,
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt;
use pingora_load_balancing::{Backend, Backends, HealthRegistry, discovery::Static};

use super::{
    budget::Budget,
    ejection::Ejection,
    endpoint::Endpoint,
    pick::{Candidate, NoBackend, Pick, PickRequest, PickedBackend},
    prefix::PrefixMemory,
    strategy::{self, Balancer},
    table::{Table, TableOptions},
};
use crate::config::plan::{BalancePlan, BudgetPlan, CircuitPlan, Strategy};

/// The pools of the previous generation that a new pool continues.
#[derive(Clone, Copy, Default)]
pub struct Predecessor<'a> {
    /// The most similar pool. Other new pools may continue it as well.
    pub closest: Option<&'a Pool>,
    /// The pool that the new one replaces; no other new pool replaces it.
    pub replaced: Option<&'a Pool>,
}

/// How a pool is built from its members.
#[derive(Clone, Copy)]
pub struct PoolOptions<'a> {
    pub balance: &'a BalancePlan,
    /// When its backends are ejected.
    pub circuit: &'a CircuitPlan,
    /// The budget of its retries.
    pub budget: &'a BudgetPlan,
    /// Time between two readings of the engines' load.
    pub load_interval: Duration,
    /// Health of the backends.
    pub registry: &'a Arc<HealthRegistry>,
    /// Without probes every backend counts as healthy, whatever earlier probes found.
    pub probed: bool,
    pub predecessor: Predecessor<'a>,
    /// A request may ask for another strategy.
    pub selectable: bool,
    /// Seed of the random numbers.
    pub seed: u64,
}

/// A set of backends and the strategy that picks among them.
pub struct Pool {
    /// In the order in which they were given.
    members: Vec<Arc<Endpoint>>,
    table: Arc<Table>,
    balancer: Box<dyn Balancer>,
    /// The other strategies, where requests may ask for them.
    others: Vec<(Strategy, Box<dyn Balancer>)>,
    probed: bool,
    balance: BalancePlan,
    circuit: CircuitPlan,
    budget: Budget,
}

impl Pool {
    /// A pool of these backends, with their weights in it.
    pub fn new(members: Vec<(Arc<Endpoint>, u32)>, options: &PoolOptions<'_>) -> Self {
        let balance = options.balance;
        let table_options = TableOptions {
            bound: balance.bound,
            stale: 3 * options.load_interval,
            max_ejected: options.circuit.max_ejected,
            ring: options.selectable
                || balance.affinity.is_some()
                || balance.strategy == Strategy::ConsistentHash,
            seed: options.seed,
        };
        let memory = (balance.strategy == Strategy::PrefixAffinity).then(|| {
            let entries = balance.prefix.remembered;
            let old = options.predecessor.closest.and_then(|old| old.table.memory.as_ref());
            let old = old.filter(|memory| memory.has_capacity(entries));
            old.map_or_else(|| Arc::new(PrefixMemory::new(entries)), Arc::clone)
        });
        let mut listed: Vec<Arc<Endpoint>> = Vec::with_capacity(members.len());
        let mut seen = BTreeSet::new();
        listed
            .extend(members.iter().filter(|(e, _)| seen.insert(e.id)).map(|(e, _)| Arc::clone(e)));
        let table = Table::new(members, &table_options, memory);
        if let Some(old) = options.predecessor.closest {
            table.inherit(&old.table);
        }
        let table = Arc::new(table);
        let set: BTreeSet<_> = table.backends.iter().cloned().collect();
        let started = |strategy| {
            let registry = Arc::clone(options.registry);
            let list = Static::new(set.clone());
            let backends = Backends::new_with_health_registry(list, registry);
            let balancer = strategy::balancer(strategy, backends, &table);
            balancer
                .start()
                .now_or_never()
                .expect("a static list does not wait")
                .expect("a static list does not fail");
            balancer
        };
        let balancer = started(balance.strategy);
        let others = strategy::SELECTABLE.iter().filter(|_| options.selectable);
        let others = others.map(|strategy| (*strategy, started(*strategy))).collect();
        Self {
            members: listed,
            table,
            balancer,
            others,
            probed: options.probed,
            balance: balance.clone(),
            circuit: *options.circuit,
            budget: budget(options),
        }
    }

    /// Ids of its backends, sorted.
    pub fn ids(&self) -> &[u32] {
        self.table.ids()
    }

    /// Picks a backend and takes a lease on it.
    ///
    /// # Errors
    /// If no backend is available.
    pub fn pick(&self, request: &PickRequest<'_>) -> Result<PickedBackend, NoBackend> {
        let pick = self.begin(request);
        self.choose(&pick).ok_or_else(|| self.no_backend(&pick))
    }

    fn begin<'a>(&self, request: &'a PickRequest<'a>) -> Pick<'a> {
        self.table.refresh_health(request.now, |backend| self.is_healthy(backend));
        Pick::new(request, self.table.epoch)
    }

    fn choose(&self, pick: &Pick<'_>) -> Option<PickedBackend> {
        let table = &*self.table;
        let admitted = Cell::new(None);
        let accept = |backend: &Backend, healthy: bool| {
            let Some(member) = table.number(Endpoint::id_of(backend)) else { return false };
            let endpoint = &table.members[member];
            let down = self.probed && !healthy;
            if down || endpoint.draining() || pick.excludes(endpoint.id) {
                return false;
            }
            admitted.set(table.admit(member, pick).ok().map(|trials| (member, trials)));
            admitted.get().is_some()
        };
        let bound = self.bound_member(pick).is_some_and(|member| {
            let backend = &table.backends[member];
            accept(backend, self.is_healthy(backend))
        });
        let balancer = self.balancer_for(pick.request);
        if !bound {
            balancer.select(table, pick, &accept)?;
        }
        let (member, trials) = admitted.get()?;
        balancer.picked(table, member, pick);
        let endpoint = Arc::clone(&table.members[member]);
        let caller = (pick.request.model, pick.request.caller);
        let lease = endpoint.state().lease(caller, self.circuit, trials);
        Some(PickedBackend { endpoint, lease })
    }

    /// The strategy that the request asks for, or the pool's.
    fn balancer_for(&self, request: &PickRequest<'_>) -> &dyn Balancer {
        let asked = request.strategy.filter(|strategy| *strategy != self.balance.strategy);
        let other = asked.and_then(|asked| self.others.iter().find(|(known, _)| *known == asked));
        other.map_or(&*self.balancer, |(_, balancer)| &**balancer)
    }

    /// The member to which the request's session is bound, if it is not overloaded.
    fn bound_member(&self, pick: &Pick<'_>) -> Option<usize> {
        let strategy = pick.request.strategy.unwrap_or(self.balance.strategy);
        let binds = self.balance.affinity.is_some() || pick.request.binds;
        if !binds || strategy == Strategy::ConsistentHash {
            return None;
        }
        let member = self.table.ring_member(pick, |_| true)?;
        self.table.is_within_bound(member, &self.table.pool_load(pick)).then_some(member)
    }

    /// When an ejected backend becomes available again.
    fn no_backend(&self, pick: &Pick<'_>) -> NoBackend {
        let waits = (0..self.table.len()).filter_map(|member| {
            let endpoint = &self.table.members[member];
            let usable = self.is_healthy(&self.table.backends[member])
                && !endpoint.draining()
                && !pick.excludes(endpoint.id);
            usable.then(|| self.table.ejection(member, pick)).flatten().map(Ejection::remaining)
        });
        NoBackend { retry_after: waits.min() }
    }

    /// The state of its backends, for the trace of a request; at most `most` of them.
    pub fn candidates(&self, request: &PickRequest<'_>, most: usize) -> Vec<Candidate> {
        self.states(request, most, |member| self.is_healthy(&self.table.backends[member]))
    }

    /// The same as the strategy sees it: by a copy of their health, because reading the registry costs
    /// more than all the rest.
    pub fn offered(&self, request: &PickRequest<'_>, most: usize) -> Vec<Candidate> {
        self.states(request, most, |member| self.table.is_up(member))
    }

    fn states(
        &self,
        request: &PickRequest<'_>,
        most: usize,
        healthy: impl Fn(usize) -> bool,
    ) -> Vec<Candidate> {
        let pick = &self.begin(request);
        let load = self.has_load_bound(pick).then(|| self.table.compute_load(pick).0);
        let candidate = |endpoint: &Arc<Endpoint>| {
            let member = self.table.number(endpoint.id)?;
            let barred = if !healthy(member) {
                Some("unhealthy")
            } else if endpoint.draining() {
                Some("draining")
            } else if pick.excludes(endpoint.id) {
                Some("tried")
            } else {
                match self.table.ejection(member, pick) {
                    Some(Ejection::Open(_)) => Some("open"),
                    Some(Ejection::Busy(_)) => Some("busy"),
                    None => load
                        .filter(|load| !self.table.is_within_bound(member, load))
                        .map(|_| "overloaded"),
                }
            };
            let score = self.balancer.score(&self.table, member, pick);
            Some(Candidate { backend: Arc::clone(&endpoint.name), score, barred })
        };
        let mut states = Vec::with_capacity(most.min(self.len()));
        states.extend(self.members.iter().take(most).filter_map(candidate));
        states
    }

    /// Whether the bound on a member's load applies to the request.
    fn has_load_bound(&self, pick: &Pick<'_>) -> bool {
        let has_session = pick.request.session.is_some();
        match self.balance.strategy {
            Strategy::PrefixAffinity => true,
            Strategy::ConsistentHash => has_session,
            _ => self.balance.affinity.is_some() && has_session,
        }
    }

    /// Adds what one request earns to the retry budget.
    pub fn earn(&self) {
        self.budget.earn();
    }

    /// Takes a retry from the budget, if there is one.
    pub fn afford_retry(&self, now: Instant) -> bool {
        self.budget.afford(now)
    }

    pub fn balance(&self) -> &BalancePlan {
        &self.balance
    }

    fn is_healthy(&self, backend: &Backend) -> bool {
        !self.probed || self.balancer.is_healthy(backend)
    }

    /// The backends with their health.
    pub fn health(&self) -> impl Iterator<Item = (&Arc<Endpoint>, bool)> {
        let healthy = |e: &Arc<Endpoint>| {
            let member = self.table.number(e.id);
            member.is_some_and(|member| self.is_healthy(&self.table.backends[member]))
        };
        self.members.iter().map(move |e| (e, healthy(e)))
    }

    /// The backends, and whether each may be picked.
    pub fn members(&self) -> impl Iterator<Item = (&Arc<Endpoint>, bool)> {
        self.health().map(|(e, healthy)| (e, healthy && !e.draining()))
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether a backend is available, by probes and draining alone.
    pub fn ready(&self) -> bool {
        self.members().any(|(_, healthy)| healthy)
    }
}

/// The retry budget of a pool. A pool that replaces another shares its budget; one that only continues
/// another begins with as much as that has.
fn budget(options: &PoolOptions<'_>) -> Budget {
    let now = Instant::now();
    let budget = Budget::new(options.budget, now);
    match (options.predecessor.replaced, options.predecessor.closest) {
        (Some(old), _) => budget.shared_with(&old.budget),
        (None, Some(old)) => budget.starting_as(&old.budget, now),
        (None, None) => budget,
    }
}

#[cfg(test)]
mod tests;
