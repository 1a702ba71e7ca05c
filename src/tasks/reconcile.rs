//! Reconciliation: compares the tokens that were metered at each vLLM with those that it has counted
//! itself, and shows the drift.
//!
//! Both sides are read every `interval`, and begin at 0 with the first reading. What the engine has
//! counted and nobody was billed for is drift: answers that a retry or a hedge has thrown away,
//! tokens that were made for a client who had left, requests that others have sent to the engine
//! past this gateway. vLLM counts what it found in its prefix cache as well, as its `usage` does.
//! It counts a prompt once for every choice (`n`), which its `usage` does not.
//!
//! - An engine counts while it generates, a request is metered when it has ended. So under load the
//!   drift is never 0: it swings by what is in flight at the two ends of the window.
//! - An engine that was restarted counts from 0 again. What it had counted since the last reading is
//!   not known, so the time between two readings in which it was restarted is left out, on both
//!   sides; what was counted before stays.
//! - Behind each address must stand one engine: readings that come from now one and now another
//!   look like restarts. Addresses that a name leads to are told apart with `addresses: each`.
//! - Several gateways before the same fleet each show the whole of the engine's drift, the others'
//!   requests included. Together they show it by
//!
//!   ```text
//!     max by (backend, type) (increase(llmproxy_usage_engine_tokens_total[10m]))
//!   - sum by (backend, type) (increase(llmproxy_usage_metered_tokens_total[10m]))
//!   ```

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;

use super::{load, scrape};
use crate::{
    balance::Endpoint,
    config::{choices::Engine, plan::LoadPlan},
    runtime::{Carry, Live, Snapshot},
    telemetry::DriftMetrics,
    wire::samples,
};

/// From one look at the configuration to the next while nothing is compared.
const LOOK: Duration = Duration::from_secs(1);

/// The words for the two sides, in their order.
const TYPES: [&str; 2] = ["prompt", "completion"];

/// Tokens of prompts and of answers.
type Tokens = [f64; 2];

/// Runs for ever.
pub async fn run(live: Arc<Live>, carry: Arc<Carry>) {
    let metrics = &carry.metrics.usage.drift;
    let mut tracks: HashMap<u32, Track> = HashMap::new();
    let mut on = false;
    loop {
        let began = Instant::now();
        let snapshot = live.load();
        let generation = snapshot.generation;
        let Some(plan) = snapshot.plan.usage.reconciliation else {
            drop(snapshot);
            on = false;
            keep(&mut tracks, &[], metrics);
            load::wait(&live, generation, began, LOOK).await;
            continue;
        };
        let asking = snapshot.plan.routing.load.clone();
        let wanted = wanted(&snapshot);
        drop(snapshot);
        keep(&mut tracks, &wanted, metrics);
        let found = join_all(wanted.iter().map(|e| read(e, &asking, &carry.client))).await;
        let now = Instant::now();
        for (endpoint, pair) in wanted.iter().zip(found) {
            let new = || Track { name: endpoint.name.clone(), ..Track::default() };
            let track = tracks.entry(endpoint.id).or_insert_with(new);
            if let Some((told, metered)) = pair {
                track.add(now, told, metered);
            }
            track.look_back(now, plan.window);
            track.show(metrics);
        }
        if !std::mem::replace(&mut on, true) {
            let n = wanted.len();
            log::info!("metered tokens are compared with the counters of vLLM; backends: {n}");
        }
        load::wait(&live, generation, began, plan.interval).await;
    }
}

/// The backends with such counters.
fn wanted(snapshot: &Snapshot) -> Vec<Arc<Endpoint>> {
    let vllm = snapshot.endpoints.iter().filter(|e| e.plan.engine == Engine::Vllm);
    vllm.map(Arc::clone).collect()
}

/// Forgets the backends that are not wanted any more, and their gauges.
fn keep(tracks: &mut HashMap<u32, Track>, wanted: &[Arc<Endpoint>], metrics: &DriftMetrics) {
    let ids: HashSet<_> = wanted.iter().map(|e| e.id).collect();
    let gone = tracks.extract_if(|id, _| !ids.contains(id));
    let names: Vec<String> = gone.map(|(_, track)| track.name).collect();
    for name in names {
        // Another backend may have the name now.
        if !wanted.iter().any(|e| e.name == name) {
            metrics.forget(&name);
        }
    }
}

/// What an engine has counted, and what was metered at it; `None` if it does not tell.
async fn read(
    endpoint: &Endpoint,
    plan: &LoadPlan,
    client: &reqwest::Client,
) -> Option<(Told, Tokens)> {
    // Before the engine is asked: it is always the first to count a token.
    let metered = endpoint.metered().map(|n| n as f64);
    let text = match scrape::metrics(endpoint, client, &plan.path, plan.timeout).await {
        Ok(text) => text,
        Err(why) => {
            log::debug!("the counters of backend {} cannot be read: {why}", endpoint.name);
            return None;
        }
    };
    Some((Told::by(&text)?, metered))
}

