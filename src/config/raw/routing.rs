//! `routing`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scalar::{ByteSize, SecretText, Share, Span, Switch, Word, secs};
use crate::config::choices::{CacheSalt, Strategy};

/// How a backend is chosen, and what happens when one fails.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Routing {
    /// `false` disables retries and the rules of `fallback`; the strategy still applies.
    pub enabled: Switch,
    /// The balancing strategy.
    #[serde(alias = "load_balance")]
    pub load_balance_strategy: Strategy,
    /// Session affinity: what binds requests to one backend.
    pub affinity: Option<Affinity>,
    /// The load of a backend, relative to the average of its pool, above which session and prefix
    /// affinity are ignored.
    pub load_bound: f64,
    /// Settings of `prefix_affinity`.
    pub prefix: Prefix,
    /// How often a comment is sent to a client that waits for the first token of a stream, so that
    /// proxies on the way do not close the connection. `0`: never.
    pub keep_alive: Span,
    /// With `least_load`: how the load of the engines is read.
    pub load: Load,
    /// Hedging: a second, concurrent attempt for short requests that are not streamed. Without this
    /// section it is off.
    pub hedge: Option<Hedge>,
    /// Which requests share the prefix caches of the engines.
    pub cache_salt: CacheSalt,
    /// The secret that salts are derived from; it must be the same in all replicas.
    #[schemars(with = "Option<String>")]
    pub cache_salt_secret: Option<SecretText>,
    /// A file that holds the secret.
    pub cache_salt_secret_file: Option<String>,
    /// Where it is remembered which backend has stored which response and conversation. Without this
    /// section each process knows those that it has seen since it was started.
    pub stored_responses: Option<StoredResponses>,
    /// The number of recent requests whose routing `/admin/v1/explain` can show; `0`: none.
    pub explain: usize,
    /// When a failing backend is ejected.
    pub circuit: Circuit,
    /// Retries. Without this section a failed request is tried once on each other backend, without
    /// a pause.
    pub retry: Option<Retry>,
    /// Fallback rules by backend. The first rule whose models match applies.
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
            stored_responses: None,
            explain: 1000,
            circuit: Circuit::default(),
            retry: None,
            fallback: Vec::new(),
        }
    }
}

/// Where it is remembered which backend has stored which response.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StoredResponses {
    /// The name of an entry of `storage.caches`.
    pub storage: String,
    /// The prefix of the names of all keys.
    #[serde(default = "stored_prefix")]
    pub key_prefix: String,
    /// How long an object is remembered after it was last used in a request that stores something.
    #[serde(default = "stored_ttl")]
    pub ttl: Span,
}

fn stored_prefix() -> String {
    "llmproxy:stored:".to_owned()
}

/// As long as OpenAI keeps responses.
fn stored_ttl() -> Span {
    secs(30 * 24 * 3600)
}

/// Session affinity: what binds requests to one backend.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Affinity {
    /// The property of a request that is compared.
    pub by: AffinityBy,
    /// With `by: header`: the name of the field; `X-Session-ID` by default.
    pub header: Option<String>,
}

/// The property of a request that binds it to a backend.
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

/// Settings of `prefix_affinity`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Prefix {
    /// The size of the blocks in which conversations are compared.
    pub block: ByteSize,
    /// The number of blocks of a conversation that are compared, from its beginning.
    pub blocks: usize,
    /// The number of blocks that each pool remembers.
    pub remembered: usize,
}

impl Default for Prefix {
    fn default() -> Self {
        Self { block: ByteSize(512), blocks: 128, remembered: 1 << 16 }
    }
}

/// How the load of the engines is read.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Load {
    /// Time between two readings.
    pub interval: Span,
    /// How long a reading may take.
    pub timeout: Span,
    /// Path of the metrics, relative to the path of the backend's URL without a `/v1` at its end.
    pub path: String,
    /// Whether to read the load from vLLM's responses as well, by requesting
    /// `endpoint-load-metrics`.
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

/// Hedging: a second, concurrent attempt; the attempt that answers later is cancelled.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Hedge {
    /// Whether hedging is on.
    pub enabled: Switch,
    /// How long the first attempt may take before the second one starts.
    pub delay: Span,
    /// The largest body of a short request.
    pub max_body: ByteSize,
    /// The largest token limit of a short request; a request without a token limit is not short.
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

/// When a failing backend is ejected, for each backend and model separately. An unknown model, a
/// rejected request and a full engine are not failures.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Circuit {
    /// Whether failing backends are ejected. Default: true.
    pub enabled: Option<bool>,
    /// Consecutive failures that eject a backend. Default: 5.
    pub consecutive_failures: Option<u32>,
    /// The share of failed requests that ejects a backend, like `50%` or `0.5`. Default: `50%`.
    pub failure_rate: Option<Share>,
    /// The number of requests in the window below which the rate is ignored. Default: 20.
    pub min_requests: Option<u32>,
    /// The window of the rate. Default: 30s.
    pub window: Option<Span>,
    /// How long a backend is ejected; after that a single request probes it. Default: 30s.
    pub cooldown: Option<Span>,
    /// The largest share of a pool that may be ejected at the same time. Default: `50%`.
    pub max_ejected: Option<Share>,
    /// Whether a backend without an alternative is used despite its failures. Default: true, except
    /// with `fallback.cooldown_seconds` or `fallback.enable_circuit_breaker`.
    pub spare_last: Option<Switch>,
}

/// Retries, which are possible until content has been sent to the client.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// `false`: each request is tried once, even if the connection fails.
    pub enabled: Switch,
    /// The number of retries. Default: `fallback.max_retries`, or 3.
    pub max_retries: Option<u32>,
    /// The first pause before a request is retried on a backend that has failed it. Other backends
    /// are tried first, without a pause.
    pub initial_wait: Span,
    /// The longest pause.
    pub max_wait: Span,
    /// The factor from one pause to the next.
    pub multiplier: f64,
    /// The random part of a pause: 0.2 is up to a fifth more or less.
    pub jitter: f64,
    /// The failures that are retried: `connect_failure`, `reset`, `timeout`, classes of status
    /// codes like `5xx`, and single status codes.
    pub retry_on: Option<Vec<Word>>,
    /// The retry budget of a pool.
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

/// The retry budget of a pool: it protects failing backends from a flood of retries.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Budget {
    /// Retries relative to requests: 0.2 is one retry for five requests.
    pub ratio: f64,
    /// Retries per second that are allowed in any case.
    pub min_per_second: f64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { ratio: 0.2, min_per_second: 10.0 }
    }
}

/// A fallback rule: the order of backends for models.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    /// The models that it applies to: exact names, or a prefix with `*` at the end. Empty: every
    /// model, with those of the backends that serve it.
    pub models: Vec<String>,
    /// The first backend, by name or URL. By default: the backends that serve the model.
    pub primary: Option<String>,
    /// The next backends, in this order.
    pub fallback: Vec<String>,
}
