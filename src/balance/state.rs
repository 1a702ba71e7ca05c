//! What is known of a backend across reloads, and the leases through which requests report it.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    circuit::Transition,
    ejection::{Ejections, Evidence, Scope, Transitions, Trials},
    load::Reading,
};
use crate::{
    base::lock,
    config::plan::CircuitPlan,
    telemetry::{Metrics, metrics::BalanceMetrics},
};

/// Weight of the latest time to first token in the moving average.
const LATENCY_WEIGHT: f32 = 0.3;

/// A KV cache above this share has no room for a further request.
const KV_CACHE_FULL: f64 = 0.95;

/// How long a count of running requests remains valid when later readings do not report one.
const RUNNING_VALID: Duration = Duration::from_secs(10);

/// Consecutive refused connections after which the server counts as stopped.
const REFUSALS: u32 = 3;

/// How long a backend is not asked for its tokenizer after it has said that it has none.
const NO_TOKENIZER: Duration = Duration::from_secs(600);

/// What is known of a backend. The fields that every pick reads stand first, on one cache line.
#[repr(C, align(64))]
pub struct BackendState {
    pub(super) in_flight: AtomicUsize,
    pub(super) draining: AtomicBool,
    /// Its unreadable answers were logged.
    pub(super) unreadable_logged: AtomicBool,
    /// Latency in microseconds: an `f32` in the lower half, and [`STREAM`] above it. 0: unknown.
    latency: AtomicU64,
    /// The number of the last reading in the upper half; in the lower half, the requests that began
    /// after it and are still in flight.
    since: AtomicU64,
    /// When the load was read, in milliseconds from `epoch`, plus 1; 0: never.
    read: AtomicU64,
    /// The load by the reading, an `f32`; without running requests if `running_unknown`.
    load: AtomicU32,
    running_unknown: AtomicBool,
    pub(super) ejections: Ejections,
    /// Consecutive refused connections.
    refusals: AtomicU32,
    reading: Mutex<Option<(Reading, Instant)>>,
    /// Times in milliseconds count from here.
    epoch: Instant,
    /// The configured name of its backend.
    backend: Box<str>,
    /// The name of the endpoint in use; `None`: no endpoint is in use.
    name: Mutex<Option<Box<str>>>,
    /// Metered tokens of prompts and of completions.
    metered: [AtomicU64; 2],
    /// When it said that it has no tokenizer, in milliseconds from `epoch`, plus 1; 0: never.
    untokenized: AtomicU64,
    /// Looked up at each change, because a removed backend loses its metrics.
    metrics: BalanceMetrics,
}

/// Marks a latency that was measured on streams.
const STREAM: u64 = 1 << 32;

impl BackendState {
    pub fn new(backend: &str, epoch: Instant, metrics: &Metrics) -> Self {
        // Created at 0, so that the first ejection is visible as an increase.
        metrics.balance.circuit_opened.with_label_values(&[backend]);
        Self {
            in_flight: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            unreadable_logged: AtomicBool::new(false),
            latency: AtomicU64::new(0),
            since: AtomicU64::new(0),
            read: AtomicU64::new(0),
            load: AtomicU32::new(0),
            running_unknown: AtomicBool::new(false),
            ejections: Ejections::default(),
            refusals: AtomicU32::new(0),
            reading: Mutex::default(),
            epoch,
            backend: backend.into(),
            name: Mutex::new(Some(backend.into())),
            metered: Default::default(),
            untokenized: AtomicU64::new(0),
            metrics: metrics.balance.clone(),
        }
    }

    /// Sets the name of the endpoint in use; `None`: no endpoint is in use.
    pub fn set_name(&self, name: Option<&str>) {
        *lock(&self.name) = name.map(Into::into);
    }

    pub fn epoch(&self) -> Instant {
        self.epoch
    }

    /// Adds the tokens of an answered request.
    pub fn meter(&self, prompt: u64, completion: u64) {
        for (counter, tokens) in self.metered.iter().zip([prompt, completion]) {
            if tokens > 0 {
                counter.fetch_add(tokens, Ordering::Relaxed);
            }
        }
    }

    /// Metered tokens of prompts and of completions since the backend became known.
    pub fn metered(&self) -> [u64; 2] {
        [0, 1].map(|kind| self.metered[kind].load(Ordering::Relaxed))
    }

    /// Counts a refused connection. `true` for the third consecutive one.
    pub fn refused(&self) -> bool {
        self.refusals.fetch_add(1, Ordering::Relaxed) + 1 == REFUSALS
    }

    /// Whether at least three consecutive connections were refused.
    pub fn is_refusing(&self) -> bool {
        self.refusals.load(Ordering::Relaxed) >= REFUSALS
    }