/// What an engine tells.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Told {
    /// What it has counted, for all models and engines behind the address.
    tokens: Tokens,
    /// When its counters were made, added up: another number after a restart. 0 if it does not say.
    made: f64,
}

#[derive(Clone, Copy)]
enum Counter {
    Prompt,
    Completion,
    Made,
}

impl Told {
    /// `None` if the text is not vLLM's.
    fn by(text: &[u8]) -> Option<Self> {
        let wanted: [(&[u8], Counter); 3] = [
            (b"vllm:prompt_tokens_total", Counter::Prompt),
            (b"vllm:generation_tokens_total", Counter::Completion),
            (b"vllm:generation_tokens_created", Counter::Made),
        ];
        let mut tokens = [None::<f64>; 2];
        let mut made = 0.0;
        samples::each(text, &wanted, |counter, value| {
            if !value.is_finite() || value < 0.0 {
                return;
            }
            match counter {
                Counter::Prompt => *tokens[0].get_or_insert(0.0) += value,
                Counter::Completion => *tokens[1].get_or_insert(0.0) += value,
                Counter::Made => made += value,
            }
        });
        Some(Self { tokens: [tokens[0]?, tokens[1]?], made })
    }

    /// Whether the engine was restarted between an `earlier` reading and this one.
    fn is_anew(&self, earlier: &Self) -> bool {
        self.made != earlier.made || (0..2).any(|kind| self.tokens[kind] < earlier.tokens[kind])
    }
}

/// Both sides since the first reading.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    engine: Tokens,
    metered: Tokens,
}

/// What is known of one backend.
#[derive(Default)]
struct Track {
    name: String,
    /// The last reading, as it was told.
    last: Option<(Told, Tokens)>,
    sums: Sums,
    /// What of the sums the counters show.
    shown: Sums,
    /// The sums at the readings within the window, and at the last one before it.
    readings: VecDeque<(Instant, Sums)>,
}

impl Track {
    /// Takes a reading in.
    fn add(&mut self, now: Instant, told: Told, metered: Tokens) {
        if let Some((before, metered_before)) = self.last.replace((told, metered))
            && !told.is_anew(&before)
        {
            for kind in 0..2 {
                self.sums.engine[kind] += told.tokens[kind] - before.tokens[kind];
                self.sums.metered[kind] += metered[kind] - metered_before[kind];
            }
        }
        self.readings.push_back((now, self.sums));
    }

    /// Forgets readings that the window does not reach back to; all of them, if it begins after the
    /// last: nothing is known then rather than something old.
    fn look_back(&mut self, now: Instant, window: Duration) {
        let old = |at: Instant| now.saturating_duration_since(at) >= window;
        while self.readings.get(1).is_some_and(|(at, _)| old(*at)) {
            self.readings.pop_front();
        }
        if self.readings.back().is_some_and(|(at, _)| old(*at)) {
            self.readings.clear();
        }
    }

    /// The drift over the window, in tokens and as a share of what the engine has counted; `None`
    /// without two readings. Where the engine has counted nothing, the share is 0, or -1 if something
    /// was metered.
    fn drift(&self, kind: usize) -> Option<(f64, f64)> {
        let (_, first) = self.readings.front()?;
        let (_, last) = self.readings.back().filter(|_| self.readings.len() > 1)?;
        let engine = last.engine[kind] - first.engine[kind];
        let metered = last.metered[kind] - first.metered[kind];
        let drift = engine - metered;
        Some(match () {
            () if engine > 0.0 => (drift, drift / engine),
            () if metered > 0.0 => (drift, -1.0),
            () => (0.0, 0.0),
        })
    }

