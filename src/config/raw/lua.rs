//! `lua`: what scripts reach beyond their own values.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scalar::{ByteSize, Span, secs};

/// What scripts reach beyond their own values.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LuaLibrary {
    /// The names of environment variables that scripts may read, as `env.NAME`.
    pub env: Vec<String>,
    /// The folder of the modules that scripts may `require`; `lua/modules` beside this file by default,
    /// if it is there.
    pub modules: Option<String>,
    /// Where `store` keeps its values.
    pub store: LuaStore,
    /// Where `http` may send requests.
    pub http: LuaHttp,
}

/// Where `store` keeps its values.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LuaStore {
    /// The kind of store.
    #[serde(rename = "type")]
    pub kind: LuaStoreKind,
    /// With `type: redis`: the name of one of `storage.caches`.
    pub storage: String,
    /// With `type: redis`: the prefix of all keys.
    pub prefix: String,
    /// With `type: memory`: the number of values. With more, the least used ones are dropped.
    pub max_entries: usize,
    /// The largest value, as JSON text.
    pub max_value: ByteSize,
    /// How long a value is kept that is set without a time to live.
    pub default_ttl: Span,
    /// With `type: redis`: how long a call may take.
    pub timeout: Span,
}

impl Default for LuaStore {
    fn default() -> Self {
        Self {
            kind: LuaStoreKind::Memory,
            storage: "default".to_owned(),
            prefix: "llmproxy:lua:".to_owned(),
            max_entries: 10_000,
            max_value: ByteSize(64 << 10),
            default_ttl: secs(3600),
            timeout: Span(Duration::from_millis(200)),
        }
    }
}

/// Kinds of stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LuaStoreKind {
    /// In each replica separately, until the process ends.
    Memory,
    /// In Redis, for all replicas together.
    Redis,
}

/// Where `http` may send requests.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LuaHttp {
    /// The servers: `https://host`, `http://host:8080`, or `https://*.example.com` for all hosts with
    /// one more label. Redirects are not followed.
    pub hosts: Vec<String>,
    /// How long a request may take.
    pub timeout: Span,
    /// The largest body of an answer.
    pub max_response: ByteSize,
    /// Requests of all scripts at the same time; others wait within their timeout.
    pub max_concurrent: usize,
}

impl Default for LuaHttp {
    fn default() -> Self {
        Self {
            hosts: Vec::new(),
            timeout: secs(1),
            max_response: ByteSize(1 << 20),
            max_concurrent: 32,
        }
    }
}
