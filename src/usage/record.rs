//! The usage record: what a finished request is billed from.

use std::{borrow::Cow, sync::Arc, time::Duration};

use schemars::{JsonSchema, Schema, generate::SchemaSettings, transform::RecursiveTransform};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::base::{Outcome, Principal, RequestId, TokenCounts, UsageSource};

/// The version of the schema of records. Fields may be added without a new version; receivers pass
/// over those that they do not know.
pub const VERSION: u32 = 1;

/// A usage record of LLMProxy: one for each finished request for inference, whatever became of it.
/// Fields may be added; pass over those that you do not know. `version` changes when one changes its
/// meaning or goes.
// The keys from `request_id` to `backend_url` are those of LLMProxy 0.1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "LLMProxy usage record")]
pub struct Record<'a> {
    /// Names this record alone, and is the same in every attempt to deliver it: what a receiver
    /// tells repeats by. (`request_id` may be the client's choice.)
    #[schemars(regex(pattern = "^rec_[0-9a-f]{32}$"))]
    pub record_id: Cow<'a, str>,
    /// The version of this schema.
    #[serde(default)]
    #[schemars(extend("const" = VERSION))]
    pub version: u32,
    /// The run of a gateway that made the record: another one after each start.
    #[serde(default)]
    pub process: Cow<'a, str>,
    /// The records of a `process` are numbered from 1 on. A number that never comes is a record
    /// that was lost.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub sequence: u64,
    /// The `X-Request-Id` that the client saw.
    pub request_id: Cow<'a, str>,
    /// Who called; empty without authentication.
    pub user_id: Cow<'a, str>,
    /// The caller's key, masked unless configured otherwise.
    pub api_key: Cow<'a, str>,
    /// Identity of the key, which the operator's own data may tell; absent without authentication.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub key_id: Cow<'a, str>,
    /// Name of the key, if it has one.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub key_name: Cow<'a, str>,
    /// The team that the key belongs to, if any.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub team: Cow<'a, str>,
    /// The tier that the key belongs to, if any.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub tier: Cow<'a, str>,
    /// What data or script told about the caller besides.
    #[serde(default, skip_serializing_if = "no_members")]
    pub metadata: Cow<'a, Map<String, Value>>,
    /// Labels that a script gave.
    #[serde(default, skip_serializing_if = "no_items")]
    pub tags: Cow<'a, [String]>,
    /// The model that was asked for, as the client named it; empty if it named none.
    pub model: Cow<'a, str>,
    /// The model as the backend itself named it in its answer, of at most 256 bytes; absent if it
    /// named none. It differs from `model` where a backend knows the model by another name, and
    /// where a fallback has answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub response_model: Option<Cow<'a, str>>,
    /// Tokens of the prompt, as the engine counted them; 0 if it did not (see `usage_source`).
    pub prompt_tokens: u64,
    /// Tokens generated, as the engine counted them; 0 if it did not.
    pub completion_tokens: u64,
    /// Their sum, as the engine gave it.
    pub total_tokens: u64,
    /// Of the tokens of the prompt, those that the engine had in its cache; absent where the
    /// engine does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub cached_tokens: Option<u64>,
    /// Of the tokens generated, those of the reasoning; absent where the engine does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub reasoning_tokens: Option<u64>,
    /// What the tokens cost by the price table (`rate_limit.prices`), in its currency; absent for a
    /// model without a price, and where the engine did not count the tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64", range(min = 0))]
    pub cost: Option<f64>,
    /// Whether the answer was a stream of events.
    pub is_stream: bool,
    /// The path, `/v1/chat/completions`.
    pub endpoint: Cow<'a, str>,
    /// When the request arrived: RFC 3339, UTC, with milliseconds.
    #[schemars(extend("format" = "date-time"))]
    pub timestamp: Cow<'a, str>,
    /// The URL of the backend that answered, or of the last that was tried; empty if none was.
    pub backend_url: Cow<'a, str>,
    /// The path once more, under the name that later versions of LLMProxy used.
    pub path: Cow<'a, str>,
    /// The HTTP method.
    pub method: Cow<'a, str>,
    /// Status of the answer; 499 if the client left before there was one.
    #[schemars(range(min = 100, max = 999))]
    pub status_code: u16,
    /// From the arrival of the request to the end of the answer, in milliseconds.
    pub latency_ms: u64,
    /// From the arrival of the request to the first event of a stream, in milliseconds; `null` for
    /// others.
    pub ttft_ms: Option<u64>,
    /// How long the request waited for a slot (`rate_limit.queue`), in milliseconds; absent if it
    /// did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub queue_ms: Option<u64>,
    /// How many times a backend was tried, the one that answered and a hedge included; 0 if none was
    /// reached.
    #[serde(default)]
    pub tries: u32,
    /// How the request ended.
    pub outcome: Outcome,
    /// Where the counts come from.
    pub usage_source: UsageSource,
    /// The counts once more, as later versions of LLMProxy sent them; `null` if unknown.
    pub usage: Option<Usage>,
}

