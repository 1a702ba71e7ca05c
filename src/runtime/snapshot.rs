//! Everything that a request may need of the configuration, immutable.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::{Carry, Tiers, discovery};
use crate::{
    auth::Auth,
    balance::{
        Endpoint, Pool, PoolParts,
        heirs::{Heritage, heirs},
    },
    config::{Plan, choices::Ready, plan::BackendPlan},
    limit::Limiter,
    route::{Place, PoolSpec, Route, Router},
};

/// One generation of the configuration, ready for use.
pub struct Snapshot {
    /// Counts the loads of this process, and the changes of the backends, from 1.
    pub generation: u64,
    /// What the file means.
    pub plan: Arc<Plan>,
    /// Who may call; `None`: everybody.
    pub auth: Option<Arc<Auth>>,
    /// How much one may call.
    pub limits: Arc<Limiter>,
    /// What callers are given before others.
    pub tiers: Arc<Tiers>,
    /// From a model to a pool.
    pub router: Router,
    /// The pools that the router names.
    pub pools: Vec<Pool>,
    /// All backends: those of the file, in its order, and those that other places told of.
    pub backends: Vec<BackendPlan>,
    /// Where they are, in the same order: none, one or several for each.
    pub endpoints: Vec<Arc<Endpoint>>,
}

impl Snapshot {
    /// Builds the generation after `earlier` whole. What lives on comes from there and from
    /// `carry`.
    pub fn build(plan: Plan, earlier: Option<&Self>, carry: &Carry) -> Self {
        let known = earlier.and_then(|e| e.auth.as_deref());
        let auth = plan.auth.as_ref().map(|auth| Auth::new(auth, &carry.resources(), known));
        let known = earlier.map(|e| &*e.limits);
        let limits = Limiter::new(plan.limits.clone(), &carry.limits, &carry.stores, known);
        let tiers = Tiers::new(plan.tiers.clone());
        carry.explains.resize(plan.routing.explain);
        let backends = carry.found.backends(&plan);
        let endpoints = discovery::endpoints(&backends, &plan.timeouts, carry, earlier);
        let old = earlier.map_or(&[][..], |e| &e.pools);
        let (router, pools) = pools(&plan, &backends, &endpoints, old, carry);
        Self {
            generation: earlier.map_or(1, |e| e.generation + 1),
            plan: Arc::new(plan),
            auth: auth.map(Arc::new),
            limits,
            tiers: Arc::new(tiers),
            router,
            pools,
            backends,
            endpoints,
        }
    }

    /// The next generation by the same plan, if the backends have changed.
    pub fn with_new_backends(&self, carry: &Carry) -> Option<Self> {
        let backends = carry.found.backends(&self.plan);
        let endpoints = discovery::endpoints(&backends, &self.plan.timeouts, carry, Some(self));
        let same = endpoints.len() == self.endpoints.len()
            && endpoints.iter().zip(&self.endpoints).all(|(a, b)| Arc::ptr_eq(a, b));
        if same && backends == self.backends {
            return None;
        }
        let (router, pools) = pools(&self.plan, &backends, &endpoints, &self.pools, carry);
        Some(Self {
            generation: self.generation + 1,
            plan: Arc::clone(&self.plan),
            auth: self.auth.clone(),
            limits: Arc::clone(&self.limits),
            tiers: Arc::clone(&self.tiers),
            router,
            pools,
            backends,
            endpoints,
        })
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

    /// Whether there are backends, and as many of them are healthy as `server.ready` wants.
    pub fn ready(&self) -> bool {
        let ready = |route: &Route| route.pools().any(|id| self.pools[id].ready());
        let enough = match self.plan.ready {
            Ready::EveryModel => self.router.routes().all(|route| ready(route)),
            Ready::AnyBackend => self.pools.iter().any(Pool::ready),
        };
        enough && !self.backends.is_empty()
    }
}

/// The ways to the models, and the pools that they lead to, which go on from the `old` ones. A
/// backend that is nowhere yet has a place all the same: its models are known, and have nobody to
/// serve them.
fn pools(
    plan: &Plan,
    backends: &[BackendPlan],
    endpoints: &[Arc<Endpoint>],
    old: &[Pool],
    carry: &Carry,
) -> (Router, Vec<Pool>) {
    let mut known: HashMap<&str, Vec<&Arc<Endpoint>>> = HashMap::new();
    for endpoint in endpoints {
        known.entry(&endpoint.plan.name).or_default().push(endpoint);
    }
    let place = |b: &BackendPlan| known.get(b.name.as_str()).cloned().unwrap_or_default();
    let mut places = Vec::new();
    for backend in backends {
        let found = place(backend);
        let nowhere = found.is_empty().then_some(None);
        places.extend(found.into_iter().map(Some).chain(nowhere).map(|e| (backend, e)));
    }
    let told: Vec<_> = places
        .iter()
        .map(|(b, _)| Place { backend: &b.name, weight: b.weight, models: &b.models })
        .collect();
    let (router, specs) = Router::new(&plan.routing, &told);
    let routing = &plan.routing;
    let members = |spec: &PoolSpec| -> Vec<(Arc<Endpoint>, u32)> {
        let member = |(i, weight): &(usize, u32)| Some((Arc::clone(places[*i].1?), *weight));
        spec.members.iter().filter_map(member).collect()
    };
    let ids = |spec: &PoolSpec| {
        let ids: BTreeSet<_> = members(spec).iter().map(|(e, _)| e.id).collect();
        ids.into_iter().collect()
    };
    let told: Vec<_> = specs.iter().map(|spec| (ids(spec), &spec.balance)).collect();
    let heritages = heirs(old, &told);
    let pool = |(spec, heritage): (&PoolSpec, Heritage<'_>)| {
        let parts = PoolParts {
            balance: &spec.balance,
            circuit: &routing.circuit,
            budget: &routing.retry.budget,
            load_interval: routing.load.interval,
            registry: &carry.health,
            probed: plan.health_check.is_some(),
            heritage,
            seed: rand::random(),
        };
        Pool::new(members(spec), &parts)
    };
    let pools = specs.iter().zip(heritages).map(pool).collect();
    (router, pools)
}
