//! Settles a batch: its records are delivered, put aside as dead letters, or given up.

use std::{
    borrow::Cow,
    panic::AssertUnwindSafe,
    time::{Duration, Instant},
};

use futures::FutureExt;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{reader::Batch, reporter::Reporter};
use crate::usage::{Entry, sink::DeliveryError};

const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// The longest `Retry-After` of a receiver that is respected.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Attempts have to fail for this long, or for `max_age` if that is shorter, before a record is put aside
/// for its age: after a long stop the receiver may start later than the gateway.
const GRACE: Duration = Duration::from_secs(300);

/// The longest pause between attempts for a refused record, because it delays the others.
const MAX_REFUSAL_PAUSE: Duration = Duration::from_secs(10);

/// The most request ids in one log line.
const MAX_NAMED: usize = 10;

impl Reporter {
    /// Settles a batch; returns the index after it. Does not return once the receiver has answered 410.
    pub async fn settle(&self, batch: Batch) -> u64 {
        let mut parts = vec![batch.entries];
        while let Some(part) = parts.pop() {
            if let Some((first, second)) = self.settle_part(part).await {
                parts.extend([second, first]);
            }
        }
        // Even if the last record was put aside: the reporter waits for nothing.
        self.standing.delivers();
        batch.next
    }

    /// Settles records. If they are refused together, they are returned as two halves, so that the record
    /// at fault is found and does not delay the others.
    async fn settle_part(&self, mut part: Vec<Entry>) -> Option<(Vec<Entry>, Vec<Entry>)> {
        let (mut attempts, mut refusals) = (0, 0);
        loop {
            self.put_expired_aside(&mut part).await;
            if part.is_empty() {
                return None;
            }
            let Err(failure) = self.attempt(&part).await else {
                self.delivered(part.len());
                return None;
            };
            attempts += 1;
            self.metrics().errors.with_label_values(&[&self.plan.name]).inc();
            if let DeliveryError::Gone { why } = &failure {
                return self.disable(why).await;
            }
            self.log_failure(&failure);
            if matches!(failure, DeliveryError::Refused { .. }) {
                if part.len() > 1 {
                    let second = part.split_off(part.len() / 2);
                    return Some((part, second));
                }
                refusals += 1;
            }
            let why = failure.why();
            if self.letters.is_none() {
                if attempts > self.pace.retry {
                    self.give_up(&part, attempts, why);
                    return None;
                }
            } else if refusals > self.pace.retry && self.put_aside(&part, why).await {
                return None;
            }
            let pause = pause(attempts - 1, self.plan.max_backoff, rand::random());
            let pause = match failure {
                DeliveryError::Unavailable { retry_after: Some(wait), .. } => {
                    pause.max(wait.min(MAX_RETRY_AFTER))
                }
                DeliveryError::Refused { .. } => pause.min(MAX_REFUSAL_PAUSE),
                _ => pause,
            };
            self.standing.failed(why, Some(Timestamp::now() + pause));
            sleep(pause).await;
        }
    }

