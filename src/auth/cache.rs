//! Caches the answers of a provider. For each key one lookup at a time is under way; other requests
//! with the same key wait for its answer.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use quick_cache::sync::Cache as Entries;

use serde_json::{Map, Value};

use super::{
    credential::KeyDigest,
    provider::KeyRecord,
    tally::{CountObserver, Tally},
};
use crate::{
    base::{
        lock,
        number::number,
        period::now as unix_now,
        terms::{COUNTED, time_seconds},
    },
    config::plan::CachePlan,
    store::StoreError,
};

/// Time without lookups of a key after a failed one.
const PAUSE: Duration = Duration::from_millis(500);

/// Answers of one provider, by the digests of the keys.
pub struct Cache {
    plan: CachePlan,
    entries: Entries<KeyDigest, Arc<Entry>>,
    /// Usage that the provider may not know yet.
    tally: Arc<Tally>,
}

#[derive(Default)]
struct Entry {
    answer: ArcSwapOption<CachedRecord>,
    /// Held during a lookup. A request that can be answered from `answer` does not wait here.
    asking: tokio::sync::Mutex<()>,
    failure: Mutex<Option<(Instant, StoreError)>>,
    /// The fields after the last count, and when it ended. Held while `answer` is replaced.
    counted: Mutex<Option<(Instant, Map<String, Value>)>>,
}

struct CachedRecord {
    /// `None`: the provider does not know the key.
    record: Option<Arc<KeyRecord>>,
    at: Instant,
    /// The provider's number of changes when it was asked.
    changes: u64,
}

/// The answer of a lookup.
#[derive(Debug)]
pub struct LookupResult {
    /// `None`: the provider does not know the key.
    pub record: Option<Arc<KeyRecord>>,
    /// Set if the answer is stale: why the provider could not be asked.
    pub stale: Option<StoreError>,
}

impl Cache {
    /// `tally` is the one of the provider's store.
    pub fn new(plan: CachePlan, tally: Arc<Tally>) -> Self {
        Self { plan, entries: Entries::new(plan.size), tally }
    }

    /// Usage that the provider may not know yet.
    pub fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    /// Changes the cached record of a key. Its age stays the same.
    pub fn amend(&self, digest: &KeyDigest, change: impl FnOnce(&KeyRecord) -> KeyRecord) {
        if let Some(entry) = self.entries.get(digest) {
            let _replacing = lock(&entry.counted);
            entry.amend(change);
        }
    }

    /// Stores the answer to a lookup that was sent at this time.
    fn keep(
        &self,
        entry: &Entry,
        digest: &KeyDigest,
        record: Option<KeyRecord>,
        (at, changes): (Instant, u64),
    ) -> Option<Arc<KeyRecord>> {
        let counted = lock(&entry.counted);
        let pending = self.tally.pending(digest);
        let record = record.map(|mut record| {
            // A count that ended after the lookup was sent is more recent.
            if let Some((_, fields)) = counted.as_ref().filter(|(when, _)| *when >= at) {
                record = record.with_data(|data| overlay(data, fields));
            }
            if !pending.waiting.is_zero() {
                record = record.after_usage(pending.waiting, unix_now());
            }
            // The answer may or may not include usage that is being counted. The previous record
            // includes it.
            let known = entry.answer.load_full().and_then(|answer| answer.record.clone());
            if let (false, Some(known)) = (pending.sent.is_zero(), known) {
                record = record.with_data(|data| not_less_used(data, &known.data));
            }
            Arc::new(record)
        });
        let answer = CachedRecord { record: record.clone(), at, changes };
        entry.answer.store(Some(Arc::new(answer)));
        record
    }

    /// The answer that is valid at `now`; `None` if the provider must be asked.
    pub fn fresh(
        &self,
        digest: &KeyDigest,
        changes: u64,
        now: Instant,
    ) -> Option<Option<Arc<KeyRecord>>> {
        let entry = self.entries.get(digest)?;
        self.valid(&entry, changes, now)
    }

    fn valid(&self, entry: &Entry, changes: u64, now: Instant) -> Option<Option<Arc<KeyRecord>>> {
        let answer = entry.answer.load();
        let answer = answer.as_ref()?;
        let ttl = match answer.record {
            Some(_) => self.plan.ttl,
            None => self.plan.negative_ttl,
        };
        let valid = answer.changes == changes && now.saturating_duration_since(answer.at) < ttl;
        valid.then(|| answer.record.clone())
    }

