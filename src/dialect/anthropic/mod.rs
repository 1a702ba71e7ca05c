//! Anthropic's language: Messages and Models, as Anthropic, vLLM, SGLang, llama.cpp and others speak
//! it.

pub mod codec;
mod errors;
mod limits;
mod models;
mod stream;
mod system;
mod texts;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use self::{codec::MessagesCodec, stream::MessageEvents};
use super::{
    body::{self, BadSwitch, Field},
    counting::Counting,
    document::{self, DocumentMeter, Shape},
    event_words::EventWord,
    glance::{Glance, Want},
    hub::Codec,
    language::{Dialect, Rewording},
    limit_headers::LimitHeaders,
    meter::{Meter, Metering},
    model_list::Model,
    operation::{Kind, Operation},
    system::SystemText,
    texts::{AnswerTexts, RequestTexts},
    typed_stream::TypedMeter,
};
use crate::{
    base::{Rejection, limits::Standings},
    wire::{edit::Edit, sse},
};

/// Anthropic's language.
pub struct Anthropic;

static OPERATIONS: [Operation; 2] = [
    Operation { path: MESSAGES, allow: "POST", kind: Kind::Inference { generates: true } },
    Operation { path: COUNT, allow: "POST", kind: Kind::CountTokens },
];

const MESSAGES: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";

static COUNTING: Counting = Counting {
    codec: &MessagesCodec,
    read: MessagesCodec::read_count,
    members: &["model", "messages", "system", "tools", "tool_choice", "thinking"],
    count: "input_tokens",
    object: None,
};

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const VERSION: HeaderName = HeaderName::from_static("anthropic-version");

/// Where both are sent, Anthropic reads its own field.
static CREDENTIAL_FIELDS: [HeaderName; 4] = [
    API_KEY,
    header::AUTHORIZATION,
    HeaderName::from_static("api-key"),
    HeaderName::from_static("x-goog-api-key"),
];

/// Anthropic answers nothing without a version.
static OWN_FIELDS: [(HeaderName, HeaderValue); 1] =
    [(VERSION, HeaderValue::from_static("2023-06-01"))];

const EVENT_WORDS: [EventWord; 8] = [
    EventWord::any("content", "/delta/text"),
    EventWord::of("content_block_start", "content", "/content_block/text"),
    EventWord::any("reasoning", "/delta/thinking"),
    EventWord::any("tool_calls", "/delta/partial_json"),
    EventWord::of("content_block_start", "tool_calls", "/content_block/name"),
    EventWord::any("finish_reason", "/delta/stop_reason"),
    EventWord::any("usage", "/usage"),
    EventWord::any("usage", "/message/usage"),
];

