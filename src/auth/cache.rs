//! What providers have answered, for a while. One question for each key is under way at a time;
//! who wants to know the same waits for its answer.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use quick_cache::sync::Cache as Map;

use serde_json::{Map as Fields, Value};

use super::{credential::KeyDigest, provider::KeyRecord, tally::Tally};
use crate::{
    base::{
        lock,
        period::now as unix_now,
        terms::{COUNTED, moment, number},
    },
    config::plan::CachePlan,
    store::StoreError,
};

/// After a failure the provider is not asked for the same key for so long.
const PAUSE: Duration = Duration::from_millis(500);

/// Answers of one provider, by the digests of the keys.
pub struct Cache {
    plan: CachePlan,
    slots: Map<KeyDigest, Arc<Slot>>,
    /// What the provider may not know yet.
    tally: Arc<Tally>,
}

/// All that is remembered of one key.
#[derive(Default)]
struct Slot {
    answer: ArcSwapOption<Answer>,
    /// Held by the one who asks. Nobody waits here who can be answered from `answer`.
    asking: tokio::sync::Mutex<()>,
    failure: Mutex<Option<(Instant, StoreError)>>,
    /// What the provider said last after a count, and when. Held by whoever replaces `answer`.
    counted: Mutex<Option<(Instant, Fields<String, Value>)>>,
}

struct Answer {
    record: Option<Arc<KeyRecord>>,
    at: Instant,
    /// How often the place had changed when it was asked.
    changes: u64,
}

/// Where an answer came from.
#[derive(Debug)]
pub struct Told {
    /// What is known of the key.
    pub record: Option<Arc<KeyRecord>>,
    /// Why the provider could not be asked, if the answer is an old one therefore.
    pub stale: Option<StoreError>,
}

impl Cache {
    /// An empty one, of a place at which `tally` is counted.
    pub fn new(plan: CachePlan, tally: Arc<Tally>) -> Self {
        Self { plan, slots: Map::new(plan.size), tally }
    }

    /// What the provider may not know yet.
    pub fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    /// Replaces what is known of a key. It holds no longer for that.
    pub fn amend(&self, digest: &KeyDigest, change: impl FnOnce(&KeyRecord) -> KeyRecord) {
        if let Some(slot) = self.slots.get(digest) {
            let _turn = lock(&slot.counted);
            slot.amend(change);
        }
    }

    /// The provider has counted for a key, and told the fields as they now stand.
    pub fn counted(&self, digest: &KeyDigest, fields: &Fields<String, Value>) {
        let Some(slot) = self.slots.get(digest) else { return };
        let mut counted = lock(&slot.counted);
        let waiting = self.tally.pending(digest).waiting;
        *counted = Some((Instant::now(), fields.clone()));
        slot.amend(|record| {
            record.amended(|data| overlay(data, fields)).after(waiting, unix_now())
        });
    }

    /// Keeps an answer to a question that was put at this time.
    fn keep(
        &self,
        slot: &Slot,
        digest: &KeyDigest,
        record: Option<KeyRecord>,
        (at, changes): (Instant, u64),
    ) -> Option<Arc<KeyRecord>> {
        let counted = lock(&slot.counted);
        let pending = self.tally.pending(digest);
        let record = record.map(|mut record| {
            // A count that ended after the question was put knows better.
            if let Some((_, fields)) = counted.as_ref().filter(|(when, _)| *when >= at) {
                record = record.amended(|data| overlay(data, fields));
            }
            if !pending.waiting.is_nothing() {
                record = record.after(pending.waiting, unix_now());
            }
            // Whether the answer has in it what is being counted nobody knows. What was known
            // before has it in.
            let known = slot.answer.load_full().and_then(|answer| answer.record.clone());
            if let (false, Some(known)) = (pending.sent.is_nothing(), known) {
                record = record.amended(|data| not_less_used(data, &known.data));
            }
            Arc::new(record)
        });
        slot.answer.store(Some(Arc::new(Answer { record: record.clone(), at, changes })));
        record
    }

    /// What is known and still holds at `now`; `None` if the provider must be asked.
    pub fn fresh(
        &self,
        digest: &KeyDigest,
        changes: u64,
        now: Instant,
    ) -> Option<Option<Arc<KeyRecord>>> {
        let slot = self.slots.get(digest)?;
        self.holding(&slot, changes, now)
    }

    fn holding(&self, slot: &Slot, changes: u64, now: Instant) -> Option<Option<Arc<KeyRecord>>> {
        let answer = slot.answer.load();
        let answer = answer.as_ref()?;
        let ttl = match answer.record {
            Some(_) => self.plan.ttl,
            None => self.plan.negative_ttl,
        };
        let holds = answer.changes == changes && now.saturating_duration_since(answer.at) < ttl;
        holds.then(|| answer.record.clone())
    }

