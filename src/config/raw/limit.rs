//! `rate_limit`.

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scalar::{Span, Switch, secs};
use crate::{base::limits::Limits, config::choices::OnRedisError};

/// How much one may call. All rules that match a request must agree.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimit {
    /// Whether anything is limited, by these rules or by limits of a key's own. On unless it is
    /// set to `false`. Quotas and balances of keys hold in any case.
    pub enabled: Switch,
    /// Whether answers tell in header fields how the limits stand.
    pub headers: Switch,
    /// Where it is counted.
    pub storage: LimitStorage,
    /// With `storage: redis`: the name of one of `storage.caches`.
    pub redis: String,
    /// With `storage: redis`: how often Redis is asked.
    pub mode: LimitMode,
    /// With `mode: leased`: the part of a limit that a replica takes ahead.
    pub lease_share: f64,
    /// With `mode: leased`: how long a replica keeps what it took and does not use.
    pub lease_lifetime: Span,
    /// With `storage: redis`: what happens while Redis does not answer.
    pub on_redis_error: OnRedisError,
    /// With `storage: redis`: how long a decision may take.
    pub redis_timeout: Span,
    /// With `storage: redis`: after this the slots of a replica that was killed are free again.
    pub hold_ttl: Span,
    /// With `storage: redis`: how all names in Redis begin.
    pub key_prefix: String,
    /// All requests together.
    pub global: Limits,
    /// Each key. Callers that show none are told apart by their addresses.
    pub per_key: Limits,
    /// Each address; of IPv6 each /64 network.
    pub per_ip: Limits,
    /// Each user; a key that has none is one of its own.
    pub per_user: Limits,
    /// Each team.
    pub per_team: Limits,
    /// Each model.
    pub per_model: Limits,
    /// Each key with each model.
    pub per_key_model: Limits,
    /// Single models, exact names or a prefix with `*` at the end: in place of `per_model`, field
    /// by field.
    pub models: BTreeMap<String, Limits>,
    /// Each key with single models: in place of `per_key_model`, field by field.
    pub key_models: BTreeMap<String, Limits>,
    /// What becomes of requests that find no place under `max_concurrent`.
    pub queue: Queue,
    /// What a million tokens cost, by model: exact names or a prefix with `*` at the end.
    pub prices: BTreeMap<String, Price>,
    /// Limits that are counted in memory at a time. Each takes up to 64 bytes.
    pub max_buckets: usize,
    /// The SQLite file of what was spent of budgets and of the quotas of static keys, if that is
    /// not counted in Redis; `limits.db` in `data_dir` without this. Made when it is needed.
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
    /// In each replica for itself.
    Memory,
    /// In Redis, for all replicas together.
    Redis,
}

/// How often Redis is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LimitMode {
    /// Once for each request: the limit holds for all replicas together.
    Exact,
    /// When a replica has used up the share that it took ahead.
    Leased,
}

/// What becomes of requests that find no place under `max_concurrent`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Queue {
    /// Requests that may wait in this process; `0`: they are refused at once.
    pub max_queue_size: usize,
    /// How long one waits before it is refused.
    pub queue_timeout: Span,
    /// The status of a refusal: 429 or 503.
    pub status: u16,
    /// While a request for a stream waits, it is sent a comment this often, so that nothing on the
    /// way takes the connection for dead; its status is then always 200. `0`: never.
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

/// What a million tokens cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Of prompts.
    pub input: f64,
    /// Of prompts, those that the engine had in its cache; the same as `input` without it.
    pub cached_input: Option<f64>,
    /// Of answers.
    pub output: f64,
}
