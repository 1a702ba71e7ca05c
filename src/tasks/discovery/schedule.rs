//! What is to be asked when.

use std::{collections::HashMap, hash::Hash, time::Instant};

/// Times of questions.
pub struct Schedule<K> {
    entries: HashMap<K, Entry>,
}

struct Entry {
    /// When it is asked next; `None`: it is being asked.
    due: Option<Instant>,
    /// It has been answered once.
    known: bool,
}

impl<K> Default for Schedule<K> {
    fn default() -> Self {
        Self { entries: HashMap::new() }
    }
}

impl<K: Clone + Eq + Hash> Schedule<K> {
    /// Asks from now on for these: for new ones at once, for others not any more.
    pub fn keep(&mut self, wanted: impl Iterator<Item = K>, now: Instant) {
        let mut before = std::mem::take(&mut self.entries);
        for key in wanted {
            let entry = before.remove(&key).unwrap_or(Entry { due: Some(now), known: false });
            // One name may stand in several backends.
            self.entries.entry(key).or_insert(entry);
        }
    }

    /// Those that are due; they are being asked from now on.
    pub fn take(&mut self, now: Instant) -> Vec<K> {
        let due = self.entries.iter_mut().filter(|(_, e)| e.due.is_some_and(|due| due <= now));
        due.map(|(key, entry)| {
            entry.due = None;
            key.clone()
        })
        .collect()
    }

    /// One has been answered, and is due again at `next`.
    pub fn done(&mut self, key: &K, next: Instant) {
        if let Some(entry) = self.entries.get_mut(key) {
            *entry = Entry { due: Some(next), known: true };
        }
    }

    /// When the next is due.
    pub fn next(&self) -> Option<Instant> {
        self.entries.values().filter_map(|e| e.due).min()
    }

    /// Whether each has been answered once.
    pub fn all_known(&self) -> bool {
        self.entries.values().all(|e| e.known)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_is_asked_once_at_a_time_and_again_when_it_is_due() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut schedule = Schedule::default();
        schedule.keep(["a", "b", "a"].into_iter(), start);
        let mut first = schedule.take(start);
        first.sort_unstable();
        assert_eq!(first, ["a", "b"]);
        assert_eq!((schedule.take(at(9)), schedule.next()), (vec![], None));
        schedule.done(&"a", at(10));
        assert!(!schedule.all_known());
        schedule.done(&"b", at(20));
        assert!(schedule.all_known());
        schedule.keep(["a", "b"].into_iter(), at(5));
        assert_eq!((schedule.take(at(9)), schedule.next()), (vec![], Some(at(10))));
        assert_eq!(schedule.take(at(10)), ["a"]);
        // One that is not wanted any more, and is answered all the same.
        schedule.keep(["b", "c"].into_iter(), at(10));
        schedule.done(&"a", at(11));
        assert_eq!(schedule.take(at(11)), ["c"]);
        assert!(!schedule.all_known());
    }
}
