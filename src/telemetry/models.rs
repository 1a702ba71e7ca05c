//! Metered tokens by model. Clients choose the names, and each name is a label: their number is bounded here.

use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use super::register::register;
use crate::base::lock;

/// The most names that get a label without being in the configuration.
const MOST_LEARNED: usize = 100;

/// The most bytes of such a name.
const LONGEST_NAME: usize = 128;

/// The label of all other models, and of requests that name none.
const OTHER: &str = "other";

/// `llmproxy_usage_tokens_total{model,type}`: metered tokens, `prompt` and `completion`. `model` is the name
/// in the request, if the configuration knows it or if it is one of the first 100 other names for which
/// tokens were metered; otherwise `other`.
#[derive(Clone)]
pub struct ModelTokens {
    counters: IntCounterVec,
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

/// The two counters of a model.
#[derive(Clone)]
struct TokenCounters {
    prompt: IntCounter,
    completion: IntCounter,
}

impl TokenCounters {
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
        let other = TokenCounters::new(&counters, OTHER);
        Self { counters, labelled: Arc::default(), learning: Arc::default(), other }
    }

    /// Counts the tokens of a request. `named` tells whether the configuration knows a model; it is called
    /// for models without a label.
    pub fn count(
        &self,
        model: Option<&str>,
        prompt: u64,
        completion: u64,
        named: impl FnOnce(&str) -> bool,
    ) {
        // A request without metered tokens must not create a label.
        if prompt == 0 && completion == 0 {
            return;
        }
        let Some(model) = model else {
            return self.other.add(prompt, completion);
        };
        let labelled = self.labelled.load();
        match labelled.get(model) {
            Some(own) => own.add(prompt, completion),
            None => self.learn(model, &labelled, named).add(prompt, completion),
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
        tokens.count(Some(&"x".repeat(LONGEST_NAME + 1)), 0, 1, |_| false);
        tokens.count(None, 0, 1, |_| true);
        assert_eq!((completion(&tokens, OTHER), labels(&tokens)), (2, 1));
    }
}
