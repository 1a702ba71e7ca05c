//! `rate_limit`: rules, where they are counted, the queue, prices.

use std::{collections::BTreeMap, time::Duration};

use super::{
    auth::{AuthPlan, Source},
    planner::Planner,
};
use crate::{
    base::{
        ModelPattern,
        limits::{Limits, OwnLimits, Scope},
    },
    config::{
        choices::OnRedisError,
        raw::{self, LimitMode, LimitStorage, Raw},
    },
    store::redis,
};

/// Limits.
#[derive(Clone, Debug, PartialEq)]
pub struct LimitPlan {
    /// Whether rules and per-key limits apply. Quotas and balances apply in any case.
    pub enabled: bool,
    /// Whether responses have the rate limit header fields.
    pub headers: bool,
    /// The rules, by [`Scope::index`].
    pub rules: [Limits; 7],
    /// Rules of single models, completed with the fields of `per_model`.
    pub models: Vec<(ModelPattern, Limits)>,
    /// Rules of each key with single models, completed with the fields of `per_key_model`.
    pub key_models: Vec<(ModelPattern, Limits)>,
    /// Counting in Redis; `None`: in this process.
    pub shared: Option<SharedPlan>,
    pub queue: QueuePlan,
    /// What a million tokens cost.
    pub prices: Vec<(ModelPattern, Price)>,
    /// The number of counters in memory.
    pub max_buckets: usize,
}

/// What a million tokens cost. `None`: the part costs as much as its whole, `input` or `output`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Price {
    pub input: f64,
    /// Prompt tokens that were read from a cache.
    pub cached_input: Option<f64>,
    /// Prompt tokens that were written to a cache.
    pub cache_write: Option<f64>,
    /// Prompt tokens that were audio.
    pub audio_input: Option<f64>,
    pub output: f64,
    /// Completion tokens that were reasoning.
    pub reasoning: Option<f64>,
    /// Completion tokens that were audio.
    pub audio_output: Option<f64>,
}

/// Counting in Redis.
#[derive(Clone, Debug, PartialEq)]
pub struct SharedPlan {
    pub server: redis::Settings,
    /// The prefix of names.
    pub prefix: String,
    /// How long a hold lasts without renewal.
    pub ttl: Duration,
    /// How long a decision may take.
    pub timeout: Duration,
    /// In the leased mode: the share of a limit that is leased at a time, and how long an unused
    /// lease is kept.
    pub lease: Option<(f64, Duration)>,
    /// What happens while Redis does not respond.
    pub on_error: OnRedisError,
}

/// The queue of requests above `max_concurrent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePlan {
    /// The number of requests that may wait.
    pub size: usize,
    /// How long a request waits before it is rejected.
    pub timeout: Duration,
    /// The status of a rejection.
    pub status: u16,
    /// How often a comment is sent to waiting streams; `None`: never.
    pub keep_alive: Option<Duration>,
}

