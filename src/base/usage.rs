//! Token counts and how a request ended: the words of metering.

use std::ops::AddAssign;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Token counts as an engine reported them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenCounts {
    /// Tokens of the prompt.
    pub prompt: u64,
    /// Tokens generated.
    pub completion: u64,
    /// Their sum as the engine says it (embeddings report only this and `prompt`).
    pub total: u64,
    /// Of the tokens of the prompt, those that the engine had in its cache; `None`: not told.
    pub cached: Option<u64>,
    /// Of the tokens generated, those of the reasoning; `None`: not told.
    pub reasoning: Option<u64>,
}

/// What a request has used up of its key's quota and balance.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Used {
    /// For the quota.
    pub tokens: f64,
    /// For the balance.
    pub credit: f64,
}

impl Used {
    /// Both are 0.
    pub fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

impl AddAssign for Used {
    fn add_assign(&mut self, more: Self) {
        self.tokens += more.tokens;
        self.credit += more.credit;
    }
}

/// How a request ended, as written into usage records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The whole answer reached the client.
    Complete,
    /// The client went away before the answer was whole.
    ClientAborted,
    /// The backend failed, aborted the generation, or answered 5xx.
    UpstreamError,
    /// The gateway or the backend refused the request (4xx, or no backend was free).
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
    /// The engine reported nothing: the counts are zero and unknown.
    #[default]
    None,
    /// The engine's final figures.
    Final,
    /// The last running figures of a stream that did not end.
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
