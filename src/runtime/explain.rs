//! Why requests went where they went: the last ones, by their ids.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use crate::{balance, base::lock};

/// Bytes of a model's name that are kept: clients choose it.
const LONGEST: usize = 200;

/// What became of one request.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Trace {
    /// Its id, as in `X-Request-Id`.
    pub request_id: String,
    /// When it arrived, RFC 3339.
    #[serde(serialize_with = "text")]
    #[schema(value_type = String, format = DateTime)]
    pub time: Timestamp,
    /// The model that was asked for.
    pub model: String,
    /// Identity of the caller's key; empty if there is none. Never the key.
    pub key_id: String,
    /// Whose key it is; empty if nobody said.
    pub user_id: String,
    /// The tries, in the order in which they began.
    pub tries: Vec<Try>,
    /// `complete`, `client_aborted`, `upstream_error` or `rejected`.
    pub outcome: String,
    /// Status of the answer.
    pub status: u16,
    /// From its arrival to the end of the answer.
    pub duration_ms: u64,
    /// How long it waited for a slot; `null` if it did not.
    pub queued_ms: Option<u64>,
}

/// One try.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Try {
    /// When it began, from the arrival of the request.
    pub at_ms: u64,
    /// How many tiers of the model's ways stand before the one that was chosen from: 0 is the first
    /// choice, others are fallbacks.
    pub tier: usize,
    /// The pool, by its place among the pools of the configuration.
    pub pool: usize,
    /// The model, by the name that the backend knows.
    pub model: String,
    /// The backend; empty if there was none to choose, which the candidates explain.
    pub backend: String,
    /// How the backends of the pool stood then; of a single one only if it was not chosen.
    pub candidates: Vec<Candidate>,
    /// When the first byte of its answer came, from its beginning; `null` if none came.
    pub first_byte_ms: Option<u64>,
    /// How long it took.
    pub took_ms: u64,
    /// What came of it: `ok`, `connect_failure`, `status 500`, `busy`,
    /// `connection_broken before content`, `nobody to choose`.
    pub result: String,
    /// It was made at the same time as another one.
    pub hedge: bool,
}

/// How one backend stood when a choice was made.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Candidate {
    /// Its name.
    pub backend: String,
    /// By what the strategy compares, lower is better; `null` where it compares nothing.
    pub score: Option<f64>,
    /// Why it could not be chosen; `null`: it could.
    pub barred: Option<&'static str>,
}

impl From<balance::Candidate> for Candidate {
    fn from(candidate: balance::Candidate) -> Self {
        let balance::Candidate { backend, score, barred } = candidate;
        Self { backend, score, barred }
    }
}

fn text<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.3}"))
}

/// The traces of the last requests.
#[derive(Default)]
pub struct Explains {
    capacity: AtomicUsize,
    ring: Mutex<Ring>,
}

/// From the oldest to the newest. Each request adds one and hardly anybody asks, so they are looked
/// through for an id instead of being indexed by it.
type Ring = VecDeque<Arc<Trace>>;

impl Explains {
    /// How many are kept; 0: none, and nobody need make any.
    pub fn capacity(&self) -> usize {
        self.capacity.load(Ordering::Relaxed)
    }

    /// Keeps so many from now on.
    pub fn resize(&self, capacity: usize) {
        // Under the lock, so that no trace is added by the old figure after it.
        let mut ring = lock(&self.ring);
        self.capacity.store(capacity, Ordering::Relaxed);
        let surplus = ring.len().saturating_sub(capacity);
        let dropped: Vec<_> = ring.drain(..surplus).collect();
        drop(ring);
        drop(dropped);
    }

    /// Keeps a trace. The oldest one goes, if there are too many.
    pub fn put(&self, mut trace: Trace) {
        shorten(&mut trace.model);
        let trace = Arc::new(trace);
        let mut ring = lock(&self.ring);
        let capacity = self.capacity();
        if capacity == 0 {
            return;
        }
        let oldest = if ring.len() >= capacity { ring.pop_front() } else { None };
        ring.push_back(trace);
        drop(ring);
        // Given back to memory without the lock.
        drop(oldest);
    }

    /// The newest trace with this id: clients choose ids, and may use one twice.
    pub fn find(&self, request_id: &str) -> Option<Arc<Trace>> {
        // Looked through without the lock.
        let traces: Vec<_> = lock(&self.ring).iter().cloned().collect();
        traces.into_iter().rev().find(|trace| trace.request_id == request_id)
    }
}

fn shorten(name: &mut String) {
    if name.len() > LONGEST {
        name.truncate(name.floor_char_boundary(LONGEST));
        name.push('…');
        name.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn trace(id: &str, status: u16) -> Trace {
        Trace {
            request_id: id.to_owned(),
            time: Timestamp::UNIX_EPOCH,
            model: "m".to_owned(),
            key_id: String::new(),
            user_id: String::new(),
            tries: Vec::new(),
            outcome: "complete".to_owned(),
            status,
            duration_ms: 1,
            queued_ms: None,
        }
    }

    #[test]
    fn nothing_is_kept_unless_it_is_asked_for() {
        let explains = Explains::default();
        explains.put(trace("a", 200));
        assert!(explains.find("a").is_none());
        explains.resize(2);
        for id in ["a", "b", "c"] {
            explains.put(trace(id, 200));
        }
        let known = |id: &str| explains.find(id).is_some();
        assert_eq!((known("a"), known("b"), known("c")), (false, true, true));
        explains.resize(1);
        assert_eq!((known("b"), known("c")), (false, true));
        explains.resize(0);
        assert!(!known("c") && lock(&explains.ring).is_empty());
    }

    #[test]
    fn names_that_clients_make_long_are_cut() {
        let explains = Explains::default();
        explains.resize(1);
        explains.put(Trace { model: "ä".repeat(10_001), ..trace("a", 200) });
        let kept = explains.find("a").unwrap();
        assert!(kept.model.starts_with("ää") && kept.model.len() <= LONGEST + 3);
        let told = serde_json::to_value(&*kept).unwrap();
        assert_eq!(told["time"], "1970-01-01T00:00:00.000Z");
    }

    proptest! {
        #[test]
        fn the_newest_of_an_id_is_found_as_long_as_it_is_kept(
            steps in prop::collection::vec((0_usize..30, 0_u8..6), 0..100)
        ) {
            let explains = Explains::default();
            let (mut kept, mut capacity) = (Vec::new(), 0);
            for (n, (size, id)) in steps.into_iter().enumerate() {
                if size < 8 {
                    capacity = size;
                    explains.resize(size);
                }
                explains.put(trace(&id.to_string(), n as u16));
                kept.push((id, n as u16));
                kept.drain(..kept.len() - kept.len().min(capacity));
                for id in 0..6 {
                    let expected = kept.iter().rfind(|(i, _)| *i == id).map(|(_, n)| *n);
                    prop_assert_eq!(explains.find(&id.to_string()).map(|t| t.status), expected);
                }
                prop_assert!(lock(&explains.ring).len() <= capacity);
            }
        }
    }
}
