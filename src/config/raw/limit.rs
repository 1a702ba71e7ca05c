//! `rate_limit`.

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scalar::{Span, Switch, secs};
use crate::{base::limits::Limits, config::choices::OnRedisError};

/// Limits. A request must satisfy all rules that match it.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimit {
    /// Whether limits apply, those of these rules and per-key limits. Quotas and balances of keys
    /// apply in any case.
    pub enabled: Switch,
    /// Whether responses have the rate limit header fields.
    pub headers: Switch,
    /// Where limits are counted.
    pub storage: LimitStorage,
    /// With `storage: redis`: the name of one of `storage.caches`.
    pub redis: String,
    /// With `storage: redis`: how often Redis is queried.
    pub mode: LimitMode,
    /// With `mode: leased`: the share of a limit that a replica leases at a time.
    pub lease_share: f64,
    /// With `mode: leased`: how long a replica keeps an unused lease.
    pub lease_lifetime: Span,
    /// With `storage: redis`: what happens while Redis does not respond.
    pub on_redis_error: OnRedisError,
    /// With `storage: redis`: how long a decision may take.
    pub redis_timeout: Span,
    /// With `storage: redis`: the time after which the slots of a killed replica are released.
    pub hold_ttl: Span,
    /// With `storage: redis`: the prefix of all names in Redis.
    pub key_prefix: String,
    /// All requests together.
    pub global: Limits,
    /// Each key. Requests without a key are distinguished by their address.
    pub per_key: Limits,
    /// Each address; for IPv6 each /64 network.
    pub per_ip: Limits,
    /// Each user; a key without a user is a user of its own.
    pub per_user: Limits,
    /// Each team.
    pub per_team: Limits,
    /// Each model.
    pub per_model: Limits,
    /// Each combination of key and model.
    pub per_key_model: Limits,
    /// Limits of single models (an exact name, or a prefix with `*` at the end), which override
    /// `per_model` field by field.
    pub models: BTreeMap<String, Limits>,
    /// Limits of each key with single models, which override `per_key_model` field by field.
    pub key_models: BTreeMap<String, Limits>,
    /// What happens to requests above `max_concurrent`.
    pub queue: Queue,
    /// The price of a million tokens, by model: an exact name, or a prefix with `*` at the end.
    pub prices: BTreeMap<String, Price>,
    /// The number of counters in memory. Each takes up to 64 bytes.
    pub max_buckets: usize,
    /// The SQLite file for spent budgets and used quotas of static keys, if they are not counted in
    /// Redis; `limits.db` in `data_dir` by default. It is created when it is needed.
    pub db_path: Option<String>,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self {
            enabled: Switch(true),
            headers: Switch(true),
            storage: LimitStorage::Memory,
            redis: "default".to_owned(),
            mode: LimitMode::Exact,
            lease_share: 0.1,
            lease_lifetime: secs(1),
            on_redis_error: OnRedisError::Local,
            redis_timeout: Span(Duration::from_millis(250)),
            hold_ttl: secs(30),
            key_prefix: "llmproxy:limit:".to_owned(),
            global: Limits::default(),
            per_key: Limits::default(),
            per_ip: Limits::default(),
            per_user: Limits::default(),
            per_team: Limits::default(),
            per_model: Limits::default(),
            per_key_model: Limits::default(),
            models: BTreeMap::new(),
            key_models: BTreeMap::new(),
            queue: Queue::default(),
            prices: BTreeMap::new(),
            max_buckets: 1_000_000,
            db_path: None,
        }
    }
}

/// Where limits are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LimitStorage {
    /// In each replica separately.
    Memory,
    /// In Redis, for all replicas together.
    Redis,
}

/// How often Redis is queried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LimitMode {
    /// For each request: the limit is exact over all replicas together.
    Exact,
    /// When a replica has used up its lease.
    Leased,
}

/// What happens to requests above `max_concurrent`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Queue {
    /// The number of requests that may wait in this process; `0`: they are rejected at once.
    pub max_queue_size: usize,
    /// How long a request waits before it is rejected.
    pub queue_timeout: Span,
    /// The status of the rejection: 429 or 503.
    pub status: u16,
    /// How often a comment is sent to a waiting streaming request, so that proxies on the way do
    /// not close the connection; the status of such a response is always 200. `0`: never.
    pub keep_alive: Span,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            max_queue_size: 0,
            queue_timeout: secs(30),
            status: 429,
            keep_alive: Span(Duration::ZERO),
        }
    }
}

/// The price of a million tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Prompt tokens.
    pub input: f64,
    /// Prompt tokens from the engine's cache; the price of `input` by default.
    pub cached_input: Option<f64>,
    /// Prompt tokens that are written to a cache; the price of `input` by default.
    pub cache_write: Option<f64>,
    /// Prompt tokens that are audio; the price of `input` by default.
    pub audio_input: Option<f64>,
    /// Completion tokens.
    pub output: f64,
    /// Completion tokens that are reasoning; the price of `output` by default.
    pub reasoning: Option<f64>,
    /// Completion tokens that are audio; the price of `output` by default.
    pub audio_output: Option<f64>,
}
