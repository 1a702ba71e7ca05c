//! Everything that a request may need of the configuration, immutable.

use std::sync::Arc;

use super::{Carry, Tiers};
use crate::{
    auth::Auth,
    balance::{Endpoint, Pool, PoolParts},
    config::Plan,
    limit::Limiter,
    route::{Place, PoolSpec, Router},
};

/// One generation of the configuration, ready for use.
pub struct Snapshot {
    /// Counts the loads of this process, from 1.
    pub generation: u64,
    /// What the file means.
    pub plan: Plan,
    /// Who may call; `None`: everybody.
    pub auth: Option<Auth>,
    /// How much one may call.
    pub limits: Arc<Limiter>,
    /// What callers are given before others.
    pub tiers: Tiers,
    /// From a model to a pool.
    pub router: Router,
    /// The pools that the router names.
    pub pools: Vec<Pool>,
    /// All backends, in the order of the file.
    pub endpoints: Vec<Arc<Endpoint>>,
}

impl Snapshot {
    /// Builds the generation after `earlier` whole. What lives on comes from there and from
    /// `carry`.
    pub fn build(plan: Plan, earlier: Option<&Self>, carry: &Carry) -> Self {
        let generation = earlier.map_or(1, |e| e.generation + 1);
        let known = earlier.and_then(|e| e.auth.as_ref());
        let auth = plan.auth.as_ref().map(|auth| Auth::new(auth, &carry.resources(), known));
        let endpoints: Vec<_> = plan
            .backends
            .iter()
            .map(|b| Arc::new(Endpoint::new(carry.ids.of(b), b.clone(), &plan.timeouts)))
            .collect();
        let (router, specs) = router(&plan, &endpoints);
        let probed = plan.health_check.is_some();
        let routing = &plan.routing;
        let pools = specs
            .into_iter()
            .map(|spec| {
                let parts = PoolParts {
                    balance: &spec.balance,
                    circuit: &routing.circuit,
                    budget: &routing.retry.budget,
                    load_interval: routing.load.interval,
                    registry: &carry.health,
                    probed,
                    memories: &carry.ids.memories,
                    seed: rand::random(),
                };
                let member = |(i, weight): &(usize, u32)| (Arc::clone(&endpoints[*i]), *weight);
                Pool::new(spec.members.iter().map(member).collect(), &parts)
            })
            .collect();
        let known = earlier.map(|e| &*e.limits);
        let limits = Limiter::new(plan.limits.clone(), &carry.limits, &carry.stores, known);
        let tiers = Tiers::new(plan.tiers.clone());
        carry.explains.resize(plan.routing.explain);
        Self { generation, plan, auth, limits, tiers, router, pools, endpoints }
    }

    /// The backends with their health, each once.
    pub fn health(&self) -> Vec<(Arc<Endpoint>, bool)> {
        let mut found: Vec<(Arc<Endpoint>, bool)> = Vec::new();
        for (endpoint, healthy) in self.pools.iter().flat_map(Pool::health) {
            if !found.iter().any(|(e, _)| e.id == endpoint.id) {
                found.push((Arc::clone(endpoint), healthy));
            }
        }
        found
    }

    /// Whether every model has a healthy backend.
    pub fn ready(&self) -> bool {
        self.router.routes().all(|route| route.pools().any(|id| self.pools[id].ready()))
    }
}

/// The ways to the models, and the pools that they lead to.
fn router(plan: &Plan, endpoints: &[Arc<Endpoint>]) -> (Router, Vec<PoolSpec>) {
    let places: Vec<_> = endpoints
        .iter()
        .map(|e| Place { backend: &e.plan.name, weight: e.plan.weight, models: &e.plan.models })
        .collect();
    Router::new(&plan.routing, &places)
}
