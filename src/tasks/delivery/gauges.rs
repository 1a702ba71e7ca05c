//! What is measured of reporters from the outside, so that it also moves while one is stuck.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::reader;
use crate::{
    config::raw::ReporterKind,
    runtime::Carry,
    usage::{Spool, Standing, State},
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
    /// The first record that is not delivered and when it was made, in milliseconds since 1970.
    oldest: Option<(u64, i64)>,
    /// Since when it lags, or when that was told.
    lagging: Option<Instant>,
}

impl Gauges {
    /// Sets the gauges of all reporters.
    pub async fn set(&mut self, carry: &Carry) {
        let Some(spool) = carry.usage.spool() else { return };
        let standings = carry.usage.standings();
        self.known.retain(|name, _| standings.iter().any(|s| s.name == *name));
        let metrics = carry.usage.metrics();
        let mut webhooks = 0;
        // One that has not begun yet has no place.
        for standing in standings.iter().filter(|s| s.next() != u64::MAX) {
            let waiting = spool.end().saturating_sub(standing.next());
            let known = self.known.entry(standing.name.clone()).or_default();
            let age = known.age(spool, standing).await;
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

impl Known {
    /// The age in seconds of the first record that a reporter has not delivered.
    async fn age(&mut self, spool: &Arc<Spool>, standing: &Standing) -> f64 {
        let next = standing.next();
        if spool.end() <= next {
            return 0.0;
        }
        if self.oldest.is_none_or(|(index, _)| index != next) {
            let read = reader::read(spool, next, 1).await;
            let time = read.and_then(|(entries, _)| Some(entries.first()?.time));
            self.oldest = time.map(|time| (next, time));
        }
        let now = Timestamp::now().as_millisecond();
        self.oldest.map_or(0.0, |(_, time)| now.saturating_sub(time).max(0) as f64 / 1000.0)
    }

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
