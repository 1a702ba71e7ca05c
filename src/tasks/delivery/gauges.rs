//! The gauges of reporters, updated from outside of them, so that they also change while one is stuck.

use std::{
    collections::HashMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt;
use jiff::Timestamp;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::{
    config::choices::ReporterKind,
    runtime::Carry,
    usage::{ReporterState, ReporterStatus, dead_letters::DeadLetters},
};

/// A reporter lags with more waiting records than this, if the oldest is older than this many seconds.
const LAG: (u64, f64) = (1000, 60.0);

/// How often the sizes of dead letter files are read.
const SIZE_INTERVAL: Duration = Duration::from_secs(1);

/// How long a reporter lags before the first warning: after an outage it needs time to catch up.
const WARN_AFTER: Duration = Duration::from_secs(60);

/// Time between two warnings that a reporter lags.
const WARN_INTERVAL: Duration = Duration::from_secs(300);

#[derive(Default)]
pub struct Gauges {
    /// By the reporter's name.
    lags: HashMap<String, Lag>,
    sizes: DeadLetterSizes,
}

/// Reads the sizes of the dead letter files, because a replay, which is another process, shrinks them.
#[derive(Default)]
struct DeadLetterSizes {
    /// The read under way, on a thread that may wait for the disk.
    read: Option<JoinHandle<Vec<(String, u64)>>>,
    began: Option<Instant>,
}

/// How long a reporter has lagged.
#[derive(Default)]
struct Lag {
    /// When to warn, if it still lags then.
    warn_at: Option<Instant>,
}

impl Gauges {
    /// Sets the gauges of all reporters.
    pub fn set(&mut self, carry: &Carry) {
        let Some(spool) = carry.usage.spool() else { return };
        let standings = carry.usage.reporters();
        self.lags.retain(|name, _| standings.iter().any(|s| s.name == *name));
        let metrics = carry.usage.metrics();
        let mut webhooks = 0;
        // A reporter that has not started yet has no position.
        for standing in standings.iter().filter(|s| s.next() != u64::MAX) {
            let waiting = spool.behind(standing.next());
            let lag = self.lags.entry(standing.name.clone()).or_default();
            let age = age(standing, waiting);
            if lag.is_to_warn(standing.state(), (waiting, age), Instant::now()) {
                log::warn!(
                    "usage reporter {} does not keep up: {waiting} records wait, the oldest for \
                     {age:.0}s; a larger batch_size or concurrency would help",
                    standing.name
                );
            }
            let name = [standing.name.as_str()];
            metrics.waiting.with_label_values(&name).set(waiting.cast_signed());
            metrics.oldest.with_label_values(&name).set(age);
            if standing.kind == ReporterKind::Webhook.word() {
                webhooks = webhooks.max(waiting);
            }
        }
        metrics.webhook_queue.set(webhooks.cast_signed());
        if let Some(folder) = carry.usage.folder() {
            for (name, bytes) in self.sizes.poll(folder, &standings) {
                // A reporter that was removed meanwhile has no gauge.
                if self.lags.contains_key(&name) {
                    metrics.dead_bytes.with_label_values(&[&name]).set(bytes.cast_signed());
                }
            }
        }
    }
}

impl DeadLetterSizes {
    /// The result of a read that has completed since the last call. Begins another read when it is time.
    fn poll(&mut self, folder: &Path, standings: &[Arc<ReporterStatus>]) -> Vec<(String, u64)> {
        let done = self.read.take_if(|read| read.is_finished());
        let sizes = done.and_then(|read| read.now_or_never()?.ok()).unwrap_or_default();
        let now = Instant::now();
        if self.read.is_none()
            && self.began.is_none_or(|at| now.duration_since(at) >= SIZE_INTERVAL)
        {
            self.began = Some(now);
            let letters =
                |s: &Arc<ReporterStatus>| (s.name.clone(), DeadLetters::open(folder, &s.name));
            let all: Vec<_> = standings.iter().map(letters).collect();
            let read =
                move || all.into_iter().map(|(name, letters)| (name, letters.bytes())).collect();
            self.read = Some(spawn_blocking(read));
        }
        sizes
    }
}

/// The age in seconds of the first record that a reporter has read and not delivered. The spool is not
/// read for this: on disk that might mean a whole segment.
fn age(standing: &ReporterStatus, waiting: u64) -> f64 {
    let oldest = standing.oldest().filter(|_| waiting > 0);
    let now = Timestamp::now().as_millisecond();
    oldest.map_or(0.0, |time| now.saturating_sub(time).max(0) as f64 / 1000.0)
}

impl Lag {
    /// Whether to warn of a reporter that works but does not keep up: this many records wait, and the
    /// oldest is this many seconds old.
    fn is_to_warn(
        &mut self,
        state: ReporterState,
        (waiting, age): (u64, f64),
        now: Instant,
    ) -> bool {
        if state != ReporterState::Delivering || waiting <= LAG.0 || age <= LAG.1 {
            self.warn_at = None;
            return false;
        }
        let due = now >= *self.warn_at.get_or_insert(now + WARN_AFTER);
        if due {
            self.warn_at = Some(now + WARN_INTERVAL);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        telemetry::Metrics,
        usage::{Entry, Outbox},
    };

    #[test]
    fn the_age_is_that_of_the_first_record_that_was_read_and_not_delivered() {
        let standing = Outbox::new(None, Metrics::new().usage).reporter("billing", "webhook");
        let now = Timestamp::now().as_millisecond();
        let read = |index, seconds: i64| {
            let time = now - 1000 * seconds;
            standing.has_read(&Entry { index, time, json: "{}".into() });
        };
        standing.set_next(4);
        assert_eq!(age(&standing, 10), 0.0, "none of them was read");
        read(4, 9000);
        read(6, 5000);
        read(4, 9000);
        assert!((9000.0..9900.0).contains(&age(&standing, 10)));
        standing.set_next(5);
        assert!((5000.0..5900.0).contains(&age(&standing, 9)));
        standing.set_next(6);
        assert!((5000.0..5900.0).contains(&age(&standing, 8)));
        assert_eq!(age(&standing, 0), 0.0, "nothing waits");
        standing.set_next(14);
        assert_eq!(age(&standing, 0), 0.0);
        assert_eq!(standing.oldest(), None);
    }

    #[test]
    fn warns_of_one_that_lags_for_a_minute_and_then_every_five() {
        let start = Instant::now();
        let mut lag = Lag::default();
        let mut lags = |seconds: u64, waiting: u64, age: f64| {
            lag.is_to_warn(
                ReporterState::Delivering,
                (waiting, age),
                start + Duration::from_secs(seconds),
            )
        };
        assert!(!lags(0, 1001, 61.0));
        assert!(!lags(59, 5000, 120.0));
        assert!(lags(60, 5000, 120.0));
        assert!(!lags(61, 5000, 120.0));
        assert!(!lags(359, 5000, 400.0));
        assert!(lags(360, 5000, 400.0));
        // It catches up, or few records wait, or they are recent: the time starts again.
        for (waiting, age) in [(1000, 400.0), (5000, 60.0)] {
            assert!(!lags(400, waiting, age));
            assert!(!lags(700, 5000, 400.0));
            assert!(lags(760, 5000, 400.0));
        }
        let later = start + Duration::from_secs(9000);
        assert!(
            !lag.is_to_warn(ReporterState::Waiting, (5000, 400.0), later),
            "a failing reporter is already logged"
        );
    }
}