    /// One call to the sink, guarded against hanging and panics.
    async fn attempt(&self, part: &[Entry]) -> Result<(), DeliveryError> {
        let call = AssertUnwindSafe(self.sink.deliver(part)).catch_unwind();
        match timeout(self.call_timeout, call).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(DeliveryError::unavailable("panicked")),
            Err(_) => {
                Err(DeliveryError::unavailable(format!("took longer than {:?}", self.call_timeout)))
            }
        }
    }

    fn delivered(&self, records: usize) {
        let records = records as u64;
        self.metrics().delivered.with_label_values(&[&self.plan.name]).inc_by(records);
        if self.is_webhook() {
            self.metrics().webhook_success.inc_by(records);
        }
        self.standing.delivers();
        if self.failures.delivered() {
            let waiting = self.waiting();
            log::info!("usage reporter {} works again; {waiting} records wait", self.plan.name);
        }
    }

    fn log_failure(&self, failure: &DeliveryError) {
        if let Some(text) = self.failures.attempt_failed(failure.why(), Instant::now()) {
            let waiting = self.waiting();
            log::warn!("usage reporter {}: {text}; {waiting} records wait", self.plan.name);
        }
    }

    /// Disables the reporter. Does not return: the reporter drops the delivery.
    async fn disable<T>(&self, why: &str) -> T {
        self.standing.failed(why, None);
        self.metrics().disabled.with_label_values(&[&self.plan.name]).set(1);
        log::error!(
            "usage reporter {}: {why}: no more records are sent there until its configuration \
             changes or the gateway restarts",
            self.plan.name
        );
        self.gone.notify_one();
        std::future::pending().await
    }

    /// Puts records aside that are too old, if attempts have failed for a while.
    async fn put_expired_aside(&self, part: &mut Vec<Entry>) {
        if self.letters.is_none() {
            return;
        }
        let old = self.too_old(part);
        let Some((time, why)) = self.failing().filter(|_| old > 0) else { return };
        if time >= GRACE.min(self.plan.max_age) && self.put_aside(&part[..old], &why).await {
            part.drain(..old);
        }
    }

    /// Puts records aside; whether that succeeded. If not, they stay where they are.
    pub async fn put_aside(&self, records: &[Entry], why: &str) -> bool {
        let Some(letters) = self.letters.clone() else { return false };
        if records.is_empty() {
            return true;
        }
        let (path, n) = (letters.path(), records.len());
        let (all, text) = (records.to_vec(), why.to_owned());
        let append = move || letters.append(&all, &text).map(|()| letters.bytes());
        match spawn_blocking(append).await.unwrap_or_else(|e| Err(e.into())) {
            Ok(bytes) => {
                let size = self.metrics().dead_bytes.with_label_values(&[&self.plan.name]);
                size.set(bytes.cast_signed());
            }
            Err(e) => {
                if self.failures.logs_failed_append(Instant::now()) {
                    let name = &self.plan.name;
                    log::error!(
                        "usage reporter {name}: cannot put {n} records aside, they wait: {e}"
                    );
                }
                return false;
            }
        }
        self.metrics().dead.with_label_values(&[&self.plan.name]).inc_by(n as u64);
        self.count_failed(n);
        if let Some(n) = self.failures.put_aside(n, Instant::now()) {
            let (name, path) = (&self.plan.name, path.display());
            log::error!("usage reporter {name}: {n} records put aside in {path}: {why}");
        }
        true
    }

    /// Gives up records: they are lost.
    pub fn give_up(&self, records: &[Entry], attempts: u32, why: &str) {
        if records.is_empty() {
            return;
        }
        let n = records.len();
        self.metrics().lost.with_label_values(&["given_up"]).inc_by(n as u64);
        self.count_failed(n);
        let ids: Vec<_> = records.iter().take(MAX_NAMED).map(request_id).collect();
        let more = match n.saturating_sub(MAX_NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        log::error!(
            "usage record of request {}{more} given up after {attempts} attempts: reporter {}: {why}",
            ids.join(", "),
            self.plan.name
        );
    }

    fn count_failed(&self, records: usize) {
        if self.is_webhook() {
            self.metrics().webhook_failure.inc_by(records as u64);
        }
    }
}

fn request_id(entry: &Entry) -> Cow<'_, str> {
    #[derive(Deserialize)]
    struct WithRequestId<'a> {
        #[serde(borrow)]
        request_id: Cow<'a, str>,
    }
    let named: Result<WithRequestId<'_>, _> = serde_json::from_slice(&entry.json);
    named.map_or("unknown".into(), |named| named.request_id)
}

