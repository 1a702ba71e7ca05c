//! Reads the engines' load for the pools that balance by it, and keeps the metrics of balancing
//! true.

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

/// How often the metrics are brought up to date.
const SHOW: Duration = Duration::from_secs(1);

/// Runs for ever.
pub async fn run(live: Arc<Live>, carry: Arc<Carry>) {
    tokio::join!(read_for_ever(&live, &carry), show_for_ever(&live, &carry));
}

async fn read_for_ever(live: &Live, carry: &Carry) {
    // Those that could not be read last time: told once.
    let mut silent = HashSet::new();
    loop {
        let began = Instant::now();
        let snapshot = live.load();
        let generation = snapshot.generation;
        let plan = snapshot.plan.routing.load.clone();
        let wanted = wanted(&snapshot);
        drop(snapshot);
        let reads = wanted.iter().map(|endpoint| read(endpoint, &plan, &carry.client));
        let found = join_all(reads).await;
        silent.retain(|id| wanted.iter().any(|e| e.id == *id));
        for (endpoint, outcome) in wanted.iter().zip(found) {
            let name = &endpoint.name;
            match outcome {
                Ok(()) if silent.remove(&endpoint.id) => {
                    log::info!("the load of backend {name} is read again");
                }
                Err(why) if silent.insert(endpoint.id) => {
                    log::warn!("the load of backend {name} cannot be read: {why}");
                }
                _ => {}
            }
        }
        wait(live, generation, began, plan.interval).await;
    }
}

/// Waits for the next turn, after one that was made by this generation. Looks at the configuration meanwhile, so that a reload that asks for
/// readings, or for more of them, need not wait for a long interval to end.
pub(super) async fn wait(live: &Live, generation: u64, began: Instant, interval: Duration) {
    loop {
        let left = interval.saturating_sub(began.elapsed());
        if left.is_zero() || live.load().generation != generation {
            return;
        }
        tokio::time::sleep(left.min(SHOW)).await;
    }
}

/// The backends of the pools that go by their load, each once.
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
    if endpoint.read_load(&text, Instant::now()) {
        return Ok(());
    }
    Err(format!("{} tells of no requests that wait or run", plan.path))
}

async fn show_for_ever(live: &Live, carry: &Carry) {
    let mut turn = tokio::time::interval(SHOW);
    turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        turn.tick().await;
        // What goes with the next configuration is removed after this.
        live.steady(|snapshot| {
            let (metrics, now) = (&carry.metrics.balance, Instant::now());
            snapshot.endpoints.iter().for_each(|endpoint| show(metrics, endpoint, now));
        });
    }
}

fn show(metrics: &BalanceMetrics, endpoint: &Endpoint, now: Instant) {
    let name = endpoint.name.as_str();
    metrics.in_flight.with_label_values(&[name]).set(endpoint.in_flight() as i64);
    endpoint.show_circuits();
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