    /// Asks, unless somebody else has just done so. `changes` is read before each question, so
    /// that an answer from before a change is known as such.
    ///
    /// # Errors
    /// If the provider cannot be asked and no old answer may be used.
    pub async fn ask<F>(
        &self,
        digest: &KeyDigest,
        changes: impl Fn() -> u64,
        question: impl FnOnce() -> F,
    ) -> Result<Told, StoreError>
    where
        F: Future<Output = Result<Option<KeyRecord>, StoreError>>,
    {
        let came = Instant::now();
        let Ok(slot) = self.slots.get_or_insert_with(digest, || Ok::<_, ()>(Arc::default())) else {
            return Err(StoreError::new("no memory for the key"));
        };
        let _turn = match slot.asking.try_lock() {
            Ok(turn) => turn,
            Err(_) => {
                // While a place is away nobody waits who has an old answer.
                let failed = lock(&slot.failure).clone();
                if let Some((_, why)) = failed
                    && let Ok(told) = self.old(&slot, changes(), why)
                {
                    return Ok(told);
                }
                slot.asking.lock().await
            }
        };
        if let Some(record) = self.holding(&slot, changes(), Instant::now()) {
            return Ok(Told { record, stale: None });
        }
        // An answer to a question that was put after this one came is as good as one's own.
        if let Some(answer) = slot.answer.load_full()
            && answer.at >= came
            && answer.changes == changes()
        {
            return Ok(Told { record: answer.record.clone(), stale: None });
        }
        // Whoever waited for a question that failed does not put it once more, and a place that is
        // away is not asked for the same key all the time.
        let failed = lock(&slot.failure).clone();
        let failed = failed.filter(|(at, _)| *at >= came || at.elapsed() < PAUSE);
        let result = match failed {
            Some((_, why)) => Err(why),
            None => {
                let (changes, at) = (changes(), Instant::now());
                let result = question().await;
                match result {
                    Ok(record) => {
                        let record = self.keep(&slot, digest, record, (at, changes));
                        *lock(&slot.failure) = None;
                        return Ok(Told { record, stale: None });
                    }
                    Err(why) => {
                        *lock(&slot.failure) = Some((Instant::now(), why.clone()));
                        Err(why)
                    }
                }
            }
        };
        result.or_else(|why| self.old(&slot, changes(), why))
    }

    /// An old answer in place of one that cannot be had.
    fn old(&self, slot: &Slot, changes: u64, why: StoreError) -> Result<Told, StoreError> {
        let answer = slot.answer.load_full();
        match (answer, self.plan.stale) {
            // What was changed by this process since is known to be wrong.
            (Some(answer), Some(most))
                if answer.changes == changes && answer.at.elapsed() < most =>
            {
                Ok(Told { record: answer.record.clone(), stale: Some(why) })
            }
            _ => Err(why),
        }
    }
}

impl Slot {
    /// Replaces the record, with the lock held; the age of the answer stays.
    fn amend(&self, change: impl FnOnce(&KeyRecord) -> KeyRecord) {
        if let Some(answer) = self.answer.load_full()
            && let Some(record) = &answer.record
        {
            let record = Some(Arc::new(change(record)));
            let answer = Answer { record, at: answer.at, changes: answer.changes };
            self.answer.store(Some(Arc::new(answer)));
        }
    }
}

/// Takes over what counting has changed.
fn overlay(data: &mut Fields<String, Value>, fields: &Fields<String, Value>) {
    for name in COUNTED {
        match fields.get(name) {
            None | Some(Value::Null) => data.shift_remove(name),
            Some(value) => data.insert(name.to_owned(), value.clone()),
        };
    }
}

/// Of two accounts of the same key, takes over what more was used by the other.
fn not_less_used(data: &mut Fields<String, Value>, other: &Fields<String, Value>) {
    let read = |data: &Fields<String, Value>, name| data.get(name).and_then(number);
    let last =
        |data: &Fields<String, Value>| data.get("last_reset_at").and_then(|v| moment(v).ok());
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
    use crate::base::Used;

    fn cache(ttl: Duration, stale: Option<Duration>) -> Cache {
        Cache::new(CachePlan { ttl, negative_ttl: ttl, size: 100, stale }, Arc::default())
    }

    fn known() -> KeyRecord {
        KeyRecord::new(serde_json::Map::new(), String::new)
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
        assert!(join_all(all).await.into_iter().all(|told| told.unwrap().record.is_some()));
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
        assert!(join_all(all).await.into_iter().all(|told| told.is_err()));
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
            let told = cache.ask(&KEY, || 0, async || Err(StoreError::new("down"))).await;
            assert_eq!(told.is_ok_and(|t| t.record.is_some() && t.stale.is_some()), serves);
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
        assert!(join_all(all).await.into_iter().all(|told| told.is_ok()));
        // The first question was put when it came; the others came before the second.
        assert!(asked.load(Ordering::Relaxed) <= 2, "{}", asked.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn what_was_changed_is_not_revived() {
        let cache = cache(Duration::from_secs(60), Some(Duration::from_secs(60)));
        cache.ask(&KEY, || 1, async || Ok(Some(known()))).await.unwrap();
        let told = cache.ask(&KEY, || 2, async || Err(StoreError::new("down"))).await;
        assert!(told.is_err());
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
        let told = cache.ask(&KEY, || 0, down).await.unwrap();
        assert!(told.stale.is_some());
    }

    fn quota(used: u64, balance: i64) -> KeyRecord {
        let data = json!({"total_quota": 100, "used_quota": used, "balance": balance});
        KeyRecord::new(data.as_object().unwrap().clone(), String::new)
    }

    fn amounts(record: Option<Arc<KeyRecord>>) -> (Value, Value) {
        let data = &record.unwrap().data;
        (data["used_quota"].clone(), data["balance"].clone())
    }

    const USED: Used = Used { tokens: 5.0, credit: 1.0 };

    #[tokio::test]
    async fn what_is_amended_keeps_its_age() {
        let cache = cache(Duration::from_millis(50), None);
        cache.ask(&KEY, || 3, async || Ok(Some(quota(10, 9)))).await.unwrap();
        let asked = Instant::now();
        cache.amend(&KEY, |record| record.after(USED, 0));
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
        cache.amend(&KEY, |record| record.after(USED, 0));
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
        let told = cache.ask(&KEY, || 0, question).await.unwrap();
        let data = &told.record.unwrap().data;
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
        assert!(cache.slots.len() <= 100, "{}", cache.slots.len());
    }
}
