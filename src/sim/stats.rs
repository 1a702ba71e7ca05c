//! What a simulated server has seen and done.

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

/// How many requests are remembered, and how many bytes of them.
const REMEMBERED: (usize, usize) = (1000, 64 << 20);

/// What a simulated server has seen.
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
    /// When these two were made, in microseconds since 1970.
    pub(super) made: AtomicU64,
    /// Tokens of prompts that were looked for in the prefix cache, and those that were there.
    pub(super) queried_tokens: AtomicU64,
    pub(super) cached_tokens: AtomicU64,
    /// Blocks of the KV cache that requests under way hold.
    pub(super) blocks: AtomicU64,
    models: Mutex<BTreeMap<String, u64>>,
    recent: Mutex<Recent>,
}

#[derive(Default)]
struct Recent {
    seen: VecDeque<Arc<ReceivedRequest>>,
    bytes: usize,
}

/// A request as it arrived.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ReceivedRequest {
    /// Method and target.
    pub line: String,
    /// Header fields, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
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
    /// Inference requests, failed ones included.
    pub fn requests(&self) -> u64 {
        get(&self.requests)
    }

    /// Inference requests for a model.
    pub fn requests_for(&self, model: &str) -> u64 {
        lock(&self.models).get(model).copied().unwrap_or(0)
    }

    /// Requests that got the whole of a good answer.
    pub fn completed(&self) -> u64 {
        get(&self.completed)
    }

    /// Answers given up because the reader was gone.
    pub fn aborted(&self) -> u64 {
        get(&self.aborted)
    }

    /// Inference requests that have not ended.
    pub fn open(&self) -> u64 {
        get(&self.open)
    }

    /// Inference requests being answered.
    pub fn running(&self) -> u64 {
        self.open().saturating_sub(self.waiting())
    }

    /// Inference requests that wait in the engine's queue.
    pub fn waiting(&self) -> u64 {
        get(&self.waiting)
    }

    /// Connections accepted.
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

    /// Tokens of prompts that were found in the prefix cache, and all that were looked for.
    pub fn cached(&self) -> (u64, u64) {
        (get(&self.cached_tokens), get(&self.queried_tokens))
    }

    /// Tokens of prompts and of answers, as it counts them itself.
    pub fn tokens(&self) -> (u64, u64) {
        (get(&self.prompt_tokens), get(&self.generated_tokens))
    }

    /// Its counters of tokens begin now.
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

    /// The last inference requests, the oldest first: a thousand, fewer if they are large.
    pub fn recent(&self) -> Vec<Arc<ReceivedRequest>> {
        lock(&self.recent).seen.iter().cloned().collect()
    }

    /// How many of the last inference requests came with this `X-Request-Id`.
    pub fn tries_of(&self, request_id: &str) -> usize {
        let recent = lock(&self.recent);
        recent.seen.iter().filter(|seen| seen.header("x-request-id") == Some(request_id)).count()
    }

    /// Notes an inference request, and says which one it is.
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
        while recent.seen.len() > REMEMBERED.0
            || recent.seen.len() > 1 && recent.bytes > REMEMBERED.1
        {
            let Some(oldest) = recent.seen.pop_front() else { break };
            recent.bytes -= oldest.body.len();
        }
        drop(recent);
        self.requests.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// What `/sim/stats` tells.
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

/// Something that counts for as long as this lives.
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
        for id in 0..REMEMBERED.0 + 5 {
            stats.note(seen(id % 500, 0), "m");
        }
        assert_eq!(stats.recent().len(), REMEMBERED.0);
        assert_eq!((stats.requests(), stats.requests_for("m")), (1005, 1005));
        assert_eq!((stats.tries_of("7"), stats.tries_of("none")), (2, 0));
        stats.note(seen(1, REMEMBERED.1 + 1), "n");
        assert_eq!(stats.recent().len(), 1, "the last is remembered whatever its size");
        stats.note(seen(2, 1), "n");
        assert_eq!(stats.recent().len(), 1);
        assert_eq!(stats.last().unwrap().body.len(), 1);
    }
}
