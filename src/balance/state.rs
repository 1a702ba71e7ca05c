//! What is known of a backend over all generations of the configuration, and the leases by which
//! requests find it out.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    circuit::Change,
    load::Reading,
    trouble::{Changes, Evidence, Matter, Probes, Troubles},
};
use crate::{
    base::lock,
    config::plan::CircuitPlan,
    telemetry::{Metrics, metrics::BalanceMetrics},
};

/// How much the latest time to first token counts in the average.
const ALPHA: f32 = 0.3;

/// A KV cache that is fuller than this has no room for a further request.
const FULL: f64 = 0.95;

/// A count of running requests is kept for so long when a later reading says nothing of them.
const RUNNING: Duration = Duration::from_secs(10);

/// Connections that must be refused in a row before that is taken for the end of the server.
const REFUSALS: u32 = 3;

/// What is known of a backend. What every choice looks at stands first, on one cache line.
#[repr(C, align(64))]
pub struct State {
    pub(super) in_flight: AtomicUsize,
    pub(super) draining: AtomicBool,
    /// It was told of answers that cannot be read.
    pub(super) unread: AtomicBool,
    /// Latency in microseconds: an `f32` in the lower half, and [`STREAM`] above it. 0: unknown.
    latency: AtomicU64,
    /// The number of the last reading in the upper half, and the requests that have begun since and
    /// are still in flight in the lower one.
    since: AtomicU64,
    /// When it was read, in milliseconds from `epoch`, plus 1; 0: never.
    read: AtomicU64,
    /// What the reading comes to, an `f32`; without running requests if `as_we_know`.
    load: AtomicU32,
    as_we_know: AtomicBool,
    pub(super) troubles: Troubles,
    /// Connections that were refused in a row.
    refusals: AtomicU32,
    reading: Mutex<Option<(Reading, Instant)>>,
    /// From when its times are told.
    epoch: Instant,
    /// Its backend, as configured.
    backend: Box<str>,
    /// The name of the endpoint that is in use; `None`: none is.
    name: Mutex<Option<Box<str>>>,
    /// Tokens of prompts and of answers that were metered at it.
    metered: [AtomicU64; 2],
    /// Looked up at each change, because a backend that is gone for a while loses its metrics.
    metrics: BalanceMetrics,
}

/// Marks a latency that streams have told.
const STREAM: u64 = 1 << 32;

impl State {
    /// Of a backend of which nothing is known. Times are told from `epoch`.
    pub fn new(backend: &str, epoch: Instant, metrics: &Metrics) -> Self {
        // There from the start, so that a first time is seen as an increase.
        metrics.balance.circuit_opened.with_label_values(&[backend]);
        Self {
            in_flight: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            unread: AtomicBool::new(false),
            latency: AtomicU64::new(0),
            since: AtomicU64::new(0),
            read: AtomicU64::new(0),
            load: AtomicU32::new(0),
            as_we_know: AtomicBool::new(false),
            troubles: Troubles::default(),
            refusals: AtomicU32::new(0),
            reading: Mutex::default(),
            epoch,
            backend: backend.into(),
            name: Mutex::new(Some(backend.into())),
            metered: Default::default(),
            metrics: metrics.balance.clone(),
        }
    }

    /// How it is called from now on; `None`: it is not in use.
    pub fn named(&self, name: Option<&str>) {
        *lock(&self.name) = name.map(Into::into);
    }

    /// From when its times are told.
    pub fn epoch(&self) -> Instant {
        self.epoch
    }

    /// Counts the tokens of a request that it has answered.
    pub fn meter(&self, prompt: u64, completion: u64) {
        for (counter, tokens) in self.metered.iter().zip([prompt, completion]) {
            if tokens > 0 {
                counter.fetch_add(tokens, Ordering::Relaxed);
            }
        }
    }

    /// Tokens of prompts and of answers that were metered at it since it has been known.
    pub fn metered(&self) -> [u64; 2] {
        [0, 1].map(|kind| self.metered[kind].load(Ordering::Relaxed))
    }

    /// A connection was refused. `true` when that was so for the third time in a row: then it is not
    /// by chance.
    pub fn refused(&self) -> bool {
        self.refusals.fetch_add(1, Ordering::Relaxed) + 1 == REFUSALS
    }

    /// Whether connections are refused, and none was made since.
    pub fn is_refusing(&self) -> bool {
        self.refusals.load(Ordering::Relaxed) >= REFUSALS
    }

    /// A new connection was made.
    pub fn connected(&self) {
        if self.refusals.load(Ordering::Relaxed) > 0 {
            self.refusals.store(0, Ordering::Relaxed);
        }
    }

    /// Requests that are with it now.
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

