//! Reconciliation: compares the tokens that were metered for each vLLM backend with the engine's own
//! counters, and exports the drift.
//!
//! Both sides are read every `interval`, and start at 0 with the first reading. Drift is what the
//! engine has counted and no request was billed for: answers that a retry or a hedge discarded, tokens
//! generated for a client that had left, requests that reached the engine past this gateway. vLLM also
//! counts tokens from its prefix cache, as its `usage` does. It counts a prompt once for every choice
//! (`n`), which its `usage` does not.
//!
//! - An engine counts while it generates; a request is metered when it has ended. So under load the
//!   drift is never 0: it varies by what is in flight at the two ends of the window.
//! - A restarted engine counts from 0 again. What it had counted since the last reading is unknown, so
//!   the interval with the restart is left out on both sides; earlier counts stay.
//! - There must be one engine behind each address: readings from alternating engines look like
//!   restarts. `addresses: each` separates the addresses of a name.
//! - Several gateways in front of the same fleet each show the engine's whole drift, including the
//!   others' requests. Together they show the true drift with
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

/// Time between two checks of the configuration while reconciliation is off.
const CHECK: Duration = Duration::from_secs(1);

/// The `type` label of each element of [`Tokens`].
const TYPES: [&str; 2] = ["prompt", "completion"];

/// Tokens of prompts and of completions.
type Tokens = [f64; 2];

/// Runs until the process ends.
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
            load::wait_for_turn(&live, generation, began, CHECK).await;
            continue;
        };
        let scrape = snapshot.plan.routing.load.clone();
        let wanted = wanted(&snapshot);
        drop(snapshot);
        keep(&mut tracks, &wanted, metrics);
        let readings = join_all(wanted.iter().map(|e| read(e, &scrape, &carry.client))).await;
        let now = Instant::now();
        for (endpoint, reading) in wanted.iter().zip(readings) {
            let new = || Track { name: (*endpoint.name).to_owned(), ..Track::default() };
            let track = tracks.entry(endpoint.id).or_insert_with(new);
            if let Some((counted, metered)) = reading {
                track.add(now, counted, metered);
            }
            track.drop_old(now, plan.window);
            track.export(metrics);
        }
        if !std::mem::replace(&mut on, true) {
            let n = wanted.len();
            log::info!("metered tokens are compared with the counters of vLLM; backends: {n}");
        }
        load::wait_for_turn(&live, generation, began, plan.interval).await;
    }
}

/// The endpoints with such counters.
fn wanted(snapshot: &Snapshot) -> Vec<Arc<Endpoint>> {
    let vllm = snapshot.endpoints.iter().filter(|e| e.plan.engine == Engine::Vllm);
    vllm.map(Arc::clone).collect()
}

/// Removes the tracks of all other endpoints, and their gauges.
fn keep(tracks: &mut HashMap<u32, Track>, wanted: &[Arc<Endpoint>], metrics: &DriftMetrics) {
    let ids: HashSet<_> = wanted.iter().map(|e| e.id).collect();
    let removed = tracks.extract_if(|id, _| !ids.contains(id));
    let names: Vec<String> = removed.map(|(_, track)| track.name).collect();
    for name in names {
        // Another endpoint may have the name now.
        if !wanted.iter().any(|e| *e.name == name) {
            metrics.forget(&name);
        }
    }
}

/// The counters of an engine, and the tokens metered for it; `None` if the counters cannot be read.
async fn read(
    endpoint: &Endpoint,
    plan: &LoadPlan,
    client: &reqwest::Client,
) -> Option<(Counters, Tokens)> {
    // Read before the engine's counters, because the engine always counts a token first.
    let metered = endpoint.metered().map(|n| n as f64);
    let text = match scrape::metrics(endpoint, client, &plan.path, plan.timeout).await {
        Ok(text) => text,
        Err(why) => {
            log::debug!("the counters of backend {} cannot be read: {why}", endpoint.name);
            return None;
        }
    };
    Some((Counters::parse(&text)?, metered))
}

