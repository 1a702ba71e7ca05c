//! `routing`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scalar::{ByteSize, SecretText, Share, Span, Switch, Word, secs};
use crate::config::choices::{CacheSalt, Strategy};

/// How a backend is chosen, and what happens when one fails.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Routing {
    /// `false` switches all further tries and the rules of `fallback` off; the strategy stays.
    pub enabled: Switch,
    /// The balancing strategy.
    #[serde(alias = "load_balance")]
    pub load_balance_strategy: Strategy,
    /// What binds requests to one backend.
    pub affinity: Option<Affinity>,
    /// How far above the average of its pool a backend may be loaded before affinity, of sessions
    /// or prefixes, yields.
    pub load_bound: f64,
    /// The memory of `prefix_affinity`.
    pub prefix: Prefix,
    /// How often a client that waits for the first token of a stream is sent a comment, so that
    /// nothing on the way takes the connection for dead. `0`: never.
    pub keep_alive: Span,
    /// With `least_load`: how the engines' load is read.
    pub load: Load,
    /// A second try at the same time, for short requests that are not streamed. Without this
    /// section: never.
    pub hedge: Option<Hedge>,
    /// Whose requests share the engines' prefix caches.
    pub cache_salt: CacheSalt,
    /// What salts are made with; the same in all replicas.
    #[schemars(with = "Option<String>")]
    pub cache_salt_secret: Option<SecretText>,
    /// A file that holds the secret.
    pub cache_salt_secret_file: Option<String>,
    /// Requests whose way is remembered for `/admin/v1/explain`; `0`: none.
    pub explain: usize,
    /// When a backend that fails is left alone.
    pub circuit: Circuit,
    /// Trying again. Without this section a request goes on to other backends, to each once and
    /// without a pause.
    pub retry: Option<Retry>,
    /// Rules by backend. The first whose models match holds.
    pub fallback: Vec<Rule>,
}

impl Default for Routing {
    fn default() -> Self {
        Self {
            enabled: Switch(true),
            load_balance_strategy: Strategy::default(),
            affinity: None,
            load_bound: 1.25,
            prefix: Prefix::default(),
            keep_alive: secs(0),
            load: Load::default(),
            hedge: None,
            cache_salt: CacheSalt::default(),
            cache_salt_secret: None,
            cache_salt_secret_file: None,
            explain: 1000,
            circuit: Circuit::default(),
            retry: None,
            fallback: Vec::new(),
        }
    }
}

/// What binds requests to one backend.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Affinity {
    /// What is compared.
    pub by: AffinityBy,
    /// With `by: header`: the name of the field, `X-Session-ID` without it.
    pub header: Option<String>,
}

/// What is compared to bind requests to one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AffinityBy {
    /// A header field of the request.
    #[default]
    Header,
    /// The caller's key.
    Key,
    /// The caller's user.
    User,
}

/// The memory of `prefix_affinity`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Prefix {
    /// Conversations are compared in blocks of this size.
    pub block: ByteSize,
    /// Blocks of a conversation that are looked at, from its beginning.
    pub blocks: usize,
    /// Blocks that each pool remembers.
    pub remembered: usize,
}

impl Default for Prefix {
    fn default() -> Self {
        Self { block: ByteSize(512), blocks: 128, remembered: 1 << 16 }
    }
}

/// How the engines' load is read.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Load {
    /// Time from one reading to the next.
    pub interval: Span,
    /// How long a reading may take.
    pub timeout: Span,
    /// Path of the metrics, below the path prefix of the backend but outside of a `/v1` at its
    /// end.
    pub path: String,
    /// Also from the answers of vLLM (`endpoint-load-metrics`), which are asked for it.
    pub from_answers: bool,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            interval: secs(2),
            timeout: secs(1),
            path: "/metrics".to_owned(),
            from_answers: false,
        }
    }
}

/// A second try at the same time; the one that answers later is broken off.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Hedge {
    /// Whether there is a second try at all.
    pub enabled: Switch,
    /// How long the first is waited for.
    pub delay: Span,
    /// The largest body of a short request.
    pub max_body: ByteSize,
    /// The most tokens that a short request asks for; one that does not say is not short.
    pub max_tokens: u64,
}

impl Default for Hedge {
    fn default() -> Self {
        Self {
            enabled: Switch(true),
            delay: secs(2),
            max_body: ByteSize(16 << 10),
            max_tokens: 256,
        }
    }
}

/// When a backend that fails is left alone: for each backend and model. A model that is not found,
/// a request that is refused and an engine that is full are no failures.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Circuit {
    /// Whether one is left alone at all; it is by default.
    pub enabled: Option<bool>,
    /// Failures in a row that suffice: 5.
    pub consecutive_failures: Option<u32>,
    /// Failures in relation to requests that suffice: `50%` or `0.5`.
    pub failure_rate: Option<Share>,
    /// Requests within the window below which the rate says nothing: 20.
    pub min_requests: Option<u32>,
    /// The window of the rate: 30s.
    pub window: Option<Span>,
    /// How long a backend is left alone; then one request tries it: 30s.
    pub cooldown: Option<Span>,
    /// The part of a pool that is left alone at the same time at most: `100%`.
    pub max_ejected: Option<Share>,
    /// Whether a backend that nobody can stand in for is used all the same: true, but with
    /// `fallback.cooldown_seconds` or `enable_circuit_breaker`.
    pub spare_last: Option<Switch>,
}

/// Trying again, until content has gone to the client.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// `false`: each request is tried once, also if no connection could be made.
    pub enabled: Switch,
    /// Tries after the first. 3, or what `fallback.max_retries` says.
    pub max_retries: Option<u32>,
    /// The pause before a backend is tried again that has failed the request. Other backends are
    /// tried first, without a pause.
    pub initial_wait: Span,
    /// The longest pause.
    pub max_wait: Span,
    /// Each pause in relation to the one before it.
    pub multiplier: f64,
    /// How much of a pause is left to chance: 0.2 is a fifth more or less.
    pub jitter: f64,
    /// Which failures are tried again: `connect_failure`, `reset`, `timeout`, classes of statuses
    /// like `5xx`, and single ones.
    pub retry_on: Option<Vec<Word>>,
    /// What retries may add to the requests of a pool.
    pub budget: Budget,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            enabled: Switch(true),
            max_retries: None,
            initial_wait: secs(1),
            max_wait: secs(10),
            multiplier: 2.0,
            jitter: 0.2,
            retry_on: None,
            budget: Budget::default(),
        }
    }
}

/// What retries may add to the requests of a pool, so that backends that fail are not flooded.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Budget {
    /// Retries in relation to requests: 0.2 is one for five.
    pub ratio: f64,
    /// Retries a second that are free in any case.
    pub min_per_second: f64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { ratio: 0.2, min_per_second: 10.0 }
    }
}

/// Which backends one model after the other is sent to.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    /// Models it holds for, exact names or a prefix with `*` at the end; none: every model, each
    /// with those of the backends that serve it.
    pub models: Vec<String>,
    /// The backend that is asked first, by name or URL. Without it: those that serve the model.
    pub primary: Option<String>,
    /// The backends that are asked then, in this order.
    pub fallback: Vec<String>,
}
