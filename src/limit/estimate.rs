//! Estimates the tokens of a request before it is sent, from the size of its body and from earlier
//! requests for the same model. No tokenizer is used.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU32, Ordering},
};

use prometheus::{Histogram, HistogramVec};
use quick_cache::sync::Cache;

use super::claim::Charge;
use crate::{base::TokenCounts, telemetry::Metrics};

/// Largest number of models with averages.
const MODELS: usize = 1024;

/// Bytes of a body per prompt token for an unknown model: English text in JSON.
const BYTES: f32 = 4.0;

/// Tokens of an answer of an unknown model.
const COMPLETION: f32 = 256.0;

/// Weight of a request in the averages.
const WEIGHT: f32 = 0.1;

/// The largest factor by which the bytes per token of one request may differ from the average; more
/// is cut off, because an image has many bytes per token and says nothing about text.
const FACTOR: f32 = 4.0;

/// Estimated tokens of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    pub prompt: u64,
    pub completion: u64,
}

impl Estimate {
    /// `averages` are the model's, if it is known, `bytes` the size of the body, `max_tokens` the
    /// client's limit.
    pub fn new(averages: Option<&Averages>, bytes: usize, max_tokens: Option<u64>) -> Self {
        let (per_token, completion) = averages
            .map_or((BYTES, COMPLETION), |m| (read(&m.bytes_per_token), read(&m.completion)));
        let completion = completion.ceil() as u64;
        Self {
            prompt: (bytes as f32 / per_token).ceil() as u64,
            completion: max_tokens.map_or(completion, |most| most.min(completion)),
        }
    }

    /// The charge if the estimate were exact.
    pub fn charge(self) -> Charge {
        Charge { input: self.prompt, output: self.completion, ..Charge::default() }
    }
}

/// Averages of each model.
pub struct Estimates {
    models: Cache<String, Arc<Averages>>,
}

/// Running averages of a model, as bits of `f32`.
pub struct Averages {
    bytes_per_token: AtomicU32,
    completion: AtomicU32,
}

impl Default for Averages {
    fn default() -> Self {
        Self {
            bytes_per_token: AtomicU32::new(BYTES.to_bits()),
            completion: AtomicU32::new(COMPLETION.to_bits()),
        }
    }
}

fn read(average: &AtomicU32) -> f32 {
    f32::from_bits(average.load(Ordering::Relaxed))
}

/// Two threads that do this at once may lose one update, which an average can bear.
fn learn(average: &AtomicU32, observed: f32) {
    let known = read(average);
    average.store((known + WEIGHT * (observed - known)).to_bits(), Ordering::Relaxed);
}

impl Default for Estimates {
    fn default() -> Self {
        Self { models: Cache::new(MODELS) }
    }
}

impl Estimates {
    /// The averages of a model, once it is known.
    pub fn averages(&self, model: &str) -> Option<Arc<Averages>> {
        self.models.get(model)
    }

    /// `bytes` is the size of the body, `max_tokens` the client's limit.
    pub fn estimate(&self, model: &str, bytes: usize, max_tokens: Option<u64>) -> Estimate {
        Estimate::new(self.averages(model).as_deref(), bytes, max_tokens)
    }

    /// Updates the averages of a model with a finished request; see [`Averages::learn`].
    pub fn learn(
        &self,
        model: &str,
        bytes: usize,
        counts: TokenCounts,
        complete: bool,
        max_tokens: Option<u64>,
    ) {
        let known = self.averages(model).unwrap_or_else(|| {
            let new = Arc::<Averages>::default();
            self.models.insert(model.to_owned(), Arc::clone(&new));
            new
        });
        known.learn(bytes, counts, complete, max_tokens);
    }
}

impl Averages {
    /// Updates them with a finished request. `complete`: its answer did not break off. An answer with
    /// as many tokens as the client allowed was cut off there, so it cannot lower the average.
    pub fn learn(
        &self,
        bytes: usize,
        counts: TokenCounts,
        complete: bool,
        max_tokens: Option<u64>,
    ) {
        if counts.prompt > 0 {
            let average = read(&self.bytes_per_token);
            let observed = bytes as f32 / counts.prompt as f32;
            let observed = observed.clamp(average / FACTOR, average * FACTOR);
            learn(&self.bytes_per_token, observed.clamp(0.1, 1000.0));
        }
        let cut = max_tokens.is_some_and(|most| counts.completion >= most);
        if complete && !(cut && (counts.completion as f32) < read(&self.completion)) {
            learn(&self.completion, counts.completion as f32);
        }
    }
}

