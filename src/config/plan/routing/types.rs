//! The parts of a routing plan.

use std::{sync::Arc, time::Duration};

use http::HeaderName;

use crate::{
    base::{ModelPattern, Secret},
    config::choices::{CacheSalt, Strategy},
    dialect::hub::ModelFacts,
    store::redis,
};

/// Routing, retries and ejection.
#[derive(Clone, Debug, Default)]
pub struct RoutingPlan {
    /// Models under names of the operator, in the order of the file.
    pub models: Vec<ModelPlan>,
    /// `routing.fallback`: rules by backend. The first rule whose patterns match a model applies.
    pub rules: Vec<RulePlan>,
    /// The default of models.
    pub balance: BalancePlan,
    pub retry: RetryPlan,
    /// Which responses are failures of the backend.
    pub detection: DetectionPlan,
    /// When a failing backend is ejected.
    pub circuit: CircuitPlan,
    /// How often a comment is sent to a client that waits for its first token; `None`: never.
    pub keep_alive: Option<Duration>,
    /// Reading the load of the engines.
    pub load: LoadPlan,
    /// `None`: no hedging.
    pub hedge: Option<HedgePlan>,
    /// Which requests share the prefix caches of the engines.
    pub cache_salt: CacheSalt,
    /// The secret that salts are derived from.
    pub cache_salt_secret: Option<Secret>,
    /// Where all replicas find which backend has stored what; `None`: each knows its own.
    pub stored_responses: Option<StoredPlan>,
    /// The number of requests that `/admin/v1/explain` remembers.
    pub explain: usize,
}

impl RoutingPlan {
    /// What the configuration says of a model: its exact entry, or that of the longest prefix.
    pub fn translation(&self, model: &str) -> Option<&TranslationPlan> {
        let rank = |pattern: &ModelPattern| match pattern {
            ModelPattern::Exact(_) => usize::MAX,
            ModelPattern::Prefix(prefix) => prefix.len(),
        };
        let known = self.models.iter().filter(|entry| entry.name.matches(model));
        known.max_by_key(|entry| rank(&entry.name)).map(|entry| &entry.translation)
    }
}

/// Where it is remembered which backend has stored which response.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredPlan {
    pub server: redis::Settings,
    /// The prefix of the names of all keys.
    pub prefix: String,
    /// How long an object is remembered.
    pub ttl: Duration,
}

/// One entry of `models`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelPlan {
    /// The name or prefix by which clients ask for it.
    pub name: ModelPattern,
    /// A disabled model still has its fallbacks.
    pub enabled: bool,
    /// `None`: the backends that serve a model of this name. Empty if it is disabled, or if all of
    /// its backends are.
    pub routes: Option<Vec<RoutePlan>>,
    /// Fallback models, in order. Free of cycles.
    pub fallback: Vec<String>,
    pub balance: BalancePlan,
    pub translation: TranslationPlan,
}

/// What translations have to know of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TranslationPlan {
    /// Nothing is dropped.
    pub strict: bool,
    /// What the configuration says of it.
    pub facts: ModelFacts,
}

/// A route to a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutePlan {
    /// Name of a backend of the file.
    pub backend: String,
    /// The name of the model on the backend; `None`: the client's name.
    pub model: Option<Arc<str>>,
    /// Lower is first.
    pub priority: u32,
    /// Share among those of the same priority.
    pub weight: u32,
}

/// One rule of `routing.fallback`; backends by name. It names at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RulePlan {
    /// Models that it applies to; empty: all.
    pub models: Vec<ModelPattern>,
    /// The first backend; `None`: those that serve the model.
    pub primary: Option<String>,
    /// The next backends, in order.
    pub fallback: Vec<String>,
}

/// How one pool balances.
#[derive(Clone, Debug, PartialEq)]
pub struct BalancePlan {
    pub strategy: Strategy,
    /// `None`: no session affinity.
    pub affinity: Option<Affinity>,
    /// The load of a backend, relative to the average of its pool, above which affinity is ignored.
    /// At least 1.
    pub bound: f64,
    /// Blocks of `prefix_affinity`.
    pub prefix: PrefixPlan,
}

impl Default for BalancePlan {
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            affinity: None,
            bound: 1.25,
            prefix: PrefixPlan::default(),
        }
    }
}

/// What binds requests to one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Affinity {
    /// The value of a request header.
    Header(HeaderName),
    /// The caller's key.
    Key,
    /// The caller's user.
    User,
}

/// Blocks of `prefix_affinity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixPlan {
    /// Bytes of a block.
    pub block: usize,
    /// Blocks of a conversation that are compared.
    pub blocks: usize,
    /// Blocks that a pool remembers.
    pub remembered: usize,
}