/// The counters of an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counters {
    /// Sums over all models and engines behind the address.
    tokens: Tokens,
    /// Sum of the creation times of its counters: it differs after a restart. 0 if unknown.
    created: f64,
}

#[derive(Clone, Copy)]
enum CounterKind {
    Prompt,
    Completion,
    Created,
}

impl Counters {
    /// `None` if the text is not vLLM's.
    fn parse(text: &[u8]) -> Option<Self> {
        let wanted: [(&[u8], CounterKind); 3] = [
            (b"vllm:prompt_tokens_total", CounterKind::Prompt),
            (b"vllm:generation_tokens_total", CounterKind::Completion),
            (b"vllm:generation_tokens_created", CounterKind::Created),
        ];
        let mut tokens = [None::<f64>; 2];
        let mut created = 0.0;
        samples::each(text, &wanted, |counter, value| {
            if !value.is_finite() || value < 0.0 {
                return;
            }
            match counter {
                CounterKind::Prompt => *tokens[0].get_or_insert(0.0) += value,
                CounterKind::Completion => *tokens[1].get_or_insert(0.0) += value,
                CounterKind::Created => created += value,
            }
        });
        Some(Self { tokens: [tokens[0]?, tokens[1]?], created })
    }

    /// Whether the engine was restarted between an `earlier` reading and this one.
    fn was_restarted_since(&self, earlier: &Self) -> bool {
        self.created != earlier.created
            || (0..2).any(|kind| self.tokens[kind] < earlier.tokens[kind])
    }
}

/// Both sides since the first reading.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    engine: Tokens,
    metered: Tokens,
}

/// The readings of one endpoint.
#[derive(Default)]
struct Track {
    name: String,
    /// The last reading.
    last: Option<(Counters, Tokens)>,
    sums: Sums,
    /// The part of the sums that was exported.
    exported: Sums,
    /// The sums at the readings within the window, and at the last one before it.
    readings: VecDeque<(Instant, Sums)>,
}

impl Track {
    /// Adds a reading.
    fn add(&mut self, now: Instant, counted: Counters, metered: Tokens) {
        if let Some((before, metered_before)) = self.last.replace((counted, metered))
            && !counted.was_restarted_since(&before)
        {
            for kind in 0..2 {
                self.sums.engine[kind] += counted.tokens[kind] - before.tokens[kind];
                self.sums.metered[kind] += metered[kind] - metered_before[kind];
            }
        }
        self.readings.push_back((now, self.sums));
    }

    /// Drops readings from before the window; all of them if the last is that old, so that no outdated
    /// drift is exported.
    fn drop_old(&mut self, now: Instant, window: Duration) {
        let old = |at: Instant| now.saturating_duration_since(at) >= window;
        while self.readings.get(1).is_some_and(|(at, _)| old(*at)) {
            self.readings.pop_front();
        }
        if self.readings.back().is_some_and(|(at, _)| old(*at)) {
            self.readings.clear();
        }
    }

    /// The drift over the window, in tokens and as a share of what the engine has counted; `None`
    /// without two readings. If the engine has counted nothing, the share is 0, or -1 if something was
    /// metered.
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