/// The accuracy of estimates, by kind of tokens. A kind shows in the metrics once it is measured.
pub struct Accuracy {
    all: HistogramVec,
    prompt: OnceLock<Histogram>,
    completion: OnceLock<Histogram>,
}

impl Accuracy {
    pub fn new(metrics: &Metrics) -> Self {
        let all = metrics.limits.estimates.clone();
        Self { all, prompt: OnceLock::new(), completion: OnceLock::new() }
    }

    /// Records the accuracy of an estimate.
    pub fn observe(&self, estimate: Estimate, counts: TokenCounts, complete: bool) {
        let show = |kind: &OnceLock<Histogram>, word: &str, estimated: u64, metered: u64| {
            if metered > 0 {
                let histogram = kind.get_or_init(|| self.all.with_label_values(&[word]));
                histogram.observe(estimated as f64 / metered as f64);
            }
        };
        show(&self.prompt, "prompt", estimate.prompt, counts.prompt);
        if complete {
            show(&self.completion, "completion", estimate.completion, counts.completion);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(prompt: u64, completion: u64) -> TokenCounts {
        TokenCounts { prompt, completion, ..TokenCounts::default() }
    }

    #[test]
    fn guesses_come_close_to_what_is_seen() {
        let estimates = Estimates::default();
        assert_eq!(estimates.estimate("m", 400, None), Estimate { prompt: 100, completion: 256 });
        assert_eq!(estimates.estimate("m", 400, Some(16)).completion, 16);
        for _ in 0..100 {
            estimates.learn("m", 600, counts(300, 40), true, None);
        }
        let estimate = estimates.estimate("m", 600, Some(1000));
        assert!((295..=305).contains(&estimate.prompt), "{estimate:?}");
        assert!((39..=42).contains(&estimate.completion), "{estimate:?}");
        assert_eq!(estimates.estimate("other", 400, None).prompt, 100);
    }

    #[test]
    fn an_answer_that_was_broken_off_teaches_nothing_about_its_length() {
        let estimates = Estimates::default();
        for _ in 0..100 {
            estimates.learn("m", 400, counts(100, 3), false, None);
        }
        assert_eq!(estimates.estimate("m", 400, None).completion, 256);
    }

    #[test]
    fn a_flood_of_models_is_forgotten() {
        let estimates = Estimates::default();
        for n in 0..100_000 {
            estimates.learn(&format!("m{n}"), 400, counts(100, 3), true, None);
        }
        assert!(estimates.models.len() <= MODELS);
    }

    #[test]
    fn an_answer_that_was_cut_does_not_shorten_the_guess() {
        let estimates = Estimates::default();
        for _ in 0..100 {
            estimates.learn("m", 400, counts(100, 1), true, Some(1));
        }
        assert_eq!(estimates.estimate("m", 400, None).completion, 256);
        // An answer that ended by itself does; one that was cut off late raises the average.
        estimates.learn("m", 400, counts(100, 100), true, Some(1000));
        assert_eq!(estimates.estimate("m", 400, None).completion, 241);
        estimates.learn("m", 400, counts(100, 1000), true, Some(1000));
        assert_eq!(estimates.estimate("m", 400, None).completion, 317);
    }

    #[test]
    fn one_strange_request_changes_little() {
        let estimates = Estimates::default();
        // An image: 10 MB, 1000 tokens.
        estimates.learn("m", 10_000_000, counts(1000, 256), true, None);
        assert!(estimates.estimate("m", 400, None).prompt >= 75);
        let estimates = Estimates::default();
        estimates.learn("m", 1, counts(1_000_000, 256), true, None);
        assert!(estimates.estimate("m", 400, None).prompt <= 110);
        // What is usual is still found.
        for _ in 0..200 {
            estimates.learn("m", 10_000, counts(100, 256), true, None);
        }
        assert!((100..=101).contains(&estimates.estimate("m", 10_000, None).prompt));
    }
}