impl Default for PrefixPlan {
    fn default() -> Self {
        Self { block: 512, blocks: 128, remembered: 1 << 16 }
    }
}

/// Retries.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPlan {
    /// 0: no retries.
    pub max_retries: u32,
    /// Pauses before a retry on a backend that has failed the request; `None`: no such retry.
    pub again: Option<Backoff>,
    /// Which failures are retried.
    pub on: RetryOn,
    /// The retry budget of a pool.
    pub budget: BudgetPlan,
}

impl RetryPlan {
    /// A plan without retries. The status codes stay: they also select the responses that count
    /// against a backend.
    pub(super) fn off(self) -> Self {
        let on = RetryOn { connect_failure: false, reset: false, timeout: false, ..self.on };
        Self { max_retries: 0, again: None, on, ..self }
    }
}

impl Default for RetryPlan {
    fn default() -> Self {
        Self { max_retries: 3, again: None, on: RetryOn::default(), budget: BudgetPlan::default() }
    }
}

/// Pauses that grow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// The first.
    pub initial: Duration,
    /// The longest.
    pub max: Duration,
    /// The factor from one pause to the next. At least 1.
    pub multiplier: f64,
    /// The random part of a pause, 0 to 1: 0.2 is up to a fifth more or less.
    pub jitter: f64,
}

/// Which failures are retried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryOn {
    /// A connection that cannot be made.
    pub connect_failure: bool,
    /// A connection that breaks before content was sent to the client.
    pub reset: bool,
    /// No first token in time.
    pub timeout: bool,
    pub statuses: Statuses,
}

impl Default for RetryOn {
    fn default() -> Self {
        let statuses = Statuses { codes: vec![408, 429], classes: vec![5] };
        Self { connect_failure: true, reset: true, timeout: true, statuses }
    }
}

/// A set of status codes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statuses {
    /// Single ones.
    pub codes: Vec<u16>,
    /// `5` for all from 500 to 599.
    pub classes: Vec<u16>,
}

impl Statuses {
    /// Whether the set has a status code.
    pub fn contains(&self, status: u16) -> bool {
        self.codes.contains(&status) || self.classes.contains(&(status / 100))
    }
}

/// The retry budget of a pool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BudgetPlan {
    /// Retries relative to requests: 0.2 is one retry for five requests.
    pub ratio: f64,
    /// Retries per second that are allowed in any case.
    pub min_per_second: f64,
}

impl Default for BudgetPlan {
    fn default() -> Self {
        Self { ratio: 0.2, min_per_second: 10.0 }
    }
}

/// Which responses are failures of the backend, in addition to [`RetryOn`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DetectionPlan {
    pub statuses: Statuses,
    /// Texts in the body of a response that is not 2xx.
    pub patterns: Vec<String>,
}

/// When a failing backend is ejected, for each backend and model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CircuitPlan {
    /// Consecutive failures; `None`: no ejection.
    pub consecutive: Option<u32>,
    /// The share of failed requests in the window, 0 to 1.
    pub rate: f64,
    /// The number of requests below which the rate is ignored.
    pub min_requests: u32,
    pub window: Duration,
    /// How long a backend is ejected.
    pub cooldown: Duration,
    /// The largest share of a pool that may be ejected at once, 0 to 1.
    pub max_ejected: f64,
    /// Whether to eject also a backend without an alternative: its clients then receive 503 with
    /// `Retry-After` instead of its own response.
    pub lone: bool,
}

impl Default for CircuitPlan {
    fn default() -> Self {
        Self {
            consecutive: Some(5),
            rate: 0.5,
            min_requests: 20,
            window: Duration::from_secs(30),
            cooldown: Duration::from_secs(30),
            max_ejected: 0.5,
            lone: false,
        }
    }
}

/// Reading the load of the engines for `least_load`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadPlan {
    /// Time between two readings.
    pub interval: Duration,
    /// How long one may take.
    pub timeout: Duration,
    /// Path of the metrics, relative to the root of the backend's URL.
    pub path: String,
    /// Whether to read it also from vLLM's responses (`endpoint-load-metrics`).
    pub from_answers: bool,
}

impl Default for LoadPlan {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            path: "/metrics".to_owned(),
            from_answers: false,
        }
    }
}

/// Hedging: a second, concurrent attempt for short requests that are not streamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HedgePlan {
    /// How long the first attempt may take before the second one starts.
    pub delay: Duration,
    /// The largest body of a short request, in bytes.
    pub max_body: usize,
    /// The largest token limit of a short request; a request without a token limit is not short.
    pub max_tokens: u64,
}