    /// Asks the provider, unless another request has just done so. `changes` is read before each
    /// lookup, so that an answer from before a change is recognised.
    ///
    /// # Errors
    /// If the provider cannot be asked and no stale answer may be used.
    pub async fn ask<F>(
        &self,
        digest: &KeyDigest,
        changes: impl Fn() -> u64,
        lookup: impl FnOnce() -> F,
    ) -> Result<LookupResult, StoreError>
    where
        F: Future<Output = Result<Option<KeyRecord>, StoreError>>,
    {
        let arrived = Instant::now();
        let found = self.entries.get_or_insert_with(digest, || Ok::<_, ()>(Arc::default()));
        let Ok(entry) = found else {
            return Err(StoreError::new("no memory for the key"));
        };
        let _asking = match entry.asking.try_lock() {
            Ok(asking) => asking,
            Err(_) => {
                // During an outage a request with a stale answer does not wait.
                let failed = lock(&entry.failure).clone();
                if let Some((_, why)) = failed
                    && let Ok(result) = self.stale(&entry, changes(), why)
                {
                    return Ok(result);
                }
                entry.asking.lock().await
            }
        };
        if let Some(record) = self.valid(&entry, changes(), Instant::now()) {
            return Ok(LookupResult { record, stale: None });
        }
        // A lookup that was sent after this request arrived is as good as its own.
        if let Some(answer) = entry.answer.load_full()
            && answer.at >= arrived
            && answer.changes == changes()
        {
            return Ok(LookupResult { record: answer.record.clone(), stale: None });
        }
        // A request that waited for a failed lookup does not repeat it, and during an outage the same
        // key is not looked up all the time.
        let failed = lock(&entry.failure).clone();
        let failed = failed.filter(|(at, _)| *at >= arrived || at.elapsed() < PAUSE);
        let result = match failed {
            Some((_, why)) => Err(why),
            None => {
                let (changes, at) = (changes(), Instant::now());
                match lookup().await {
                    Ok(record) => {
                        let record = self.keep(&entry, digest, record, (at, changes));
                        *lock(&entry.failure) = None;
                        return Ok(LookupResult { record, stale: None });
                    }
                    Err(why) => {
                        *lock(&entry.failure) = Some((Instant::now(), why.clone()));
                        Err(why)
                    }
                }
            }
        };
        result.or_else(|why| self.stale(&entry, changes(), why))
    }

    /// A stale answer in place of a failed lookup.
    fn stale(
        &self,
        entry: &Entry,
        changes: u64,
        why: StoreError,
    ) -> Result<LookupResult, StoreError> {
        let answer = entry.answer.load_full();
        match (answer, self.plan.stale) {
            // An answer from before a change by this process is known to be wrong.
            (Some(answer), Some(limit))
                if answer.changes == changes && answer.at.elapsed() < limit =>
            {
                Ok(LookupResult { record: answer.record.clone(), stale: Some(why) })
            }
            _ => Err(why),
        }
    }
}

impl CountObserver for Cache {
    fn counted(&self, digest: &KeyDigest, fields: &Map<String, Value>) {
        let Some(entry) = self.entries.get(digest) else { return };
        let mut counted = lock(&entry.counted);
        let waiting = self.tally.pending(digest).waiting;
        *counted = Some((Instant::now(), fields.clone()));
        entry.amend(|record| {
            record.with_data(|data| overlay(data, fields)).after_usage(waiting, unix_now())
        });
    }
}

impl Entry {
    /// Replaces the record; the caller holds the lock. The age of the answer stays the same.
    fn amend(&self, change: impl FnOnce(&KeyRecord) -> KeyRecord) {
        if let Some(answer) = self.answer.load_full()
            && let Some(record) = &answer.record
        {
            let record = Some(Arc::new(change(record)));
            let answer = CachedRecord { record, at: answer.at, changes: answer.changes };
            self.answer.store(Some(Arc::new(answer)));
        }
    }
}

/// Copies the fields that counting changes.
fn overlay(data: &mut Map<String, Value>, fields: &Map<String, Value>) {
    for name in COUNTED {
        match fields.get(name) {
            None | Some(Value::Null) => data.shift_remove(name),
            Some(value) => data.insert(name.to_owned(), value.clone()),
        };
    }
}

