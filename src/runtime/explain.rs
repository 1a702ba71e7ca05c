//! Traces of the last requests, which show why each went where it went.

use std::{
    borrow::Cow,
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use crate::{
    balance,
    base::{Outcome, RequestId, lock},
};

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
    /// The scripts that ran for it, in their order.
    pub hooks: Vec<HookTrace>,
}

/// One run of a script; in `on_stream_event` all runs for the stream.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct HookTrace {
    /// The stage, by its key in the configuration.
    pub stage: &'static str,
    /// The script.
    pub script: String,
    /// How long it took, waits included.
    pub took_us: u64,
    /// `nothing`, `changed`, `refused` or `failed`.
    pub result: &'static str,
    /// What it changed, or why it failed.
    pub changed: Vec<String>,
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
    /// The language that the request was translated into for the backend; `null`: it was sent in the
    /// client's.
    pub language: Option<&'static str>,
    /// Why the backend was asked in that language; `null` if there was none.
    pub language_reason: Option<LanguageReason>,
    /// What was dropped from it on that way, each with its reason.
    pub dropped: Vec<String>,
}

/// Why a backend is asked in a language.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LanguageReason {
    /// It speaks the client's.
    Native,
    /// Of its languages a request in the client's loses least in this one.
    Nearest,
    /// It speaks the client's, in which the model takes no tools: `abilities.chat_tools`.
    ChatTools,
    /// It counts tokens in this one.
    Counts,
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

/// What is kept of a request. It becomes a [`Trace`] when it is asked for: nearly none is.
pub struct KeptRequest {
    pub request_id: RequestId,
    pub arrived: Timestamp,
    pub names: Names,
    pub attempts: Vec<KeptAttempt>,
    pub hooks: Vec<KeptHook>,
    pub outcome: Outcome,
    pub status: u16,
    pub duration: Duration,
    pub queued: Option<Duration>,
}

/// What is kept of an attempt, as an [`AttemptTrace`].
pub struct KeptAttempt {
    /// From the arrival of the request.
    pub at: Duration,
    pub began: Instant,
    pub tier: usize,
    pub pool: usize,
    /// `None`: the model that was asked for.
    pub model: Option<Arc<str>>,
    pub backend: Option<Arc<str>>,
    pub candidates: Vec<balance::Candidate>,
    pub first_byte: Option<Duration>,
    /// `None` until it has ended.
    pub took: Option<Duration>,
    pub result: Cow<'static, str>,
    pub hedge: bool,
    /// `None`: it was sent in the client's language.
    pub translation: Option<Box<KeptTranslation>>,
}

/// What is kept of a run of a script.
pub struct KeptHook {
    pub stage: &'static str,
    pub script: String,
    pub took: Duration,
    pub result: &'static str,
    pub changed: Vec<String>,
}

impl KeptHook {
    fn trace(&self) -> HookTrace {
        HookTrace {
            stage: self.stage,
            script: self.script.clone(),
            took_us: self.took.as_micros() as u64,
            result: self.result,
            changed: self.changed.clone(),
        }
    }
}

/// What is kept of a translation.
pub struct KeptTranslation {
    pub language: &'static str,
    pub reason: LanguageReason,
    pub dropped: Vec<String>,
}

/// The names in a trace, in one piece of memory.
pub struct Names {
    text: Box<str>,
    key_at: usize,
    user_at: usize,
}

impl Names {
    /// A long name of a model is cut.
    pub fn new(model: &str, key_id: &str, user_id: &str) -> Self {
        let kept = &model[..model.floor_char_boundary(MODEL_BYTES)];
        let cut = if kept.len() < model.len() { "…" } else { "" };
        let (key_at, lengths) = (kept.len() + cut.len(), key_id.len() + user_id.len());
        let mut text = String::with_capacity(key_at + lengths);
        for part in [kept, cut, key_id, user_id] {
            text.push_str(part);
        }
        Self { text: text.into(), key_at, user_at: key_at + key_id.len() }
    }

    fn model(&self) -> &str {
        &self.text[..self.key_at]
    }

    fn key_id(&self) -> &str {
        &self.text[self.key_at..self.user_at]
    }

    fn user_id(&self) -> &str {
        &self.text[self.user_at..]
    }
}

impl KeptRequest {
    fn trace(&self) -> Trace {
        Trace {
            request_id: self.request_id.as_str().to_owned(),
            time: self.arrived,
            model: self.names.model().to_owned(),
            key_id: self.names.key_id().to_owned(),
            user_id: self.names.user_id().to_owned(),
            tries: self.attempts.iter().map(|attempt| attempt.trace(&self.names)).collect(),
            outcome: self.outcome.word().to_owned(),
            status: self.status,
            duration_ms: millis(self.duration),
            queued_ms: self.queued.map(millis),
            hooks: self.hooks.iter().map(KeptHook::trace).collect(),
        }
    }
}

