//! Probes the backends, and keeps `llmproxy_backend_up` up to date.

use std::{sync::Arc, time::Duration};

use futures::FutureExt;
use tokio::{sync::oneshot, time::Instant};

use crate::runtime::{Carry, Live, Snapshot};

/// How often the gauges are updated when nothing is probed.
const UPDATE: Duration = Duration::from_secs(30);

/// How long the first round waits for discovery. The backends that are already known must be probed
/// soon.
const DISCOVERY_WAIT: Duration = Duration::from_millis(500);

/// Runs until the process ends. The first round begins when the backends are `discovered`. `ready` is
/// called after it, or after one second if it takes longer: from then on requests may come.
pub async fn run(
    live: Arc<Live>,
    carry: Arc<Carry>,
    discovered: oneshot::Receiver<()>,
    ready: impl FnOnce(),
) {
    let discovered = discovered.map(drop).shared();
    let end = Instant::now() + Duration::from_secs(1);
    let round = async {
        tokio::time::timeout(DISCOVERY_WAIT, discovered.clone()).await.ok();
        round(&live, &carry).await;
    };
    tokio::pin!(round);
    let late = tokio::time::timeout_at(end, &mut round).await.is_err();
    tokio::time::timeout_at(end, discovered.clone()).await.ok();
    ready();
    if late {
        round.await;
    }
    loop {
        let interval = live.load().plan.health_check.as_ref().map_or(UPDATE, |h| h.interval);
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = carry.probe_now.notified() => {}
        }
        self::round(&live, &carry).await;
    }
}

async fn round(live: &Live, carry: &Carry) {
    if live.load().plan.health_check.is_some() {
        carry.health.run_health_check(true).await;
    }
    let (now, refusing) = (Instant::now().into_std(), carry.probe.refusing());
    if !refusing.is_empty() {
        for (endpoint, _) in live.load().health().into_iter().filter(|(_, healthy)| !healthy) {
            if let Some((_, since)) = refusing.iter().find(|(id, _)| *id == endpoint.id) {
                let lasted = now.saturating_duration_since(*since);
                carry.watches.abandon(endpoint.id, lasted, now);
            }
        }
    }
    // The configuration may have changed meanwhile.
    live.while_current(|snapshot| update_gauges(snapshot, carry));
}

fn update_gauges(snapshot: &Snapshot, carry: &Carry) {
    for (endpoint, healthy) in snapshot.health() {
        let gauge = carry.metrics.backend_up.with_label_values(&[&endpoint.name]);
        gauge.set(i64::from(healthy && !endpoint.draining()));
    }
}
