//! The values of `store` in this process: a bounded map with an end for each value. It outlives
//! reloads.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use quick_cache::sync::Cache;

use super::journal::{Outcome, StoreCall};
use crate::base::lock;

/// Locks for changes that read first. Keys share them by their hash.
const LOCKS: usize = 16;

/// See above.
pub struct ScriptStore {
    values: Cache<Arc<str>, Entry>,
    hasher: RandomState,
    locks: [Mutex<()>; LOCKS],
}

#[derive(Clone)]
struct Entry {
    value: Arc<[u8]>,
    end: Instant,
}

impl fmt::Debug for ScriptStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScriptStore").field("entries", &self.values.len()).finish_non_exhaustive()
    }
}

impl Default for ScriptStore {
    fn default() -> Self {
        Self::new(super::settings::StoreSettings::default().max_entries)
    }
}

impl ScriptStore {
    /// A store of at most about this many values.
    pub fn new(max_entries: usize) -> Self {
        Self {
            values: Cache::new(max_entries),
            hasher: RandomState::new(),
            locks: std::array::from_fn(|_| Mutex::new(())),
        }
    }

    /// Changes the number of values; what is beyond it is dropped.
    pub fn set_max_entries(&self, max_entries: usize) {
        if self.values.capacity() != max_entries as u64 {
            self.values.set_capacity(max_entries as u64);
        }
    }

    /// The number of values, including those whose end has passed.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Does what a script asks for. Without a time to live values live for `default_ttl`.
    pub(super) fn call(&self, call: &StoreCall, default_ttl: Duration, now: Instant) -> Outcome {
        let lock_of = self.hasher.hash_one(call.key()) as usize % LOCKS;
        let live = |key: &str| self.values.get(key).filter(|entry| entry.end > now);
        let end = |ttl: Option<u64>| now + ttl.map_or(default_ttl, Duration::from_millis);
        let insert = |key: &str, value: Arc<[u8]>, end| {
            self.values.insert(key.into(), Entry { value, end });
        };
        if let StoreCall::Get { key } = call {
            return live(key).map_or(Outcome::Nothing, |entry| Outcome::Text(entry.value));
        }
        let _only = lock(&self.locks[lock_of]);
        match call {
            StoreCall::Get { .. } => Outcome::Nothing,
            StoreCall::Set { key, value, ttl } => {
                insert(key, value.as_slice().into(), end(*ttl));
                Outcome::Nothing
            }
            StoreCall::Incr { key, by, ttl } => {
                let known = live(key);
                let number = known.as_ref().map_or(Some(0), |entry| integer(&entry.value));
                let Some(number) = number else {
                    return Outcome::Failed("the value is not an integer".into());
                };
                let Some(sum) = number.checked_add(*by) else {
                    return Outcome::Failed("the sum is too large".into());
                };
                let end = known.map_or_else(|| end(*ttl), |entry| entry.end);
                insert(key, sum.to_string().into_bytes().into(), end);
                Outcome::Integer(sum)
            }
            StoreCall::Expire { key, ttl } => match live(key) {
                Some(entry) => {
                    insert(key, entry.value, end(Some(*ttl)));
                    Outcome::Done(true)
                }
                None => Outcome::Done(false),
            },
            StoreCall::Delete { key } => {
                let was = live(key).is_some();
                self.values.remove(key.as_str());
                Outcome::Done(was)
            }
        }
    }
}

fn integer(value: &[u8]) -> Option<i64> {
    str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn set(key: &str, value: &str, ttl: Option<u64>) -> StoreCall {
        StoreCall::Set { key: key.to_owned(), value: value.into(), ttl }
    }

    fn get(key: &str) -> StoreCall {
        StoreCall::Get { key: key.to_owned() }
    }

    fn incr(key: &str, by: i64, ttl: Option<u64>) -> StoreCall {
        StoreCall::Incr { key: key.to_owned(), by, ttl }
    }

    #[test]
    fn values_end() {
        let (store, now) = (ScriptStore::new(100), Instant::now());
        let later = |ms| now + Duration::from_millis(ms);
        store.call(&set("a", "1", Some(1000)), HOUR, now);
        assert_eq!(store.call(&get("a"), HOUR, later(999)), Outcome::Text((*b"1").into()));
        assert_eq!(store.call(&get("a"), HOUR, later(1000)), Outcome::Nothing);
        // The end of a counter is that of its beginning.
        for (ms, sum) in [(0, 5), (900, 10), (1000, 5)] {
            let outcome = store.call(&incr("n", 5, Some(1000)), HOUR, later(ms));
            assert_eq!(outcome, Outcome::Integer(sum), "{ms}");
        }
        let expire = StoreCall::Expire { key: "n".to_owned(), ttl: 10 };
        assert_eq!(store.call(&expire, HOUR, later(1100)), Outcome::Done(true));
        assert_eq!(store.call(&expire, HOUR, later(1110)), Outcome::Done(false));
        store.call(&set("d", "1", None), HOUR, now);
        let delete = StoreCall::Delete { key: "d".to_owned() };
        assert_eq!(store.call(&delete, HOUR, now), Outcome::Done(true));
        assert_eq!(store.call(&delete, HOUR, now), Outcome::Done(false));
    }

    #[test]
    fn only_integers_are_counted() {
        let (store, now) = (ScriptStore::new(100), Instant::now());
        store.call(&set("a", "\"5\"", None), HOUR, now);
        assert!(matches!(store.call(&incr("a", 1, None), HOUR, now), Outcome::Failed(_)));
        store.call(&set("b", &i64::MAX.to_string(), None), HOUR, now);
        assert!(matches!(store.call(&incr("b", 1, None), HOUR, now), Outcome::Failed(_)));
    }

    #[test]
    fn a_flood_is_bounded() {
        let (store, now) = (ScriptStore::new(100), Instant::now());
        for i in 0..100_000 {
            store.call(&set(&i.to_string(), "1", None), HOUR, now);
        }
        assert!(store.len() <= 200, "{}", store.len());
    }

    #[test]
    fn threads_count_together() {
        let (store, now) = (ScriptStore::new(100), Instant::now());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..1000).for_each(|_| drop(store.call(&incr("n", 1, None), HOUR, now)))
                });
            }
        });
        assert_eq!(store.call(&incr("n", 0, None), HOUR, now), Outcome::Integer(4000));
    }
}