/// The pause after an attempt: doubled each time, and shortened by up to a half by `random` (0 to 1), so
/// that many reporters do not retry together.
fn pause(attempt: u32, longest: Duration, random: f64) -> Duration {
    let full = FIRST_PAUSE.saturating_mul(1 << attempt.min(16)).min(longest);
    full.mul_f64(1.0 - random / 2.0)
}

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        sync::{Arc, Mutex},
    };

    use async_trait::async_trait;

    use super::*;
    use crate::{
        config,
        runtime::Carry,
        usage::{Spool, sink::Sink},
    };

    /// What a sink does at its nth call; `None`: it hangs.
    type Behaviour =
        Box<dyn Fn(usize, &[Entry]) -> Option<Result<(), DeliveryError>> + Send + Sync>;

    /// A sink that records its calls.
    struct Fake {
        behaviour: Behaviour,
        calls: Mutex<Vec<Vec<u64>>>,
    }

    #[async_trait]
    impl Sink for Fake {
        async fn deliver(&self, records: &[Entry]) -> Result<(), DeliveryError> {
            let n = {
                let mut calls = self.calls.lock().unwrap();
                calls.push(records.iter().map(|record| record.index).collect());
                calls.len()
            };
            match (self.behaviour)(n, records) {
                Some(result) => result,
                None => std::future::pending().await,
            }
        }
    }

    fn refused() -> DeliveryError {
        DeliveryError::Refused { why: "answered 422".to_owned() }
    }

    /// A reporter with a fake sink.
    fn reporter(folder: &Path, behaviour: Behaviour) -> (Reporter, Arc<Fake>) {
        let text = "backends: [{url: \"http://127.0.0.1:1\"}]
usage:
  reporters:
    - {name: billing, type: webhook, max_backoff: 1ms, webhook: {url: \"http://127.0.0.1:1\", retry: 1}}
";
        let plan = config::load_text(text, folder, &|_| None).plan.unwrap();
        let at = |name: &str| folder.join(name);
        let (carry, _) = Carry::new(at("keys.db"), at("limits.db"), Some(folder.to_owned()));
        let metrics = carry.usage.metrics().clone();
        let spool = Spool::open(None, &plan.usage, metrics).unwrap();
        let mut reporter = Reporter::new(&plan.usage.reporters[0], &spool, &carry);
        let fake = Arc::new(Fake { behaviour, calls: Mutex::default() });
        reporter.sink = Arc::<Fake>::clone(&fake);
        reporter.call_timeout = Duration::from_millis(500);
        (reporter, fake)
    }

    fn batch(indexes: std::ops::Range<u64>) -> Batch {
        let time = Timestamp::now().as_millisecond();
        let entry = |index| Entry { index, time, json: format!("{{\"n\":{index}}}").into() };
        Batch { next: indexes.end, entries: indexes.map(entry).collect() }
    }

    #[tokio::test]
    async fn a_sink_that_panics_or_hangs_is_called_again() {
        let folder = tempfile::tempdir().unwrap();
        let behaviour = |n: usize, _: &[Entry]| match n {
            1 => panic!("for the test"),
            2 => None,
            _ => Some(Ok(())),
        };
        let (reporter, fake) = reporter(folder.path(), Box::new(behaviour));
        assert_eq!(reporter.settle(batch(4..6)).await, 6);
        assert_eq!(*fake.calls.lock().unwrap(), [[4, 5], [4, 5], [4, 5]]);
        let metrics = reporter.metrics();
        assert_eq!(metrics.errors.with_label_values(&["billing"]).get(), 2);
        assert_eq!(metrics.delivered.with_label_values(&["billing"]).get(), 2);
        assert!(reporter.standing.failure().unwrap().1.starts_with("took longer than"));
    }

    #[tokio::test]
    async fn what_is_refused_is_found_in_a_batch_and_the_order_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let behaviour = |_: usize, records: &[Entry]| {
            let poisoned = records.iter().any(|record| record.index == 2);
            Some(if poisoned { Err(refused()) } else { Ok(()) })
        };
        let (reporter, fake) = reporter(folder.path(), Box::new(behaviour));
        assert_eq!(reporter.settle(batch(0..5)).await, 5);
        let calls = fake.calls.lock().unwrap().clone();
        let expected: [&[u64]; 6] = [&[0, 1, 2, 3, 4], &[0, 1], &[2, 3, 4], &[2], &[2], &[3, 4]];
        assert_eq!(calls, expected);
        let letters = reporter.letters.as_ref().unwrap().read().unwrap();
        assert_eq!(letters.map(|letter| letter.unwrap().index).collect::<Vec<_>>(), [2]);
    }

    #[tokio::test]
    async fn a_letter_that_cannot_be_written_waits() {
        let folder = tempfile::tempdir().unwrap();
        let in_the_way = folder.path().join("dead");
        std::fs::write(&in_the_way, "").unwrap();
        let behaviour = move |n: usize, _: &[Entry]| {
            if n == 4 {
                std::fs::remove_file(&in_the_way).unwrap();
            }
            Some(Err(refused()))
        };
        let (reporter, fake) = reporter(folder.path(), Box::new(behaviour));
        assert_eq!(reporter.settle(batch(0..1)).await, 1);
        assert_eq!(fake.calls.lock().unwrap().len(), 4);
        assert_eq!(reporter.letters.as_ref().unwrap().read().unwrap().count(), 1);
        assert_eq!(reporter.metrics().dead.with_label_values(&["billing"]).get(), 1);
    }

    #[test]
    fn pauses_grow_and_end_growing() {
        let minute = Duration::from_secs(60);
        assert_eq!(pause(0, minute, 0.0), Duration::from_millis(500));
        assert_eq!(pause(3, minute, 0.0), Duration::from_millis(4000));
        assert_eq!(pause(3, minute, 1.0), Duration::from_millis(2000));
        assert_eq!(pause(60, minute, 0.0), minute);
    }

    #[test]
    fn requests_are_named() {
        let entry = |json: &'static str| Entry { index: 0, time: 0, json: json.into() };
        assert_eq!(request_id(&entry(r#"{"record_id":"rec_a","request_id":"abc"}"#)), "abc");
        assert_eq!(request_id(&entry("{}")), "unknown");
    }
}
