//! Limits as rules, keys and scripts state them, and the current state of a request's limits.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{model::ModelPattern, number::number, period::ResetPeriod};

/// Which requests a rule counts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    Global,
    Key,
    /// An IPv4 address or an IPv6 /64 network.
    Ip,
    User,
    Team,
    Model,
    /// One key with one model.
    KeyModel,
}

impl Scope {
    /// In the order in which they are checked.
    pub const ALL: [Self; 7] =
        [Self::Global, Self::Key, Self::Ip, Self::User, Self::Team, Self::Model, Self::KeyModel];

    /// The word in the configuration, in messages and in metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Global => "global",
            Self::Key => "per_key",
            Self::Ip => "per_ip",
            Self::User => "per_user",
            Self::Team => "per_team",
            Self::Model => "per_model",
            Self::KeyModel => "per_key_model",
        }
    }

    /// Its index in [`Self::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }
}

/// The limits of one rule. An absent limit is unlimited; `0` removes a limit that another rule sets.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Whether the rule applies at all.
    pub enabled: Option<bool>,
    /// Requests per second on average; `0.5` is one every two seconds.
    pub requests_per_second: Option<f64>,
    /// Requests that may arrive at once, with `requests_per_second`; the default is twice that rate.
    pub burst_size: Option<f64>,
    /// Requests per minute. As many may arrive at once.
    pub requests_per_minute: Option<f64>,
    /// Tokens per minute, of prompts and answers together.
    pub tokens_per_minute: Option<f64>,
    /// Prompt tokens per minute.
    pub input_tokens_per_minute: Option<f64>,
    /// Answer tokens per minute.
    pub output_tokens_per_minute: Option<f64>,
    /// Concurrent requests.
    pub max_concurrent: Option<f64>,
    /// Money that may be spent in a period, by the prices of `rate_limit.prices`.
    pub budget: Option<f64>,
    /// The period of `budget`; the default is `monthly`.
    pub budget_period: Option<ResetPeriod>,
}

impl Limits {
    /// These limits; absent ones are taken from `other`.
    pub fn or(&self, other: &Self) -> Self {
        if other.enabled == Some(false) && self.enabled.is_none() {
            // A rule that is disabled elsewhere does not disable limits that are set here.
            let sets_any = self.clone().amounts().iter().any(|(_, amount)| amount.is_some());
            return if sets_any { self.clone() } else { other.clone() };
        }
        Self {
            enabled: self.enabled.or(other.enabled),
            requests_per_second: self.requests_per_second.or(other.requests_per_second),
            // A burst belongs to the rate that it was set with.
            burst_size: match self.requests_per_second {
                Some(_) => self.burst_size,
                None => self.burst_size.or(other.burst_size),
            },
            requests_per_minute: self.requests_per_minute.or(other.requests_per_minute),
            tokens_per_minute: self.tokens_per_minute.or(other.tokens_per_minute),
            input_tokens_per_minute: self.input_tokens_per_minute.or(other.input_tokens_per_minute),
            output_tokens_per_minute: self
                .output_tokens_per_minute
                .or(other.output_tokens_per_minute),
            max_concurrent: self.max_concurrent.or(other.max_concurrent),
            budget: self.budget.or(other.budget),
            budget_period: self.budget_period.or(other.budget_period),
        }
    }

