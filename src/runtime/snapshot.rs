//! Everything that a request may need of the configuration, immutable.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    carry::Carry,
    endpoints::{self, EarlierEndpoints},
    owners::SharedOwners,
    script_requests::ScriptRequests,
    tiers::Tiers,
};
use crate::{
    auth::Auth,
    balance::{Endpoint, Pool, PoolOptions, Predecessor, pool_continuity},
    base::Stage,
    config::{Plan, choices::Ready, plan::BackendPlan},
    guards::Guards,
    hooks::Hooks,
    limit::Limiter,
    prompts::Prompts,
    route::{PoolSpec, Route, RouteTarget, Router},
};

/// One generation of the configuration, ready for use.
pub struct Snapshot {
    /// Counts the loads of this process, and the changes of the backends, from 1.
    pub generation: u64,
    pub plan: Arc<Plan>,
    /// `None`: every caller is allowed.
    pub auth: Option<Arc<Auth>>,
    pub limits: Arc<Limiter>,
    pub tiers: Arc<Tiers>,
    pub prompts: Arc<Prompts>,
    /// What is looked for in requests and answers.
    pub guards: Arc<Guards>,
    /// From a model to pools.
    pub router: Router,
    /// The pools that the router names.
    pub pools: Vec<Pool>,
    /// All backends: those of the file, in its order, then those of the discovery sources.
    pub backends: Vec<BackendPlan>,
    /// The endpoints of the backends, in the same order: none, one or several for each.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// The operator's scripts.
    pub hooks: Arc<Hooks>,
    /// Where all replicas find which backend has stored what; `None`: each knows its own.
    pub owners: Option<Arc<SharedOwners>>,
    /// Backends of different languages are there: a conversation may have been with others before.
    pub mixes_languages: bool,
}

impl Snapshot {
    /// Builds the whole generation after `earlier`. What survives comes from there and from `carry`.
    pub fn build(plan: Plan, earlier: Option<&Self>, carry: &Carry) -> Self {
        let observer = Arc::new(ScriptRequests(carry.metrics.hooks.clone()));
        plan.lua.connect(&carry.stores, &carry.scripts, Some(observer));
        let before = earlier.and_then(|e| e.auth.as_deref());
        let auth = plan.auth.as_ref().map(|auth| Auth::new(auth, &carry.resources(), before));
        let before = earlier.map(|e| &*e.limits);
        let limits = Limiter::new(plan.limits.clone(), &carry.limits, &carry.stores, before);
        let tiers = Tiers::new(plan.tiers.clone());
        let prompts = Prompts::new(plan.prompts.clone());
        let guards = Guards::new(&plan.guards);
        let hooks = Arc::new(Hooks::new(&plan.hooks, &carry.metrics));
        carry.explains.resize(plan.routing.explain);
        let ends = &carry.metrics.connections.certificate_ends;
        ends.reset();
        for one in plan.certificates.iter().flat_map(|all| all.list()) {
            ends.with_label_values(&[&one.file]).set(one.ends);
        }
        let backends = carry.discovered.backends(&plan);
        let endpoints = endpoints::build(
            &backends,
            &plan.timeouts,
            carry,
            earlier.map(Self::earlier_endpoints),
        );
        let old = earlier.map_or(&[][..], |e| &e.pools);
        let (router, pools) = pools(&plan, &backends, &endpoints, old, carry);
        let stored = plan.routing.stored_responses.clone();
        Self {
            generation: earlier.map_or(1, |e| e.generation + 1),
            owners: stored.map(|stored| Arc::new(SharedOwners::new(stored, &carry.stores))),
            plan: Arc::new(plan),
            auth: auth.map(Arc::new),
            limits,
            tiers: Arc::new(tiers),
            prompts: Arc::new(prompts),
            guards: Arc::new(guards),
            router,
            pools,
            hooks,
            mixes_languages: mixes_languages(&backends),
            backends,
            endpoints,
        }
    }

    /// The next generation with the same plan, if the backends have changed.
    pub fn with_new_backends(&self, carry: &Carry) -> Option<Self> {
        let backends = carry.discovered.backends(&self.plan);
        let endpoints =
            endpoints::build(&backends, &self.plan.timeouts, carry, Some(self.earlier_endpoints()));
        let same = endpoints.len() == self.endpoints.len()
            && endpoints.iter().zip(&self.endpoints).all(|(a, b)| Arc::ptr_eq(a, b));
        if same && backends == self.backends {
            return None;
        }
        let (router, pools) = pools(&self.plan, &backends, &endpoints, &self.pools, carry);
        Some(Self {
            generation: self.generation + 1,
            owners: self.owners.clone(),
            plan: Arc::clone(&self.plan),
            auth: self.auth.clone(),
            limits: Arc::clone(&self.limits),
            tiers: Arc::clone(&self.tiers),
            prompts: Arc::clone(&self.prompts),
            guards: Arc::clone(&self.guards),
            router,
            pools,
            hooks: Arc::clone(&self.hooks),
            mixes_languages: mixes_languages(&backends),
            backends,
            endpoints,
        })
    }