    /// Resets the count of refused connections.
    pub fn connected(&self) {
        if self.refusals.load(Ordering::Relaxed) > 0 {
            self.refusals.store(0, Ordering::Relaxed);
        }
    }

    /// Notes that it has no tokenizer. `true` if that was not known.
    pub fn has_no_tokenizer(&self, now: Instant) -> bool {
        let known = !self.may_tokenize(now);
        let at = now.saturating_duration_since(self.epoch).as_millis() as u64;
        self.untokenized.store(at + 1, Ordering::Relaxed);
        !known
    }

    /// Whether it has not said lately that it has no tokenizer.
    pub fn may_tokenize(&self, now: Instant) -> bool {
        let Some(at) = self.untokenized.load(Ordering::Relaxed).checked_sub(1) else { return true };
        let since = now.saturating_duration_since(self.epoch + Duration::from_millis(at));
        since >= NO_TOKENIZER
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// The average time to first token, in microseconds.
    pub fn latency(&self) -> Option<f32> {
        match self.latency.load(Ordering::Relaxed) {
            0 => None,
            known => Some(f32::from_bits(known as u32)),
        }
    }

    /// Adds a time to first token to the average. An answer that is not streamed takes longer the longer
    /// it is, so it only counts until a stream was measured.
    pub fn first_token(&self, after: Duration, stream: bool) {
        // Never zero, which is "unknown".
        let latest = (after.as_secs_f32() * 1e6).max(1.0);
        let update = |known: u64| {
            let average = match known {
                known if known & STREAM != 0 && !stream => return None,
                known if known == 0 || (known & STREAM == 0 && stream) => latest,
                known => {
                    let known = f32::from_bits(known as u32);
                    known + LATENCY_WEIGHT * (latest - known)
                }
            };
            Some(u64::from(average.to_bits()) | if stream { STREAM } else { 0 })
        };
        self.latency.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update).ok();
    }

    /// Records a reading of the engine's load.
    pub fn record_load(&self, mut reading: Reading, now: Instant) {
        let mut last = lock(&self.reading);
        let fresh = reading.running.is_some();
        let mut at = now;
        if let Some((known, before)) = *last
            && !fresh
            && known.running.is_some()
            && now.saturating_duration_since(before) < RUNNING_VALID
        {
            // The count of running requests keeps its age.
            reading.running = known.running;
            at = before;
        }
        let running = reading.running.unwrap_or(0.0);
        let mut load = 2.0 * reading.waiting + running;
        if reading.kv_cache.is_some_and(|used| used > KV_CACHE_FULL) {
            load += load.max(1.0);
        }
        self.load.store((load as f32).to_bits(), Ordering::Relaxed);
        self.running_unknown.store(reading.running.is_none(), Ordering::Relaxed);
        if fresh {
            let next = (self.since.load(Ordering::Relaxed) >> 32).wrapping_add(1) as u32;
            self.since.store(u64::from(next) << 32, Ordering::Relaxed);
        }
        let millis = at.saturating_duration_since(self.epoch).as_millis() as u64;
        self.read.store(millis + 1, Ordering::Relaxed);
        *last = Some((reading, at));
    }

    /// The load: the last reading and the requests that began since, if the reading is not older than
    /// `stale`; otherwise our own requests in flight. `now` and `stale` are in milliseconds, `now` from
    /// the epoch.
    pub fn load(&self, now: u64, stale: u64) -> f64 {
        let own = self.in_flight() as f64;
        let read = self.read.load(Ordering::Relaxed);
        if read == 0 || now > read + stale {
            return own;
        }
        let load = f64::from(f32::from_bits(self.load.load(Ordering::Relaxed)));
        if self.running_unknown.load(Ordering::Relaxed) {
            return load + own;
        }
        load + f64::from(self.since.load(Ordering::Relaxed) as u32)
    }

    /// The last reading and its time.
    pub fn reading(&self) -> Option<(Reading, Instant)> {
        *lock(&self.reading)
    }

    /// A lease for a request for a model by a caller (hash).
    pub fn lease(
        self: &Arc<Self>,
        (model, caller): (&str, u64),
        plan: CircuitPlan,
        trials: Trials,
    ) -> Lease {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let since = self.since.fetch_add(1, Ordering::Relaxed);
        let reading = (since >> 32) as u32;
        Lease { state: Arc::clone(self), model: model.into(), caller, plan, trials, reading }
    }

    fn log_transitions(&self, model: &str, transitions: Transitions) {
        if transitions == Transitions::NONE {
            return;
        }
        let name = || lock(&self.name).clone().unwrap_or_else(|| self.backend.clone());
        for (transition, suffix) in [(transitions.all, ""), (transitions.own, ", for one caller")] {
            match transition {
                Transition::None => {}
                Transition::Opened => {
                    self.metrics.circuit_opened.with_label_values(&[&self.backend]).inc();
                    let name = name();
                    log::warn!("backend {name} fails: it is ejected for {model}{suffix}");
                }
                Transition::Closed => {
                    log::info!("backend {} serves {model} again{suffix}", name());
                }
            }
        }
        self.update_gauge();
    }

