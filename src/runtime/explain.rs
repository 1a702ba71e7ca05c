//! Traces of the last requests, which show why each went where it went.

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

/// Bytes of a model's name that are kept: clients choose the name.
const MODEL_BYTES: usize = 200;

/// The trace of one request.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Trace {
    /// Its id, as in `X-Request-Id`.
    pub request_id: String,
    /// When it arrived, RFC 3339.
    #[serde(serialize_with = "text")]
    #[schema(value_type = String, format = DateTime)]
    pub time: Timestamp,
    /// The requested model.
    pub model: String,
    /// Identity of the caller's key; empty if there is none. Never the key itself.
    pub key_id: String,
    /// The user of the key; empty if unknown.
    pub user_id: String,
    /// The attempts, in the order in which they began.
    pub tries: Vec<AttemptTrace>,
    /// `complete`, `client_aborted`, `upstream_error` or `rejected`.
    pub outcome: String,
    /// Status of the answer.
    pub status: u16,
    /// From its arrival to the end of the answer.
    pub duration_ms: u64,
    /// How long it waited for a slot; `null` if it did not wait.
    pub queued_ms: Option<u64>,
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct AttemptTrace {
    /// When it began, from the arrival of the request.
    pub at_ms: u64,
    /// The tier of the model's route that the backend was picked from: 0 is the first, higher ones are
    /// fallbacks.
    pub tier: usize,
    /// The pool, by its position among the pools of the configuration.
    pub pool: usize,
    /// The model, by the name that the backend knows.
    pub model: String,
    /// The backend; empty if none was available, which the candidates explain.
    pub backend: String,
    /// The state of the pool's backends at that time; for a pool of one backend only if it was not
    /// picked.
    pub candidates: Vec<Candidate>,
    /// Time from the start of the attempt to the first byte of the answer; `null` if none came.
    pub first_byte_ms: Option<u64>,
    /// How long it took.
    pub took_ms: u64,
    /// Its result: `ok`, `connect_failure`, `status 500`, `busy`,
    /// `connection_broken before content`, `no backend available`.
    pub result: String,
    /// Whether it ran in parallel to another attempt.
    pub hedge: bool,
}

/// The state of one backend at the time of a pick.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Candidate {
    /// Its name.
    pub backend: String,
    /// The strategy's score, lower is better; `null` if the strategy does not compare.
    pub score: Option<f64>,
    /// Why it could not be picked; `null`: it could.
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
pub struct RecentTraces {
    capacity: AtomicUsize,
    ring: Mutex<Ring>,
}

/// From the oldest to the newest. Each request adds one and look-ups are rare, so there is no index by
/// id.
type Ring = VecDeque<Arc<Trace>>;

impl RecentTraces {
    /// How many are kept; 0: none, and no traces need to be made.
    pub fn capacity(&self) -> usize {
        self.capacity.load(Ordering::Relaxed)
    }

    /// Sets how many are kept.
    pub fn resize(&self, capacity: usize) {
        // Under the lock, so that no trace is added by the old capacity afterwards.
        let mut ring = lock(&self.ring);
        self.capacity.store(capacity, Ordering::Relaxed);
        let surplus = ring.len().saturating_sub(capacity);
        let dropped: Vec<_> = ring.drain(..surplus).collect();
        drop(ring);
        drop(dropped);
    }

    /// Keeps a trace, and drops the oldest one if there are too many.
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
        // Freed without the lock.
        drop(oldest);
    }

    /// The newest trace with this id: clients choose ids and may reuse one.
    pub fn find(&self, request_id: &str) -> Option<Arc<Trace>> {
        // Searched without the lock.
        let traces: Vec<_> = lock(&self.ring).iter().cloned().collect();
        traces.into_iter().rev().find(|trace| trace.request_id == request_id)
    }
}

fn shorten(name: &mut String) {
    if name.len() > MODEL_BYTES {
        name.truncate(name.floor_char_boundary(MODEL_BYTES));
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
        let explains = RecentTraces::default();
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
        let explains = RecentTraces::default();
        explains.resize(1);
        explains.put(Trace { model: "ä".repeat(10_001), ..trace("a", 200) });
        let kept = explains.find("a").unwrap();
        assert!(kept.model.starts_with("ää") && kept.model.len() <= MODEL_BYTES + 3);
        let json = serde_json::to_value(&*kept).unwrap();
        assert_eq!(json["time"], "1970-01-01T00:00:00.000Z");
    }

    proptest! {
        #[test]
        fn the_newest_of_an_id_is_found_as_long_as_it_is_kept(
            steps in prop::collection::vec((0_usize..30, 0_u8..6), 0..100)
        ) {
            let explains = RecentTraces::default();
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
