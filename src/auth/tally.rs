//! What has been used and is not yet counted at the places where the keys are. For each key one
//! count at a time is under way; what is used meanwhile adds up and is counted after it.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use prometheus::{IntCounter, IntGauge};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use super::{
    cache::Cache,
    credential::KeyDigest,
    provider::{Provider, Used, Wanted},
};
use crate::{
    base::lock,
    store::{StoreError, within},
};

/// Counts at one place at a time.
const COUNTS: usize = 64;

/// Seconds between the tries of a count; after the last it is given up.
const PAUSES: [u64; 6] = [1, 2, 4, 8, 16, 30];

/// For so long a failure is not told of again.
const QUIET: Duration = Duration::from_secs(1);

/// What is not yet counted at one place.
pub struct Tally {
    sums: Mutex<HashMap<KeyDigest, Sum>>,
    places: Semaphore,
}

impl Default for Tally {
    fn default() -> Self {
        Self { sums: Mutex::default(), places: Semaphore::new(COUNTS) }
    }
}

/// What is not yet counted for one key.
#[derive(Default)]
struct Sum {
    pending: Pending,
    /// What is remembered of the key, to be told of the count.
    caches: Vec<Arc<Cache>>,
}

/// Used, and not yet counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pending {
    /// Not sent yet.
    pub waiting: Used,
    /// Sent; nobody knows yet whether it has been counted.
    pub sent: Used,
}

impl Tally {
    /// Adds what has been used with a key. `true` if nothing was pending: somebody must count it.
    pub fn add(&self, digest: &KeyDigest, used: Used, cache: &Arc<Cache>) -> bool {
        let mut sums = lock(&self.sums);
        let (sum, first) = match sums.entry(*digest) {
            Entry::Occupied(known) => (known.into_mut(), false),
            Entry::Vacant(free) => (free.insert(Sum::default()), true),
        };
        sum.pending.waiting += used;
        sum.tell(cache);
        first
    }

    /// One more cache that wants to be told of the count that is pending.
    pub fn tell(&self, digest: &KeyDigest, cache: &Arc<Cache>) {
        if let Some(sum) = lock(&self.sums).get_mut(digest) {
            sum.tell(cache);
        }
    }

    /// What is pending for a key.
    pub fn pending(&self, digest: &KeyDigest) -> Pending {
        lock(&self.sums).get(digest).map(|sum| sum.pending).unwrap_or_default()
    }

    /// Takes what waits, to send it. `None` if there is nothing any more, which is the end of it.
    pub fn begin(&self, digest: &KeyDigest) -> Option<Used> {
        let mut sums = lock(&self.sums);
        let sum = sums.get_mut(digest)?;
        if sum.pending.waiting.is_nothing() {
            sums.remove(digest);
            return None;
        }
        sum.pending.sent = std::mem::take(&mut sum.pending.waiting);
        Some(sum.pending.sent)
    }

    /// What was sent has been counted, or is given up. Tells who wants to know.
    fn settled(&self, digest: &KeyDigest) -> Vec<Arc<Cache>> {
        let mut sums = lock(&self.sums);
        let Some(sum) = sums.get_mut(digest) else { return Vec::new() };
        sum.pending.sent = Used::default();
        sum.caches.clone()
    }
}

impl Sum {
    fn tell(&mut self, cache: &Arc<Cache>) {
        if !self.caches.iter().any(|known| Arc::ptr_eq(known, cache)) {
            self.caches.push(Arc::clone(cache));
        }
    }
}

/// Tells of a provider's failures, but not of the same one more than once a second.
pub struct Voice {
    name: String,
    told: Mutex<Option<(Instant, String)>>,
}

impl Voice {
    /// Of the provider of this name.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), told: Mutex::default() }
    }

    /// Writes a line to the log.
    pub fn tell(&self, what: &str) {
        let mut told = lock(&self.told);
        let known = |(at, text): &(Instant, String)| at.elapsed() < QUIET && text == what;
        if !told.as_ref().is_some_and(known) {
            log::warn!("auth provider {}: {what}", self.name);
            *told = Some((Instant::now(), what.to_owned()));
        }
    }
}