    /// Updates the gauge of open circuits, if the backend is in use.
    pub fn update_gauge(&self) {
        // Under the lock: the gauge of a removed backend is removed after this, or not created again.
        if let Some(name) = &*lock(&self.name) {
            let open = self.metrics.circuit_open.with_label_values(&[name]);
            open.set(self.ejections.open() as i64);
        }
    }
}

/// A request's lease on a backend: it counts as in flight until the lease is dropped. The outcome of the
/// request is reported to the lease; a lease that is dropped without a report says nothing about the
/// backend.
pub struct Lease {
    state: Arc<BackendState>,
    model: Box<str>,
    /// Hash of the caller.
    caller: u64,
    plan: CircuitPlan,
    /// The half-open circuits for which the request is a trial.
    trials: Trials,
    /// Number of the load reading after which the request began.
    reading: u32,
}

impl Lease {
    /// Reports the first token of a stream. For a trial that is a success already: other requests do not
    /// have to wait for its end.
    pub fn began(&mut self) {
        if self.trials.any() {
            self.good();
        }
    }

    /// Reports a complete answer, or a rejection that is the client's own fault.
    pub fn good(&mut self) {
        if self.state.ejections.any() {
            self.good_at(Instant::now());
        }
    }

    /// Reports that the backend has no room now. `pause`: for how long, if it says so.
    pub fn busy(&mut self, pause: Option<Duration>) {
        self.busy_at(pause, Instant::now());
    }

    /// Reports that no connection could be made.
    pub fn unreachable(&mut self) {
        self.unreachable_at(Instant::now());
    }

    /// Reports a failure. Whether it counts against the backend is known when the request has ended.
    pub fn failed(&mut self) -> UnsettledFailure {
        self.failed_at(Instant::now())
    }

    /// Reports the time from sending the request to the first token of a stream, or to the head of any
    /// other answer.
    pub fn first_token(&mut self, after: Duration, stream: bool) {
        self.state.first_token(after, stream);
    }

    fn scope(&self, now: Instant) -> Scope<'_> {
        Scope { model: &self.model, caller: self.caller, now }
    }

    pub(super) fn good_at(&mut self, now: Instant) {
        let trials = std::mem::take(&mut self.trials);
        let transitions = self.state.ejections.good(&self.scope(now), &self.plan, trials);
        self.state.log_transitions(&self.model, transitions);
    }

    pub(super) fn busy_at(&mut self, pause: Option<Duration>, now: Instant) {
        self.state.ejections.busy(&self.scope(now), pause);
        self.release();
    }

    pub(super) fn unreachable_at(&mut self, now: Instant) {
        self.trial_failed(now, true);
        let scope = self.scope(now);
        let transitions = self.state.ejections.failed(&scope, &self.plan, Evidence::Unreachable);
        self.state.log_transitions(&self.model, transitions);
    }

    pub(super) fn failed_at(&mut self, now: Instant) -> UnsettledFailure {
        self.trial_failed(now, false);
        UnsettledFailure {
            state: Arc::clone(&self.state),
            model: self.model.clone(),
            caller: self.caller,
            plan: self.plan,
        }
    }

    fn trial_failed(&mut self, now: Instant, unreachable: bool) {
        let trials = std::mem::take(&mut self.trials);
        if trials.any() {
            let scope = self.scope(now);
            self.state.ejections.trial_failed(&scope, &self.plan, trials, unreachable);
        }
    }

    fn release(&mut self) {
        let trials = std::mem::take(&mut self.trials);
        if trials.any() {
            self.state.ejections.release(&self.model, self.caller, trials);
        }
    }
}

/// A failure of a backend. What it says about the backend is known when the request has ended.
#[must_use = "an unsettled failure does not count"]
pub struct UnsettledFailure {
    state: Arc<BackendState>,
    model: Box<str>,
    caller: u64,
    plan: CircuitPlan,
}

