//! Values that a key chooses among. They mean the same in the file and in the plan, so that both
//! use one type; what is written in the file is its serde name.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which backends must be healthy for `/ready` to be 200.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ready {
    /// One for every model.
    #[default]
    EveryModel,
    /// One at all, so that a model without any does not take the others out of service.
    AnyBackend,
}

/// The form of the gateway's own errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorFormat {
    /// As the API of the path has them, so that its SDKs raise their own errors.
    #[default]
    Openai,
    /// `{"error": "...", "code": 403}`, as version 0.3 had it; `code` is the HTTP status.
    Simple,
}

/// LLM servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// vLLM.
    #[default]
    Vllm,
    /// SGLang.
    Sglang,
    /// Text Generation Inference.
    Tgi,
    /// llama.cpp.
    #[serde(alias = "llama.cpp")]
    Llamacpp,
    /// Any other: nothing is added to its requests.
    Other,
}

/// How to ask an engine for the token counts of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StreamUsage {
    /// In every chunk (`include_usage` and vLLM's `continuous_usage_stats`), so that a stream
    /// that is broken off is counted to the token.
    #[default]
    Continuous,
    /// At the end (`include_usage` only): for servers that refuse unknown options, like OpenAI's.
    Final,
    /// Never: requests pass unchanged, and a stream is counted only if its client asked.
    Off,
}

/// Log levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// How several providers go together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The first provider that knows the key decides.
    #[default]
    FirstMatch,
    /// Every provider must know the key and allow it.
    All,
}

/// How several sources go together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiscoveryMode {
    /// `backends` and all sources together.
    #[default]
    Merge,
    /// The first source that tells of any; `backends` if there is none.
    First,
}

/// What becomes of a backend whose name leads to several addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Addresses {
    /// Each is a server of its own, with its own share, health and connections.
    Each,
    /// They are one server: one of them is used for as long as the name leads there.
    One,
}

/// What happens while Redis does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnRedisError {
    /// Requests pass without limits.
    Allow,
    /// Requests are answered 503.
    Deny,
    /// Each replica counts for itself.
    Local,
}

/// Balancing strategies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// By turns, in proportion to the weights.
    #[default]
    #[serde(alias = "weighted")]
    RoundRobin,
    /// The backend with the fewest requests in flight.
    LeastConnections,
    /// The backend whose first tokens have come soonest of late; the others are probed now and
    /// then.
    LatencyBased,
    /// By chance, in proportion to the weights.
    Random,
    /// The less busy one of two that chance has chosen.
    P2c,
    /// Requests of one session, key or address to one backend, as long as it is not overloaded.
    ConsistentHash,
    /// Prompts that begin alike to one backend, as long as it is not overloaded.
    PrefixAffinity,
    /// The engine that has the least to do, by its own metrics.
    LeastLoad,
}

/// Whose requests share the engines' prefix caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CacheSalt {
    /// Everybody's.
    #[default]
    Shared,
    /// Those of one key.
    PerKey,
    /// Those of one user.
    PerUser,
}

/// What happens when the spool is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// New requests for inference are answered 503 until there is room; those under way go on.
    /// Nothing is lost.
    #[default]
    BlockNewRequests,
    /// The oldest records are lost, and counted.
    DropOldest,
}

/// What kind of place records go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReporterKind {
    /// By POST to a URL.
    Webhook,
    /// A table of a database.
    Database,
    /// A SQLite file of the gateway's own.
    Builtin,
    /// A file with a record a line.
    File,
    /// A stream of Redis.
    Redis,
}

impl ReporterKind {
    /// The word in the file.
    pub fn word(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Database => "database",
            Self::Builtin => "builtin",
            Self::File => "file",
            Self::Redis => "redis",
        }
    }
}

/// How a key is written into a usage record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeyForm {
    /// The first and the last four characters.
    #[default]
    Masked,
    /// As the client sent it.
    Plain,
    /// Not at all.
    None,
}
