//! Counts the usage of a key in its store, in the background.

use std::{sync::Arc, time::Duration};

use prometheus::{IntCounter, IntGauge};
use serde_json::{Map, Value};

use super::{
    provider::{LookupKey, Provider},
    tally::Tally,
    warn_once::WarnOnce,
};
use crate::{
    base::KeyUsage,
    store::{StoreError, within},
};

/// Seconds between the attempts of a count. After the last one it is given up.
const PAUSES: [u64; 6] = [1, 2, 4, 8, 16, 30];

/// Counts the usage of one key until nothing is pending.
pub struct CountJob {
    pub tally: Arc<Tally>,
    pub provider: Arc<dyn Provider>,
    pub key: LookupKey,
    /// The key's name in the log.
    pub key_id: String,
    /// Of one attempt.
    pub timeout: Duration,
    pub warnings: Arc<WarnOnce>,
    /// Counts that were given up.
    pub lost: IntCounter,
    pub guard: CountingGuard,
}

/// Marks a key as being counted until it is dropped.
pub struct CountingGuard(IntGauge);

impl CountingGuard {
    pub fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for CountingGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl CountJob {
    pub async fn run(self) {
        let digest = &self.key.digest;
        while let Some(usage) = self.tally.begin(digest) {
            let result = self.send(usage).await;
            let observers = self.tally.settled(digest);
            match result {
                Ok(Some(fields)) => {
                    observers.iter().for_each(|observer| observer.counted(digest, &fields));
                }
                Ok(None) => {}
                Err(why) => {
                    self.lost.inc();
                    let (name, key, tokens) = (self.warnings.name(), &self.key_id, usage.tokens);
                    log::error!(
                        "auth provider {name}: {tokens} tokens of key {key} are not counted: {why}"
                    );
                }
            }
        }
        drop(self.guard);
    }

    async fn send(&self, usage: KeyUsage) -> Result<Option<Map<String, Value>>, StoreError> {
        let mut pauses = PAUSES.into_iter();
        loop {
            let why = match self.attempt(usage).await {
                Ok(fields) => return Ok(fields),
                Err(why) => why,
            };
            let Some(pause) = pauses.next() else { return Err(why) };
            self.warnings.warn(&format!("usage cannot be counted at present: {why}"));
            tokio::time::sleep(Duration::from_secs(pause)).await;
        }
    }

    async fn attempt(&self, usage: KeyUsage) -> Result<Option<Map<String, Value>>, StoreError> {
        let _permit = self.tally.permit().await.map_err(StoreError::new)?;
        // In a task of its own, so that a panic is an ordinary failure and the sum is kept.
        let (provider, timeout) = (Arc::clone(&self.provider), self.timeout);
        let key = LookupKey { key: Arc::clone(&self.key.key), digest: self.key.digest };
        let task = tokio::spawn(async move { within(timeout, provider.count(&key, usage)).await });
        task.await.unwrap_or_else(|_| Err(StoreError::new("the count was aborted")))
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, time::Instant};

    use async_trait::async_trait;
    use serde_json::json;

    use super::*;
    use crate::{
        auth::{cache::Cache, credential::KeyDigest, provider::KeyRecord},
        base::lock,
        config::plan::CachePlan,
    };

    const KEY: KeyDigest = [7; 32];
    const ONE: KeyUsage = KeyUsage { tokens: 25.0, credit: 1.0 };

    /// Counts in memory, and fails the given number of first counts.
    struct Shelf {
        data: Mutex<Map<String, Value>>,
        refuse: Mutex<u32>,
        counts: Mutex<u32>,
    }

    #[async_trait]
    impl Provider for Shelf {
        async fn find(&self, _: &LookupKey) -> Result<Option<KeyRecord>, StoreError> {
            Ok(Some(KeyRecord::new(lock(&self.data).clone(), String::new)))
        }

        async fn count(
            &self,
            _: &LookupKey,
            usage: KeyUsage,
        ) -> Result<Option<Map<String, Value>>, StoreError> {
            tokio::time::sleep(Duration::from_millis(20)).await;
            *lock(&self.counts) += 1;
            let mut refuse = lock(&self.refuse);
            if *refuse > 0 {
                *refuse -= 1;
                return Err(StoreError::new("down"));
            }
            let mut data = lock(&self.data);
            *data = KeyRecord::new(data.clone(), String::new).after_usage(usage, 0).data;
            Ok(Some(data.clone()))
        }
    }

    fn shelf(refuse: u32) -> Arc<Shelf> {
        let data = json!({"total_quota": 1000, "used_quota": 0, "balance": 100});
        let data = data.as_object().unwrap().clone();
        Arc::new(Shelf { data: data.into(), refuse: refuse.into(), counts: Mutex::default() })
    }

    fn cache() -> Arc<Cache> {
        let ttl = Duration::from_secs(60);
        let plan = CachePlan { ttl, negative_ttl: ttl, size: 100, stale: None };
        Arc::new(Cache::new(plan, Arc::default()))
    }

    fn job(tally: &Arc<Tally>, shelf: &Arc<Shelf>, gauge: &IntGauge) -> CountJob {
        CountJob {
            tally: Arc::clone(tally),
            provider: Arc::clone(shelf) as Arc<dyn Provider>,
            key: LookupKey { key: "sk".into(), digest: KEY },
            key_id: "key".to_owned(),
            timeout: Duration::from_secs(5),
            warnings: Arc::new(WarnOnce::new("p")),
            lost: IntCounter::new("lost", "lost").unwrap(),
            guard: CountingGuard::new(gauge),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_used_meanwhile_is_counted_in_one_go() {
        let (shelf, cache) = (shelf(0), cache());
        let (tally, gauge) = (cache.tally(), IntGauge::new("g", "g").unwrap());
        cache
            .ask(&KEY, || 0, async || shelf.find(&job(tally, &shelf, &gauge).key).await)
            .await
            .unwrap();
        assert!(tally.add(&KEY, ONE, &cache));
        let running = tokio::spawn(job(tally, &shelf, &gauge).run());
        tokio::time::sleep(Duration::from_millis(10)).await;
        for _ in 0..9 {
            assert!(!tally.add(&KEY, ONE, &cache));
        }
        assert_eq!((tally.pending(&KEY).sent, gauge.get()), (ONE, 1));
        running.await.unwrap();
        assert_eq!(lock(&shelf.data)["used_quota"], 250);
        assert_eq!((*lock(&shelf.counts), gauge.get()), (2, 0));
        let known = cache.fresh(&KEY, 0, Instant::now()).unwrap().unwrap();
        assert_eq!((&known.data["used_quota"], &known.data["balance"]), (&json!(250), &json!(90)));
        assert!(tally.add(&KEY, ONE, &cache), "the next one begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_keeps_the_sum_for_a_minute() {
        for (refuse, used, lost) in [(5, 25, 0), (100, 0, 1)] {
            let (shelf, cache) = (shelf(refuse), cache());
            let (tally, gauge) = (cache.tally(), IntGauge::new("g", "g").unwrap());
            tally.add(&KEY, ONE, &cache);
            let job = job(tally, &shelf, &gauge);
            let counter = job.lost.clone();
            let began = tokio::time::Instant::now();
            job.run().await;
            assert!(began.elapsed() < Duration::from_secs(70));
            assert_eq!((&lock(&shelf.data)["used_quota"], counter.get()), (&json!(used), lost));
            assert_eq!(gauge.get(), 0);
        }
    }
}
