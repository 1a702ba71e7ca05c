//! When each query is due.

use std::{collections::HashMap, hash::Hash, time::Instant};

/// Queries with their due times.
pub struct Schedule<K> {
    entries: HashMap<K, Entry>,
}

struct Entry {
    /// When it is due; `None`: it is under way.
    due: Option<Instant>,
    /// It has completed once.
    completed: bool,
}

impl<K> Default for Schedule<K> {
    fn default() -> Self {
        Self { entries: HashMap::new() }
    }
}

impl<K: Clone + Eq + Hash> Schedule<K> {
    /// Replaces the set of queries: new ones are due at once, others are dropped.
    pub fn keep(&mut self, wanted: impl Iterator<Item = K>, now: Instant) {
        let mut before = std::mem::take(&mut self.entries);
        for key in wanted {
            let entry = before.remove(&key).unwrap_or(Entry { due: Some(now), completed: false });
            // Several backends may have the same name.
            self.entries.entry(key).or_insert(entry);
        }
    }

    /// Takes the due queries; they are under way from now on.
    pub fn take(&mut self, now: Instant) -> Vec<K> {
        let due = self.entries.iter_mut().filter(|(_, e)| e.due.is_some_and(|due| due <= now));
        due.map(|(key, entry)| {
            entry.due = None;
            key.clone()
        })
        .collect()
    }

    /// Completes a query, which is due again at `next`.
    pub fn done(&mut self, key: &K, next: Instant) {
        if let Some(entry) = self.entries.get_mut(key) {
            *entry = Entry { due: Some(next), completed: true };
        }
    }

    /// When the next query is due.
    pub fn next(&self) -> Option<Instant> {
        self.entries.values().filter_map(|e| e.due).min()
    }

    /// Whether each query has completed once.
    pub fn all_completed(&self) -> bool {
        self.entries.values().all(|e| e.completed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_runs_once_at_a_time_and_again_when_it_is_due() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut schedule = Schedule::default();
        schedule.keep(["a", "b", "a"].into_iter(), start);
        let mut first = schedule.take(start);
        first.sort_unstable();
        assert_eq!(first, ["a", "b"]);
        assert_eq!((schedule.take(at(9)), schedule.next()), (vec![], None));
        schedule.done(&"a", at(10));
        assert!(!schedule.all_completed());
        schedule.done(&"b", at(20));
        assert!(schedule.all_completed());
        schedule.keep(["a", "b"].into_iter(), at(5));
        assert_eq!((schedule.take(at(9)), schedule.next()), (vec![], Some(at(10))));
        assert_eq!(schedule.take(at(10)), ["a"]);
        // One that was dropped completes.
        schedule.keep(["b", "c"].into_iter(), at(10));
        schedule.done(&"a", at(11));
        assert_eq!(schedule.take(at(11)), ["c"]);
        assert!(!schedule.all_completed());
    }
}
