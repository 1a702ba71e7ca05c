//! Metered tokens by model. Clients choose the names, and each name is a label: their number is bounded here.

use std::sync::{Arc, Mutex, OnceLock};

use arc_swap::ArcSwap;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use super::register::register;
use crate::base::{TokenCounts, lock};

/// The most names that get a label without being in the configuration.
const MOST_LEARNED: usize = 100;

/// The most bytes of such a name.
const LONGEST_NAME: usize = 128;

/// More tokens than any answer has. Counters begin at 0 again after the last number: one absurd answer
/// must not bring them there.
const MOST: u64 = 1 << 40;

/// The parts of tokens, as labels.
const PARTS: [&str; 5] = ["cached", "cache_write", "reasoning", "audio_prompt", "audio_completion"];

/// In the order of [`PARTS`].
fn parts(counts: &TokenCounts) -> [Option<u64>; PARTS.len()] {
    let TokenCounts { cached, cache_write, reasoning, audio_prompt, audio_completion, .. } =
        *counts;
    [cached, cache_write, reasoning, audio_prompt, audio_completion]
}

/// The label of all other models, and of requests that name none.
const OTHER: &str = "other";

/// `llmproxy_usage_tokens_total{model,type}`: metered tokens, `prompt` and `completion`; and
/// `llmproxy_usage_token_parts_total{model,type}`, what they contain: a family of its own, so that a sum
/// over `type` counts no token twice. `model` is the name in the request, if the configuration knows it or
/// if it is one of the first 100 other names for which tokens were metered; otherwise `other`.
#[derive(Clone)]
pub struct ModelTokens {
    counters: IntCounterVec,
    parts: IntCounterVec,
    /// Replaced to add a model, so that requests need no lock.
    labelled: Arc<ArcSwap<LabelledModels>>,
    /// Held while a model is added.
    learning: Arc<Mutex<()>>,
    other: TokenCounters,
}

#[derive(Clone, Default)]
struct LabelledModels {
    /// Sorted by name: to compare a few names costs less than to hash one.
    models: Vec<(Box<str>, TokenCounters)>,
    learned: usize,
}

impl LabelledModels {
    fn place(&self, model: &str) -> Result<usize, usize> {
        self.models.binary_search_by(|(name, _)| (**name).cmp(model))
    }

    fn get(&self, model: &str) -> Option<&TokenCounters> {
        self.place(model).ok().map(|place| &self.models[place].1)
    }
}

/// The counters of a model.
#[derive(Clone)]
struct TokenCounters {
    label: Arc<str>,
    prompt: IntCounter,
    completion: IntCounter,
    /// In the order of [`PARTS`]; made when an engine reports the part for the first time.
    parts: [OnceLock<IntCounter>; PARTS.len()],
}

impl TokenCounters {
    fn new(counters: &IntCounterVec, model: &str) -> Self {
        Self {
            label: model.into(),
            prompt: counters.with_label_values(&[model, "prompt"]),
            completion: counters.with_label_values(&[model, "completion"]),
            parts: Default::default(),
        }
    }

    /// `all`: the counters of the parts of all models, where those of this one are made.
    fn add(&self, counts: &TokenCounts, all: &IntCounterVec) {
        self.prompt.inc_by(counts.prompt.min(MOST));
        self.completion.inc_by(counts.completion.min(MOST));
        for ((counter, name), part) in self.parts.iter().zip(PARTS).zip(parts(counts)) {
            if let Some(tokens) = part {
                let counter = counter.get_or_init(|| all.with_label_values(&[&*self.label, name]));
                counter.inc_by(tokens.min(MOST));
            }
        }
    }
}

impl ModelTokens {
    pub(super) fn new(r: &Registry) -> Self {
        let opts = Opts::new("llmproxy_usage_tokens_total", "Metered tokens");
        let counters = register(r, IntCounterVec::new(opts, &["model", "type"]));
        let name = "llmproxy_usage_token_parts_total";
        let opts = Opts::new(name, "Metered tokens that are part of the prompt or completion");
        let parts = register(r, IntCounterVec::new(opts, &["model", "type"]));
        let other = TokenCounters::new(&counters, OTHER);
        Self { counters, parts, labelled: Arc::default(), learning: Arc::default(), other }
    }

    /// Counts the tokens of a request. `named` tells whether the configuration knows a model; it is called
    /// for models without a label.
    pub fn count(
        &self,
        model: Option<&str>,
        counts: &TokenCounts,
        named: impl FnOnce(&str) -> bool,
    ) {
        // A request without metered tokens must not create a label.
        if counts.prompt == 0 && counts.completion == 0 {
            return;
        }
        let Some(model) = model else {
            return self.other.add(counts, &self.parts);
        };
        let labelled = self.labelled.load();
        match labelled.get(model) {
            Some(own) => own.add(counts, &self.parts),
            None => self.learn(model, &labelled, named).add(counts, &self.parts),
        }
    }

