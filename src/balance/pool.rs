//! A pool: the backends that serve one set of models.

use std::{collections::BTreeSet, sync::Arc};

use futures::FutureExt;
use pingora_load_balancing::{Backends, HealthRegistry, LoadBalancer, discovery::Static};

use super::{Endpoint, strategy::RoundRobin};
use crate::config::raw::StreamUsage;

/// A set of backends and the strategy that chooses among them.
pub struct Pool {
    members: Vec<Arc<Endpoint>>,
    balancer: LoadBalancer<RoundRobin>,
    probed: bool,
    /// The ways in which its backends want to be asked for usage.
    asks: Vec<StreamUsage>,
}

impl Pool {
    /// A pool of these backends, whose health is kept in `registry`. Without probes (`probed` is
    /// false) every backend counts as healthy, whatever earlier probes found.
    pub fn new(members: Vec<Arc<Endpoint>>, registry: &Arc<HealthRegistry>, probed: bool) -> Self {
        let set: BTreeSet<_> = members.iter().map(|e| e.backend()).collect();
        let backends = Backends::new_with_health_registry(Static::new(set), Arc::clone(registry));
        let balancer = LoadBalancer::from_backends(backends);
        balancer
            .update()
            .now_or_never()
            .expect("a static list does not wait")
            .expect("a static list does not fail");
        let mut asks: Vec<_> = members.iter().map(|e| e.plan.stream_usage).collect();
        asks.dedup();
        Self { members, balancer, probed, asks }
    }

    /// Chooses a healthy backend that is not among `tried`.
    pub fn pick(&self, tried: &[u32]) -> Option<Arc<Endpoint>> {
        // Each backend is offered once, after a few weighted attempts.
        let most = self.members.len() + RoundRobin::WEIGHTED_TRIES;
        let chosen = self.balancer.select_with(b"", most, |backend, healthy| {
            let id = Endpoint::id_of(backend);
            (healthy || !self.probed) && !tried.contains(&id) && !self.draining(id)
        })?;
        let id = Endpoint::id_of(&chosen);
        self.members.iter().find(|e| e.id == id).cloned()
    }

    /// Whether one of its backends wants to be asked for usage in this way.
    pub fn asks(&self, usage: StreamUsage) -> bool {
        self.asks.contains(&usage)
    }

    fn draining(&self, id: u32) -> bool {
        self.members.iter().any(|e| e.id == id && e.draining())
    }

    /// The backends with their health.
    pub fn health(&self) -> impl Iterator<Item = (&Arc<Endpoint>, bool)> {
        let ready =
            |e: &Arc<Endpoint>| !self.probed || self.balancer.backends().ready(&e.backend());
        self.members.iter().map(move |e| (e, ready(e)))
    }

    /// The backends, and whether they may be chosen.
    pub fn members(&self) -> impl Iterator<Item = (&Arc<Endpoint>, bool)> {
        self.health().map(|(e, healthy)| (e, healthy && !e.draining()))
    }

    /// Whether there is a backend to choose.
    pub fn ready(&self) -> bool {
        self.members().any(|(_, healthy)| healthy)
    }
}
