//! The usage record: what a finished request is billed from.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::base::{Outcome, TokenCounts, UsageSource};

/// One record. Its JSON form is the body of the webhook; the keys from `request_id` to
/// `backend_url` are those of LLMProxy 0.1, in its order.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// Names this record alone, and is the same in every attempt to deliver it: what a receiver
    /// tells repeats by. (`request_id` may be the client's choice.)
    pub record_id: String,
    /// The `X-Request-Id` that the client saw.
    pub request_id: String,
    /// Who called; empty without authentication.
    pub user_id: String,
    /// The caller's key, masked unless configured otherwise.
    pub api_key: String,
    /// Identity of the key, which the operator's own data may tell; empty without authentication.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub key_id: String,
    /// Name of the key, if it has one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub key_name: String,
    /// The team that the key belongs to, if any.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub team: String,
    /// The tier that the key belongs to, if any.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tier: String,
    /// What data or script told about the caller besides.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
    /// Labels that a script gave.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The model that was asked for.
    pub model: String,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
    /// Their sum, as the engine gave it.
    pub total_tokens: u64,
    /// Whether the answer was a stream of events.
    pub is_stream: bool,
    /// The path, `/v1/chat/completions`.
    pub endpoint: String,
    /// When the request arrived: RFC 3339, UTC.
    pub timestamp: String,
    /// The backend that answered; empty if none was reached.
    pub backend_url: String,
    /// The path once more, under the name that later versions of the seed use.
    pub path: String,
    /// The HTTP method.
    pub method: String,
    /// Status of the answer; 499 if the client left before there was one.
    pub status_code: u16,
    /// From the arrival of the request to the end of the answer.
    pub latency_ms: u64,
    /// From the arrival of the request to the first event of a stream; `null` for others.
    pub ttft_ms: Option<u64>,
    /// `complete`, `client_aborted`, `upstream_error` or `rejected`.
    pub outcome: &'static str,
    /// `final`, `partial` (running figures of a stream that was broken off) or `none`.
    pub usage_source: &'static str,
    /// The counts once more, as later versions of the seed send them; `null` if unknown.
    pub usage: Option<Usage>,
}

/// `usage` of a [`Record`], in OpenAI's form.
#[derive(Clone, Copy, Debug, Serialize)]
#[expect(missing_docs, reason = "as in the record")]
pub struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub total_tokens: u64,
}

impl Record {
    /// Writes counts, their source and the outcome into the record.
    pub fn set_usage(&mut self, counts: TokenCounts, source: UsageSource, outcome: Outcome) {
        self.prompt_tokens = counts.prompt;
        self.completion_tokens = counts.completion;
        self.total_tokens = counts.total;
        self.usage_source = source.word();
        self.outcome = outcome.word();
        self.usage = (source != UsageSource::None).then_some(Usage {
            prompt_tokens: counts.prompt,
            completion_tokens: counts.completion,
            total_tokens: counts.total,
        });
    }
}
