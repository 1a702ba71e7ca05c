//! Delivers usage records to the webhook, several at a time, each with its attempts.

use std::{sync::Arc, time::Duration};

use tokio::sync::{Semaphore, mpsc};

use crate::{
    runtime::{Carry, Live},
    usage::{
        Record,
        sink::{Sink, webhook::Webhook},
    },
};

/// Records being sent at the same time.
const PARALLEL: usize = 64;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Runs until no record can come any more.
pub async fn run(live: Arc<Live>, carry: Arc<Carry>, mut records: mpsc::UnboundedReceiver<Record>) {
    let places = Arc::new(Semaphore::new(PARALLEL));
    while let Some(record) = records.recv().await {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let (live, carry) = (Arc::clone(&live), Arc::clone(&carry));
        tokio::spawn(async move {
            deliver(&live, &carry, &record).await;
            carry.usage.finished();
            drop(place);
        });
    }
}

async fn deliver(live: &Live, carry: &Carry, record: &Record) {
    let mut attempt = 0;
    loop {
        // Read anew each time: a reload may have mended the URL.
        let Some(plan) = live.load().plan.usage_hook.clone() else {
            carry.metrics.webhook_failure.inc();
            let id = &record.request_id;
            log::error!("usage record of request {id} given up: there is no usage_hook any more");
            return;
        };
        let retry = plan.retry;
        let failure = match Webhook::new(carry.outside.clone(), plan).deliver(record).await {
            Ok(()) => return carry.metrics.webhook_success.inc(),
            Err(failure) => failure,
        };
        if attempt >= retry || !failure.again {
            carry.metrics.webhook_failure.inc();
            log::error!(
                "usage record of request {} given up after {} attempts: the webhook {}",
                record.request_id,
                attempt + 1,
                failure.why
            );
            return;
        }
        log::warn!("usage record of request {}: the webhook {}", record.request_id, failure.why);
        tokio::time::sleep(pause(attempt, rand::random())).await;
        attempt += 1;
    }
}

/// The pause after an attempt: doubled each time, and shortened by up to a half at random (`dice`
/// from 0 to 1), so that many records do not come back together.
fn pause(attempt: u32, dice: f64) -> Duration {
    let full = FIRST_PAUSE.saturating_mul(1 << attempt.min(16)).min(LONGEST_PAUSE);
    full.mul_f64(1.0 - dice / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end_growing() {
        assert_eq!(pause(0, 0.0), Duration::from_millis(500));
        assert_eq!(pause(3, 0.0), Duration::from_millis(4000));
        assert_eq!(pause(3, 1.0), Duration::from_millis(2000));
        assert_eq!(pause(60, 0.0), LONGEST_PAUSE);
    }
}
