//! OpenAI's language: Chat Completions, Completions, Embeddings and Models, as OpenAI, vLLM, SGLang,
//! TGI, llama.cpp and others speak it.

pub mod codec;
mod completions;
pub mod errors;
mod limits;
mod models;
pub mod request;
pub mod stream;
mod system;
mod texts;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};
use serde_json::{Value, json};

use self::{
    codec::ChatCodec,
    completions::CompletionsCodec,
    stream::{StreamMeter, Strip},
};
use super::{
    Dialect, Glance, Kind, LimitHeaders, Meter, Metering, Model, Operation, Want, body,
    counting::Counting,
    document::{self, DocumentMeter},
    event_words::EventWord,
    hub::{Codec, ModelFacts},
    system::SystemText,
    texts::{AnswerTexts, RequestTexts},
};
use crate::{
    base::{Rejection, limits::Standings},
    wire::{edit::Edit, sse},
};

/// OpenAI's language.
pub struct OpenAi;

static OPERATIONS: [Operation; 5] = [
    Operation { path: CHAT, allow: "POST", kind: Kind::Inference { generates: true } },
    Operation { path: COMPLETIONS, allow: "POST", kind: Kind::Inference { generates: true } },
    Operation { path: "/v1/embeddings", allow: "POST", kind: Kind::Inference { generates: false } },
    Operation { path: "/v1/models", allow: "GET, HEAD", kind: Kind::Models },
    Operation { path: "/v1/models/{model}", allow: "GET, HEAD", kind: Kind::Model },
];

const CHAT: &str = "/v1/chat/completions";

/// The path of the older operation, which servers of this language may not have.
pub const COMPLETIONS: &str = "/v1/completions";

/// The path of vLLM's tokenizer.
pub const TOKENIZE: &str = "/tokenize";

/// vLLM's `/tokenize`, with the chat template.
static COUNTING: Counting = Counting {
    codec: &ChatCodec,
    read: |body| ChatCodec.read(body),
    members: &["model", "messages", "tools"],
    count: "count",
    object: None,
};

/// OpenAI's own field, Anthropic's, Azure's and Google's: SDKs of each are pointed at the gateway.
static CREDENTIAL_FIELDS: [HeaderName; 4] = [
    header::AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    HeaderName::from_static("x-goog-api-key"),
];

/// Of several choices in one event, the first.
const EVENT_WORDS: [EventWord; 8] = [
    EventWord::any("content", "/choices/0/delta/content"),
    EventWord::any("content", "/choices/0/text"),
    EventWord::any("reasoning", "/choices/0/delta/reasoning_content"),
    EventWord::any("reasoning", "/choices/0/delta/reasoning"),
    EventWord::any("tool_calls", "/choices/0/delta/tool_calls"),
    EventWord::any("tool_calls", "/choices/0/delta/function_call"),
    EventWord::any("finish_reason", "/choices/0/finish_reason"),
    EventWord::any("usage", "/usage"),
];

