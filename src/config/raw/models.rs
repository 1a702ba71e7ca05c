//! `models`, `fallback` and `detection`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    routing::{Affinity, Prefix},
    scalar::{Millis, Seconds, Switch, Word, one},
};
use crate::config::choices::Strategy;

/// A model by a name of its own, or how one is treated that backends serve.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// `false`: it has no routes of its own and is not listed; its fallbacks still serve it.
    pub enabled: Switch,
    /// Where it leads. Without any: to the backends that serve a model of this name.
    pub routes: Vec<Route>,
    /// Models to go on with when no route has a backend that answers, in this order.
    pub fallback: Vec<String>,
    /// As in `routing`, whose value holds without it.
    #[serde(alias = "load_balance")]
    pub load_balance_strategy: Option<Strategy>,
    /// As in `routing`, whose value holds without it.
    pub affinity: Option<Affinity>,
    /// As in `routing`, whose value holds without it.
    pub load_bound: Option<f64>,
    /// As in `routing`, whose value holds without it.
    pub prefix: Option<Prefix>,
}

/// One way to a model.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Name or URL of a backend.
    pub backend: String,
    /// The model's name there. Without it: as the client says.
    pub model: Option<String>,
    /// Those with the lowest number are asked first.
    #[serde(default = "one")]
    pub priority: u32,
    /// Share of the requests among those of the same priority, 1 to 1000.
    #[serde(default = "one")]
    pub weight: u32,
    /// Whether it is used.
    #[serde(default)]
    pub enabled: Switch,
    /// Language of the backend's API; `openai` without this.
    #[serde(default)]
    #[schemars(schema_with = "super::protocol_schema")]
    pub protocol: Option<String>,
}

/// What becomes of requests whose backends fail, in the words of other gateways. `routing.retry`
/// and `routing.circuit` say more, and go before it.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Fallback {
    /// How long a backend is left alone after a single failure; `0`: not at all.
    pub cooldown_seconds: Option<Seconds>,
    /// Tries after the first. `0`: a backend that fails is not tried again, others are.
    pub max_retries: Option<u32>,
    /// Models to go on with, by model; after those of `models`.
    pub alias_fallback: BTreeMap<String, Vec<String>>,
    /// Whether a backend that has failed a request is tried again with it, after a pause.
    pub enable_backoff: bool,
    /// The first pause, in milliseconds or as a duration: 100ms.
    pub backoff_initial_delay: Option<Millis>,
    /// The longest pause, in milliseconds or as a duration: 5s.
    pub backoff_max_delay: Option<Millis>,
    /// Each pause in relation to the one before it: 2.
    pub backoff_multiplier: Option<f64>,
    /// How much of a pause is left to chance: 0.1.
    pub backoff_jitter: Option<f64>,
    /// Several failures in a row instead of one, until a backend is left alone.
    pub enable_circuit_breaker: bool,
    /// How many: 5.
    pub circuit_failure_threshold: Option<u32>,
    /// Means nothing: the first request that succeeds closes the circuit.
    pub circuit_success_threshold: Option<u32>,
    /// How long it is left alone then, in seconds or as a duration: 60s.
    pub circuit_open_timeout: Option<Seconds>,
}

/// Which answers are failures of the backend, beyond those of `routing.retry.retry_on`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Detection {
    /// Statuses: classes like `5xx`, and single ones.
    pub error_codes: Vec<Word>,
    /// Texts in the body of an answer that is no success; capital letters count.
    pub error_patterns: Vec<String>,
}