impl KeptAttempt {
    fn trace(&self, names: &Names) -> AttemptTrace {
        let candidate = |candidate: &balance::Candidate| Candidate {
            backend: (*candidate.backend).to_owned(),
            score: candidate.score,
            barred: candidate.barred,
        };
        AttemptTrace {
            at_ms: millis(self.at),
            tier: self.tier,
            pool: self.pool,
            model: self.model.as_deref().unwrap_or(names.model()).to_owned(),
            backend: self.backend.as_deref().unwrap_or_default().to_owned(),
            candidates: self.candidates.iter().map(candidate).collect(),
            first_byte_ms: self.first_byte.map(millis),
            took_ms: self.took.map_or(0, millis),
            result: self.result.clone().into_owned(),
            hedge: self.hedge,
            language: self.translation.as_ref().map(|translation| translation.language),
            language_reason: match (&self.translation, &self.backend) {
                (Some(translation), _) => Some(translation.reason),
                (None, backend) => backend.as_ref().map(|_| LanguageReason::Native),
            },
            dropped: self.translation.as_ref().map_or_else(Vec::new, |t| t.dropped.clone()),
        }
    }
}

/// Whole milliseconds.
fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
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

/// Each request adds one and look-ups are rare, so there is no index by id.
#[derive(Default)]
struct Ring {
    /// From the oldest to the newest.
    kept: VecDeque<Box<KeptRequest>>,
    /// How many were dropped before the oldest.
    dropped: u64,
}

impl Ring {
    /// Takes the oldest out that are more than this many, for the caller to drop without the lock.
    fn surplus(&mut self, capacity: usize) -> VecDeque<Box<KeptRequest>> {
        let surplus = self.kept.len().saturating_sub(capacity);
        self.dropped += surplus as u64;
        self.kept.drain(..surplus).collect()
    }

    fn push(&mut self, kept: Box<KeptRequest>, capacity: usize) -> Option<Box<KeptRequest>> {
        let oldest = if self.kept.len() >= capacity { self.kept.pop_front() } else { None };
        self.dropped += u64::from(oldest.is_some());
        self.kept.push_back(kept);
        oldest
    }
}

/// How many are looked at in a search before requests get the lock.
const STEP: u64 = 1024;

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
        let dropped = ring.surplus(capacity);
        drop(ring);
        drop(dropped);
    }

    /// Keeps a trace, and drops the oldest one if there are too many.
    pub fn put(&self, kept: KeptRequest) {
        let kept = Box::new(kept);
        let mut ring = lock(&self.ring);
        let capacity = self.capacity();
        if capacity == 0 {
            return;
        }
        let oldest = ring.push(kept, capacity);
        drop(ring);
        // Freed without the lock.
        drop(oldest);
    }

    /// The newest trace with this id: clients choose ids and may reuse one.
    pub fn find(&self, request_id: &str) -> Option<Trace> {
        let mut end = u64::MAX;
        loop {
            let ring = lock(&self.ring);
            let first = ring.dropped;
            end = end.min(first + ring.kept.len() as u64);
            let from = end.saturating_sub(STEP).max(first);
            if from >= end {
                return None;
            }
            let step = (from - first) as usize..(end - first) as usize;
            let mut newest = ring.kept.range(step).rev();
            if let Some(kept) = newest.find(|kept| kept.request_id.as_str() == request_id) {
                return Some(kept.trace());
            }
            end = from;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn trace(id: &str, status: u16) -> KeptRequest {
        KeptRequest {
            request_id: RequestId::accept(id.as_bytes()).unwrap(),
            arrived: Timestamp::UNIX_EPOCH,
            names: Names::new("m", "", ""),
            attempts: Vec::new(),
            hooks: Vec::new(),
            outcome: Outcome::Complete,
            status,
            duration: Duration::from_millis(1),
            queued: None,
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
        assert!(!known("c") && lock(&explains.ring).kept.is_empty());
    }

    #[test]
    fn names_that_clients_make_long_are_cut() {
        let explains = RecentTraces::default();
        explains.resize(1);
        let names = Names::new(&"ä".repeat(10_001), "key", "user");
        explains.put(KeptRequest { names, ..trace("a", 200) });
        let kept = explains.find("a").unwrap();
        assert!(kept.model.starts_with("ää") && kept.model.len() <= MODEL_BYTES + 3);
        assert_eq!((kept.key_id.as_str(), kept.user_id.as_str()), ("key", "user"));
        let json = serde_json::to_value(&kept).unwrap();
        assert_eq!(json["time"], "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn an_old_one_is_found_among_many() {
        let explains = RecentTraces::default();
        explains.resize(5000);
        for n in 0..7000u16 {
            explains.put(trace(&n.to_string(), n));
        }
        for n in [1999, 2000, 4000, 6999, 7000] {
            let found = explains.find(&n.to_string()).map(|trace| trace.status);
            assert_eq!(found, (2000..7000).contains(&n).then_some(n));
        }
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
                prop_assert!(lock(&explains.ring).kept.len() <= capacity);
            }
        }
    }
}
