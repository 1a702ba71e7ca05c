//! Token counts and outcomes: the types of metering.

use std::ops::AddAssign;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Token counts as an engine reported them. `prompt` and `completion` include their parts; a part
/// that is `None` was not reported, which is not 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenCounts {
    pub prompt: u64,
    pub completion: u64,
    /// As the engine reported it (embeddings report only this and `prompt`).
    pub total: u64,
    /// Prompt tokens that were read from a cache.
    pub cached: Option<u64>,
    /// Prompt tokens that were written to a cache.
    pub cache_write: Option<u64>,
    /// Completion tokens that were reasoning.
    pub reasoning: Option<u64>,
    /// Prompt tokens that were audio.
    pub audio_prompt: Option<u64>,
    /// Completion tokens that were audio.
    pub audio_completion: Option<u64>,
}

/// What a request has used of its key's quota and balance.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KeyUsage {
    /// Counts against the quota.
    pub tokens: f64,
    /// Counts against the balance: money, or tokens where nothing has a price.
    pub credit: f64,
}

impl KeyUsage {
    pub fn is_zero(self) -> bool {
        self == Self::default()
    }
}

impl AddAssign for KeyUsage {
    fn add_assign(&mut self, more: Self) {
        self.tokens += more.tokens;
        self.credit += more.credit;
    }
}

/// How a request ended, as written into usage records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The client received the whole answer.
    Complete,
    /// The client went away before the answer was complete.
    ClientAborted,
    /// The backend failed, aborted the generation, or answered 5xx.
    UpstreamError,
    /// The gateway or the backend rejected the request (4xx, or no backend was available).
    Rejected,
}

impl Outcome {
    /// The word in records and logs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::ClientAborted => "client_aborted",
            Self::UpstreamError => "upstream_error",
            Self::Rejected => "rejected",
        }
    }
}

/// Where the counts of a record come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UsageSource {
    /// The engine reported nothing: the counts are zero and mean unknown.
    #[default]
    None,
    /// The engine's final figures.
    Final,
    /// The last running figures of a stream that broke off.
    Partial,
}

impl UsageSource {
    /// The word in records and logs.
    pub fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Final => "final",
            Self::Partial => "partial",
        }
    }
}