impl Planner<'_> {
    /// The rules and the queue of a disabled section are ignored. The rest applies: quotas and
    /// balances of keys are counted in the same place as before.
    pub(super) fn limits(&mut self, whole: &Raw, auth: Option<&AuthPlan>) -> Option<LimitPlan> {
        let given = whole.rate_limit.clone().unwrap_or_default();
        let enabled = given.enabled.0;
        let raw = &if enabled { given } else { without_rules(given) };
        let rules = [
            &raw.global,
            &raw.per_key,
            &raw.per_ip,
            &raw.per_user,
            &raw.per_team,
            &raw.per_model,
            &raw.per_key_model,
        ];
        for (scope, rule) in Scope::ALL.iter().zip(rules) {
            self.rule(&format!("rate_limit.{}", scope.word()), rule, &Limits::default(), raw);
        }
        let models = self.model_rules("rate_limit.models", &raw.models, &raw.per_model, raw);
        let key_models =
            self.model_rules("rate_limit.key_models", &raw.key_models, &raw.per_key_model, raw);
        if raw.prices.is_empty() {
            self.budgets_of_keys(whole);
        }
        let queue = self.queue(&raw.queue);
        let prices = self.prices(&raw.prices);
        if !(1000..=100_000_000).contains(&raw.max_buckets) {
            self.problem("rate_limit.max_buckets", "is not between 1000 and 100000000", "");
        }
        let shared = match raw.storage {
            LimitStorage::Memory => None,
            LimitStorage::Redis => {
                let shared = self.shared(raw, whole)?;
                let at = ("rate_limit.key_prefix", "llmproxy:limit:");
                self.apart_from_keys(at, (&shared.server, &shared.prefix), auth);
                Some(shared)
            }
        };
        Some(LimitPlan {
            enabled,
            headers: raw.headers.0,
            rules: rules.map(Limits::clone),
            models,
            key_models,
            shared,
            queue,
            prices,
            max_buckets: raw.max_buckets,
        })
    }

    /// Warns about budgets of keys that are never charged.
    fn budgets_of_keys(&mut self, whole: &Raw) {
        for (i, key) in whole.api_keys.iter().enumerate() {
            let own = key.limits.as_ref().and_then(|limits| OwnLimits::read(limits).ok());
            if own.is_some_and(|own| own.has_budget()) {
                let message = "has a budget, but no model has a price: add `rate_limit.prices`";
                self.warn(format!("api_keys[{i}].limits"), message);
            }
        }
    }

    /// Checks a rule together with the rule that it overrides.
    fn rule(&mut self, at: &str, rule: &Limits, base: &Limits, raw: &raw::RateLimit) {
        if let Some((name, why)) = rule.problem() {
            self.problem(format!("{at}.{name}"), why, "remove it, or write 0 for no limit");
        }
        let (own, rule) = (rule, &rule.or(base));
        if own.enabled == Some(false) {
            return;
        }
        if own.burst_size.is_some() && rule.requests_per_second.is_none() {
            self.problem(
                format!("{at}.burst_size"),
                "needs `requests_per_second`",
                "a burst of `requests_per_minute` is not limited",
            );
        }
        if own.budget.is_some_and(|b| b > 0.0) && raw.prices.is_empty() {
            self.problem(
                format!("{at}.budget"),
                "no model has a price",
                "add `rate_limit.prices`: {\"*\": {input: 0.5, output: 1.5}}, for a million tokens",
            );
        }
        if own.budget_period.is_some() && rule.budget.is_none() {
            self.problem(format!("{at}.budget_period"), "needs `budget`", "");
        }
    }

    fn pattern(&mut self, at: &str, text: &str) -> Option<ModelPattern> {
        let parsed = ModelPattern::parse(text);
        if let Err(why) = parsed {
            self.problem(format!("{at}.{text}"), why, "write a name, or a prefix and `*`");
        }
        parsed.ok()
    }

    fn model_rules(
        &mut self,
        at: &str,
        given: &BTreeMap<String, Limits>,
        base: &Limits,
        raw: &raw::RateLimit,
    ) -> Vec<(ModelPattern, Limits)> {
        let mut rules = Vec::new();
        for (name, rule) in given {
            self.rule(&format!("{at}.{name}"), rule, base, raw);
            if let Some(pattern) = self.pattern(at, name) {
                rules.push((pattern, rule.or(base)));
            }
        }
        rules
    }

    fn queue(&mut self, raw: &raw::Queue) -> QueuePlan {
        let at = "rate_limit.queue";
        if raw.max_queue_size > 100_000 {
            self.problem(format!("{at}.max_queue_size"), "is more than 100000", "");
        }
        if raw.max_queue_size > 0 && raw.queue_timeout.0.is_zero() {
            self.problem(format!("{at}.queue_timeout"), "is zero", "the default is 30s");
        }
        if !matches!(raw.status, 429 | 503) {
            self.problem(format!("{at}.status"), "is neither 429 nor 503", "");
        }
        let keep_alive = raw.keep_alive.0;
        if !keep_alive.is_zero() && keep_alive < Duration::from_millis(100) {
            self.problem(format!("{at}.keep_alive"), "is shorter than 100ms", "write 10s");
        }
        QueuePlan {
            size: raw.max_queue_size,
            timeout: raw.queue_timeout.0,
            status: raw.status,
            keep_alive: (!keep_alive.is_zero()).then_some(keep_alive),
        }
    }

    fn prices(&mut self, raw: &BTreeMap<String, raw::Price>) -> Vec<(ModelPattern, Price)> {
        let mut prices = Vec::new();
        for (name, price) in raw {
            let raw::Price {
                input,
                cached_input,
                cache_write,
                audio_input,
                output,
                reasoning,
                audio_output,
            } = *price;
            let parts = [cached_input, cache_write, audio_input, reasoning, audio_output];
            if parts.into_iter().flatten().chain([input, output]).any(|p| !p.is_finite() || p < 0.0)
            {
                let at = format!("rate_limit.prices.{name}");
                let hint = "write the price of a million tokens: 0, or 1.5";
                self.problem(at, "has a price that is not a number of 0 or more", hint);
            }
            if let Some(pattern) = self.pattern("rate_limit.prices", name) {
                let price = Price {
                    input,
                    cached_input,
                    cache_write,
                    audio_input,
                    output,
                    reasoning,
                    audio_output,
                };
                prices.push((pattern, price));
            }
        }
        prices
    }

    /// What the gateway writes must not be in the namespace of API keys: a request with the name of such
    /// a key would be accepted. `at` is the path of the prefix, `usual` its default.
    pub(super) fn apart_from_keys(
        &mut self,
        (at, usual): (&str, &str),
        (server, prefix): (&redis::Settings, &str),
        auth: Option<&AuthPlan>,
    ) {
        let place = |s: &redis::Settings| (s.host.clone(), s.port, s.db);
        for provider in auth.iter().flat_map(|auth| &auth.pipeline) {
            let Source::Redis { settings, pattern } = &provider.source else { continue };
            let before = pattern.split("{api_key}").next().unwrap_or_default();
            let among = prefix.starts_with(before) || before.starts_with(prefix);
            if !among || place(settings) != place(server) {
                continue;
            }
            let message = format!(
                "is `{prefix}`, where provider `{}` reads its API keys, `{pattern}`: the rest of the \
                 name of what is written there would be a valid key",
                provider.name,
            );
            let hint =
                format!("the default is `{usual}`, beside keys at `llmproxy:key:{{api_key}}`");
            self.problem(at, message, &hint);
            return;
        }
    }

    fn shared(&mut self, raw: &raw::RateLimit, whole: &Raw) -> Option<SharedPlan> {
        let at = |name: &str| format!("rate_limit.{name}");
        if !(raw.lease_share > 0.0 && raw.lease_share <= 0.5) {
            self.problem(at("lease_share"), "is not above 0 and at most 0.5", "write 0.1");
        }
        for (name, span, least, most) in [
            ("lease_lifetime", raw.lease_lifetime.0, 100, 60_000),
            ("redis_timeout", raw.redis_timeout.0, 1, 60_000),
            ("hold_ttl", raw.hold_ttl.0, 1000, 3_600_000),
        ] {
            let fits = Duration::from_millis(least)..=Duration::from_millis(most);
            if !fits.contains(&span) {
                let (least, most) = (fits.start(), fits.end());
                self.problem(at(name), format!("is not between {least:?} and {most:?}"), "");
            }
        }
        let server = self.named_cache(&at("redis"), &raw.redis, whole)?;
        Some(SharedPlan {
            server,
            prefix: raw.key_prefix.clone(),
            ttl: raw.hold_ttl.0,
            timeout: raw.redis_timeout.0,
            lease: (raw.mode == LimitMode::Leased)
                .then_some((raw.lease_share, raw.lease_lifetime.0)),
            on_error: raw.on_redis_error,
        })
    }
}

/// The section without its rules: only prices, and where and how limits are counted.
fn without_rules(given: raw::RateLimit) -> raw::RateLimit {
    let none = raw::RateLimit::default();
    raw::RateLimit {
        global: none.global,
        per_key: none.per_key,
        per_ip: none.per_ip,
        per_user: none.per_user,
        per_team: none.per_team,
        per_model: none.per_model,
        per_key_model: none.per_key_model,
        models: none.models,
        key_models: none.key_models,
        queue: none.queue,
        ..given
    }
}
