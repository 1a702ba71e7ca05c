//! The timeline of a request for `/admin/v1/explain`: a span for each attempt, and the states of the
//! backends when it began.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, Instant},
};

use super::translated::TranslatedRequest;
use crate::{
    balance::{Candidate, PickRequest, Pool},
    dialect::hub::loss::Loss,
    runtime::explain::{KeptAttempt, KeptTranslation, RecentTraces},
};

/// Backends of a pool whose states are written down.
const CANDIDATES: usize = 16;

/// The attempts so far.
#[derive(Default)]
pub struct Timeline {
    spans: Vec<KeptAttempt>,
    /// How long the request waited for a slot.
    pub queued: Option<Duration>,
}

/// Where a backend was looked for.
pub struct Search {
    /// Tiers before this one.
    pub tier: usize,
    /// The pool.
    pub pool: usize,
    /// The model's name there; `None`: as the client says.
    pub model: Option<Arc<str>>,
    /// The states of its backends.
    pub candidates: Vec<Candidate>,
}

impl Search {
    fn span(self, arrived: Instant, backend: Option<Arc<str>>) -> KeptAttempt {
        let began = Instant::now();
        KeptAttempt {
            at: began.saturating_duration_since(arrived),
            began,
            tier: self.tier,
            pool: self.pool,
            model: self.model,
            backend,
            candidates: self.candidates,
            first_byte: None,
            took: None,
            result: Cow::Borrowed(""),
            hedge: false,
            translation: None,
        }
    }
}

/// The states of the backends of a pool as a pick sees them, if anything is kept.
pub fn candidates(
    explains: &RecentTraces,
    pool: &Pool,
    request: &PickRequest<'_>,
) -> Vec<Candidate> {
    if explains.capacity() == 0 {
        return Vec::new();
    }
    pool.offered(request, CANDIDATES)
}

/// The states of the backends of a pool of which none was picked, if anything is kept.
pub fn barred(explains: &RecentTraces, pool: &Pool, request: &PickRequest<'_>) -> Vec<Candidate> {
    if explains.capacity() == 0 {
        return Vec::new();
    }
    pool.candidates(request, CANDIDATES)
}

impl Timeline {
    fn push(&mut self, span: KeptAttempt) {
        if self.spans.capacity() == 0 {
            // Nearly all requests have one, which is kept for long.
            self.spans.reserve_exact(1);
        }
        self.spans.push(span);
    }

    /// An attempt begins. Its number is given, for the other methods.
    pub fn begin(&mut self, arrived: Instant, search: Search, backend: Arc<str>) -> usize {
        self.push(search.span(arrived, Some(backend)));
        self.spans.len() - 1
    }

    /// The attempt's request was translated into this language.
    pub fn translated(&mut self, span: Option<usize>, translated: &TranslatedRequest) {
        if let Some(span) = self.open(span) {
            let shown = |loss: &Loss| format!("{}: {}", loss.path, loss.why);
            let dropped = translated.losses.iter().map(shown).collect();
            let (language, reason) = (translated.language.name(), translated.reason);
            span.translation = Some(Box::new(KeptTranslation { language, reason, dropped }));
        }
    }

    /// No backend was available.
    pub fn no_backend(&mut self, arrived: Instant, search: Search) {
        // That all have been tried can be seen without this.
        if search.candidates.iter().all(|candidate| candidate.barred == Some("tried")) {
            return;
        }
        let (took, result) = (Some(Duration::ZERO), Cow::Borrowed("no backend available"));
        self.push(KeptAttempt { took, result, ..search.span(arrived, None) });
    }

    /// The first byte of an answer came at this time.
    pub fn first_byte(&mut self, span: Option<usize>, at: impl FnOnce() -> Instant) {
        if let Some(span) = self.open(span) {
            let began = span.began;
            span.first_byte.get_or_insert_with(|| at().saturating_duration_since(began));
        }
    }

    /// The attempt is made at the same time as another one.
    pub fn hedge(&mut self, span: Option<usize>) {
        if let Some(span) = span.and_then(|span| self.spans.get_mut(span)) {
            span.hedge = true;
        }
    }

    fn open(&mut self, span: Option<usize>) -> Option<&mut KeptAttempt> {
        self.spans.get_mut(span?).filter(|span| span.took.is_none())
    }

    /// The attempt has ended.
    pub fn end(&mut self, span: Option<usize>, result: Cow<'static, str>) {
        if let Some(open) = self.open(span) {
            open.took = Some(open.began.elapsed());
            open.result = result;
        }
    }

    /// All spans.
    pub fn take(&mut self) -> Vec<KeptAttempt> {
        std::mem::take(&mut self.spans)
    }
}
