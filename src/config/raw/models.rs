//! `models`, `fallback` and `detection`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    routing::{Affinity, Prefix},
    scalar::{Millis, Seconds, Switch, Word, one, protocol_schema},
};
use crate::config::choices::{Strategy, ThinkingControl, TranslationMode};

/// A model under a name of your own, or settings for one that backends serve.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// `false`: it has no routes and is not listed; its fallbacks still serve it.
    pub enabled: Switch,
    /// Its routes. Empty: the backends that serve a model of this name.
    pub routes: Vec<Route>,
    /// Models to use instead, in this order, when no backend of its routes can serve a request.
    pub fallback: Vec<String>,
    /// As in `routing`, whose value is the default.
    #[serde(alias = "load_balance")]
    pub load_balance_strategy: Option<Strategy>,
    /// As in `routing`, whose value is the default.
    pub affinity: Option<Affinity>,
    /// As in `routing`, whose value is the default.
    pub load_bound: Option<f64>,
    /// As in `routing`, whose value is the default.
    pub prefix: Option<Prefix>,
    /// What happens to what a backend's language cannot say; `lenient` by default.
    pub translation: Option<TranslationMode>,
    /// What the model can do, as far as translations have to know it.
    pub abilities: Option<Abilities>,
}

/// What a model can do. What is not given is as its preset says, or not known: then the request is
/// passed on, and the backend rejects it if it must.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Abilities {
    /// The most tokens of an answer.
    pub max_output_tokens: Option<u64>,
    /// The limit that is sent where the backend's language demands one and the client sets none.
    /// Default: 4096, or `max_output_tokens` if that is less.
    pub default_output_tokens: Option<u64>,
    /// The words for effort that it accepts, from little to much: of `none`, `minimal`, `low`,
    /// `medium`, `high`, `xhigh`, `max`.
    pub efforts: Vec<String>,
    /// How it is told to reason, in Messages.
    pub thinking: Option<ThinkingControl>,
    /// Whether it accepts `temperature`, `top_p` and `top_k`.
    pub sampling: Option<bool>,
    /// Whether it accepts images.
    pub vision: Option<bool>,
    /// Whether it can call tools.
    pub tools: Option<bool>,
    /// Whether it can call tools in Chat Completions. `false`: requests with tools go to it in
    /// Responses, if its backend has that language.
    pub chat_tools: Option<bool>,
    /// Whether it accepts a JSON Schema for its answer.
    pub schemas: Option<bool>,
    /// Whether it accepts system messages behind the first message.
    pub late_system: Option<bool>,
}

/// A route to a model.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Name or URL of a backend.
    pub backend: String,
    /// The name of the model on the backend; the client's name by default.
    pub model: Option<String>,
    /// Routes with a lower number are used first.
    #[serde(default = "one")]
    pub priority: u32,
    /// Share of the requests among the routes of the same priority, 1 to 1000.
    #[serde(default = "one")]
    pub weight: u32,
    /// Whether it is used.
    #[serde(default)]
    pub enabled: Switch,
    /// The language of the backend's API. The default is `openai`.
    #[serde(default)]
    #[schemars(schema_with = "protocol_schema")]
    pub protocol: Option<String>,
}

/// What happens to requests whose backends fail, with the keys of other gateways. `routing.retry`
/// and `routing.circuit` offer more and take precedence.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Fallback {
    /// How long a backend is ejected after a single failure; `0`: not at all.
    pub cooldown_seconds: Option<Seconds>,
    /// Retries. `0`: a backend that fails is not tried again, but other backends are.
    pub max_retries: Option<u32>,
    /// Fallback models, by model; they follow those of `models`.
    pub alias_fallback: BTreeMap<String, Vec<String>>,
    /// Whether a request is retried, after a pause, on a backend that has failed it.
    pub enable_backoff: bool,
    /// The first pause, in milliseconds or as a duration. Default: 100ms.
    pub backoff_initial_delay: Option<Millis>,
    /// The longest pause, in milliseconds or as a duration. Default: 5s.
    pub backoff_max_delay: Option<Millis>,
    /// The factor from one pause to the next. Default: 2.
    pub backoff_multiplier: Option<f64>,
    /// The random part of a pause. Default: 0.1.
    pub backoff_jitter: Option<f64>,
    /// Whether a backend is ejected only after several consecutive failures.
    pub enable_circuit_breaker: bool,
    /// The number of consecutive failures. Default: 5.
    pub circuit_failure_threshold: Option<u32>,
    /// No effect: the first successful request closes the circuit.
    pub circuit_success_threshold: Option<u32>,
    /// How long the backend is ejected then, in seconds or as a duration. Default: 60s.
    pub circuit_open_timeout: Option<Seconds>,
}

/// Which responses are failures of the backend, in addition to `routing.retry.retry_on`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Detection {
    /// Status codes: classes like `5xx`, and single ones.
    pub error_codes: Vec<Word>,
    /// Texts in the body of a response that is not 2xx; case-sensitive.
    pub error_patterns: Vec<String>,
}
