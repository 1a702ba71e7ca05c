//! What is measured of reporters from the outside, so that it also moves while one is stuck.

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

/// A reporter lags with more records than this, of which the oldest is older than that.
const LAG: (u64, f64) = (1000, 60.0);

/// How often it is looked how much was put aside.
const LOOK: Duration = Duration::from_secs(1);

/// How long a reporter lags before the first warning: after an outage it needs a while.
const PATIENCE: Duration = Duration::from_secs(60);

/// From one warning that a reporter lags to the next.
const QUIET: Duration = Duration::from_secs(300);

/// What was found before.
#[derive(Default)]
pub struct Gauges {
    known: HashMap<String, Known>,
    sizes: Sizes,
}

/// Looks how large the files of dead letters are: a replay takes letters away, and is another
/// process.
#[derive(Default)]
struct Sizes {
    /// A look that is under way, on a thread that may wait for the disk.
    look: Option<JoinHandle<Vec<(String, u64)>>>,
    looked: Option<Instant>,
}

#[derive(Default)]
struct Known {
    /// When to warn that it lags, if it still does then.
    warn_at: Option<Instant>,
}

impl Gauges {
    /// Sets the gauges of all reporters.
    pub fn set(&mut self, carry: &Carry) {
        let Some(spool) = carry.usage.spool() else { return };
        let standings = carry.usage.reporters();
        self.known.retain(|name, _| standings.iter().any(|s| s.name == *name));
        let metrics = carry.usage.metrics();
        let mut webhooks = 0;
        // One that has not begun yet has no place.
        for standing in standings.iter().filter(|s| s.next() != u64::MAX) {
            let waiting = spool.behind(standing.next());
            let known = self.known.entry(standing.name.clone()).or_default();
            let age = age(standing, waiting);
            if known.lags(standing.state(), (waiting, age), Instant::now()) {
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
            for (name, bytes) in self.sizes.found(folder, &standings) {
                // One that has gone meanwhile has no gauge.
                if self.known.contains_key(&name) {
                    metrics.dead_bytes.with_label_values(&[&name]).set(bytes.cast_signed());
                }
            }
        }
    }
}

impl Sizes {
    /// What the last look has found, if there is something new. Begins another one when it is time.
    fn found(&mut self, folder: &Path, standings: &[Arc<ReporterStatus>]) -> Vec<(String, u64)> {
        let done = self.look.take_if(|look| look.is_finished());
        let found = done.and_then(|look| look.now_or_never()?.ok()).unwrap_or_default();
        let now = Instant::now();
        if self.look.is_none() && self.looked.is_none_or(|at| now.duration_since(at) >= LOOK) {
            self.looked = Some(now);
            let letter =
                |s: &Arc<ReporterStatus>| (s.name.clone(), DeadLetters::open(folder, &s.name));
            let all: Vec<_> = standings.iter().map(letter).collect();
            let look = move || all.into_iter().map(|(name, of)| (name, of.bytes())).collect();
            self.look = Some(spawn_blocking(look));
        }
        found
    }
}

/// The age in seconds of the first record that a reporter has not delivered, as it has read it: the
/// spool is not read for this, which on disk might mean a whole segment.
fn age(standing: &ReporterStatus, waiting: u64) -> f64 {
    let oldest = standing.oldest().filter(|_| waiting > 0);
    let now = Timestamp::now().as_millisecond();
    oldest.map_or(0.0, |time| now.saturating_sub(time).max(0) as f64 / 1000.0)
}

impl Known {
    /// Whether to warn of a reporter that works but does not keep up: so many records wait, and the
    /// oldest of them is so many seconds old.
    fn lags(&mut self, state: ReporterState, (waiting, age): (u64, f64), now: Instant) -> bool {
        if state != ReporterState::Delivering || waiting <= LAG.0 || age <= LAG.1 {
            self.warn_at = None;
            return false;
        }
        let due = now >= *self.warn_at.get_or_insert(now + PATIENCE);
        if due {
            self.warn_at = Some(now + QUIET);
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
        assert_eq!(age(&standing, 10), 0.0, "nothing is known of them");
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
        let mut known = Known::default();
        let mut lags = |seconds: u64, waiting: u64, age: f64| {
            known.lags(
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
        // It catches up, or there are few, or they are young: that begins anew.
        for (waiting, age) in [(1000, 400.0), (5000, 60.0)] {
            assert!(!lags(400, waiting, age));
            assert!(!lags(700, 5000, 400.0));
            assert!(lags(760, 5000, 400.0));
        }
        let later = start + Duration::from_secs(9000);
        assert!(
            !known.lags(ReporterState::Waiting, (5000, 400.0), later),
            "of that it is told already"
        );
    }
}
