//! The state that one replica shares between its counter, its reservations and their background
//! tasks.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use prometheus::IntGauge;
use tokio::runtime::Handle;

use super::{
    amounts::Amounts,
    credit::Credits,
    failures::{Action, Failures},
    holdings::{Holding, Holdings},
    outage::Outage,
    script::{Refund, ScriptClient},
    settings::Settings,
};
use crate::limit::claim::{Charge, Spend};

/// Holdings that are renewed with one call, so that Redis is not blocked for long.
const RENEW_BATCH: usize = 100;

/// Refunds that are sent with one call.
const REFUND_BATCH: usize = 100;

/// The longest first pause before settling is tried again. The pauses double, and together are about
/// as long as holds last: then they end by themselves.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// What this replica knows and holds of the limits in one Redis.
pub struct Replica {
    pub settings: Settings,
    pub client: Arc<ScriptClient>,
    /// The runtime of the stores.
    pub runtime: Handle,
    pub holdings: Holdings,
    pub outage: Outage,
    /// Set in the leased mode.
    pub credits: Option<Arc<Credits>>,
    pub amounts: Amounts,
    pub failures: Arc<Failures>,
    /// Calls that are under way.
    pub pending: IntGauge,
}

/// A call that Redis has not answered or has yet to be sent: the process waits for it before it
/// ends.
pub struct PendingCall(IntGauge);

impl Drop for PendingCall {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Replica {
    /// Marks a call as under way until the value is dropped.
    pub fn pending_call(&self) -> PendingCall {
        self.pending.inc();
        PendingCall(self.pending.clone())
    }

    /// Gives back all units taken ahead. Returns at once;
    /// [`crate::telemetry::LimitMetrics::pending`] shows when it is done.
    pub fn give_back(&self) {
        let refunds = self.credits.as_ref().map_or_else(Vec::new, |credits| credits.all());
        if refunds.is_empty() {
            return;
        }
        let (client, failures) = (Arc::clone(&self.client), Arc::clone(&self.failures));
        let pending = self.pending_call();
        self.runtime.spawn(async move {
            refund(&client, &failures, &refunds).await;
            drop(pending);
        });
    }

    /// Ends a holding in Redis. Tries again if Redis cannot be reached for a moment.
    pub async fn settle(&self, holding: &Holding, spends: &[Spend], charge: &Charge) {
        let ttl = self.settings.ttl;
        let mut pause = FIRST_PAUSE.min(ttl / 32);
        let mut paused = Duration::ZERO;
        loop {
            let settled = self.client.settle(holding, spends, charge, pause).await;
            let Err(error) = settled else { return };
            self.failures.report(Action::Settle, &error.why);
            if paused + pause > ttl {
                return;
            }
            tokio::time::sleep(pause).await;
            paused += pause;
            pause *= 2;
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Renews what is held, as long as the counter or a reservation exists.
pub async fn renew(replica: Weak<Replica>, ttl: Duration) {
    let mut pause = ttl / 3;
    loop {
        tokio::time::sleep(pause).await;
        let Some(replica) = replica.upgrade() else { return };
        pause = ttl / 3;
        for batch in replica.holdings.all().chunks(RENEW_BATCH) {
            // While others were renewed it may have ended, too long ago for Redis to remember.
            let live = |holding: &&Arc<Holding>| replica.holdings.is_live(holding);
            let batch: Vec<_> = batch.iter().filter(live).cloned().collect();
            if let Err(error) = replica.client.renew(&batch).await {
                replica.failures.report(Action::Renew, &error.why);
                // Again before the holds end.
                pause = ttl / 10;
                break;
            }
        }
    }
}

/// Gives back idle shares, as long as the counter or a reservation exists.
pub async fn tidy(replica: Weak<Replica>, pause: Duration) {
    let pause = pause.max(Duration::from_millis(5));
    loop {
        tokio::time::sleep(pause).await;
        let Some(replica) = replica.upgrade() else { return };
        let Some(credits) = &replica.credits else { return };
        let now = Instant::now();
        replica.amounts.tidy(credits.lifetime(), now);
        // During an outage units cannot be given back, but can still be used here.
        if replica.outage.is_on() {
            continue;
        }
        refund(&replica.client, &replica.failures, &credits.idle(now)).await;
    }
}

async fn refund(client: &ScriptClient, failures: &Failures, refunds: &[Refund]) {
    for batch in refunds.chunks(REFUND_BATCH) {
        // Never tried again: Redis may have done it, and a second refund would create units.
        if let Err(error) = client.refund(batch).await {
            failures.report(Action::Settle, &error.why);
        }
    }
}
