//! Registering metrics: each helper declares one metric in a registry and returns its handle.

use prometheus::{IntGaugeVec, Opts, Registry, core::Collector};

pub(super) fn gauges(r: &Registry, name: &str, help: &str, label: &str) -> IntGaugeVec {
    register(r, IntGaugeVec::new(Opts::new(name, help), &[label]))
}

/// Registers a metric. Names are constants: a duplicate or illegal name is a defect that every
/// start would show.
pub(super) fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<C>,
) -> C {
    let metric = metric.expect("the name of a metric is legal");
    registry.register(Box::new(metric.clone())).expect("the name of a metric is unique");
    metric
}