    /// Takes a time to first token into the average. Answers that are no streams take as long as
    /// they are, and count only while nothing better is known.
    pub fn first_token(&self, after: Duration, stream: bool) {
        // Never zero, which is "unknown".
        let latest = (after.as_secs_f32() * 1e6).max(1.0);
        let update = |known: u64| {
            let average = match known {
                known if known & STREAM != 0 && !stream => return None,
                known if known == 0 || (known & STREAM == 0 && stream) => latest,
                known => {
                    let known = f32::from_bits(known as u32);
                    known + ALPHA * (latest - known)
                }
            };
            Some(u64::from(average.to_bits()) | if stream { STREAM } else { 0 })
        };
        self.latency.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update).ok();
    }

    /// Takes a reading of the engine's load.
    pub fn told(&self, mut reading: Reading, now: Instant) {
        let mut last = lock(&self.reading);
        let fresh = reading.running.is_some();
        let mut at = now;
        if let Some((known, before)) = *last
            && !fresh
            && known.running.is_some()
            && now.saturating_duration_since(before) < RUNNING
        {
            // What is known of running requests grows no younger.
            reading.running = known.running;
            at = before;
        }
        let running = reading.running.unwrap_or(0.0);
        let mut load = 2.0 * reading.waiting + running;
        if reading.kv_cache.is_some_and(|used| used > FULL) {
            load += load.max(1.0);
        }
        self.load.store((load as f32).to_bits(), Ordering::Relaxed);
        self.as_we_know.store(reading.running.is_none(), Ordering::Relaxed);
        if fresh {
            let next = (self.since.load(Ordering::Relaxed) >> 32).wrapping_add(1) as u32;
            self.since.store(u64::from(next) << 32, Ordering::Relaxed);
        }
        let millis = at.saturating_duration_since(self.epoch).as_millis() as u64;
        self.read.store(millis + 1, Ordering::Relaxed);
        *last = Some((reading, at));
    }

    /// What it has to do, if the engine has said so no longer than `stale` before `now` (in
    /// milliseconds from the epoch): as read, and what has begun since. Else our own requests.
    pub fn load(&self, now: u64, stale: u64) -> f64 {
        let own = self.in_flight() as f64;
        let read = self.read.load(Ordering::Relaxed);
        if read == 0 || now > read + stale {
            return own;
        }
        let load = f64::from(f32::from_bits(self.load.load(Ordering::Relaxed)));
        if self.as_we_know.load(Ordering::Relaxed) {
            return load + own;
        }
        load + f64::from(self.since.load(Ordering::Relaxed) as u32)
    }

    /// The last reading, and when it was taken.
    pub fn reading(&self) -> Option<(Reading, Instant)> {
        *lock(&self.reading)
    }

    /// Takes a place for a request of a caller (hashed).
    pub fn lease(
        self: &Arc<Self>,
        (model, caller): (&str, u64),
        plan: CircuitPlan,
        probes: Probes,
    ) -> Lease {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let since = self.since.fetch_add(1, Ordering::Relaxed);
        let reading = (since >> 32) as u32;
        Lease { state: Arc::clone(self), model: model.into(), caller, plan, probes, reading }
    }

    fn changed(&self, model: &str, changes: Changes) {
        if changes == Changes::NONE {
            return;
        }
        let name = || lock(&self.name).clone().unwrap_or_else(|| self.backend.clone());
        for (change, whose) in [(changes.all, ""), (changes.own, " for one caller")] {
            match change {
                Change::None => {}
                Change::Opened => {
                    self.metrics.circuit_opened.with_label_values(&[&self.backend]).inc();
                    let name = name();
                    log::warn!("backend {name} fails: it gets no requests for {model} now{whose}");
                }
                Change::Closed => {
                    log::info!("backend {} serves {model} again{whose}", name());
                }
            }
        }
        self.show();
    }

    /// Brings the gauge of open circuits up to date, if the backend is in use.
    pub fn show(&self) {
        // Under the lock: the gauge of one that leaves is removed after this, or not made again.
        if let Some(name) = &*lock(&self.name) {
            let open = self.metrics.circuit_open.with_label_values(&[name]);
            open.set(self.troubles.open() as i64);
        }
    }
}

/// A request's place at a backend; given back when dropped. What the request finds out about the
/// backend is told here; a lease that is dropped without a word says nothing about it.
pub struct Lease {
    state: Arc<State>,
    model: Box<str>,
    /// Who calls, hashed.
    caller: u64,
    plan: CircuitPlan,
    /// The circuits for which it is to find out whether the backend works again.
    probes: Probes,
    /// Number of the reading after which it began.
    reading: u32,
}

impl Lease {
    /// The first token of a stream has come. That is enough to know that a backend works again which
    /// was left alone; others do not wait for the end.
    pub fn began(&mut self) {
        if self.probes.any() {
            self.good();
        }
    }

    /// It has answered: with a whole stream or document, or a refusal that is the client's own fault.
    pub fn good(&mut self) {
        if self.state.troubles.any() {
            self.good_at(Instant::now());
        }
    }

    /// It has no room now, and is not broken. `pause`: for how long, if it says so.
    pub fn busy(&mut self, pause: Option<Duration>) {
        self.busy_at(pause, Instant::now());
    }