    fn show(&mut self, metrics: &DriftMetrics) {
        if self.last.is_none() {
            return;
        }
        for (kind, word) in TYPES.iter().enumerate() {
            let labels = [self.name.as_str(), word];
            for (counters, sum, shown) in [
                (&metrics.engine_tokens, self.sums.engine[kind], &mut self.shown.engine[kind]),
                (&metrics.metered_tokens, self.sums.metered[kind], &mut self.shown.metered[kind]),
            ] {
                // Whole tokens; what is less is shown once it is one.
                let more = (sum - *shown).max(0.0).floor();
                counters.with_label_values(&labels).inc_by(more as u64);
                *shown += more;
            }
            if let Some((tokens, ratio)) = self.drift(kind) {
                metrics.drift_tokens.with_label_values(&labels).set(tokens);
                metrics.drift_ratio.with_label_values(&labels).set(ratio);
            } else {
                metrics.drift_tokens.remove_label_values(&labels).ok();
                metrics.drift_ratio.remove_label_values(&labels).ok();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(prompt: f64, completion: f64, made: f64) -> Told {
        Told { tokens: [prompt, completion], made }
    }

    #[test]
    fn a_real_vllm_is_understood_and_engines_add_up() {
        let text = include_bytes!("../../tests/fixtures/vllm/metrics.txt");
        let Told { tokens, made } = Told::by(text).unwrap();
        assert_eq!(tokens, [8292.0, 4199.0]);
        assert!(made > 1e9);
        let two = b"vllm:prompt_tokens_total{engine=\"0\",model_name=\"a\"} 3\n\
            vllm:prompt_tokens_total{engine=\"1\",model_name=\"a\"} 4\n\
            vllm:prompt_tokens_total{engine=\"1\",model_name=\"b\"} NaN\n\
            vllm:generation_tokens_total{engine=\"0\"} 5\n";
        assert_eq!(Told::by(two), Some(told(7.0, 5.0, 0.0)));
        assert_eq!(Told::by(b"vllm:prompt_tokens_total 3\n"), None);
        assert_eq!(Told::by(b"llamacpp:prompt_tokens_total 3\n"), None);
    }

    #[test]
    fn drift_is_what_the_engine_has_counted_and_nobody_was_billed_for() {
        let (mut track, now) = (Track::default(), Instant::now());
        let at = |seconds: u64| now + Duration::from_secs(seconds);
        track.add(at(0), told(1000.0, 500.0, 1.0), [70.0, 7.0]);
        assert_eq!(track.drift(0), None, "one reading is no comparison");
        track.add(at(10), told(1100.0, 500.0, 1.0), [150.0, 7.0]);
        assert_eq!((track.drift(0), track.drift(1)), (Some((20.0, 0.2)), Some((0.0, 0.0))));
        // What was in flight is metered.
        track.add(at(20), told(1100.0, 500.0, 1.0), [170.0, 9.0]);
        assert_eq!((track.drift(0), track.drift(1)), (Some((0.0, 0.0)), Some((-2.0, -1.0))));
        track.look_back(at(24), Duration::from_secs(15));
        assert_eq!(track.drift(0), Some((0.0, 0.0)), "the window begins after the first reading");
        track.look_back(at(25), Duration::from_secs(15));
        assert_eq!(track.drift(0), Some((-20.0, -1.0)), "and with the second");
        track.look_back(at(40), Duration::from_secs(15));
        assert_eq!(track.drift(0), None);
        track.add(at(50), told(1200.0, 500.0, 1.0), [170.0, 9.0]);
        assert_eq!(track.sums, Sums { engine: [200.0, 0.0], metered: [100.0, 2.0] });
    }

    #[test]
    fn the_time_of_a_restart_is_left_out_and_what_was_before_stays() {
        let now = Instant::now();
        // A smaller counter tells it, or another time at which the counters were made: the engine may
        // have counted more since than before.
        for after in [told(30.0, 600.0, 1.0), told(5000.0, 600.0, 2.0)] {
            let mut track = Track::default();
            track.add(now, told(1000.0, 500.0, 1.0), [0.0, 0.0]);
            track.add(now, told(1100.0, 510.0, 1.0), [100.0, 10.0]);
            track.add(now, after, [160.0, 90.0]);
            assert_eq!(track.sums, Sums { engine: [100.0, 10.0], metered: [100.0, 10.0] });
            assert_eq!(track.drift(0), Some((0.0, 0.0)));
            let [prompt, completion] = after.tokens;
            track.add(now, told(prompt + 7.0, completion, after.made), [165.0, 90.0]);
            assert_eq!(track.sums.engine, [107.0, 10.0]);
            assert_eq!(track.drift(0).unwrap().0, 2.0);
        }
    }

    #[test]
    fn counters_only_grow_and_go_on_where_a_backend_of_the_name_had_come_to() {
        let metrics = crate::telemetry::Metrics::new().usage.drift;
        let now = Instant::now();
        let engine = || metrics.engine_tokens.with_label_values(&["b0", "prompt"]).get();
        let metered = || metrics.metered_tokens.with_label_values(&["b0", "completion"]).get();
        for round in 1..3 {
            let mut track = Track { name: "b0".to_owned(), ..Track::default() };
            track.add(now, told(1000.0, 500.0, 1.0), [0.0, 3.0]);
            track.show(&metrics);
            track.add(now, told(1040.5, 500.0, 1.0), [0.0, 10.0]);
            track.show(&metrics);
            track.show(&metrics);
            assert_eq!((engine(), metered()), (41 * round - 1, 7 * round));
            track.add(now, told(1041.0, 500.0, 1.0), [0.0, 10.0]);
            // A restart takes nothing back.
            track.add(now, told(3.0, 5.0, 2.0), [0.0, 10.0]);
            track.show(&metrics);
            assert_eq!((engine(), metered()), (41 * round, 7 * round));
        }
        metrics.forget("b0");
        assert_eq!(engine(), 0);
    }
}