/// The counts in OpenAI's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "as in the record")]
pub struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub total_tokens: u64,
}

#[expect(clippy::ptr_arg, reason = "what serde hands over")]
fn no_members(map: &Cow<'_, Map<String, Value>>) -> bool {
    map.is_empty()
}

#[expect(clippy::ptr_arg, reason = "what serde hands over")]
fn no_items(items: &Cow<'_, [String]>) -> bool {
    items.is_empty()
}

/// The JSON Schema of records, as they are written.
pub fn schema() -> Value {
    // Lines are broken for readers of the source. What a reader of records takes for a field that
    // lacks says nothing of those that are written.
    let tidy = RecursiveTransform(|schema: &mut Schema| {
        schema.remove("default");
        if let Some(Value::String(text)) = schema.get_mut("description") {
            *text = text.replace('\n', " ");
        }
    });
    let settings = SchemaSettings::draft2020_12().for_serialize().with_transform(tidy);
    settings.into_generator().into_root_schema_for::<Record<'static>>().to_value()
}

/// What is known of a request when it ends. A request's thread only hands it over; the thread that
/// writes the spool makes a [`Record`] of it.
#[derive(Debug)]
#[expect(missing_docs, reason = "as in the record")]
pub struct Draft {
    /// 128 random bits.
    pub record_id: u128,
    pub request_id: RequestId,
    pub who: Option<Arc<Principal>>,
    /// The key in the form that is configured.
    pub api_key: String,
    pub model: Option<String>,
    pub response_model: Option<Box<str>>,
    pub counts: TokenCounts,
    pub source: UsageSource,
    pub outcome: Outcome,
    pub cost: Option<f64>,
    pub stream: bool,
    pub path: &'static str,
    pub arrived: jiff::Timestamp,
    pub backend_url: Option<Arc<str>>,
    pub method: http::Method,
    pub status: u16,
    pub latency: Duration,
    pub ttft: Option<Duration>,
    pub queued: Option<Duration>,
    pub tries: u32,
}

impl Draft {
    /// The record, as the `sequence`th of a process.
    pub fn record<'a>(&'a self, process: &'a str, sequence: u64) -> Record<'a> {
        let who = self.who.as_deref();
        let text = |field: fn(&Principal) -> &String| {
            Cow::Borrowed(who.map_or("", |principal| field(principal).as_str()))
        };
        let millis = |time: Duration| time.as_millis() as u64;
        let counts = self.counts;
        Record {
            record_id: format!("rec_{:032x}", self.record_id).into(),
            version: VERSION,
            process: process.into(),
            sequence,
            request_id: self.request_id.as_str().into(),
            user_id: text(|p| &p.user_id),
            api_key: self.api_key.as_str().into(),
            key_id: text(|p| &p.key_id),
            key_name: text(|p| &p.name),
            team: text(|p| &p.team),
            tier: text(|p| &p.tier),
            metadata: who.map_or_else(Cow::default, |p| Cow::Borrowed(&p.metadata)),
            tags: Cow::Borrowed(who.map_or(&[], |p| p.tags.as_slice())),
            model: self.model.as_deref().unwrap_or_default().into(),
            response_model: self.response_model.as_deref().map(Cow::Borrowed),
            prompt_tokens: counts.prompt,
            completion_tokens: counts.completion,
            total_tokens: counts.total,
            cached_tokens: counts.cached,
            reasoning_tokens: counts.reasoning,
            cost: self.cost,
            is_stream: self.stream,
            endpoint: self.path.into(),
            timestamp: format!("{:.3}", self.arrived).into(),
            backend_url: self.backend_url.as_deref().unwrap_or_default().into(),
            path: self.path.into(),
            method: self.method.as_str().into(),
            status_code: self.status,
            latency_ms: millis(self.latency),
            ttft_ms: self.ttft.map(millis),
            queue_ms: self.queued.map(millis),
            tries: self.tries,
            outcome: self.outcome,
            usage_source: self.source,
            usage: (self.source != UsageSource::None).then_some(Usage {
                prompt_tokens: counts.prompt,
                completion_tokens: counts.completion,
                total_tokens: counts.total,
            }),
        }
    }
}