    /// No connection could be made.
    pub fn unreachable(&mut self) {
        self.unreachable_at(Instant::now());
    }

    /// It has failed the request. Whether that counts against it shows when the request has ended.
    pub fn failed(&mut self) -> Suspicion {
        self.failed_at(Instant::now())
    }

    /// The time from the sending of the request to the first token (of a stream), or to the head of
    /// any other answer.
    pub fn first_token(&mut self, after: Duration, stream: bool) {
        self.state.first_token(after, stream);
    }

    fn matter(&self, now: Instant) -> Matter<'_> {
        Matter { model: &self.model, caller: self.caller, now }
    }

    pub(super) fn good_at(&mut self, now: Instant) {
        let probes = std::mem::take(&mut self.probes);
        let changes = self.state.troubles.good(&self.matter(now), &self.plan, probes);
        self.state.changed(&self.model, changes);
    }

    pub(super) fn busy_at(&mut self, pause: Option<Duration>, now: Instant) {
        self.state.troubles.busy(&self.matter(now), pause);
        self.release();
    }

    pub(super) fn unreachable_at(&mut self, now: Instant) {
        self.probe_failed(now, true);
        let matter = self.matter(now);
        let changes = self.state.troubles.failed(&matter, &self.plan, Evidence::Unreachable);
        self.state.changed(&self.model, changes);
    }

    pub(super) fn failed_at(&mut self, now: Instant) -> Suspicion {
        self.probe_failed(now, false);
        Suspicion {
            state: Arc::clone(&self.state),
            model: self.model.clone(),
            caller: self.caller,
            plan: self.plan,
        }
    }

    fn probe_failed(&mut self, now: Instant, unreachable: bool) {
        let probes = std::mem::take(&mut self.probes);
        if probes.any() {
            let matter = self.matter(now);
            self.state.troubles.probe_failed(&matter, &self.plan, probes, unreachable);
        }
    }

    fn release(&mut self) {
        let probes = std::mem::take(&mut self.probes);
        if probes.any() {
            self.state.troubles.release(&self.model, self.caller, probes);
        }
    }
}

/// A backend has failed a request. What that says about it is known when the request has ended.
#[must_use = "a failure that is not settled does not count"]
pub struct Suspicion {
    state: Arc<State>,
    model: Box<str>,
    caller: u64,
    plan: CircuitPlan,
}

impl Suspicion {
    /// Whether another one is about the same backend.
    pub fn is_of_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }

    /// What the end of the request has shown.
    pub fn settle(self, evidence: Evidence) {
        self.settle_at(evidence, Instant::now());
    }

    pub(super) fn settle_at(self, evidence: Evidence, now: Instant) {
        let matter = Matter { model: &self.model, caller: self.caller, now };
        let changes = self.state.troubles.failed(&matter, &self.plan, evidence);
        self.state.changed(&self.model, changes);
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

    fn state() -> (Arc<State>, Instant) {
        let now = Instant::now();
        (Arc::new(State::new("b", now, &Metrics::new())), now)
    }

    fn lease(state: &Arc<State>) -> Lease {
        state.lease(("m", 1), CircuitPlan::default(), Probes::default())
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
        leases[1].failed().settle(Evidence::Open);
        leases[2].busy(None);
        state.told(reading(0.0, Some(4.0), None), now);
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
        let probe = |now| {
            let matter = Matter { model: "m", caller: 1, now };
            state.troubles.admit(&matter, true).ok().filter(|probes| probes.any())
        };
        let plan = CircuitPlan::default();
        for end in 0..2 {
            let mut lease = state.lease(("m", 1), plan, probe(later).unwrap());
            assert_eq!(probe(later), None);
            if end == 1 {
                lease.busy_at(Some(Duration::ZERO), later);
            }
        }
        let mut last = state.lease(("m", 1), plan, probe(later).unwrap());
        last.good_at(later);
        assert_eq!(state.metrics.circuit_open.with_label_values(&["b"]).get(), 0);
        assert!(!state.troubles.any());
    }

    #[test]
    fn first_tokens_of_streams_count_more_than_other_answers() {
        let (state, _) = state();
        let millis = |state: &State| state.latency().map(|l| (l / 1000.0).round());
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
        state.told(reading(3.0, Some(4.0), Some(0.5)), now);
        assert_eq!(state.load(5000, 6000), 10.0);
        assert_eq!(state.load(7000, 6000), 1.0);
        state.told(reading(3.0, Some(4.0), Some(0.99)), now + SECOND);
        assert_eq!(state.load(1000, 6000), 20.0);
        // A header that does not say what runs leaves what was read.
        state.told(reading(1.0, None, None), now + 2 * SECOND);
        assert_eq!(state.load(2000, 6000), 6.0);
        assert_eq!(state.load(8000, 6000), 1.0);
        // Without a reading of the metrics, our own requests stand for those that run.
        state.told(reading(1.0, None, None), now + 60 * SECOND);
        assert_eq!(state.load(60_000, 6000), 3.0);
    }
}