    /// Adds a model if its number is within the bound; otherwise returns the counters of `other`.
    fn learn(
        &self,
        model: &str,
        labelled: &LabelledModels,
        named: impl FnOnce(&str) -> bool,
    ) -> TokenCounters {
        let named = named(model);
        let room = |labelled: &LabelledModels| {
            named || labelled.learned < MOST_LEARNED && model.len() <= LONGEST_NAME
        };
        if !room(labelled) {
            return self.other.clone();
        }
        let _guard = lock(&self.learning);
        let mut next = LabelledModels::clone(&self.labelled.load());
        let place = match next.place(model) {
            Ok(place) => return next.models[place].1.clone(),
            Err(_) if !room(&next) => return self.other.clone(),
            Err(place) => place,
        };
        let own = TokenCounters::new(&self.counters, model);
        next.models.insert(place, (model.into(), own.clone()));
        next.learned += usize::from(!named);
        self.labelled.store(Arc::new(next));
        own
    }
}

#[cfg(test)]
mod tests {
    use prometheus::core::Collector;

    use super::*;

    fn completion(tokens: &ModelTokens, model: &str) -> u64 {
        tokens.counters.with_label_values(&[model, "completion"]).get()
    }

    fn counts(prompt: u64, completion: u64) -> TokenCounts {
        let total = prompt + completion;
        TokenCounts { prompt, completion, total, ..TokenCounts::default() }
    }

    fn labels(tokens: &ModelTokens) -> usize {
        tokens.counters.collect()[0].get_metric().len() / 2
    }

    #[test]
    fn clients_cannot_make_labels_without_end() {
        let tokens = ModelTokens::new(&Registry::new());
        let two = counts(1, 2);
        let count = |model: &str| tokens.count(Some(model), &two, |name| name.starts_with("ours"));
        // Refused: nothing was metered.
        tokens.count(Some("wrong"), &TokenCounts::default(), |_| false);
        assert_eq!(labels(&tokens), 1);
        for n in 0..MOST_LEARNED + 50 {
            count(&format!("theirs-{n}"));
        }
        assert_eq!(labels(&tokens), 1 + MOST_LEARNED);
        assert_eq!(completion(&tokens, OTHER), 100);
        // The operator's own have a label however late they come.
        count("ours");
        count("ours");
        assert_eq!(completion(&tokens, "ours"), 4);
        count("theirs-0");
        assert_eq!(completion(&tokens, "theirs-0"), 4);
        assert_eq!(labels(&tokens), 2 + MOST_LEARNED);
    }

    #[test]
    fn long_names_and_none_are_other() {
        let tokens = ModelTokens::new(&Registry::new());
        tokens.count(Some(&"x".repeat(LONGEST_NAME + 1)), &counts(0, 1), |_| false);
        tokens.count(None, &counts(0, 1), |_| true);
        assert_eq!((completion(&tokens, OTHER), labels(&tokens)), (2, 1));
    }

    #[test]
    fn parts_are_counted_where_engines_report_them() {
        let tokens = ModelTokens::new(&Registry::new());
        let count = |model: &str, more: TokenCounts| {
            tokens.count(Some(model), &more, |_| model != "theirs");
        };
        let shown = || {
            let families = tokens.parts.collect();
            let lines = families[0].get_metric().iter().map(|metric| {
                let labels = metric.get_label().iter().map(|label| label.value());
                let value = metric.get_counter().get_value() as u64;
                (labels.collect::<Vec<_>>().join(" "), value)
            });
            let mut lines: Vec<_> = lines.collect();
            lines.sort();
            lines
        };
        count("a", counts(10, 10));
        assert_eq!(shown(), []);
        let parts = TokenCounts {
            cached: Some(1),
            cache_write: Some(2),
            reasoning: Some(3),
            audio_prompt: Some(4),
            audio_completion: Some(5),
            ..counts(10, 10)
        };
        let line = |text: &str, value| (text.to_owned(), value);
        // The first and later requests of a model are counted alike, and 0 is a report.
        count("b", TokenCounts { reasoning: Some(0), ..counts(1, 1) });
        assert_eq!(shown(), [line("b reasoning", 0)]);
        count("b", parts);
        count("b", parts);
        count("a", TokenCounts { cached: Some(u64::MAX), ..counts(1, 1) });
        let expected = [
            line("a cached", MOST),
            line("b audio_completion", 10),
            line("b audio_prompt", 8),
            line("b cache_write", 4),
            line("b cached", 2),
            line("b reasoning", 6),
        ];
        assert_eq!(shown(), expected);
        // Names of clients make no more labels here than there.
        for n in 0..MOST_LEARNED + 5 {
            tokens.count(Some(&format!("theirs-{n}")), &parts, |_| false);
        }
        assert_eq!(shown().len(), expected.len() + PARTS.len() * (MOST_LEARNED + 1));
        assert!(shown().contains(&line("other cache_write", 10)));
    }
}
