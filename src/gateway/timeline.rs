//! The timeline of a request for `/admin/v1/explain`: a span for each attempt, and the states of the
//! backends when it began.

use std::time::{Duration, Instant};

use crate::{
    balance::{Candidate, PickRequest, Pool},
    runtime::explain::{self, AttemptTrace, RecentTraces},
};

/// Backends of a pool whose states are written down.
const CANDIDATES: usize = 16;

/// The attempts so far.
#[derive(Default)]
pub struct Timeline {
    spans: Vec<AttemptTrace>,
    /// When each began; `None` once it has ended.
    since: Vec<Option<Instant>>,
    /// How long the request waited for a slot.
    pub queued: Option<Duration>,
}

/// Where a backend was looked for.
pub struct Search {
    /// Tiers before this one.
    pub tier: usize,
    /// The pool.
    pub pool: usize,
    /// The model's name there.
    pub model: String,
    /// The states of its backends.
    pub candidates: Vec<Candidate>,
}

impl Search {
    fn span(self, arrived: Instant, backend: &str) -> AttemptTrace {
        AttemptTrace {
            at_ms: millis(arrived.elapsed()),
            tier: self.tier,
            pool: self.pool,
            model: self.model,
            backend: backend.to_owned(),
            candidates: self
                .candidates
                .into_iter()
                .map(Into::into)
                .collect::<Vec<explain::Candidate>>(),
            first_byte_ms: None,
            took_ms: 0,
            result: String::new(),
            hedge: false,
        }
    }
}

/// The states of the backends of a pool, if anything is kept.
pub fn candidates(
    explains: &RecentTraces,
    pool: &Pool,
    request: &PickRequest<'_>,
) -> Vec<Candidate> {
    if explains.capacity() == 0 {
        return Vec::new();
    }
    pool.candidates(request, CANDIDATES)
}

impl Timeline {
    /// An attempt begins. Its number is given, for the other methods.
    pub fn begin(&mut self, arrived: Instant, search: Search, backend: &str) -> usize {
        self.since.push(Some(Instant::now()));
        self.spans.push(search.span(arrived, backend));
        self.spans.len() - 1
    }

    /// No backend was available.
    pub fn no_backend(&mut self, arrived: Instant, search: Search) {
        // That all have been tried can be seen without this.
        if search.candidates.iter().all(|candidate| candidate.barred == Some("tried")) {
            return;
        }
        self.since.push(None);
        let result = "no backend available".to_owned();
        self.spans.push(AttemptTrace { result, ..search.span(arrived, "") });
    }

    /// The first byte of an answer came at this time.
    pub fn first_byte(&mut self, span: Option<usize>, at: impl FnOnce() -> Instant) {
        if let Some((span, since)) = self.open(span) {
            span.first_byte_ms.get_or_insert_with(|| millis(at().saturating_duration_since(since)));
        }
    }

    /// The attempt is made at the same time as another one.
    pub fn hedge(&mut self, span: Option<usize>) {
        if let Some(span) = span.and_then(|span| self.spans.get_mut(span)) {
            span.hedge = true;
        }
    }

    fn open(&mut self, span: Option<usize>) -> Option<(&mut AttemptTrace, Instant)> {
        let span = span?;
        let since = (*self.since.get(span)?)?;
        Some((self.spans.get_mut(span)?, since))
    }

    /// The attempt has ended.
    pub fn end(&mut self, span: Option<usize>, result: String) {
        if let Some((open, since)) = self.open(span) {
            open.took_ms = millis(since.elapsed());
            open.result = result;
            self.since[span.unwrap_or_default()] = None;
        }
    }

    /// All spans.
    pub fn take(&mut self) -> Vec<AttemptTrace> {
        std::mem::take(&mut self.spans)
    }
}

/// Whole milliseconds.
pub fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}