    fn export(&mut self, metrics: &DriftMetrics) {
        if self.last.is_none() {
            return;
        }
        for (kind, word) in TYPES.iter().enumerate() {
            let labels = [self.name.as_str(), word];
            for (counters, sum, exported) in [
                (&metrics.engine_tokens, self.sums.engine[kind], &mut self.exported.engine[kind]),
                (
                    &metrics.metered_tokens,
                    self.sums.metered[kind],
                    &mut self.exported.metered[kind],
                ),
            ] {
                // Whole tokens; fractions are kept for later.
                let more = (sum - *exported).max(0.0).floor();
                counters.with_label_values(&labels).inc_by(more as u64);
                *exported += more;
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

    fn counted(prompt: f64, completion: f64, created: f64) -> Counters {
        Counters { tokens: [prompt, completion], created }
    }

    #[test]
    fn a_real_vllm_is_understood_and_engines_add_up() {
        let text = include_bytes!("../../tests/fixtures/vllm/metrics.txt");
        let Counters { tokens, created } = Counters::parse(text).unwrap();
        assert_eq!(tokens, [8292.0, 4199.0]);
        assert!(created > 1e9);
        let two = b"vllm:prompt_tokens_total{engine=\"0\",model_name=\"a\"} 3\n\
            vllm:prompt_tokens_total{engine=\"1\",model_name=\"a\"} 4\n\
            vllm:prompt_tokens_total{engine=\"1\",model_name=\"b\"} NaN\n\
            vllm:generation_tokens_total{engine=\"0\"} 5\n";
        assert_eq!(Counters::parse(two), Some(counted(7.0, 5.0, 0.0)));
        assert_eq!(Counters::parse(b"vllm:prompt_tokens_total 3\n"), None);
        assert_eq!(Counters::parse(b"llamacpp:prompt_tokens_total 3\n"), None);
    }

    #[test]
    fn drift_is_what_the_engine_has_counted_and_was_not_billed() {
        let (mut track, now) = (Track::default(), Instant::now());
        let at = |seconds: u64| now + Duration::from_secs(seconds);
        track.add(at(0), counted(1000.0, 500.0, 1.0), [70.0, 7.0]);
        assert_eq!(track.drift(0), None, "one reading is no comparison");
        track.add(at(10), counted(1100.0, 500.0, 1.0), [150.0, 7.0]);
        assert_eq!((track.drift(0), track.drift(1)), (Some((20.0, 0.2)), Some((0.0, 0.0))));
        // What was in flight is metered.
        track.add(at(20), counted(1100.0, 500.0, 1.0), [170.0, 9.0]);
        assert_eq!((track.drift(0), track.drift(1)), (Some((0.0, 0.0)), Some((-2.0, -1.0))));
        track.drop_old(at(24), Duration::from_secs(15));
        assert_eq!(track.drift(0), Some((0.0, 0.0)), "the window begins after the first reading");
        track.drop_old(at(25), Duration::from_secs(15));
        assert_eq!(track.drift(0), Some((-20.0, -1.0)), "and with the second");
        track.drop_old(at(40), Duration::from_secs(15));
        assert_eq!(track.drift(0), None);
        track.add(at(50), counted(1200.0, 500.0, 1.0), [170.0, 9.0]);
        assert_eq!(track.sums, Sums { engine: [200.0, 0.0], metered: [100.0, 2.0] });
    }

    #[test]
    fn the_time_of_a_restart_is_left_out_and_what_was_before_stays() {
        let now = Instant::now();
        // A smaller counter reveals it, or another creation time of the counters: the engine may
        // have counted more since than before.
        for after in [counted(30.0, 600.0, 1.0), counted(5000.0, 600.0, 2.0)] {
            let mut track = Track::default();
            track.add(now, counted(1000.0, 500.0, 1.0), [0.0, 0.0]);
            track.add(now, counted(1100.0, 510.0, 1.0), [100.0, 10.0]);
            track.add(now, after, [160.0, 90.0]);
            assert_eq!(track.sums, Sums { engine: [100.0, 10.0], metered: [100.0, 10.0] });
            assert_eq!(track.drift(0), Some((0.0, 0.0)));
            let [prompt, completion] = after.tokens;
            track.add(now, counted(prompt + 7.0, completion, after.created), [165.0, 90.0]);
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
            track.add(now, counted(1000.0, 500.0, 1.0), [0.0, 3.0]);
            track.export(&metrics);
            track.add(now, counted(1040.5, 500.0, 1.0), [0.0, 10.0]);
            track.export(&metrics);
            track.export(&metrics);
            assert_eq!((engine(), metered()), (41 * round - 1, 7 * round));
            track.add(now, counted(1041.0, 500.0, 1.0), [0.0, 10.0]);
            // A restart takes nothing back.
            track.add(now, counted(3.0, 5.0, 2.0), [0.0, 10.0]);
            track.export(&metrics);
            assert_eq!((engine(), metered()), (41 * round, 7 * round));
        }
        metrics.forget("b0");
        assert_eq!(engine(), 0);
    }
}