impl UnsettledFailure {
    /// Whether another failure is of the same backend.
    pub fn is_of_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }

    /// Counts the failure, by the evidence at the end of the request.
    pub fn settle(self, evidence: Evidence) {
        self.settle_at(evidence, Instant::now());
    }

    pub(super) fn settle_at(self, evidence: Evidence, now: Instant) {
        let scope = Scope { model: &self.model, caller: self.caller, now };
        let transitions = self.state.ejections.failed(&scope, &self.plan, evidence);
        self.state.log_transitions(&self.model, transitions);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.release();
        self.state.in_flight.fetch_sub(1, Ordering::Relaxed);
        let began = self.reading;
        let end = |since: u64| {
            ((since >> 32) as u32 == began && since as u32 > 0).then(|| since.wrapping_sub(1))
        };
        self.state.since.fetch_update(Ordering::Relaxed, Ordering::Relaxed, end).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn state() -> (Arc<BackendState>, Instant) {
        let now = Instant::now();
        (Arc::new(BackendState::new("b", now, &Metrics::new())), now)
    }

    fn lease(state: &Arc<BackendState>) -> Lease {
        state.lease(("m", 1), CircuitPlan::default(), Trials::default())
    }

    fn reading(waiting: f64, running: Option<f64>, kv_cache: Option<f64>) -> Reading {
        Reading { waiting, running, kv_cache }
    }

    #[test]
    fn every_end_of_a_lease_gives_its_place_back() {
        let (state, now) = state();
        let mut leases: Vec<_> = (0..5).map(|_| lease(&state)).collect();
        assert_eq!(state.in_flight(), 5);
        leases[0].good();
        leases[1].failed().settle(Evidence::Inconclusive);
        leases[2].busy(None);
        state.record_load(reading(0.0, Some(4.0), None), now);
        leases.push(lease(&state));
        assert_eq!(state.load(0, 6000), 5.0);
        drop(leases);
        assert_eq!(state.in_flight(), 0);
        assert_eq!(state.load(0, 6000), 4.0);
    }

    #[test]
    fn a_probe_that_is_dropped_makes_room_for_the_next() {
        let (state, now) = state();
        for _ in 0..5 {
            lease(&state).unreachable_at(now);
        }
        assert_eq!(state.metrics.circuit_open.with_label_values(&["b"]).get(), 1);
        assert_eq!(state.metrics.circuit_opened.with_label_values(&["b"]).get(), 1);
        let later = now + 40 * SECOND;
        let trial = |now| {
            let scope = Scope { model: "m", caller: 1, now };
            state.ejections.admit(&scope, true).ok().filter(|trials| trials.any())
        };
        let plan = CircuitPlan::default();
        for end in 0..2 {
            let mut lease = state.lease(("m", 1), plan, trial(later).unwrap());
            assert_eq!(trial(later), None);
            if end == 1 {
                lease.busy_at(Some(Duration::ZERO), later);
            }
        }
        let mut last = state.lease(("m", 1), plan, trial(later).unwrap());
        last.good_at(later);
        assert_eq!(state.metrics.circuit_open.with_label_values(&["b"]).get(), 0);
        assert!(!state.ejections.any());
    }

    #[test]
    fn first_tokens_of_streams_count_more_than_other_answers() {
        let (state, _) = state();
        let millis = |state: &BackendState| state.latency().map(|l| (l / 1000.0).round());
        assert_eq!(millis(&state), None);
        state.first_token(9 * SECOND, false);
        assert_eq!(millis(&state), Some(9000.0));
        state.first_token(SECOND, true);
        assert_eq!(millis(&state), Some(1000.0));
        state.first_token(9 * SECOND, false);
        assert_eq!(millis(&state), Some(1000.0));
        state.first_token(2 * SECOND, true);
        assert_eq!(millis(&state), Some(1300.0));
    }

    #[test]
    fn a_server_has_ended_that_refuses_again_and_again() {
        let (state, _) = state();
        assert_eq!([state.refused(), state.refused()], [false; 2]);
        assert!(!state.is_refusing());
        state.connected();
        assert_eq!([(); 4].map(|()| state.refused()), [false, false, true, false]);
        assert!(state.is_refusing());
        state.connected();
        assert!(!state.is_refusing());
    }

    #[test]
    fn a_reading_counts_until_it_is_stale() {
        let (state, now) = state();
        let _ours = lease(&state);
        assert_eq!(state.load(0, 6000), 1.0);
        state.record_load(reading(3.0, Some(4.0), Some(0.5)), now);
        assert_eq!(state.load(5000, 6000), 10.0);
        assert_eq!(state.load(7000, 6000), 1.0);
        state.record_load(reading(3.0, Some(4.0), Some(0.99)), now + SECOND);
        assert_eq!(state.load(1000, 6000), 20.0);
        // A header that does not say what runs leaves what was read.
        state.record_load(reading(1.0, None, None), now + 2 * SECOND);
        assert_eq!(state.load(2000, 6000), 6.0);
        assert_eq!(state.load(8000, 6000), 1.0);
        // Without a reading of the metrics, our own requests stand for those that run.
        state.record_load(reading(1.0, None, None), now + 60 * SECOND);
        assert_eq!(state.load(60_000, 6000), 3.0);
    }
}