/// Counts for one key, until nothing is pending.
pub struct Job {
    /// Where the sums are.
    pub tally: Arc<Tally>,
    /// Where they are to be counted.
    pub provider: Arc<dyn Provider>,
    /// The key.
    pub wanted: Wanted,
    /// Its name in the log.
    pub key_id: String,
    /// How long a count may take.
    pub timeout: Duration,
    /// Tells of failures.
    pub voice: Arc<Voice>,
    /// Counts that were given up.
    pub lost: IntCounter,
    /// This job is one of the keys that are being counted.
    pub place: Place,
}

/// A place among the keys that are being counted; given back when dropped.
pub struct Place(IntGauge);

impl Place {
    /// Takes a place.
    pub fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Job {
    /// Counts.
    pub async fn run(self) {
        let digest = &self.wanted.digest;
        while let Some(used) = self.tally.begin(digest) {
            let told = self.send(used).await;
            let caches = self.tally.settled(digest);
            match told {
                Ok(Some(fields)) => {
                    caches.iter().for_each(|cache| cache.counted(digest, &fields));
                }
                Ok(None) => {}
                Err(why) => {
                    self.lost.inc();
                    let (name, key, tokens) = (&self.voice.name, &self.key_id, used.tokens);
                    log::error!(
                        "auth provider {name}: {tokens} tokens of key {key} are not counted: {why}"
                    );
                }
            }
        }
        drop(self.place);
    }

    async fn send(&self, used: Used) -> Result<Option<Map<String, Value>>, StoreError> {
        let mut pauses = PAUSES.into_iter();
        loop {
            let why = match self.try_once(used).await {
                Ok(told) => return Ok(told),
                Err(why) => why,
            };
            let Some(pause) = pauses.next() else { return Err(why) };
            self.voice.tell(&format!("usage cannot be counted for now: {why}"));
            tokio::time::sleep(Duration::from_secs(pause)).await;
        }
    }

    async fn try_once(&self, used: Used) -> Result<Option<Map<String, Value>>, StoreError> {
        let _place = self.tally.places.acquire().await.map_err(StoreError::new)?;
        // In a task of its own: if it panics, that is one more failure, and the sum is kept.
        let (provider, timeout) = (Arc::clone(&self.provider), self.timeout);
        let wanted = Wanted { key: Arc::clone(&self.wanted.key), digest: self.wanted.digest };
        let task =
            tokio::spawn(async move { within(timeout, provider.count(&wanted, used)).await });
        task.await.unwrap_or_else(|_| Err(StoreError::new("the count broke off")))
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use serde_json::json;

    use super::*;
    use crate::{auth::provider::KeyRecord, config::plan::CachePlan};

    const KEY: KeyDigest = [7; 32];
    const ONE: Used = Used { tokens: 25.0, credit: 1.0 };

    /// Counts in memory, and refuses the first so many counts.
    struct Shelf {
        data: Mutex<Map<String, Value>>,
        refuse: Mutex<u32>,
        counts: Mutex<u32>,
    }

    #[async_trait]
    impl Provider for Shelf {
        async fn find(&self, _: &Wanted) -> Result<Option<KeyRecord>, StoreError> {
            Ok(Some(KeyRecord::new(lock(&self.data).clone(), String::new)))
        }

        async fn count(
            &self,
            _: &Wanted,
            used: Used,
        ) -> Result<Option<Map<String, Value>>, StoreError> {
            tokio::time::sleep(Duration::from_millis(20)).await;
            *lock(&self.counts) += 1;
            let mut refuse = lock(&self.refuse);
            if *refuse > 0 {
                *refuse -= 1;
                return Err(StoreError::new("down"));
            }
            let mut data = lock(&self.data);
            *data = KeyRecord::new(data.clone(), String::new).after(used, 0).data;
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

    fn job(tally: &Arc<Tally>, shelf: &Arc<Shelf>, gauge: &IntGauge) -> Job {
        Job {
            tally: Arc::clone(tally),
            provider: Arc::clone(shelf) as Arc<dyn Provider>,
            wanted: Wanted { key: "sk".into(), digest: KEY },
            key_id: "key".to_owned(),
            timeout: Duration::from_secs(5),
            voice: Arc::new(Voice::new("p")),
            lost: IntCounter::new("lost", "lost").unwrap(),
            place: Place::new(gauge),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_used_meanwhile_is_counted_in_one_go() {
        let (shelf, cache) = (shelf(0), cache());
        let (tally, gauge) = (cache.tally(), IntGauge::new("g", "g").unwrap());
        cache
            .ask(&KEY, || 0, async || shelf.find(&job(tally, &shelf, &gauge).wanted).await)
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