    fn earlier_endpoints(&self) -> EarlierEndpoints<'_> {
        EarlierEndpoints { endpoints: &self.endpoints, timeouts: &self.plan.timeouts }
    }

    /// Whether scripts, guards or prompts of the operator have to do with requests.
    pub fn has_hooks(&self) -> bool {
        !(self.hooks.is_empty() && self.guards.is_empty() && self.prompts.is_empty())
    }

    /// The backends with their health, without duplicates.
    pub fn health(&self) -> Vec<(Arc<Endpoint>, bool)> {
        let mut found: Vec<(Arc<Endpoint>, bool)> = Vec::new();
        for (endpoint, healthy) in self.pools.iter().flat_map(Pool::health) {
            if !found.iter().any(|(e, _)| e.id == endpoint.id) {
                found.push((Arc::clone(endpoint), healthy));
            }
        }
        found
    }

    /// Whether there are backends, and enough of them are healthy for `server.ready`.
    pub fn ready(&self) -> bool {
        let ready = |route: &Route| route.pools().any(|id| self.pools[id].ready());
        let enough = match self.plan.ready {
            Ready::EveryModel => self.router.routes().all(|route| ready(route)),
            Ready::AnyBackend => self.pools.iter().any(Pool::ready),
        };
        enough && !self.backends.is_empty()
    }
}

/// Whether the backends speak different languages, or one of them several.
fn mixes_languages(backends: &[BackendPlan]) -> bool {
    let mut names = backends.iter().flat_map(|b| b.languages.iter().map(|l| l.name()));
    let first = names.next();
    names.any(|name| Some(name) != first)
}

/// The router, and the pools that it names, which continue the `old` pools. A backend without an
/// address still has a target: its models are known, and no backend is available for them.
fn pools(
    plan: &Plan,
    backends: &[BackendPlan],
    endpoints: &[Arc<Endpoint>],
    old: &[Pool],
    carry: &Carry,
) -> (Router, Vec<Pool>) {
    let mut by_name: HashMap<&str, Vec<&Arc<Endpoint>>> = HashMap::new();
    for endpoint in endpoints {
        by_name.entry(&endpoint.plan.name).or_default().push(endpoint);
    }
    let endpoints_of = |b: &BackendPlan| by_name.get(b.name.as_str()).cloned().unwrap_or_default();
    let mut targets = Vec::new();
    let mut target_endpoints = Vec::new();
    for backend in backends {
        let found = endpoints_of(backend);
        let none = found.is_empty().then_some(None);
        for endpoint in found.into_iter().map(Some).chain(none) {
            let BackendPlan { name, weight, models, .. } = backend;
            targets.push(RouteTarget { backend: name, weight: *weight, models });
            target_endpoints.push(endpoint);
        }
    }
    let (router, specs) = Router::new(&plan.routing, &targets);
    let routing = &plan.routing;
    let members = |spec: &PoolSpec| -> Vec<(Arc<Endpoint>, u32)> {
        let member =
            |(i, weight): &(usize, u32)| Some((Arc::clone(target_endpoints[*i]?), *weight));
        spec.members.iter().filter_map(member).collect()
    };
    let ids = |spec: &PoolSpec| {
        let ids: BTreeSet<_> = members(spec).iter().map(|(e, _)| e.id).collect();
        ids.into_iter().collect()
    };
    let new: Vec<_> = specs.iter().map(|spec| (ids(spec), &spec.balance)).collect();
    let predecessors = pool_continuity::predecessors(old, &new);
    let pool = |(spec, predecessor): (&PoolSpec, Predecessor<'_>)| {
        let options = PoolOptions {
            balance: &spec.balance,
            circuit: &routing.circuit,
            budget: &routing.retry.budget,
            load_interval: routing.load.interval,
            registry: &carry.health,
            probed: plan.health_check.is_some(),
            predecessor,
            selectable: plan.hooks.iter().any(|hook| hook.stage == Stage::Route),
            seed: rand::random(),
        };
        Pool::new(members(spec), &options)
    };
    let pools = specs.iter().zip(predecessors).map(pool).collect();
    (router, pools)
}