impl Dialect for Anthropic {
    fn name(&self) -> &'static str {
        models::LANGUAGE
    }

    fn operations(&self) -> &'static [Operation] {
        &OPERATIONS
    }

    /// Anthropic's SDKs send the version with every request; clients that leave it out are known by
    /// their key.
    fn claims(&self, headers: &HeaderMap) -> bool {
        headers.contains_key(VERSION)
            || headers.contains_key(API_KEY) && !headers.contains_key(header::AUTHORIZATION)
    }

    fn usual_path(&self) -> &'static str {
        MESSAGES
    }

    fn codec(&self, operation: &Operation) -> Option<&'static dyn Codec> {
        match operation.path {
            MESSAGES => Some(&MessagesCodec),
            COUNT => Some(&COUNTING),
            _ => None,
        }
    }

    fn counter(
        &self,
        _tokenizes: bool,
        _hosted: bool,
    ) -> Option<(&'static str, &'static Counting)> {
        Some((COUNT, &COUNTING))
    }

    /// Responses keep the state of reasoning, Chat does not.
    fn event_words(&self) -> &'static [EventWord] {
        &EVENT_WORDS
    }

    fn nearest(&self) -> &'static [&'static str] {
        &["responses", "chat"]
    }

    /// vLLM's requests have none of them.
    fn takes_engine_fields(&self) -> bool {
        false
    }

    fn own_prefixes(&self) -> &'static [&'static str] {
        &["anthropic-", "x-stainless-", "x-claude-code-"]
    }

    fn glance(
        &self,
        _operation: &Operation,
        _path: &str,
        body: &[u8],
        guarded: &[String],
    ) -> Result<Glance, Rejection> {
        body::glance(body, guarded, own)
    }

    fn request_texts(&self, _operation: &Operation, body: &[u8]) -> RequestTexts {
        texts::of_request(body)
    }

    fn answer_texts(&self, document: &[u8], streamed: bool) -> AnswerTexts {
        texts::of_answer(document, streamed)
    }

    fn output_limit(&self, operation: &Operation) -> Option<&'static str> {
        operation.kind.generates().then_some("max_tokens")
    }

    fn asks_for_json(&self, body: &[u8]) -> bool {
        texts::asks_for_json(body)
    }

    fn guard_edits(&self, body: &[u8], guarded: &[String]) -> Vec<Edit> {
        body::guard_edits(body, guarded)
    }

    fn insert_system(&self, _: &Operation, body: &[u8], text: &SystemText) -> Vec<Edit> {
        system::insert(body, text)
    }

    /// vLLM has no field for a cache salt in this language, so it gets none: the prefix caches of
    /// these requests are not kept apart. SGLang's priority is the same in all languages.
    fn edits(&self, _body: &[u8], glance: &Glance, want: &Want<'_>) -> Vec<Edit> {
        let fields = want.fields.iter().filter(|(name, _)| *name != "cache_salt").cloned();
        body::edits(glance, &Want { model: want.model, fields: fields.collect(), usage: None })
    }

    /// All streams have usage, whether it is asked for or not.
    fn changes_stream(&self, _metering: &Metering) -> bool {
        false
    }

    fn document_meter(&self) -> Box<dyn Meter> {
        Box::new(DocumentMeter::new(Shape::Message))
    }

    fn stream_meter(&self, metering: &Metering, _by_line: bool) -> Box<dyn Meter> {
        Box::new(TypedMeter::<MessageEvents>::new(metering))
    }

    fn rename_model(&self, document: Bytes, name: &str) -> Bytes {
        document::rename_model(document, name)
    }

    fn rejection(&self, rejection: &Rejection) -> Bytes {
        errors::rejection(rejection)
    }

    fn failure(&self, message: &str, code: &str) -> Bytes {
        errors::failure(message, code)
    }

    fn status(&self, status: u16, overloaded: bool) -> u16 {
        if overloaded && status == 503 { errors::OVERLOADED } else { status }
    }

    fn event(&self, document: &[u8]) -> Bytes {
        errors::event(document)
    }

    /// A whole message is no event of this language, and its readers pass over it. A backend that
    /// answers a request for a stream with it does not speak the language.
    fn event_part(&self, piece: Bytes, first: bool, last: bool) -> Bytes {
        let piece = sse::event_part(&piece, first, last);
        if first { [&b"event: message\n"[..], &piece].concat().into() } else { piece }
    }

    fn error_event(&self, body: &[u8]) -> Option<Bytes> {
        errors::error_event(body)
    }

    /// Claude Code compacts its conversation by Anthropic's words alone.
    fn overflow_wording(&self) -> Option<Rewording> {
        Some(codec::reworded_overflow)
    }

    fn keep_alive(&self) -> Bytes {
        Bytes::from_static(b"event: ping\ndata: {\"type\": \"ping\"}\n\n")
    }

    fn stream_type(&self) -> HeaderValue {
        HeaderValue::from_static("text/event-stream; charset=utf-8")
    }

    fn credential_fields(&self) -> &'static [HeaderName] {
        &CREDENTIAL_FIELDS
    }

    fn backend_credential(&self) -> (HeaderName, &'static str) {
        (API_KEY, "")
    }

    fn limit_prefixes(&self) -> &'static [&'static str] {
        &["anthropic-ratelimit-"]
    }

    fn limit_headers(&self, standings: &Standings, out: &mut LimitHeaders) {
        limits::write(standings, jiff::Timestamp::now(), out);
    }

    fn models(&self, models: &[Model], query: Option<&str>) -> Result<Bytes, Rejection> {
        models::list(models, query)
    }

    fn model(&self, model: &Model) -> Bytes {
        models::entry(model).to_string().into()
    }

    fn models_path(&self) -> &'static str {
        "/models?limit=1000"
    }

    fn own_fields(&self) -> &'static [(HeaderName, HeaderValue)] {
        &OWN_FIELDS
    }

    fn read_models(&self, body: &[u8]) -> Vec<Model> {
        models::read(body)
    }
}

