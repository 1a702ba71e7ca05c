//! The usage record, from which a finished request is billed.

use std::{borrow::Cow, ops::Range, sync::Arc, time::Duration};

use schemars::{JsonSchema, Schema, generate::SchemaSettings, transform::RecursiveTransform};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::base::{
    Outcome, Principal, RequestId, TokenCounts, UsageSource, render, secret::Masked,
};

/// The version of the schema of records. Fields may be added without a new version; receivers ignore
/// unknown fields.
pub const VERSION: u32 = 1;

/// A usage record of LLMProxy: one for each finished inference request, whatever its outcome. Fields may be
/// added; ignore fields that you do not know. `version` changes when a field changes its meaning or is
/// removed.
// The keys from `request_id` to `backend_url` are those of LLMProxy 0.1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "LLMProxy usage record")]
pub struct Record<'a> {
    /// Unique id of the record, the same in every attempt to deliver it: use it to recognize repeated
    /// deliveries. (`request_id` may be chosen by the client.)
    #[schemars(regex(pattern = "^rec_[0-9a-f]{32}$"))]
    pub record_id: Cow<'a, str>,
    /// The version of this schema.
    #[serde(default)]
    #[schemars(extend("const" = VERSION))]
    pub version: u32,
    /// Id of the gateway process that made the record; it changes with each start.
    #[serde(default)]
    pub process: Cow<'a, str>,
    /// Number of the record within its `process`, from 1 on. A missing number is a lost record.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub sequence: u64,
    /// The `X-Request-Id` of the response.
    pub request_id: Cow<'a, str>,
    /// The user of the key; empty without authentication.
    pub user_id: Cow<'a, str>,
    /// The caller's key, masked unless configured otherwise.
    pub api_key: Cow<'a, str>,
    /// Id of the key, which your own key data may set; absent without authentication.
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
    /// Other data about the caller, from the key data or a script.
    #[serde(default, skip_serializing_if = "no_members")]
    pub metadata: Cow<'a, Map<String, Value>>,
    /// Tags that a script set.
    #[serde(default, skip_serializing_if = "no_items")]
    pub tags: Cow<'a, [String]>,
    /// The model as the client named it; empty if it named none.
    pub model: Cow<'a, str>,
    /// The model as the backend named it in its response, at most 256 bytes; absent if it named none. It
    /// differs from `model` if the backend knows the model by another name, or if a fallback model
    /// answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub response_model: Option<Cow<'a, str>>,
    /// Prompt tokens, as the engine counted them; 0 if it did not (see `usage_source`).
    pub prompt_tokens: u64,
    /// Generated tokens, as the engine counted them; 0 if it did not.
    pub completion_tokens: u64,
    /// The sum of both, as the engine reported it.
    pub total_tokens: u64,
    /// Prompt tokens that the engine had in its cache; absent if the engine does not report them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub cached_tokens: Option<u64>,
    /// Prompt tokens that were written to a cache; absent if the engine does not report them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub cache_write_tokens: Option<u64>,
    /// Generated tokens that were reasoning; absent if the engine does not report them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub reasoning_tokens: Option<u64>,
    /// Prompt tokens that were audio; absent if the engine does not report them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub audio_prompt_tokens: Option<u64>,
    /// Generated tokens that were audio; absent if the engine does not report them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub audio_completion_tokens: Option<u64>,
    /// Cost of the tokens by the price table (`rate_limit.prices`), in its currency; absent for a model
    /// without a price, and if the engine did not count the tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64", range(min = 0))]
    pub cost: Option<f64>,
    /// What a script (`hooks.on_usage`) added.
    #[serde(default, skip_serializing_if = "no_members")]
    pub custom: Cow<'a, Map<String, Value>>,
    /// What the gateway had counted, where a script has changed counts or cost; absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Metered")]
    pub metered: Option<Metered>,
    /// Whether the response was a stream of events.
    pub is_stream: bool,
    /// The path, such as `/v1/chat/completions`.
    pub endpoint: Cow<'a, str>,
    /// When the request arrived: RFC 3339, UTC, with milliseconds.
    #[schemars(extend("format" = "date-time"))]
    pub timestamp: Cow<'a, str>,
    /// The URL of the backend that answered, or of the last backend that was tried; empty if there was none.
    pub backend_url: Cow<'a, str>,
    /// The same as `endpoint`, under the name that later versions of LLMProxy used.
    pub path: Cow<'a, str>,
    /// The HTTP method.
    pub method: Cow<'a, str>,
    /// Status of the response; 499 if the client disconnected before there was one.
    #[schemars(range(min = 100, max = 999))]
    pub status_code: u16,
    /// From the arrival of the request to the end of the response, in milliseconds.
    pub latency_ms: u64,
    /// From the arrival of the request to the first event of a stream, in milliseconds; `null` for
    /// other responses.
    pub ttft_ms: Option<u64>,
    /// How long the request waited for a slot (`rate_limit.queue`), in milliseconds; absent if it
    /// did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub queue_ms: Option<u64>,
    /// Number of attempts, including the successful one and a hedge; 0 if no backend was reached.
    #[serde(default)]
    pub tries: u32,
    /// How the request ended.
    pub outcome: Outcome,
    /// Where the token counts come from.
    pub usage_source: UsageSource,
    /// The same token counts, as later versions of LLMProxy sent them; `null` if unknown.
    pub usage: Option<Usage>,
}

