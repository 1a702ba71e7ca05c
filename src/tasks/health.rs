//! Probes the backends, and keeps `llmproxy_backend_up` true.

use std::{sync::Arc, time::Duration};

use futures::FutureExt;
use tokio::{sync::oneshot, time::Instant};

use crate::runtime::{Carry, Live, Snapshot};

/// How often it is shown what is in use when nothing is probed.
const SHOW: Duration = Duration::from_secs(30);

/// How long the first round waits for backends that are still to be found: those that are known
/// want to be probed.
const FIND: Duration = Duration::from_millis(500);

/// Runs for ever. The first round begins when the backends are `found`. `first` is called after it,
/// or after a second if all that takes longer: from then on requests may come.
pub async fn run(
    live: Arc<Live>,
    carry: Arc<Carry>,
    found: oneshot::Receiver<()>,
    first: impl FnOnce(),
) {
    let found = found.map(drop).shared();
    let end = Instant::now() + Duration::from_secs(1);
    let round = async {
        tokio::time::timeout(FIND, found.clone()).await.ok();
        round(&live, &carry).await;
    };
    tokio::pin!(round);
    let late = tokio::time::timeout_at(end, &mut round).await.is_err();
    tokio::time::timeout_at(end, found.clone()).await.ok();
    first();
    if late {
        round.await;
    }
    loop {
        let interval = live.load().plan.health_check.as_ref().map_or(SHOW, |h| h.interval);
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
    // The configuration may have changed meanwhile: show the health of what is in use now.
    live.steady(|snapshot| show(snapshot, carry));
}

fn show(snapshot: &Snapshot, carry: &Carry) {
    for (endpoint, healthy) in snapshot.health() {
        let gauge = carry.metrics.backend_up.with_label_values(&[&endpoint.name]);
        gauge.set(i64::from(healthy && !endpoint.draining()));
    }
}
