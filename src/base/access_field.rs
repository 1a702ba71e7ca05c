//! Fields of access lines.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A field of an access line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AccessField {
    /// The time at which the request ended, in UTC.
    Ts,
    RequestId,
    /// The address of the client.
    Client,
    /// The caller's key, masked.
    ApiKey,
    UserId,
    Method,
    Path,
    Status,
    /// As the client named it.
    Model,
    /// The name of the backend.
    Backend,
    Stream,
    Outcome,
    PromptTokens,
    CompletionTokens,
    DurationMs,
    /// From the arrival of the request to the first byte of the response body.
    TtftMs,
    /// Attempts beyond the first.
    Retries,
    Fault,
}

impl AccessField {
    /// The name in lines and in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ts => "ts",
            Self::RequestId => "request_id",
            Self::Client => "client",
            Self::ApiKey => "api_key",
            Self::UserId => "user_id",
            Self::Method => "method",
            Self::Path => "path",
            Self::Status => "status",
            Self::Model => "model",
            Self::Backend => "backend",
            Self::Stream => "stream",
            Self::Outcome => "outcome",
            Self::PromptTokens => "prompt_tokens",
            Self::CompletionTokens => "completion_tokens",
            Self::DurationMs => "duration_ms",
            Self::TtftMs => "ttft_ms",
            Self::Retries => "retries",
            Self::Fault => "fault",
        }
    }
}
