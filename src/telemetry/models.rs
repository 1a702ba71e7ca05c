//! Metered tokens by model. The names of models come from clients, and each one is a label: so they
//! are bounded here.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use arc_swap::ArcSwap;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use super::register::register;
use crate::base::lock;

/// Names that are taken from requests, beside those that the configuration knows.
const LEARNED: usize = 100;

/// Bytes of such a name.
const LONGEST: usize = 128;

/// What stands for every other model, and for requests that name none.
const OTHER: &str = "other";

/// `llmproxy_usage_tokens_total{model,type}`: metered tokens, `prompt` and `completion`. `model` is
/// what the client asked for: the names that the configuration knows have labels of their own, and so
/// have the first 100 others for which a backend has metered tokens. All the rest is `other`.
#[derive(Clone)]
pub struct ModelTokens {
    counters: IntCounterVec,
    /// Replaced when there is a new one, so that requests look theirs up without a lock.
    known: Arc<ArcSwap<Known>>,
    /// Held by who replaces it.
    learning: Arc<Mutex<()>>,
    other: Pair,
}

#[derive(Clone, Default)]
struct Known {
    models: HashMap<Box<str>, Pair>,
    learned: usize,
}

/// Tokens of prompts and of answers.
#[derive(Clone)]
struct Pair {
    prompt: IntCounter,
    completion: IntCounter,
}

impl Pair {
    fn new(counters: &IntCounterVec, model: &str) -> Self {
        Self {
            prompt: counters.with_label_values(&[model, "prompt"]),
            completion: counters.with_label_values(&[model, "completion"]),
        }
    }

    fn add(&self, prompt: u64, completion: u64) {
        self.prompt.inc_by(prompt);
        self.completion.inc_by(completion);
    }
}

impl ModelTokens {
    pub(super) fn new(r: &Registry) -> Self {
        let opts = Opts::new("llmproxy_usage_tokens_total", "Metered tokens");
        let counters = register(r, IntCounterVec::new(opts, &["model", "type"]));
        let other = Pair::new(&counters, OTHER);
        Self { counters, known: Arc::default(), learning: Arc::default(), other }
    }

    /// Counts the tokens of a request. `named`: whether the configuration knows a model; it is asked
    /// about those that have no label of their own yet.
    pub fn count(
        &self,
        model: Option<&str>,
        prompt: u64,
        completion: u64,
        named: impl FnOnce(&str) -> bool,
    ) {
        // What no engine has counted is no model's, and teaches nobody a name.
        if prompt == 0 && completion == 0 {
            return;
        }
        let Some(model) = model else {
            return self.other.add(prompt, completion);
        };
        let known = self.known.load();
        match known.models.get(model) {
            Some(pair) => pair.add(prompt, completion),
            None => self.learn(model, &known, named).add(prompt, completion),
        }
    }

    /// The counters of a model that has none yet: its own, if there is room for it.
    fn learn(&self, model: &str, known: &Known, named: impl FnOnce(&str) -> bool) -> Pair {
        let named = named(model);
        let room = |known: &Known| named || known.learned < LEARNED && model.len() <= LONGEST;
        if !room(known) {
            return self.other.clone();
        }
        let _guard = lock(&self.learning);
        let mut next = Known::clone(&self.known.load());
        if let Some(pair) = next.models.get(model) {
            return pair.clone();
        }
        if !room(&next) {
            return self.other.clone();
        }
        let pair = Pair::new(&self.counters, model);
        next.models.insert(model.into(), pair.clone());
        next.learned += usize::from(!named);
        self.known.store(Arc::new(next));
        pair
    }
}

#[cfg(test)]
mod tests {
    use prometheus::core::Collector;

    use super::*;

    fn completion(tokens: &ModelTokens, model: &str) -> u64 {
        tokens.counters.with_label_values(&[model, "completion"]).get()
    }

    fn labels(tokens: &ModelTokens) -> usize {
        tokens.counters.collect()[0].get_metric().len() / 2
    }

    #[test]
    fn clients_cannot_make_labels_without_end() {
        let tokens = ModelTokens::new(&Registry::new());
        let count = |model: &str| tokens.count(Some(model), 1, 2, |name| name.starts_with("ours"));
        // Refused: nothing was metered.
        tokens.count(Some("wrong"), 0, 0, |_| false);
        assert_eq!(labels(&tokens), 1);
        for n in 0..LEARNED + 50 {
            count(&format!("theirs-{n}"));
        }
        assert_eq!(labels(&tokens), 1 + LEARNED);
        assert_eq!(completion(&tokens, OTHER), 100);
        // The operator's own have a label however late they come.
        count("ours");
        count("ours");
        assert_eq!(completion(&tokens, "ours"), 4);
        count("theirs-0");
        assert_eq!(completion(&tokens, "theirs-0"), 4);
        assert_eq!(labels(&tokens), 2 + LEARNED);
    }

    #[test]
    fn long_names_and_none_are_other() {
        let tokens = ModelTokens::new(&Registry::new());
        tokens.count(Some(&"x".repeat(LONGEST + 1)), 0, 1, |_| false);
        tokens.count(None, 0, 1, |_| true);
        assert_eq!((completion(&tokens, OTHER), labels(&tokens)), (2, 1));
    }
}