/// What only this language's requests have.
fn own(found: &mut Glance, field: &Field<'_>) -> Result<(), BadSwitch> {
    if field.is("max_tokens") {
        found.max_tokens = body::number(field.value());
    } else if field.is("messages") {
        found.conversation = Some(field.range());
    } else if field.is("tools") {
        found.tools = Some(field.range());
    } else if field.is("system") {
        found.system = Some(field.range());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use serde_json::{Value, json};

    use super::*;
    use crate::wire::edit;

    fn look(doc: &str, guarded: &[String]) -> Result<Glance, Rejection> {
        Anthropic.glance(&OPERATIONS[0], MESSAGES, doc.as_bytes(), guarded)
    }

    #[test]
    fn reads_the_fields() {
        let doc = r#"{"model":"claude","system":[{"type":"text","text":"s"}],"max_tokens":12,
            "tools":[{"name":"t"}],"messages":[{"role":"user","content":"x"}],"stream":true,
            "metadata":{"user_id":"u"}}"#;
        let found = look(doc, &["metadata".to_owned()]).unwrap();
        assert_eq!(found.model.as_deref(), Some("claude"));
        assert!(found.stream && found.guarded && !found.several_prompts);
        assert_eq!((found.max_tokens, found.choices, found.usage), (Some(12), None, None));
        let part = |range: Option<std::ops::Range<usize>>| &doc[range.unwrap()];
        assert_eq!(part(found.conversation), r#"[{"role":"user","content":"x"}]"#);
        assert_eq!(part(found.tools), r#"[{"name":"t"}]"#);
        assert_eq!(part(found.system), r#"[{"type":"text","text":"s"}]"#);
        for (doc, param) in [
            (r#"{"model":7}"#, Some("model")),
            (r#"{"stream":"yes"}"#, Some("stream")),
            (r#"{"model":"#, None),
        ] {
            assert_eq!(look(doc, &[]).unwrap_err().param.as_deref(), param, "{doc}");
        }
        assert_eq!(look(r#"{"max_tokens":-1}"#, &[]).unwrap().max_tokens, None);
    }

    #[test]
    fn a_backend_gets_its_model_and_no_field_that_it_does_not_have() {
        let doc = r#"{"model":"claude","stream":true,"stream_options":{}}"#;
        let found = look(doc, &[]).unwrap();
        let fields = vec![("cache_salt", Value::from("s")), ("priority", 3.into())];
        let usage = Some(crate::dialect::UsageRequest { at_the_end: true, running: true });
        let want = Want { usage, model: Some("qwen"), fields };
        let mut body = BytesMut::from(doc);
        edit::apply(&mut body, Anthropic.edits(doc.as_bytes(), &found, &want));
        let expected = r#"{"model":"qwen","stream":true,"stream_options":{},"priority":3}"#;
        assert_eq!(body, expected);
    }

    #[test]
    fn only_servers_without_room_are_overloaded() {
        assert_eq!(Anthropic.status(503, true), 529);
        assert_eq!(Anthropic.status(503, false), 503);
        assert_eq!(Anthropic.status(429, true), 429);
    }

    #[test]
    fn an_answer_is_metered_with_its_cache() {
        let document = json!({"type": "message", "content": [], "model": "claude",
            "usage": {"input_tokens": 2, "cache_read_input_tokens": 30,
                "cache_creation_input_tokens": 4, "output_tokens": 5}})
        .to_string();
        let mut seen = crate::dialect::Progress::default();
        let mut meter = Anthropic.document_meter();
        meter.push(document.clone().into(), &mut seen);
        let counts = meter.counts().unwrap();
        assert_eq!((counts.prompt, counts.completion, counts.total), (36, 5, 41));
        assert_eq!((counts.cached, seen.model.as_deref()), (Some(30), Some("claude")));
        let renamed = Anthropic.rename_model(document.into(), "own");
        let renamed: Value = serde_json::from_slice(&renamed).unwrap();
        assert_eq!(renamed["model"], "own");
    }
}