/// What the gateway had counted before a script changed the record.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Metered {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub total_tokens: u64,
    /// Absent if the record had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64")]
    pub cost: Option<f64>,
}

impl Metered {
    /// These counts and this cost.
    pub fn new(counts: &TokenCounts, cost: Option<f64>) -> Self {
        Self {
            prompt_tokens: counts.prompt,
            completion_tokens: counts.completion,
            total_tokens: counts.total,
            cost,
        }
    }
}

/// The token counts in OpenAI's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    // The line breaks are those of the source. Defaults are for reading records; written records have every
    // required field.
    let tidy = RecursiveTransform(|schema: &mut Schema| {
        schema.remove("default");
        if let Some(Value::String(text)) = schema.get_mut("description") {
            *text = text.replace('\n', " ");
        }
    });
    let settings = SchemaSettings::draft2020_12().for_serialize().with_transform(tidy);
    settings.into_generator().into_root_schema_for::<Record<'static>>().to_value()
}

/// What a finished request hands over. The thread that writes the spool turns it into a [`Record`].
#[derive(Debug)]
pub struct Draft {
    /// 128 random bits.
    pub record_id: u128,
    pub request_id: RequestId,
    pub who: Option<Arc<Principal>>,
    pub api_key: ShownKey,
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
    /// What a script added.
    pub custom: Map<String, Value>,
    /// What the gateway had counted, if a script has changed it.
    pub metered: Option<Metered>,
}

/// The caller's key, as the configuration wants it in records.
#[derive(Debug)]
pub enum ShownKey {
    None,
    Masked(Masked),
    Plain(String),
}

impl ShownKey {
    pub fn as_str(&self) -> &str {
        match self {
            Self::None => "",
            Self::Masked(masked) => masked.as_str(),
            Self::Plain(key) => key,
        }
    }
}

/// Writes the members of an object. The keys are written as they stand in the code, with all that
/// comes before their values.
struct Members<'a>(&'a mut Vec<u8>);

impl Members<'_> {
    #[inline]
    fn raw(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    #[inline]
    fn text(&mut self, key: &str, text: &str) {
        self.raw(key);
        render::json_string(self.0, text);
    }

    /// Nothing if the text is empty.
    #[inline]
    fn some_text(&mut self, key: &str, text: &str) {
        if !text.is_empty() {
            self.text(key, text);
        }
    }

    #[inline]
    fn number(&mut self, key: &str, number: u64) {
        self.raw(key);
        render::integer(self.0, number);
    }

    #[inline]
    fn some_number(&mut self, key: &str, number: Option<u64>) {
        if let Some(number) = number {
            self.number(key, number);
        }
    }

    fn value(&mut self, value: &impl Serialize) {
        // Values that JSON cannot hold, and errors of memory, do not occur.
        serde_json::to_writer(&mut *self.0, value).ok();
    }

    fn metadata(&mut self, metadata: &Map<String, Value>) {
        let mut before = ",\"metadata\":{";
        for (key, value) in metadata {
            self.text(before, key);
            match value {
                Value::String(text) => self.text(":", text),
                other => {
                    self.raw(":");
                    self.value(other);
                }
            }
            before = ",";
        }
        if !metadata.is_empty() {
            self.raw("}");
        }
    }

    /// The counts; returns where they stand.
    fn counts(&mut self, counts: &TokenCounts) -> Range<usize> {
        let start = self.0.len();
        self.number("\"prompt_tokens\":", counts.prompt);
        self.number(",\"completion_tokens\":", counts.completion);
        self.number(",\"total_tokens\":", counts.total);
        start..self.0.len()
    }
}

fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}

impl Draft {
    /// Writes the [`Record`] with this number of this process, byte for byte as serde would.
    pub fn write(&self, out: &mut Vec<u8>, process: &str, sequence: u64) {
        let mut members = Members(out);
        members.raw("{\"record_id\":\"rec_");
        render::hex(members.0, self.record_id);
        members.number("\",\"version\":", VERSION.into());
        // Neither the process nor the id nor the method can hold anything to be escaped.
        members.raw(",\"process\":\"");
        members.raw(process);
        members.number("\",\"sequence\":", sequence);
        members.raw(",\"request_id\":\"");
        members.raw(self.request_id.as_str());
        self.write_caller(&mut members);
        members.text(",\"model\":", self.model.as_deref().unwrap_or_default());
        if let Some(model) = self.response_model.as_deref() {
            members.text(",\"response_model\":", model);
        }
        members.raw(",");
        let counts = members.counts(&self.counts);
        let parts = &self.counts;
        members.some_number(",\"cached_tokens\":", parts.cached);
        members.some_number(",\"cache_write_tokens\":", parts.cache_write);
        members.some_number(",\"reasoning_tokens\":", parts.reasoning);
        members.some_number(",\"audio_prompt_tokens\":", parts.audio_prompt);
        members.some_number(",\"audio_completion_tokens\":", parts.audio_completion);
        if let Some(cost) = &self.cost {
            members.raw(",\"cost\":");
            members.value(cost);
        }
        if !self.custom.is_empty() {
            members.raw(",\"custom\":");
            members.value(&self.custom);
        }
        if let Some(metered) = &self.metered {
            members.raw(",\"metered\":");
            members.value(metered);
        }
        members.raw(if self.stream { ",\"is_stream\":true" } else { ",\"is_stream\":false" });
        self.write_course(&mut members, counts);
    }

    /// The members about the caller.
    fn write_caller(&self, members: &mut Members<'_>) {
        let who = self.who.as_deref();
        members.text("\",\"user_id\":", who.map_or("", |who| &who.user_id));
        members.text(",\"api_key\":", self.api_key.as_str());
        let Some(who) = who else { return };
        members.some_text(",\"key_id\":", &who.key_id);
        members.some_text(",\"key_name\":", &who.name);
        members.some_text(",\"team\":", &who.team);
        members.some_text(",\"tier\":", &who.tier);
        members.metadata(&who.metadata);
        if !who.tags.is_empty() {
            members.raw(",\"tags\":");
            members.value(&who.tags);
        }
    }

    /// The members about where the request went and how it ended, and the end of the object.
    fn write_course(&self, members: &mut Members<'_>, counts: Range<usize>) {
        members.raw(",\"endpoint\":");
        let start = members.0.len();
        render::json_string(members.0, self.path);
        let path = start..members.0.len();
        members.raw(",\"timestamp\":\"");
        render::timestamp(members.0, self.arrived);
        members.text("\",\"backend_url\":", self.backend_url.as_deref().unwrap_or_default());
        members.raw(",\"path\":");
        members.0.extend_from_within(path);
        members.raw(",\"method\":\"");
        members.raw(self.method.as_str());
        members.number("\",\"status_code\":", self.status.into());
        members.number(",\"latency_ms\":", millis(self.latency));
        match self.ttft {
            Some(time) => members.number(",\"ttft_ms\":", millis(time)),
            None => members.raw(",\"ttft_ms\":null"),
        }
        members.some_number(",\"queue_ms\":", self.queued.map(millis));
        members.number(",\"tries\":", self.tries.into());
        members.raw(",\"outcome\":\"");
        members.raw(self.outcome.word());
        members.raw("\",\"usage_source\":\"");
        members.raw(self.source.word());
        match self.source {
            UsageSource::None => members.raw("\",\"usage\":null}"),
            UsageSource::Final | UsageSource::Partial => {
                members.raw("\",\"usage\":{");
                members.0.extend_from_within(counts);
                members.raw("}}");
            }
        }
    }