impl Dialect for OpenAi {
    fn name(&self) -> &'static str {
        models::LANGUAGE
    }

    fn operations(&self) -> &'static [Operation] {
        &OPERATIONS
    }

    fn usual_path(&self) -> &'static str {
        CHAT
    }

    fn codec(&self, operation: &Operation) -> Option<&'static dyn Codec> {
        match operation.path {
            CHAT => Some(&ChatCodec),
            COMPLETIONS => Some(&CompletionsCodec),
            _ => None,
        }
    }

    fn counter(&self, tokenizes: bool, _hosted: bool) -> Option<(&'static str, &'static Counting)> {
        tokenizes.then_some((TOKENIZE, &COUNTING))
    }

    /// OpenAI's newest models refuse tools here while they reason.
    fn serves(&self, glance: &Glance, facts: &ModelFacts) -> bool {
        facts.chat_tools != Some(false) || glance.tools.is_none()
    }

    fn event_words(&self) -> &'static [EventWord] {
        &EVENT_WORDS
    }

    fn nearest(&self) -> &'static [&'static str] {
        &["responses", "messages"]
    }

    fn own_prefixes(&self) -> &'static [&'static str] {
        &["openai-", "x-stainless-"]
    }

    fn glance(
        &self,
        _operation: &Operation,
        _path: &str,
        body: &[u8],
        guarded: &[String],
    ) -> Result<Glance, Rejection> {
        request::glance(body, guarded)
    }

    fn request_texts(&self, _operation: &Operation, body: &[u8]) -> RequestTexts {
        texts::of_request(body)
    }

    fn answer_texts(&self, document: &[u8], streamed: bool) -> AnswerTexts {
        texts::of_answer(document, streamed)
    }

    fn output_limit(&self, operation: &Operation) -> Option<&'static str> {
        match operation.path {
            CHAT => Some("max_completion_tokens"),
            _ => operation.kind.generates().then_some("max_tokens"),
        }
    }

    fn asks_for_json(&self, body: &[u8]) -> bool {
        texts::asks_for_json(body)
    }

    fn guard_edits(&self, body: &[u8], guarded: &[String]) -> Vec<Edit> {
        body::guard_edits(body, guarded)
    }

    /// A prompt of Completions is text that goes on: it has no system prompt.
    fn insert_system(&self, operation: &Operation, body: &[u8], text: &SystemText) -> Vec<Edit> {
        if operation.path == CHAT { system::insert(body, text) } else { Vec::new() }
    }

    fn edits(&self, body: &[u8], glance: &Glance, want: &Want<'_>) -> Vec<Edit> {
        request::edits(body, glance, want)
    }

    fn changes_stream(&self, metering: &Metering) -> bool {
        Strip::of(metering) != Strip::Nothing
    }

    fn document_meter(&self) -> Box<dyn Meter> {
        Box::<DocumentMeter>::default()
    }

    fn stream_meter(&self, metering: &Metering, by_line: bool) -> Box<dyn Meter> {
        let meter = StreamMeter::new(Strip::of(metering))
            .naming(metering.model.as_deref())
            .per_prompt(metering.choices_per_prompt);
        Box::new(if by_line { meter.by_line() } else { meter })
    }

    fn rename_model(&self, document: Bytes, name: &str) -> Bytes {
        document::rename_model(document, name)
    }

    fn rejection(&self, rejection: &Rejection) -> Bytes {
        let kind = errors::error_type(rejection.kind);
        error(&rejection.message, kind, rejection.param.as_deref(), rejection.code.as_deref())
    }

    fn failure(&self, message: &str, code: &str) -> Bytes {
        error(message, "server_error", None, Some(code))
    }

    fn event(&self, document: &[u8]) -> Bytes {
        sse::event_part(document, true, true)
    }

    fn event_part(&self, piece: Bytes, first: bool, last: bool) -> Bytes {
        sse::event_part(&piece, first, last)
    }

    /// The SDKs raise an event with a member `error`.
    fn error_event(&self, body: &[u8]) -> Option<Bytes> {
        let said: Value = serde_json::from_slice(body).ok()?;
        said.get("error").is_some_and(|error| !error.is_null()).then(|| self.event(body))
    }

    fn keep_alive(&self) -> Bytes {
        Bytes::from_static(b": keep-alive\n\n")
    }

    fn stream_type(&self) -> HeaderValue {
        HeaderValue::from_static("text/event-stream; charset=utf-8")
    }

    fn credential_fields(&self) -> &'static [HeaderName] {
        &CREDENTIAL_FIELDS
    }

    fn backend_credential(&self) -> (HeaderName, &'static str) {
        (header::AUTHORIZATION, "Bearer")
    }

    /// Anthropic's are on its endpoints with OpenAI's language too.
    fn limit_prefixes(&self) -> &'static [&'static str] {
        &["x-ratelimit-", "anthropic-ratelimit-"]
    }

    fn limit_headers(&self, standings: &Standings, out: &mut LimitHeaders) {
        limits::write(standings, out);
    }

    fn models(&self, models: &[Model], _query: Option<&str>) -> Result<Bytes, Rejection> {
        Ok(models::list(models))
    }

    fn model(&self, model: &Model) -> Bytes {
        models::entry(model).to_string().into()
    }

    fn read_models(&self, body: &[u8]) -> Vec<Model> {
        models::read(body)
    }
}

fn error(message: &str, kind: &str, param: Option<&str>, code: Option<&str>) -> Bytes {
    json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
        .to_string()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_openais_form() {
        let body = OpenAi.rejection(&Rejection::unknown_model("x\"y"));
        let value: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(value["error"]["message"], "The model `x\"y` does not exist");
        assert_eq!(value["error"]["type"], "invalid_request_error");
        assert_eq!(value["error"]["param"], "model");
        assert_eq!(value["error"]["code"], "model_not_found");
    }
}
