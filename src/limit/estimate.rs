//! How many tokens a request will come to, guessed before it is sent: from the bytes of its body
//! and from what earlier requests for the same model came to. No tokenizer is asked.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use quick_cache::sync::Cache;

use super::claim::Used;
use crate::{base::TokenCounts, telemetry::Metrics};

/// Models that are remembered.
const MODELS: usize = 1024;

/// Bytes of a body for a token of its prompt, as long as nothing is known of the model: English in
/// JSON.
const BYTES: f32 = 4.0;

/// Tokens of an answer, as long as nothing is known of the model.
const COMPLETION: f32 = 256.0;

/// How much a request weighs against those before it.
const WEIGHT: f32 = 0.1;

/// By which factor what a request shows of the bytes of a token may differ from what is known, to
/// count in full: an image has many bytes for its tokens, and says nothing about text.
const FACTOR: f32 = 4.0;

/// Tokens that a request is thought to come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guess {
    /// Of the prompt.
    pub prompt: u64,
    /// Of the answer.
    pub completion: u64,
}

impl Guess {
    /// As if it were the truth.
    pub fn used(self) -> Used {
        Used { input: self.prompt, output: self.completion, ..Used::default() }
    }
}

/// What is known of each model.
pub struct Estimates {
    models: Cache<String, Arc<Model>>,
}

/// Running averages, as bits of `f32`.
struct Model {
    bytes_per_token: AtomicU32,
    completion: AtomicU32,
}

impl Default for Model {
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

/// Of two threads that do this at once one may be overheard: it is an average.
fn learn(average: &AtomicU32, seen: f32) {
    let known = read(average);
    average.store((known + WEIGHT * (seen - known)).to_bits(), Ordering::Relaxed);
}

impl Default for Estimates {
    fn default() -> Self {
        Self { models: Cache::new(MODELS) }
    }
}

impl Estimates {
    /// Guesses. `bytes` is the size of the body, `max_tokens` what the client allows.
    pub fn guess(&self, model: &str, bytes: usize, max_tokens: Option<u64>) -> Guess {
        let known = self.models.get(model);
        let (per_token, completion) =
            known.map_or((BYTES, COMPLETION), |m| (read(&m.bytes_per_token), read(&m.completion)));
        let completion = completion.ceil() as u64;
        Guess {
            prompt: (bytes as f32 / per_token).ceil() as u64,
            completion: max_tokens.map_or(completion, |most| most.min(completion)),
        }
    }

    /// Learns from what a request came to. `whole`: its answer was not broken off. An answer of as
    /// many tokens as its client allowed was cut there, and does not show that answers are shorter than they are known to be.
    pub fn learn(
        &self,
        model: &str,
        bytes: usize,
        counts: TokenCounts,
        whole: bool,
        max_tokens: Option<u64>,
    ) {
        let known = match self.models.get(model) {
            Some(known) => known,
            None => {
                let new = Arc::<Model>::default();
                self.models.insert(model.to_owned(), Arc::clone(&new));
                new
            }
        };
        if counts.prompt > 0 {
            let average = read(&known.bytes_per_token);
            let seen = bytes as f32 / counts.prompt as f32;
            let seen = seen.clamp(average / FACTOR, average * FACTOR);
            learn(&known.bytes_per_token, seen.clamp(0.1, 1000.0));
        }
        let cut = max_tokens.is_some_and(|most| counts.completion >= most);
        if whole && !(cut && (counts.completion as f32) < read(&known.completion)) {
            learn(&known.completion, counts.completion as f32);
        }
    }
}

/// Shows how good a guess was.
pub fn observe(metrics: &Metrics, guess: Guess, counts: TokenCounts, whole: bool) {
    let show = |kind: &str, guessed: u64, metered: u64| {
        if metered > 0 {
            let ratio = guessed as f64 / metered as f64;
            metrics.limits.estimates.with_label_values(&[kind]).observe(ratio);
        }
    };
    show("prompt", guess.prompt, counts.prompt);
    if whole {
        show("completion", guess.completion, counts.completion);
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
        assert_eq!(estimates.guess("m", 400, None), Guess { prompt: 100, completion: 256 });
        assert_eq!(estimates.guess("m", 400, Some(16)).completion, 16);
        for _ in 0..100 {
            estimates.learn("m", 600, counts(300, 40), true, None);
        }
        let guess = estimates.guess("m", 600, Some(1000));
        assert!((295..=305).contains(&guess.prompt), "{guess:?}");
        assert!((39..=42).contains(&guess.completion), "{guess:?}");
        assert_eq!(estimates.guess("other", 400, None).prompt, 100);
    }

    #[test]
    fn an_answer_that_was_broken_off_teaches_nothing_about_its_length() {
        let estimates = Estimates::default();
        for _ in 0..100 {
            estimates.learn("m", 400, counts(100, 3), false, None);
        }
        assert_eq!(estimates.guess("m", 400, None).completion, 256);
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
        assert_eq!(estimates.guess("m", 400, None).completion, 256);
        // One that ended by itself does, and one that was cut later than usual tells of long ones.
        estimates.learn("m", 400, counts(100, 100), true, Some(1000));
        assert_eq!(estimates.guess("m", 400, None).completion, 241);
        estimates.learn("m", 400, counts(100, 1000), true, Some(1000));
        assert_eq!(estimates.guess("m", 400, None).completion, 317);
    }

    #[test]
    fn one_strange_request_changes_little() {
        let estimates = Estimates::default();
        // An image: 10 MB, 1000 tokens.
        estimates.learn("m", 10_000_000, counts(1000, 256), true, None);
        assert!(estimates.guess("m", 400, None).prompt >= 75);
        let estimates = Estimates::default();
        estimates.learn("m", 1, counts(1_000_000, 256), true, None);
        assert!(estimates.guess("m", 400, None).prompt <= 110);
        // What is usual is still found.
        for _ in 0..200 {
            estimates.learn("m", 10_000, counts(100, 256), true, None);
        }
        assert!((100..=101).contains(&estimates.guess("m", 10_000, None).prompt));
    }
}
