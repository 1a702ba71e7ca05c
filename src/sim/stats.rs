//! The requests that a simulated server has received, and its counters.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use serde_json::{Value, json};

use crate::base::lock;

/// The most requests that are kept, and the most bytes of their bodies.
const KEPT: (usize, usize) = (1000, 64 << 20);

/// The counters of a simulated server.
#[derive(Default)]
pub struct Stats {
    pub(super) requests: AtomicU64,
    pub(super) completed: AtomicU64,
    pub(super) aborted: AtomicU64,
    pub(super) open: AtomicU64,
    pub(super) waiting: AtomicU64,
    pub(super) connections: AtomicU64,
    pub(super) probes: AtomicU64,
    pub(super) readings: AtomicU64,
    pub(super) prompt_tokens: AtomicU64,
    pub(super) generated_tokens: AtomicU64,
    /// When these two counters were created, in microseconds since 1970.
    pub(super) made: AtomicU64,
    /// Prompt tokens that were looked up in the prefix cache, and those that were found.
    pub(super) queried_tokens: AtomicU64,
    pub(super) cached_tokens: AtomicU64,
    /// Blocks of the KV cache that running requests hold.
    pub(super) blocks: AtomicU64,
    models: Mutex<BTreeMap<String, u64>>,
    recent: Mutex<Recent>,
}

#[derive(Default)]
struct Recent {
    seen: VecDeque<Arc<ReceivedRequest>>,
    bytes: usize,
}

/// A request as received.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ReceivedRequest {
    /// Method and target.
    pub line: String,
    /// Header fields, names in lower case.
    pub headers: Vec<(String, String)>,
    #[serde(skip)]
    pub body: Vec<u8>,
}

impl ReceivedRequest {
    /// The value of a header field.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

impl Stats {
    /// Inference requests, including failed ones.
    pub fn requests(&self) -> u64 {
        get(&self.requests)
    }

    /// Inference requests for a model.
    pub fn requests_for(&self, model: &str) -> u64 {
        lock(&self.models).get(model).copied().unwrap_or(0)
    }

    /// Requests with a complete successful answer.
    pub fn completed(&self) -> u64 {
        get(&self.completed)
    }

    /// Answers that were aborted because the client disconnected.
    pub fn aborted(&self) -> u64 {
        get(&self.aborted)
    }

    /// Inference requests in progress.
    pub fn open(&self) -> u64 {
        get(&self.open)
    }

    /// Inference requests that hold a slot.
    pub fn running(&self) -> u64 {
        self.open().saturating_sub(self.waiting())
    }

    /// Inference requests in the engine's queue.
    pub fn waiting(&self) -> u64 {
        get(&self.waiting)
    }

    /// Accepted connections.
    pub fn connections(&self) -> u64 {
        get(&self.connections)
    }

    /// Requests to `/health`.
    pub fn probes(&self) -> u64 {
        get(&self.probes)
    }

    /// Requests to `/metrics`.
    pub fn readings(&self) -> u64 {
        get(&self.readings)
    }

    /// Prompt tokens found in the prefix cache, and all that were looked up.
    pub fn cached(&self) -> (u64, u64) {
        (get(&self.cached_tokens), get(&self.queried_tokens))
    }

    /// Prompt and generated tokens, as the server counts them.
    pub fn tokens(&self) -> (u64, u64) {
        (get(&self.prompt_tokens), get(&self.generated_tokens))
    }

    /// Resets the token counters.
    pub(super) fn begin(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.made.store(now.as_micros() as u64, Ordering::Relaxed);
        let counters = [
            &self.prompt_tokens,
            &self.generated_tokens,
            &self.queried_tokens,
            &self.cached_tokens,
        ];
        counters.iter().for_each(|counter| counter.store(0, Ordering::Relaxed));
    }

    /// The last inference request.
    pub fn last(&self) -> Option<ReceivedRequest> {
        lock(&self.recent).seen.back().map(|seen| (**seen).clone())
    }

    /// The last inference requests, the oldest first: up to a thousand, fewer if they are large.
    pub fn recent(&self) -> Vec<Arc<ReceivedRequest>> {
        lock(&self.recent).seen.iter().cloned().collect()
    }

    /// How many of the last inference requests had this `X-Request-Id`.
    pub fn tries_of(&self, request_id: &str) -> usize {
        let recent = lock(&self.recent);
        recent.seen.iter().filter(|seen| seen.header("x-request-id") == Some(request_id)).count()
    }

    /// Records an inference request and returns its number.
    pub(super) fn note(&self, seen: Arc<ReceivedRequest>, model: &str) -> u64 {
        let mut models = lock(&self.models);
        match models.get_mut(model) {
            Some(count) => *count += 1,
            None => drop(models.insert(model.to_owned(), 1)),
        }
        drop(models);
        let mut recent = lock(&self.recent);
        recent.bytes += seen.body.len();
        recent.seen.push_back(seen);
        while recent.seen.len() > KEPT.0 || recent.seen.len() > 1 && recent.bytes > KEPT.1 {
            let Some(oldest) = recent.seen.pop_front() else { break };
            recent.bytes -= oldest.body.len();
        }
        drop(recent);
        self.requests.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The response of `/sim/stats`.
    pub(super) fn json(&self) -> Value {
        let (cached, queried) = self.cached();
        json!({
            "requests": self.requests(),
            "models": *lock(&self.models),
            "completed": self.completed(),
            "aborted": self.aborted(),
            "open": self.open(),
            "running": self.running(),
            "waiting": self.waiting(),
            "connections": self.connections(),
            "probes": self.probes(),
            "readings": self.readings(),
            "cached_tokens": cached,
            "queried_tokens": queried,
            "prompt_tokens": get(&self.prompt_tokens),
            "generated_tokens": get(&self.generated_tokens),
            "last": self.last(),
        })
    }
}

pub(super) fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

pub(super) fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// Adds to a counter until it is dropped.
pub(super) struct CountGuard<'a> {
    counter: &'a AtomicU64,
    weight: u64,
}

impl<'a> CountGuard<'a> {
    pub(super) fn new(counter: &'a AtomicU64, weight: u64) -> Self {
        add(counter, weight);
        Self { counter, weight }
    }
}

impl Drop for CountGuard<'_> {
    fn drop(&mut self) {
        self.counter.fetch_sub(self.weight, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_much_is_remembered() {
        let stats = Stats::default();
        let seen = |id: usize, size| {
            let headers = vec![("x-request-id".to_owned(), id.to_string())];
            Arc::new(ReceivedRequest { headers, body: vec![0; size], ..ReceivedRequest::default() })
        };
        for id in 0..KEPT.0 + 5 {
            stats.note(seen(id % 500, 0), "m");
        }
        assert_eq!(stats.recent().len(), KEPT.0);
        assert_eq!((stats.requests(), stats.requests_for("m")), (1005, 1005));
        assert_eq!((stats.tries_of("7"), stats.tries_of("none")), (2, 0));
        stats.note(seen(1, KEPT.1 + 1), "n");
        assert_eq!(stats.recent().len(), 1, "the last is remembered whatever its size");
        stats.note(seen(2, 1), "n");
        assert_eq!(stats.recent().len(), 1);
        assert_eq!(stats.last().unwrap().body.len(), 1);
    }
}
