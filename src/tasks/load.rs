//! Reads the engines' load for the pools that balance by it, and keeps the balancing metrics up to
//! date.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;

use super::scrape;
use crate::{
    balance::Endpoint,
    config::plan::{LoadPlan, Strategy},
    runtime::{Carry, Live, Snapshot},
    telemetry::metrics::BalanceMetrics,
};

/// How often the metrics are updated.
const UPDATE: Duration = Duration::from_secs(1);

/// Runs until the process ends.
pub async fn run(live: Arc<Live>, carry: Arc<Carry>) {
    tokio::join!(read_loads(&live, &carry), update_metrics(&live, &carry));
}

async fn read_loads(live: &Live, carry: &Carry) {
    // Endpoints whose load could not be read last time; each is logged once.
    let mut unreadable = HashSet::new();
    loop {
        let began = Instant::now();
        let snapshot = live.load();
        let generation = snapshot.generation;
        let plan = snapshot.plan.routing.load.clone();
        let wanted = wanted(&snapshot);
        drop(snapshot);
        let reads = wanted.iter().map(|endpoint| read(endpoint, &plan, &carry.client));
        let results = join_all(reads).await;
        unreadable.retain(|id| wanted.iter().any(|e| e.id == *id));
        for (endpoint, result) in wanted.iter().zip(results) {
            let name = &endpoint.name;
            match result {
                Ok(()) if unreadable.remove(&endpoint.id) => {
                    log::info!("the load of backend {name} is read again");
                }
                Err(why) if unreadable.insert(endpoint.id) => {
                    log::warn!("the load of backend {name} cannot be read: {why}");
                }
                _ => {}
            }
        }
        wait_for_turn(live, generation, began, plan.interval).await;
    }
}

/// Waits for the next turn: `interval` after `began`, or until the configuration is no longer of this
/// generation, so that a reload with a shorter interval applies at once.
pub(super) async fn wait_for_turn(
    live: &Live,
    generation: u64,
    began: Instant,
    interval: Duration,
) {
    loop {
        let left = interval.saturating_sub(began.elapsed());
        if left.is_zero() || live.load().generation != generation {
            return;
        }
        tokio::time::sleep(left.min(UPDATE)).await;
    }
}

/// The endpoints of the pools that balance by load, without duplicates.
fn wanted(snapshot: &Snapshot) -> Vec<Arc<Endpoint>> {
    let mut seen = HashSet::new();
    let pools = snapshot.pools.iter().filter(|p| p.balance().strategy == Strategy::LeastLoad);
    let members = pools.flat_map(|pool| pool.members().map(|(endpoint, _)| endpoint));
    members.filter(|endpoint| seen.insert(endpoint.id)).map(Arc::clone).collect()
}

async fn read(
    endpoint: &Endpoint,
    plan: &LoadPlan,
    client: &reqwest::Client,
) -> Result<(), String> {
    let text = scrape::metrics(endpoint, client, &plan.path, plan.timeout).await?;
    if endpoint.record_load_metrics(&text, Instant::now()) {
        return Ok(());
    }
    Err(format!("{} has no metric of waiting or running requests", plan.path))
}

async fn update_metrics(live: &Live, carry: &Carry) {
    let mut turn = tokio::time::interval(UPDATE);
    turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        turn.tick().await;
        // The gauges of removed backends are removed after this.
        live.while_current(|snapshot| {
            let (metrics, now) = (&carry.metrics.balance, Instant::now());
            snapshot.endpoints.iter().for_each(|endpoint| update(metrics, endpoint, now));
        });
    }
}

fn update(metrics: &BalanceMetrics, endpoint: &Endpoint, now: Instant) {
    let name = &*endpoint.name;
    metrics.in_flight.with_label_values(&[name]).set(endpoint.in_flight() as i64);
    endpoint.update_circuit_gauge();
    let Some((reading, at)) = endpoint.load() else { return };
    let age = now.saturating_duration_since(at).as_secs_f64();
    metrics.load_age.with_label_values(&[name]).set(age);
    let set = |kind, value: f64| metrics.load.with_label_values(&[name, kind]).set(value);
    set("waiting", reading.waiting);
    if let Some(running) = reading.running {
        set("running", running);
    }
    if let Some(used) = reading.kv_cache {
        set("kv_cache", used);
    }
}
