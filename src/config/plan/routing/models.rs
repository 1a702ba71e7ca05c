//! `models`, the rules of `routing.fallback`, and fallback models.

use std::collections::{BTreeMap, BTreeSet};

use super::types::{BalancePlan, ModelPlan, RoutePlan, RulePlan, TranslationPlan};
use crate::{
    base::ModelPattern,
    config::{
        choices::{ThinkingControl, TranslationMode},
        plan::{backend::BackendPlan, planner::Planner},
        problem::{Problem, closest},
        raw::{self, Raw},
    },
    dialect::hub::{ModelFacts, effort, target::Thinking},
};

/// The backend that a text refers to.
enum BackendRef {
    /// The name of an enabled backend.
    Enabled(String),
    Disabled,
    /// There is none; the problem is reported.
    Unknown,
}

impl Planner<'_> {
    pub(super) fn rules(
        &mut self,
        raw: &[raw::Rule],
        backends: &[BackendPlan],
        unused: &[BackendPlan],
    ) -> Vec<RulePlan> {
        let mut rules = Vec::new();
        for (i, rule) in raw.iter().enumerate() {
            let at = format!("routing.fallback[{i}]");
            if rule.primary.is_none() && rule.fallback.is_empty() {
                self.problem(&at, "names no backend", "add `primary` or `fallback`");
                continue;
            }
            let mut name =
                |at: String, text: &String| match self.named_backend(at, text, backends, unused) {
                    BackendRef::Enabled(name) => Some(name),
                    BackendRef::Disabled | BackendRef::Unknown => None,
                };
            let primary = rule.primary.as_ref().and_then(|p| name(format!("{at}.primary"), p));
            let entries = rule.fallback.iter().enumerate();
            let fallback: Vec<_> =
                entries.filter_map(|(k, text)| name(format!("{at}.fallback[{k}]"), text)).collect();
            let models = self.patterns(&format!("{at}.models"), &rule.models);
            if primary.is_none() && fallback.is_empty() {
                self.warn(&at, "all of its backends are disabled: the rule has no effect");
                continue;
            }
            rules.push(RulePlan { models, primary, fallback });
        }
        rules
    }

    fn patterns(&mut self, at: &str, texts: &[String]) -> Vec<ModelPattern> {
        let mut patterns = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            match ModelPattern::parse(text) {
                Ok(pattern) => patterns.push(pattern),
                Err(why) => self.problem(format!("{at}[{i}]"), why, ""),
            }
        }
        patterns
    }

    /// A backend by its name, or by its URL if that is unique.
    fn named_backend(
        &mut self,
        at: String,
        text: &str,
        backends: &[BackendPlan],
        unused: &[BackendPlan],
    ) -> BackendRef {
        if let Some(named) = backends.iter().find(|b| b.name == text) {
            return BackendRef::Enabled(named.name.clone());
        }
        if unused.iter().any(|b| b.name == text) {
            return BackendRef::Disabled;
        }
        let url = text.trim_end_matches('/');
        let mut found = backends.iter().filter(|b| *b.url == *url);
        if let Some(first) = found.next() {
            if let Some(second) = found.next() {
                let message = format!("is the URL of `{}` and of `{}`", first.name, second.name);
                self.problem(at, message, "write the name of one");
                return BackendRef::Unknown;
            }
            return BackendRef::Enabled(first.name.clone());
        }
        if unused.iter().any(|b| *b.url == *url) {
            return BackendRef::Disabled;
        }
        let known = backends.iter().chain(unused).flat_map(|b| [b.name.as_str(), &*b.url]);
        let hint = match closest(text, known) {
            Some(name) => format!("did you mean `{name}`?"),
            None => {
                let names: Vec<_> = backends.iter().map(|b| b.name.as_str()).collect();
                format!("known are {}", names.join(", "))
            }
        };
        // The text before an `@` may be a password.
        let shown = text.rsplit('@').next().unwrap_or_default();
        if self.discovers && !text.contains("://") {
            let message = format!(
                "`{shown}` is not in the file: it is used when a discovery source lists it"
            );
            self.warn(at, message);
            return BackendRef::Enabled(text.to_owned());
        }
        self.problem(at, format!("there is no backend `{shown}`"), &hint);
        BackendRef::Unknown
    }

    pub(super) fn models(
        &mut self,
        whole: &Raw,
        backends: &[BackendPlan],
        unused: &[BackendPlan],
        rules: &[RulePlan],
        balance: &BalancePlan,
    ) -> Vec<ModelPlan> {
        let mut models = Vec::new();
        for (name, raw) in &whole.models {
            let at = format!("models.{name}");
            let name = match ModelPattern::parse(name) {
                Ok(pattern) => pattern,
                Err(why) => {
                    self.problem(&at, why, "write a name, or a prefix and `*`");
                    continue;
                }
            };
            let base = BalancePlan {
                strategy: raw.load_balance_strategy.unwrap_or(balance.strategy),
                ..balance.clone()
            };
            let (affinity, prefix) = (raw.affinity.as_ref(), raw.prefix.as_ref());
            let balance = self.balance(&at, base, affinity, raw.load_bound, prefix);
            let routes = self.routes(&at, raw, backends, unused);
            if routes.is_none() && raw.fallback.is_empty() {
                let all = || backends.iter().chain(unused);
                let ruled = rules.iter().flat_map(|r| &r.models).any(|p| p == &name);
                if !ruled && !all().any(|b| serves(b, &name)) {
                    let message = "has no routes, and no backend serves a model of this name";
                    self.problem(&at, message, "add `routes: [{backend: ..., model: ...}]`");
                }
            }
            let translation = self.translation(&at, raw);
            let (enabled, fallback) = (raw.enabled.0, raw.fallback.clone());
            models.push(ModelPlan { name, enabled, routes, fallback, balance, translation });
        }
        self.alias_fallback(&whole.fallback.alias_fallback, &mut models, balance);
        self.fallbacks_are_known(whole, backends, rules, &models);
        self.no_cycles(whole, &models);
        models
    }

    /// What translations have to know of a model.
    fn translation(&mut self, at: &str, raw: &raw::Model) -> TranslationPlan {
        let strict = raw.translation.unwrap_or_default() == TranslationMode::Strict;
        let Some(abilities) = &raw.abilities else {
            return TranslationPlan { strict, facts: ModelFacts::default() };
        };
        for (i, word) in abilities.efforts.iter().enumerate() {
            if !effort::WORDS.contains(&word.as_str()) {
                let hint = format!("known are {}", effort::WORDS.join(", "));
                let at = format!("{at}.abilities.efforts[{i}]");
                self.problem(at, format!("`{word}` is not a word for effort"), &hint);
            }
        }
        let limits = [
            ("max_output_tokens", abilities.max_output_tokens),
            ("default_output_tokens", abilities.default_output_tokens),
        ];
        for (name, limit) in limits {
            if limit == Some(0) {
                self.problem(format!("{at}.abilities.{name}"), "is 0", "write at least 1");
            }
        }
        let thinking = match abilities.thinking {
            None => Thinking::Unknown,
            Some(ThinkingControl::Effort) => Thinking::Effort,
            Some(ThinkingControl::Budget) => Thinking::Budget,
            Some(ThinkingControl::None) => Thinking::None,
        };
        let facts = ModelFacts {
            max_output: abilities.max_output_tokens,
            default_output: abilities.default_output_tokens,
            efforts: abilities.efforts.clone(),
            thinking,
            sampling: abilities.sampling,
            vision: abilities.vision,
            tools: abilities.tools,
            chat_tools: abilities.chat_tools,
            schemas: abilities.schemas,
            late_system: abilities.late_system,
        };
        TranslationPlan { strict, facts }
    }

    /// `None`: the model has no routes of its own.
    fn routes(
        &mut self,
        at: &str,
        raw: &raw::Model,
        backends: &[BackendPlan],
        unused: &[BackendPlan],
    ) -> Option<Vec<RoutePlan>> {
        let mut routes = Vec::new();
        for (i, route) in raw.routes.iter().enumerate() {
            let at = format!("{at}.routes[{i}]");
            let language = self.protocol(&at, route.protocol.as_deref()).language();
            let hint = "`enabled: false` disables a route";
            self.within(format!("{at}.weight"), route.weight, 1..=1000, hint);
            if route.model.as_ref().is_some_and(|m| m.is_empty() || m.contains('*')) {
                let message = "is not a model name";
                self.problem(
                    format!("{at}.model"),
                    message,
                    "without this key the client's name is used",
                );
            }
            let backend =
                self.named_backend(format!("{at}.backend"), &route.backend, backends, unused);
            if let (BackendRef::Enabled(name), Some(_)) = (&backend, &route.protocol)
                && let Some(known) = backends.iter().find(|b| b.name == *name)
                && !known.languages.has(language.name())
            {
                let hint = "add it to the `languages` of the backend";
                self.problem(format!("{at}.protocol"), "the backend does not speak it", hint);
            }
            if let (BackendRef::Enabled(backend), true) = (backend, route.enabled.0) {
                routes.push(RoutePlan {
                    backend,
                    model: route.model.as_deref().map(Into::into),
                    priority: route.priority,
                    weight: route.weight,
                });
            }
        }
        if !raw.enabled.0 {
            return Some(Vec::new());
        }
        if raw.routes.is_empty() {
            return None;
        }
        if routes.is_empty() {
            self.warn(at, "all of its routes are disabled: only its fallbacks serve it");
        }
        Some(routes)
    }

    /// Adds `fallback.alias_fallback`; a model without an entry gets one.
    fn alias_fallback(
        &mut self,
        given: &BTreeMap<String, Vec<String>>,
        models: &mut Vec<ModelPlan>,
        balance: &BalancePlan,
    ) {
        for (name, more) in given {
            let pattern = match ModelPattern::parse(name) {
                Ok(pattern) => pattern,
                Err(why) => {
                    self.problem(format!("fallback.alias_fallback.{name}"), why, "");
                    continue;
                }
            };
            let entry = match models.iter().position(|m| m.name == pattern) {
                Some(known) => &mut models[known],
                None => {
                    models.push(ModelPlan {
                        name: pattern,
                        enabled: true,
                        routes: None,
                        fallback: Vec::new(),
                        balance: balance.clone(),
                        translation: TranslationPlan::default(),
                    });
                    let last = models.len() - 1;
                    &mut models[last]
                }
            };
            for model in more {
                if !entry.fallback.contains(model) {
                    entry.fallback.push(model.clone());
                }
            }
        }
    }

    /// Reports fallback models that do not exist.
    fn fallbacks_are_known(
        &mut self,
        whole: &Raw,
        backends: &[BackendPlan],
        rules: &[RulePlan],
        models: &[ModelPlan],
    ) {
        let patterns: Vec<_> = (models.iter().map(|m| &m.name))
            .chain(backends.iter().flat_map(|b| &b.models))
            .chain(rules.iter().flat_map(|r| &r.models).filter(|p| is_exact(p)))
            .collect();
        let any = backends.iter().any(|b| b.models.is_empty());
        let names: BTreeSet<&str> = patterns
            .iter()
            .filter_map(|p| match p {
                ModelPattern::Exact(name) => Some(name.as_str()),
                ModelPattern::Prefix(_) => None,
            })
            .collect();
        for (at, name) in fallbacks(whole) {
            if !name.is_empty() && (any || patterns.iter().any(|p| p.matches(name))) {
                continue;
            }
            let problem = Problem::new(at, format!("there is no model `{name}`"));
            self.problems.push(match closest(name, names.iter().copied()) {
                Some(close) => problem.hint(format!("did you mean `{close}`?")),
                None => problem.hint("write a model of `models` or of a backend"),
            });
        }
    }

    /// Reports fallbacks that lead back to their own model.
    fn no_cycles(&mut self, whole: &Raw, models: &[ModelPlan]) {
        let names: Vec<_> = models.iter().enumerate().map(|(i, m)| (m.name.clone(), i)).collect();
        let mut done = BTreeSet::new();
        for start in 0..models.len() {
            let mut chain = vec![start];
            let Some(cycle) = cycle(models, &names, &mut chain, &mut done) else {
                continue;
            };
            let first = show(&models[cycle.0].name);
            let at = match whole.models.get(&first) {
                Some(model) if !model.fallback.is_empty() => format!("models.{first}.fallback"),
                _ => format!("fallback.alias_fallback.{first}"),
            };
            let mut message = format!("is a cycle: {first} -> {}", cycle.1.join(" -> "));
            if cycle.1.last() != Some(&first) {
                message.push_str(&format!(", which is `{first}` again"));
            }
            self.problem(at, message, "remove one of them");
        }
    }
}

