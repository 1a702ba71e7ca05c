//! Probes the backends, and keeps `llmproxy_backend_up` true.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;

use crate::runtime::{Carry, Live, Snapshot};

/// How often names are resolved when nothing is probed.
const RESOLVE: Duration = Duration::from_secs(30);

/// Runs for ever. `first` is called after the first round, or after a second if that takes
/// longer: from then on requests may come.
pub async fn run(live: Arc<Live>, carry: Arc<Carry>, first: impl FnOnce()) {
    let round = round(&live, &carry);
    tokio::pin!(round);
    let late = tokio::time::timeout(Duration::from_secs(1), &mut round).await.is_err();
    first();
    if late {
        round.await;
    }
    loop {
        let interval = live.load().plan.health_check.as_ref().map_or(RESOLVE, |h| h.interval);
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = carry.probe_now.notified() => {}
        }
        self::round(&live, &carry).await;
    }
}

async fn round(live: &Live, carry: &Carry) {
    let snapshot = live.load();
    if snapshot.plan.health_check.is_some() {
        carry.health.run_health_check(true).await;
    } else {
        resolve(&snapshot).await;
    }
    // The configuration may have changed meanwhile: show the health of what is in use now.
    show(&live.load(), carry);
}

/// Resolves the names of all backends.
pub async fn resolve(snapshot: &Snapshot) {
    let lookups = snapshot.endpoints.iter().map(|endpoint| async move {
        if let Err(why) = endpoint.resolve().await {
            log::warn!("backend {}: {why}", endpoint.plan.name);
        }
    });
    join_all(lookups).await;
}

fn show(snapshot: &Snapshot, carry: &Carry) {
    for (endpoint, healthy) in snapshot.health() {
        let gauge = carry.metrics.backend_up.with_label_values(&[&endpoint.plan.name]);
        gauge.set(i64::from(healthy && !endpoint.draining()));
    }
}
