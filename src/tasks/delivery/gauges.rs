//! What is measured of reporters from the outside, so that it also moves while one is stuck.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use crate::{
    config::raw::ReporterKind,
    runtime::Carry,
    usage::{Standing, State},
};

/// A reporter lags with more records than this, of which the oldest is older than that.
const LAG: (u64, f64) = (1000, 300.0);

/// From one warning that a reporter lags to the next, and how long it lags before the first.
const QUIET: Duration = Duration::from_secs(300);

/// What was found before.
#[derive(Default)]
pub struct Gauges {
    known: HashMap<String, Known>,
}

#[derive(Default)]
struct Known {
    /// Since when it lags, or when that was told.
    lagging: Option<Instant>,
}

impl Gauges {
    /// Sets the gauges of all reporters.
    pub fn set(&mut self, carry: &Carry) {
        let Some(spool) = carry.usage.spool() else { return };
        let standings = carry.usage.standings();
        self.known.retain(|name, _| standings.iter().any(|s| s.name == *name));
        let metrics = carry.usage.metrics();
        let mut webhooks = 0;
        // One that has not begun yet has no place.
        for standing in standings.iter().filter(|s| s.next() != u64::MAX) {
            let waiting = spool.end().saturating_sub(standing.next());
            let known = self.known.entry(standing.name.clone()).or_default();
            let age = age(standing, waiting);
            known.lag(standing, (waiting, age), Instant::now());
            let name = [standing.name.as_str()];
            metrics.waiting.with_label_values(&name).set(waiting.cast_signed());
            metrics.oldest.with_label_values(&name).set(age);
            if standing.kind == ReporterKind::Webhook.word() {
                webhooks = webhooks.max(waiting);
            }
        }
        metrics.webhook_queue.set(webhooks.cast_signed());
    }
}

/// The age in seconds of the first record that a reporter has not delivered, as it has read it: the
/// spool is not read for this, which on disk might mean a whole segment.
fn age(standing: &Standing, waiting: u64) -> f64 {
    let oldest = standing.oldest().filter(|_| waiting > 0);
    let now = Timestamp::now().as_millisecond();
    oldest.map_or(0.0, |time| now.saturating_sub(time).max(0) as f64 / 1000.0)
}

impl Known {
    /// Warns of a reporter that works but does not keep up.
    fn lag(&mut self, standing: &Standing, lag: (u64, f64), now: Instant) {
        let lags = standing.state() == State::Delivering && lag.0 > LAG.0 && lag.1 > LAG.1;
        if !lags {
            self.lagging = None;
        } else if now.duration_since(*self.lagging.get_or_insert(now)) >= QUIET {
            self.lagging = Some(now);
            log::warn!(
                "usage reporter {} does not keep up: {} records wait, the oldest for {:.0}s; a larger \
                 batch_size or concurrency would help",
                standing.name,
                lag.0,
                lag.1
            );
        }
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
        let standing = Outbox::new(None, Metrics::new().usage).standing("billing", "webhook");
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
}