/// Whether a backend serves models that a pattern matches.
fn serves(backend: &BackendPlan, pattern: &ModelPattern) -> bool {
    use ModelPattern::{Exact, Prefix};
    let overlap = |own: &ModelPattern| match (own, pattern) {
        (own, Exact(name)) => own.matches(name),
        (Exact(name), pattern) => pattern.matches(name),
        (Prefix(a), Prefix(b)) => a.starts_with(b.as_str()) || b.starts_with(a.as_str()),
    };
    backend.models.is_empty() || backend.models.iter().any(overlap)
}

fn is_exact(pattern: &ModelPattern) -> bool {
    matches!(pattern, ModelPattern::Exact(_))
}

fn show(pattern: &ModelPattern) -> String {
    match pattern {
        ModelPattern::Exact(name) => name.clone(),
        ModelPattern::Prefix(prefix) => format!("{prefix}*"),
    }
}

/// The fallback models, each with its path in the file.
fn fallbacks(whole: &Raw) -> Vec<(String, &str)> {
    let mut found = Vec::new();
    let own = whole.models.iter().map(|(name, m)| (format!("models.{name}.fallback"), &m.fallback));
    let merged = &whole.fallback.alias_fallback;
    let merged = merged.iter().map(|(name, l)| (format!("fallback.alias_fallback.{name}"), l));
    for (at, list) in own.chain(merged) {
        let entries = list.iter().enumerate();
        found.extend(entries.map(|(i, name)| (format!("{at}[{i}]"), name.as_str())));
    }
    found
}

/// Follows fallbacks from the end of `chain`. Returns where a cycle begins, and the names in it.
/// Visited entries are put into `done`.
fn cycle(
    models: &[ModelPlan],
    names: &[(ModelPattern, usize)],
    chain: &mut Vec<usize>,
    done: &mut BTreeSet<usize>,
) -> Option<(usize, Vec<String>)> {
    let here = *chain.last()?;
    if done.contains(&here) {
        return None;
    }
    for name in &models[here].fallback {
        let Some(&next) = ModelPattern::closest(names, name) else { continue };
        if let Some(begin) = chain.iter().position(|i| *i == next) {
            let within = chain[begin + 1..].iter().map(|i| show(&models[*i].name));
            let circle = within.chain([name.clone()]).collect();
            done.extend(&chain[begin..]);
            return Some((next, circle));
        }
        chain.push(next);
        let found = cycle(models, names, chain, done);
        chain.pop();
        if found.is_some() {
            done.insert(here);
            return found;
        }
    }
    done.insert(here);
    None
}
