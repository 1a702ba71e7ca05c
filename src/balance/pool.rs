//! A pool: the backends that serve one set of models.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt;
use pingora_load_balancing::{Backends, HealthRegistry, LoadBalancer, discovery::Static};

use super::{Endpoint, endpoint::Lease, strategy::RoundRobin};
use crate::config::{plan::BalancePlan, raw::StreamUsage};

/// What a choice goes by.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// The model, by the name that the backend knows.
    pub model: &'a str,
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

/// A set of backends and the strategy that chooses among them.
pub struct Pool {
    members: Vec<Arc<Endpoint>>,
    balancer: LoadBalancer<RoundRobin>,
    probed: bool,
    balance: BalancePlan,
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
        Self { members, balancer, probed, balance: BalancePlan::default(), asks }
    }

    /// Chooses a backend and takes a place there.
    ///
    /// # Errors
    /// If there is none to choose.
    pub fn pick(&self, wish: &Wish<'_>) -> Result<Choice, Nobody> {
        // Each backend is offered once, after a few weighted attempts.
        let most = self.members.len() + RoundRobin::WEIGHTED_TRIES;
        let chosen = self
            .balancer
            .select_with(b"", most, |backend, healthy| {
                let id = Endpoint::id_of(backend);
                (healthy || !self.probed) && !wish.tried.contains(&id) && !self.draining(id)
            })
            .ok_or(Nobody::default())?;
        let id = Endpoint::id_of(&chosen);
        let endpoint = self.members.iter().find(|e| e.id == id).cloned();
        let endpoint = endpoint.ok_or(Nobody::default())?;
        Ok(Choice { lease: endpoint.lease(), endpoint })
    }

    /// How its backends stand, for the story of a request. At most `most` of them.
    pub fn candidates(&self, _wish: &Wish<'_>, _most: usize) -> Vec<Candidate> {
        Vec::new()
    }

    /// A request has come: it earns a part of a retry.
    pub fn earn(&self) {}

    /// Whether the pool can afford a retry; takes it.
    pub fn afford_retry(&self, _now: Instant) -> bool {
        true
    }

    /// Its plan.
    pub fn balance(&self) -> &BalancePlan {
        &self.balance
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
