//! Balancing strategies, each a selection of pingora-load-balancing. Each strategy is one file with
//! its rule; a new one gets its line in `balancer`.

mod consistent_hash;
mod latency_based;
mod least_connections;
mod least_load;
mod p2c;
mod prefix_affinity;
mod random;
mod round_robin;
mod rule;
mod selection;

use std::sync::Arc;

use futures::future::BoxFuture;
use pingora_load_balancing::{Backend, Backends, LoadBalancer, selection::BackendIter};

use self::{
    consistent_hash::ConsistentHash,
    latency_based::LatencyBased,
    least_connections::LeastConnections,
    least_load::LeastLoad,
    p2c::P2c,
    prefix_affinity::PrefixAffinity,
    random::Random,
    round_robin::RoundRobin,
    rule::{Rule, RuleSelection, start_key},
    selection::Selection,
};
use super::{pick::Pick, table::Table};
use crate::config::plan::Strategy;

/// Offers that a strategy may make before it offers every member once.
const EXTRA_OFFERS: usize = 16;

/// The strategy of a pool, with the pool's backends.
pub(super) trait Balancer: Send + Sync {
    /// Reads the list of backends.
    fn start(&self) -> BoxFuture<'_, pingora::Result<()>>;

    /// The first backend offered that `accept` takes. `accept` gets a backend and whether it is healthy.
    fn select(
        &self,
        table: &Table,
        pick: &Pick<'_>,
        accept: &dyn Fn(&Backend, bool) -> bool,
    ) -> Option<Backend>;

    /// Whether a backend is healthy, by its probes.
    fn is_healthy(&self, backend: &Backend) -> bool;

    fn score(&self, table: &Table, member: usize, pick: &Pick<'_>) -> Option<f64>;

    /// Learns which member was picked.
    fn picked(&self, table: &Table, member: usize, pick: &Pick<'_>);
}

impl<S> Balancer for LoadBalancer<S>
where
    S: RuleSelection + Send + Sync + 'static,
    S::Iter: BackendIter,
{
    fn start(&self) -> BoxFuture<'_, pingora::Result<()>> {
        Box::pin(self.update())
    }

    fn select(
        &self,
        table: &Table,
        pick: &Pick<'_>,
        accept: &dyn Fn(&Backend, bool) -> bool,
    ) -> Option<Backend> {
        let start = start_key(S::Rule::choose(table, pick));
        self.select_with(&start, table.len() + EXTRA_OFFERS, accept)
    }

    fn is_healthy(&self, backend: &Backend) -> bool {
        self.backends().ready(backend)
    }

    fn score(&self, table: &Table, member: usize, pick: &Pick<'_>) -> Option<f64> {
        S::Rule::score(table, member, pick)
    }

    fn picked(&self, table: &Table, member: usize, pick: &Pick<'_>) {
        S::Rule::picked(table, member, pick);
    }
}

fn make<S>(backends: Backends, table: &Arc<Table>) -> Box<dyn Balancer>
where
    S: RuleSelection + Send + Sync + 'static,
    S::Iter: BackendIter,
{
    Box::new(LoadBalancer::<S>::from_backends_with_config(backends, Some(Arc::clone(table))))
}

/// The strategies that one request may ask for in place of its pool's. What prompts begin with is
/// remembered only by pools that are configured for it.
pub(super) const SELECTABLE: [Strategy; 7] = [
    Strategy::RoundRobin,
    Strategy::LeastConnections,
    Strategy::LatencyBased,
    Strategy::Random,
    Strategy::P2c,
    Strategy::ConsistentHash,
    Strategy::LeastLoad,
];

/// The strategies, by their names in the configuration.
pub(super) fn balancer(
    strategy: Strategy,
    backends: Backends,
    table: &Arc<Table>,
) -> Box<dyn Balancer> {
    match strategy {
        Strategy::RoundRobin => make::<RoundRobin>(backends, table),
        Strategy::LeastConnections => make::<Selection<LeastConnections>>(backends, table),
        Strategy::LatencyBased => make::<Selection<LatencyBased>>(backends, table),
        Strategy::Random => make::<Selection<Random>>(backends, table),
        Strategy::P2c => make::<Selection<P2c>>(backends, table),
        Strategy::ConsistentHash => make::<Selection<ConsistentHash>>(backends, table),
        Strategy::PrefixAffinity => make::<Selection<PrefixAffinity>>(backends, table),
        Strategy::LeastLoad => make::<Selection<LeastLoad>>(backends, table),
    }
}
