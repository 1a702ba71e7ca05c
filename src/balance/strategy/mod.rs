//! Balancing strategies, each a selection of pingora-load-balancing. One file a strategy, with its
//! rule; a new one gets its line in `balancer`.

mod consistent_hash;
mod latency_based;
mod least_connections;
mod least_load;
mod p2c;
mod prefix_affinity;
mod random;
mod round_robin;
mod selection;

use std::sync::Arc;

use futures::future::BoxFuture;
use pingora_load_balancing::{
    Backend, Backends, LoadBalancer,
    selection::{BackendIter, BackendSelection},
};

use self::{
    consistent_hash::ConsistentHash, latency_based::LatencyBased,
    least_connections::LeastConnections, least_load::LeastLoad, p2c::P2c,
    prefix_affinity::PrefixAffinity, random::Random, round_robin::RoundRobin, selection::Selection,
};
use super::{ask::Ask, table::Table};
use crate::config::plan::Strategy;

/// Offers that a strategy may make before it goes through all backends.
pub(super) const CHOICES: usize = 16;

/// A selection that knows the pool's members. What the request brings comes with the key.
trait Ranking: BackendSelection<Config = Arc<Table>> {
    /// By what a member is compared with the others; lower is better.
    fn score(_table: &Table, _member: usize, _ask: &Ask<'_>) -> Option<f64> {
        None
    }

    /// A member has been chosen.
    fn chosen(_table: &Table, _member: usize, _ask: &Ask<'_>) {}
}

/// A strategy at work on a pool's backends.
pub(super) trait Balancer: Send + Sync {
    /// Takes the backends in.
    fn start(&self) -> BoxFuture<'_, pingora::Result<()>>;

    /// The first backend that is accepted, told its health.
    fn select(
        &self,
        key: &[u8],
        most: usize,
        accept: &dyn Fn(&Backend, bool) -> bool,
    ) -> Option<Backend>;

    /// What probes have found.
    fn healthy(&self, backend: &Backend) -> bool;

    /// By what a member is compared with the others.
    fn score(&self, table: &Table, member: usize, ask: &Ask<'_>) -> Option<f64>;

    /// A member has been chosen.
    fn chosen(&self, table: &Table, member: usize, ask: &Ask<'_>);
}

impl<S> Balancer for LoadBalancer<S>
where
    S: Ranking + Send + Sync + 'static,
    S::Iter: BackendIter,
{
    fn start(&self) -> BoxFuture<'_, pingora::Result<()>> {
        Box::pin(self.update())
    }

    fn select(
        &self,
        key: &[u8],
        most: usize,
        accept: &dyn Fn(&Backend, bool) -> bool,
    ) -> Option<Backend> {
        self.select_with(key, most, accept)
    }

    fn healthy(&self, backend: &Backend) -> bool {
        self.backends().ready(backend)
    }

    fn score(&self, table: &Table, member: usize, ask: &Ask<'_>) -> Option<f64> {
        S::score(table, member, ask)
    }

    fn chosen(&self, table: &Table, member: usize, ask: &Ask<'_>) {
        S::chosen(table, member, ask);
    }
}

fn make<S>(backends: Backends, table: &Arc<Table>) -> Box<dyn Balancer>
where
    S: Ranking + Send + Sync + 'static,
    S::Iter: BackendIter,
{
    Box::new(LoadBalancer::<S>::from_backends_with_config(backends, Some(Arc::clone(table))))
}

/// The strategies, by the words of the configuration.
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