    fn amounts(&mut self) -> [(&'static str, &mut Option<f64>); 8] {
        [
            ("requests_per_second", &mut self.requests_per_second),
            ("burst_size", &mut self.burst_size),
            ("requests_per_minute", &mut self.requests_per_minute),
            ("tokens_per_minute", &mut self.tokens_per_minute),
            ("input_tokens_per_minute", &mut self.input_tokens_per_minute),
            ("output_tokens_per_minute", &mut self.output_tokens_per_minute),
            ("max_concurrent", &mut self.max_concurrent),
            ("budget", &mut self.budget),
        ]
    }

    /// An invalid amount: its name and the problem.
    pub fn problem(&self) -> Option<(&'static str, &'static str)> {
        let mut copy = self.clone();
        let amounts = copy.amounts().map(|(name, amount)| (name, *amount));
        for (name, amount) in amounts {
            let Some(n) = amount else { continue };
            if !n.is_finite() || n < 0.0 {
                return Some((name, "is not a number of 0 or more"));
            }
            let fractions = matches!(name, "requests_per_second" | "budget");
            if !fractions && n.fract() != 0.0 {
                return Some((name, "is not a whole number"));
            }
            if n > 1e12 {
                return Some((name, "is more than 1000000000000"));
            }
            if name == "requests_per_second" && (n > 1e6 || (n > 0.0 && n < 1e-4)) {
                return Some((name, "is not between 0.0001 and 1000000"));
            }
        }
        // Seconds until a burst is available again.
        const LONGEST: f64 = 366.0 * 24.0 * 3600.0;
        match (self.requests_per_second, self.burst_size) {
            (Some(rate), Some(burst)) if rate > 0.0 && burst / rate > LONGEST => {
                Some(("burst_size", "takes longer than a year to refill"))
            }
            _ => None,
        }
    }

    /// Reads one field of a key's data or a script's result.
    fn read(&mut self, name: &str, value: &Value) -> Result<(), String> {
        if value.is_null() {
            return Ok(());
        }
        match name {
            "enabled" => {
                let on = value.as_bool().ok_or("`enabled` is not true or false")?;
                self.enabled = Some(on);
            }
            "budget_period" => {
                let period = serde_json::from_value(value.clone());
                self.budget_period =
                    Some(period.map_err(|_| "`budget_period` is not a known period")?);
            }
            _ => {
                let mut amounts = self.amounts();
                let known = amounts.iter_mut().find(|(known, _)| *known == name);
                let (_, amount) = known.ok_or_else(|| format!("`{name}` is not a known limit"))?;
                let n = number(value).ok_or_else(|| format!("`{name}` is not a number"))?;
                **amount = Some(n);
            }
        }
        Ok(())
    }

    fn from_value(value: &Value) -> Result<Self, String> {
        let mut limits = Self::default();
        for (name, value) in object(value)? {
            limits.read(name, value)?;
        }
        limits.checked()
    }

    fn checked(self) -> Result<Self, String> {
        match self.problem() {
            Some((name, why)) => Err(format!("`{name}` {why}")),
            None => Ok(self),
        }
    }
}

fn object(value: &Value) -> Result<&Map<String, Value>, String> {
    value.as_object().ok_or_else(|| "limits must be an object".to_owned())
}

/// Limits of one caller, from its key's data or a script. Each field takes precedence over the same
/// field of the rules in the configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OwnLimits {
    /// By [`Scope::index`].
    scopes: [Limits; 7],
    /// For single models, in place of `per_key_model`.
    models: Vec<(ModelPattern, Limits)>,
}

impl OwnLimits {
    /// Reads the fields of [`Limits`] for the key itself; under the names of other rules
    /// (`per_user`, `global`, ...) the same fields for those; and in `models` the key's limits for
    /// single models. A text is read as JSON.
    ///
    /// # Errors
    /// The field that is malformed.
    pub fn read(value: &Value) -> Result<Self, String> {
        if let Value::String(text) = value {
            let parsed = serde_json::from_str::<Value>(text).map_err(|_| "the text is not JSON")?;
            return Self::read(&parsed);
        }
        let mut own = Self::default();
        for (name, value) in object(value)? {
            if let Some(scope) = Scope::ALL.iter().find(|s| s.word() == name) {
                let limits = Limits::from_value(value).map_err(|e| format!("{name}: {e}"))?;
                let known = &mut own.scopes[scope.index()];
                *known = limits.or(known);
            } else if name == "models" {
                for (model, value) in object(value)? {
                    let pattern = ModelPattern::parse(model).map_err(str::to_owned)?;
                    let limits = Limits::from_value(value).map_err(|e| format!("{model}: {e}"))?;
                    own.models.push((pattern, limits));
                }
            } else {
                own.scopes[Scope::Key.index()].read(name, value)?;
            }
        }
        let key = std::mem::take(&mut own.scopes[Scope::Key.index()]);
        own.scopes[Scope::Key.index()] = key.checked()?;
        Ok(own)
    }

    /// These limits; what they do not say is as in `other`.
    pub fn over(&self, other: &Self) -> Self {
        let scopes = std::array::from_fn(|at| self.scopes[at].or(&other.scopes[at]));
        let mut models = self.models.clone();
        for (pattern, limits) in &other.models {
            match models.iter_mut().find(|(known, _)| known == pattern) {
                Some((_, own)) => *own = own.or(limits),
                None => models.push((pattern.clone(), limits.clone())),
            }
        }
        Self { scopes, models }
    }

    pub fn has_budget(&self) -> bool {
        let models = self.models.iter().map(|(_, limits)| limits);
        self.scopes.iter().chain(models).any(|limits| limits.budget.is_some_and(|b| b > 0.0))
    }

    /// The limits for a scope; `None` if it has none.
    pub fn for_scope(&self, scope: Scope, model: &str) -> Option<Limits> {
        let limits = &self.scopes[scope.index()];
        if scope == Scope::KeyModel
            && let Some(closest) = ModelPattern::closest(&self.models, model)
        {
            return Some(closest.or(limits));
        }
        (*limits != Limits::default()).then(|| limits.clone())
    }
}