/// Copies usage from another record of the same key where that has more.
fn not_less_used(data: &mut Map<String, Value>, other: &Map<String, Value>) {
    let read = |data: &Map<String, Value>, name| data.get(name).and_then(number);
    let last =
        |data: &Map<String, Value>| data.get("last_reset_at").and_then(|v| time_seconds(v).ok());
    let used = read(other, "used_quota") > read(data, "used_quota");
    if used && last(other) == last(data) {
        data.insert("used_quota".to_owned(), other["used_quota"].clone());
    }
    let left = read(data, "balance").zip(read(other, "balance"));
    if left.is_some_and(|(here, there)| there < here) {
        data.insert("balance".to_owned(), other["balance"].clone());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use futures::future::join_all;
    use serde_json::json;

    use super::*;
    use crate::base::KeyUsage;

    fn cache(ttl: Duration, stale: Option<Duration>) -> Cache {
        Cache::new(CachePlan { ttl, negative_ttl: ttl, size: 100, stale }, Arc::default())
    }

    fn known() -> KeyRecord {
        KeyRecord::new(Map::new(), String::new)
    }

    const KEY: KeyDigest = [7; 32];

    #[tokio::test]
    async fn one_question_answers_all_who_wait() {
        let cache = cache(Duration::from_secs(60), None);
        let asked = AtomicU64::new(0);
        let all = (0..1000).map(|_| {
            cache.ask(
                &KEY,
                || 0,
                async || {
                    asked.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Ok(Some(known()))
                },
            )
        });
        assert!(join_all(all).await.into_iter().all(|result| result.unwrap().record.is_some()));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        assert!(cache.fresh(&KEY, 0, Instant::now()).is_some());
    }

    #[tokio::test]
    async fn a_failure_fails_all_who_wait_and_is_soon_forgotten() {
        let cache = cache(Duration::from_secs(60), None);
        let asked = AtomicU64::new(0);
        let all = (0..100).map(|_| {
            cache.ask(
                &KEY,
                || 0,
                async || {
                    asked.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Err(StoreError::new("down"))
                },
            )
        });
        assert!(join_all(all).await.into_iter().all(|result| result.is_err()));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        assert!(cache.ask(&KEY, || 0, async || Ok(Some(known()))).await.is_err());
        tokio::time::sleep(PAUSE).await;
        assert!(cache.ask(&KEY, || 0, async || Ok(Some(known()))).await.is_ok());
    }

    #[tokio::test]
    async fn unknown_keys_are_remembered_as_such() {
        let cache = cache(Duration::from_secs(60), None);
        cache.ask(&KEY, || 0, async || Ok(None)).await.unwrap();
        assert!(matches!(cache.fresh(&KEY, 0, Instant::now()), Some(None)));
        let later = Instant::now() + Duration::from_secs(61);
        assert!(cache.fresh(&KEY, 0, later).is_none());
    }

    #[tokio::test]
    async fn a_change_ends_what_was_known_before_it() {
        let cache = cache(Duration::from_secs(60), None);
        cache.ask(&KEY, || 1, async || Ok(Some(known()))).await.unwrap();
        assert!(cache.fresh(&KEY, 1, Instant::now()).is_some());
        assert!(cache.fresh(&KEY, 2, Instant::now()).is_none());
        // A change while the question is under way: its answer is from before the change.
        let changes = AtomicU64::new(2);
        let read = || changes.load(Ordering::Relaxed);
        let question = async || {
            changes.store(3, Ordering::Relaxed);
            Ok(Some(known()))
        };
        cache.ask(&KEY, read, question).await.unwrap();
        assert!(cache.fresh(&KEY, 3, Instant::now()).is_none());
    }

    #[tokio::test]
    async fn an_old_answer_serves_only_where_it_may() {
        for (stale, serves) in [(None, false), (Some(Duration::from_secs(60)), true)] {
            let cache = cache(Duration::ZERO, stale);
            cache.ask(&KEY, || 0, async || Ok(Some(known()))).await.unwrap();
            let result = cache.ask(&KEY, || 0, async || Err(StoreError::new("down"))).await;
            assert_eq!(result.is_ok_and(|t| t.record.is_some() && t.stale.is_some()), serves);
        }
    }

    #[tokio::test]
    async fn without_a_ttl_those_who_wait_still_share_a_question() {
        let cache = cache(Duration::ZERO, None);
        let asked = AtomicU64::new(0);
        let all = (0..100).map(|_| {
            cache.ask(
                &KEY,
                || 0,
                async || {
                    asked.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Ok(Some(known()))
                },
            )
        });
        assert!(join_all(all).await.into_iter().all(|result| result.is_ok()));
        // The first question was put when it came; the others came before the second.
        assert!(asked.load(Ordering::Relaxed) <= 2, "{}", asked.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn what_was_changed_is_not_revived() {
        let cache = cache(Duration::from_secs(60), Some(Duration::from_secs(60)));
        cache.ask(&KEY, || 1, async || Ok(Some(known()))).await.unwrap();
        let result = cache.ask(&KEY, || 2, async || Err(StoreError::new("down"))).await;
        assert!(result.is_err());
    }

    #[tokio::test]
    async fn nobody_waits_for_a_place_that_is_away_who_has_an_old_answer() {
        let cache = cache(Duration::ZERO, Some(Duration::from_secs(60)));
        let down = async || Err(StoreError::new("down"));
        cache.ask(&KEY, || 0, async || Ok(Some(known()))).await.unwrap();
        cache.ask(&KEY, || 0, down).await.unwrap();
        tokio::time::sleep(PAUSE).await;
        let slow = cache.ask(&KEY, || 0, async || std::future::pending().await);
        tokio::pin!(slow);
        assert!(futures::poll!(&mut slow).is_pending());
        let result = cache.ask(&KEY, || 0, down).await.unwrap();
        assert!(result.stale.is_some());
    }

    fn quota(used: u64, balance: i64) -> KeyRecord {
        let data = json!({"total_quota": 100, "used_quota": used, "balance": balance});
        KeyRecord::new(data.as_object().unwrap().clone(), String::new)
    }

    fn amounts(record: Option<Arc<KeyRecord>>) -> (Value, Value) {
        let data = &record.unwrap().data;
        (data["used_quota"].clone(), data["balance"].clone())
    }

    const USED: KeyUsage = KeyUsage { tokens: 5.0, credit: 1.0 };

    #[tokio::test]
    async fn what_is_amended_keeps_its_age() {
        let cache = cache(Duration::from_millis(50), None);
        cache.ask(&KEY, || 3, async || Ok(Some(quota(10, 9)))).await.unwrap();
        let asked = Instant::now();
        cache.amend(&KEY, |record| record.after_usage(USED, 0));
        cache.amend(&[8; 32], |_| panic!("it is not known"));
        let known = cache.fresh(&KEY, 3, asked).unwrap();
        assert_eq!(amounts(known), (15.into(), 8.into()));
        assert!(cache.fresh(&KEY, 4, asked).is_none());
        assert!(cache.fresh(&KEY, 3, asked + Duration::from_millis(50)).is_none());
        cache.ask(&KEY, || 4, async || Ok(None)).await.unwrap();
        cache.amend(&KEY, |_| panic!("it is gone"));
    }

    #[tokio::test]
    async fn a_fresh_answer_does_not_lose_what_is_not_yet_counted() {
        let cache = Arc::new(cache(Duration::ZERO, None));
        let ask = async |used, balance| {
            let question = async || Ok(Some(quota(used, balance)));
            amounts(cache.ask(&KEY, || 0, question).await.unwrap().record)
        };
        assert_eq!(ask(10, 9).await, (10.into(), 9.into()));
        cache.amend(&KEY, |record| record.after_usage(USED, 0));
        cache.tally().add(&KEY, USED, &cache);
        assert_eq!(ask(10, 9).await, (15.into(), 8.into()));
        // On its way: the store may have it, or not.
        cache.tally().begin(&KEY);
        assert_eq!(ask(10, 9).await, (15.into(), 8.into()));
        assert_eq!(ask(15, 8).await, (15.into(), 8.into()));
        assert_eq!(ask(40, 2).await, (40.into(), 2.into()));
        cache.tally().add(&KEY, USED, &cache);
        assert_eq!(ask(40, 2).await, (45.into(), 1.into()));
    }

    #[tokio::test]
    async fn a_count_knows_better_than_a_question_from_before_it() {
        let cache = cache(Duration::from_secs(60), None);
        let fields = json!({"used_quota": "35", "balance": null, "last_reset_at": 7});
        let question = async || {
            cache.counted(&KEY, fields.as_object().unwrap());
            Ok(Some(quota(10, 9)))
        };
        let result = cache.ask(&KEY, || 0, question).await.unwrap();
        let data = &result.record.unwrap().data;
        assert_eq!(data["used_quota"], "35");
        assert_eq!((data.get("balance"), &data["last_reset_at"]), (None, &json!(7)));
    }

    #[tokio::test]
    async fn it_is_bounded() {
        let cache = cache(Duration::from_secs(60), None);
        for n in 0..1000u32 {
            let mut key = KEY;
            key[..4].copy_from_slice(&n.to_le_bytes());
            cache.ask(&key, || 0, async || Ok(None)).await.unwrap();
        }
        assert!(cache.entries.len() <= 100, "{}", cache.entries.len());
    }
}