    /// The record with this number of this process: what [`Self::write`] has to write.
    #[cfg(test)]
    pub fn record<'a>(&'a self, process: &'a str, sequence: u64) -> Record<'a> {
        let who = self.who.as_deref();
        let text = |field: fn(&Principal) -> &String| {
            Cow::Borrowed(who.map_or("", |principal| field(principal).as_str()))
        };
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
            cache_write_tokens: counts.cache_write,
            reasoning_tokens: counts.reasoning,
            audio_prompt_tokens: counts.audio_prompt,
            audio_completion_tokens: counts.audio_completion,
            cost: self.cost,
            custom: Cow::Borrowed(&self.custom),
            metered: self.metered,
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

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};
    use serde_json::json;

    use super::*;

    fn name() -> impl Strategy<Value = String> {
        prop_oneof![Just(String::new()), "[ -~]{0,20}", any::<String>()]
    }

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            name().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            (name(), name()).prop_map(|(key, text)| json!({key: [text, null, {}]})),
        ]
    }

    prop_compose! {
        fn principal()(
            texts in vec(name(), 5),
            metadata in vec((name(), value()), 0..4),
            tags in vec(name(), 0..3),
        ) -> Principal {
            let [key_id, user_id, name, team, tier] = texts.try_into().unwrap();
            let metadata = metadata.into_iter().collect();
            Principal { key_id, user_id, name, team, tier, metadata, tags, ..Principal::default() }
        }
    }

    prop_compose! {
        fn counts()(
            (prompt, completion, total) in any::<(u64, u64, u64)>(),
            [cached, cache_write, reasoning, audio_prompt, audio_completion]
                in any::<[Option<u64>; 5]>(),
        ) -> TokenCounts {
            TokenCounts {
                prompt,
                completion,
                total,
                cached,
                cache_write,
                reasoning,
                audio_prompt,
                audio_completion,
            }
        }
    }

    fn key(form: u8, key: String) -> ShownKey {
        match form {
            0 => ShownKey::None,
            1 => ShownKey::Masked(Masked::new(&key)),
            _ => ShownKey::Plain(key),
        }
    }

    prop_compose! {
        fn draft()(
            (record_id, status, tries, stream) in any::<(u128, u16, u32, bool)>(),
            request_id in "[A-Za-z0-9._:-]{1,128}",
            who in option::of(principal()),
            (form, shown) in (0u8..3, name()),
            (model, response_model, url) in (option::of(name()), option::of(name()), option::of(name())),
            counts in counts(),
            cost in option::of(any::<f64>()),
            (source, outcome) in (0usize..3, 0usize..4),
            arrived in -9_999_999_999i64..253_402_207_200_000,
            (latency, ttft, queued) in any::<(Duration, Option<Duration>, Option<Duration>)>(),
            custom in vec((name(), value()), 0..3),
            metered in option::of((counts(), option::of(any::<f64>()))),
            method in "[!#$%&'*+.^_`|~0-9A-Za-z-]{1,20}",
        ) -> Draft {
            use Outcome::{ClientAborted, Complete, Rejected, UpstreamError};
            Draft {
                record_id,
                request_id: RequestId::accept(request_id.as_bytes()).unwrap(),
                who: who.map(Arc::new),
                api_key: key(form, shown),
                model,
                response_model: response_model.map(Into::into),
                counts,
                source: [UsageSource::None, UsageSource::Final, UsageSource::Partial][source],
                outcome: [Complete, ClientAborted, UpstreamError, Rejected][outcome],
                cost,
                stream,
                path: "/v1/chat/completions",
                arrived: jiff::Timestamp::from_millisecond(arrived).unwrap(),
                backend_url: url.map(Into::into),
                method: method.parse().unwrap(),
                status,
                latency,
                ttft,
                queued,
                tries,
                custom: custom.into_iter().collect(),
                metered: metered.map(|(counts, cost)| Metered::new(&counts, cost)),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn records_are_written_as_serde_writes_them(
            draft in draft(), process in "gw_[0-9a-f]{16}", sequence in any::<u64>(),
        ) {
            let mut written = b"before".to_vec();
            draft.write(&mut written, &process, sequence);
            let expected = serde_json::to_string(&draft.record(&process, sequence)).unwrap();
            prop_assert_eq!(String::from_utf8(written).unwrap(), format!("before{expected}"));
        }
    }
}