/// The state of one limit after a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The configured amount.
    pub limit: u64,
    pub left: u64,
    /// Time until all of it is available again.
    pub reset: Duration,
}

impl Standing {
    /// The one of two limits with the smaller part left.
    pub fn tighter(self, other: Option<Self>) -> Self {
        match other {
            Some(other)
                if u128::from(other.left) * u128::from(self.limit)
                    < u128::from(self.left) * u128::from(other.limit) =>
            {
                other
            }
            _ => self,
        }
    }
}

/// The state of a request's limits, for the headers of its answer: the tightest of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standings {
    pub requests: Option<Standing>,
    /// Tokens of prompts and answers together.
    pub tokens: Option<Standing>,
    pub input_tokens: Option<Standing>,
    pub output_tokens: Option<Standing>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_key_says_its_limits_in_every_form() {
        let own = json!({
            "requests_per_minute": "60", "max_concurrent": 3,
            "per_user": {"tokens_per_minute": 1000}, "global": {"enabled": false},
            "models": {"qwen-*": {"requests_per_minute": 5}, "qwen-72b": {"budget": 1.5}},
        });
        let read = OwnLimits::read(&own).unwrap();
        assert_eq!(OwnLimits::read(&own.to_string().into()).unwrap(), read);
        let key = read.for_scope(Scope::Key, "m").unwrap();
        assert_eq!((key.requests_per_minute, key.max_concurrent), (Some(60.0), Some(3.0)));
        assert_eq!(read.for_scope(Scope::User, "m").unwrap().tokens_per_minute, Some(1000.0));
        assert_eq!(read.for_scope(Scope::Global, "m").unwrap().enabled, Some(false));
        assert_eq!(
            read.for_scope(Scope::KeyModel, "qwen-7b").unwrap().requests_per_minute,
            Some(5.0)
        );
        assert_eq!(read.for_scope(Scope::KeyModel, "qwen-72b").unwrap().budget, Some(1.5));
        assert_eq!(read.for_scope(Scope::KeyModel, "llama"), None);
        assert_eq!(read.for_scope(Scope::Ip, "m"), None);
    }

    #[test]
    fn limits_stand_over_others_field_by_field() {
        let read = |value| OwnLimits::read(&value).unwrap();
        let key = read(json!({
            "requests_per_minute": 60, "max_concurrent": 3,
            "models": {"qwen-*": {"budget": 5}, "llama": {"budget": 7}},
        }));
        let script = read(json!({
            "requests_per_minute": 6, "per_user": {"tokens_per_minute": 10},
            "models": {"qwen-*": {"max_concurrent": 1}},
        }));
        let both = read(json!({
            "requests_per_minute": 6, "max_concurrent": 3, "per_user": {"tokens_per_minute": 10},
            "models": {"qwen-*": {"budget": 5, "max_concurrent": 1}, "llama": {"budget": 7}},
        }));
        assert_eq!(script.over(&key), both);
        assert_eq!(key.over(&OwnLimits::default()), key);
    }

    #[test]
    fn what_cannot_be_understood_is_an_error() {
        for bad in [
            json!(7),
            json!("soon"),
            json!({"requests_per_day": 5}),
            json!({"requests_per_minute": "many"}),
            json!({"requests_per_minute": -1}),
            json!({"requests_per_minute": 1.5}),
            json!({"max_concurrent": true}),
            json!({"per_user": 5}),
            json!({"per_user": {"limit": 5}}),
            json!({"models": {"a*b": {}}}),
            json!({"requests_per_second": 0.0001, "burst_size": 200000}),
            json!({"budget_period": "hourly"}),
        ] {
            assert!(OwnLimits::read(&bad).is_err(), "{bad}");
        }
        assert_eq!(OwnLimits::read(&json!({})).unwrap(), OwnLimits::default());
    }

    #[test]
    fn own_limits_go_before_others_field_by_field() {
        let limits = |value| serde_json::from_value::<Limits>(value).unwrap();
        let rule = limits(json!({"requests_per_second": 10, "burst_size": 5, "max_concurrent": 4}));
        let own = limits(json!({"requests_per_second": 100, "max_concurrent": 0}));
        let both = own.or(&rule);
        assert_eq!(both.requests_per_second, Some(100.0));
        assert_eq!(both.burst_size, None, "the burst was another rate's");
        assert_eq!(both.max_concurrent, Some(0.0));
        let off = Limits { enabled: Some(false), ..rule };
        assert_eq!(own.or(&off), own);
        assert_eq!(Limits::default().or(&off), off);
    }
}
