//! OpenAI's Responses, as OpenAI, vLLM, SGLang, llama.cpp and others speak it. Errors, limits, keys and
//! lists of models are those of OpenAI's other API.

pub mod codec;
mod failure;
mod stream;
mod system;
mod texts;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use serde_json::Value;

use self::{codec::ResponsesCodec, stream::ResponseEvents};
use super::{
    body::{self, BadSwitch, Field},
    counting::Counting,
    document::{self, DocumentMeter, Shape},
    event_words::EventWord,
    glance::{Glance, Want},
    hub::Codec,
    language::Dialect,
    limit_headers::LimitHeaders,
    meter::{Meter, Metering},
    model_list::Model,
    openai::OpenAi,
    operation::{Kind, Operation},
    system::SystemText,
    texts::{AnswerTexts, RequestTexts},
    typed_stream::{self, TypedMeter},
};
use crate::{
    base::{Rejection, limits::Standings},
    wire::{edit::Edit, sse},
};

/// OpenAI's language of responses.
pub struct Responses;

/// `compact` and `input_tokens` are no ids.
static OPERATIONS: [Operation; 6] = [
    Operation { path: RESPONSES, allow: "POST", kind: Kind::Inference { generates: true } },
    Operation {
        path: "/v1/responses/compact",
        allow: "POST",
        kind: Kind::Inference { generates: true },
    },
    Operation { path: INPUT_TOKENS, allow: "POST", kind: Kind::CountTokens },
    Operation { path: "/v1/responses/{id}", allow: "GET, DELETE", kind: Kind::Stored },
    Operation { path: "/v1/responses/{id}/cancel", allow: "POST", kind: Kind::Stored },
    Operation { path: "/v1/responses/{id}/input_items", allow: "GET", kind: Kind::Stored },
];

const RESPONSES: &str = "/v1/responses";
const INPUT_TOKENS: &str = "/v1/responses/input_tokens";

static COUNTING: Counting = Counting {
    codec: &ResponsesCodec,
    read: |body| ResponsesCodec.read(body),
    members: &["model", "input", "instructions", "tools", "tool_choice", "text", "reasoning"],
    count: "input_tokens",
    object: Some("response.input_tokens"),
};

/// The text comes in pieces, and again as a whole in the `done` events.
const EVENT_WORDS: [EventWord; 13] = [
    EventWord::of("response.output_text.delta", "content", "/delta"),
    EventWord::of("response.output_text.done", "content", "/text"),
    EventWord::of("response.content_part.done", "content", "/part/text"),
    EventWord::of("response.output_item.done", "content", "/item/content/0/text"),
    EventWord::of("response.reasoning_text.delta", "reasoning", "/delta"),
    EventWord::of("response.reasoning_text.done", "reasoning", "/text"),
    EventWord::of("response.reasoning_summary_text.delta", "reasoning", "/delta"),
    EventWord::of("response.function_call_arguments.delta", "tool_calls", "/delta"),
    EventWord::of("response.function_call_arguments.done", "tool_calls", "/arguments"),
    EventWord::of("response.completed", "finish_reason", "/response/status"),
    EventWord::of("response.incomplete", "finish_reason", "/response/incomplete_details/reason"),
    EventWord::of("response.failed", "finish_reason", "/response/status"),
    EventWord::any("usage", "/response/usage"),
];

impl Dialect for Responses {
    fn name(&self) -> &'static str {
        "responses"
    }

    fn operations(&self) -> &'static [Operation] {
        &OPERATIONS
    }

    fn usual_path(&self) -> &'static str {
        RESPONSES
    }

    fn codec(&self, operation: &Operation) -> Option<&'static dyn Codec> {
        match operation.path {
            RESPONSES => Some(&ResponsesCodec),
            INPUT_TOKENS => Some(&COUNTING),
            _ => None,
        }
    }

    fn counter(&self, _tokenizes: bool, hosted: bool) -> Option<(&'static str, &'static Counting)> {
        hosted.then_some((INPUT_TOKENS, &COUNTING))
    }

    /// Messages keep the state of reasoning, Chat does not.
    fn event_words(&self) -> &'static [EventWord] {
        &EVENT_WORDS
    }

    fn nearest(&self) -> &'static [&'static str] {
        &["messages", "chat"]
    }

    fn own_prefixes(&self) -> &'static [&'static str] {
        &["openai-", "x-stainless-", "originator", "session-id", "session_id", "thread-id"]
    }

    fn glance(
        &self,
        _operation: &Operation,
        _path: &str,
        body: &[u8],
        guarded: &[String],
    ) -> Result<Glance, Rejection> {
        let glance = body::glance(body, guarded, own)?;
        Ok(Glance { stores: !glance.keeps_nothing, ..glance })
    }

    fn request_texts(&self, _operation: &Operation, body: &[u8]) -> RequestTexts {
        texts::of_request(body)
    }

    fn answer_texts(&self, document: &[u8], streamed: bool) -> AnswerTexts {
        texts::of_answer(document, streamed)
    }

    fn output_limit(&self, operation: &Operation) -> Option<&'static str> {
        operation.kind.generates().then_some("max_output_tokens")
    }

    fn asks_for_json(&self, body: &[u8]) -> bool {
        texts::asks_for_json(body)
    }

    fn guard_edits(&self, body: &[u8], guarded: &[String]) -> Vec<Edit> {
        body::guard_edits(body, guarded)
    }

    /// A compaction has the conversation without the instructions: those of the next request apply.
    fn insert_system(&self, operation: &Operation, body: &[u8], text: &SystemText) -> Vec<Edit> {
        match operation.path {
            RESPONSES | INPUT_TOKENS => system::insert(body, text),
            _ => Vec::new(),
        }
    }

    /// vLLM's requests have a cache salt and a priority here too.
    fn edits(&self, _body: &[u8], glance: &Glance, want: &Want<'_>) -> Vec<Edit> {
        body::edits(glance, want)
    }

    /// All streams have usage, whether it is asked for or not.
    fn changes_stream(&self, _metering: &Metering) -> bool {
        false
    }

    fn document_meter(&self) -> Box<dyn Meter> {
        Box::new(DocumentMeter::new(Shape::Response))
    }

    fn stream_meter(&self, metering: &Metering, _by_line: bool) -> Box<dyn Meter> {
        Box::new(TypedMeter::<ResponseEvents>::new(metering))
    }

    fn rename_model(&self, document: Bytes, name: &str) -> Bytes {
        document::rename_model(document, name)
    }

    fn rejection(&self, rejection: &Rejection) -> Bytes {
        OpenAi.rejection(rejection)
    }

    fn failure(&self, message: &str, code: &str) -> Bytes {
        OpenAi.failure(message, code)
    }

    /// An error is the end of a response of which nothing has come.
    fn event(&self, document: &[u8]) -> Bytes {
        match failure::said(document) {
            Some((message, code)) => failure::from_nothing(&message, &code),
            None => typed_stream::named("error", document),
        }
    }

    /// A whole response is the content of the event that ends a stream.
    fn event_part(&self, piece: Bytes, first: bool, last: bool) -> Bytes {
        const BEFORE: &[u8] =
            b"event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":";
        let before = if first { BEFORE } else { b"" };
        let piece = sse::event_part(&piece, false, false);
        let after: &[u8] = if last { b"}\n\n" } else { b"" };
        [before, &piece, after].concat().into()
    }

    fn error_event(&self, body: &[u8]) -> Option<Bytes> {
        failure::said(body).map(|(message, code)| failure::from_nothing(&message, &code))
    }

    fn keep_alive(&self) -> Bytes {
        OpenAi.keep_alive()
    }

    fn stream_type(&self) -> HeaderValue {
        OpenAi.stream_type()
    }

    fn credential_fields(&self) -> &'static [HeaderName] {
        OpenAi.credential_fields()
    }

    fn backend_credential(&self) -> (HeaderName, &'static str) {
        OpenAi.backend_credential()
    }

    fn limit_prefixes(&self) -> &'static [&'static str] {
        OpenAi.limit_prefixes()
    }

    fn limit_headers(&self, standings: &Standings, out: &mut LimitHeaders) {
        OpenAi.limit_headers(standings, out);
    }

    fn models(&self, models: &[Model], query: Option<&str>) -> Result<Bytes, Rejection> {
        OpenAi.models(models, query)
    }

    fn model(&self, model: &Model) -> Bytes {
        OpenAi.model(model)
    }

    fn read_models(&self, body: &[u8]) -> Vec<Model> {
        OpenAi.read_models(body)
    }
}

/// What only this language's requests have.
fn own(found: &mut Glance, field: &Field<'_>) -> Result<(), BadSwitch> {
    if field.is("max_output_tokens") {
        found.max_tokens = body::number(field.value());
    } else if field.is("input") {
        found.conversation = Some(field.range());
    } else if field.is("tools") {
        found.tools = Some(field.range());
    } else if field.is("store") {
        found.keeps_nothing = field.value() == b"false";
    } else if field.is("previous_response_id") {
        found.continues = serde_json::from_slice(field.value()).ok();
    } else if field.is("conversation") {
        found.held_in = conversation(field.value());
    } else if field.is("instructions") {
        found.system = Some(field.range());
    }
    Ok(())
}

/// The id of a conversation: a text, or an object that has it.
fn conversation(value: &[u8]) -> Option<String> {
    match serde_json::from_slice::<Value>(value).ok()? {
        Value::String(id) => Some(id),
        Value::Object(object) => object.get("id")?.as_str().map(str::to_owned),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::wire::edit;

    fn look(doc: &str, guarded: &[String]) -> Result<Glance, Rejection> {
        Responses.glance(&OPERATIONS[0], RESPONSES, doc.as_bytes(), guarded)
    }

    #[test]
    fn reads_the_fields() {
        let doc = r#"{"model":"gpt","instructions":"be brief","max_output_tokens":12,"max_tokens":7,
            "tools":[{"name":"t"}],"input":["a","b"],"stream":true,"store":false}"#;
        let found = look(doc, &["store".to_owned()]).unwrap();
        assert_eq!(found.model.as_deref(), Some("gpt"));
        // A list of inputs is one conversation.
        assert!(found.stream && found.guarded && !found.several_prompts);
        assert_eq!((found.max_tokens, found.choices, found.usage), (Some(12), None, None));
        let part = |range: Option<std::ops::Range<usize>>| &doc[range.unwrap()];
        assert_eq!(part(found.conversation), r#"["a","b"]"#);
        assert_eq!(part(found.tools), r#"[{"name":"t"}]"#);
        assert_eq!(part(found.system), "\"be brief\"");
        for (said, id) in [
            (r#""conv_1""#, Some("conv_1")),
            (r#"{"id":"conv_1"}"#, Some("conv_1")),
            ("null", None),
            ("{}", None),
        ] {
            let found = look(&format!(r#"{{"conversation":{said}}}"#), &[]).unwrap();
            assert_eq!(found.held_in.as_deref(), id);
        }
        assert_eq!(look(r#"{"stream":1}"#, &[]).unwrap_err().param.as_deref(), Some("stream"));
    }

    #[test]
    fn a_backend_gets_its_model_and_its_fields() {
        let doc = r#"{"model":"gpt","stream":true}"#;
        let found = look(doc, &[]).unwrap();
        let fields = vec![("cache_salt", Value::from("s")), ("priority", 3.into())];
        let usage = Some(crate::dialect::UsageRequest { at_the_end: true, running: true });
        let want = Want { usage, model: Some("qwen"), fields };
        let mut body = BytesMut::from(doc);
        edit::apply(&mut body, Responses.edits(doc.as_bytes(), &found, &want));
        let expected = r#"{"model":"qwen","stream":true,"cache_salt":"s","priority":3}"#;
        assert_eq!(body, expected);
    }

    #[test]
    fn an_error_is_an_event_that_ends_a_response() {
        let rejection = Responses.rejection(&Rejection::unknown_model("x"));
        for event in [Responses.event(&rejection), Responses.error_event(&rejection).unwrap()] {
            let text = std::str::from_utf8(&event).unwrap();
            let last = text.rsplit("data: ").next().unwrap();
            let last: Value = serde_json::from_str(last).unwrap();
            assert_eq!(last["type"], "response.failed");
            assert_eq!(last["response"]["error"]["code"], "model_not_found");
        }
        assert_eq!(Responses.error_event(b"<html>"), None);
        assert_eq!(Responses.event(b"{}"), "event: error\ndata: {}\n\n");
    }

    #[test]
    fn a_document_is_the_content_of_the_last_event() {
        let mut all = Vec::new();
        for (piece, first, last) in [("{\n\"id\":", true, false), ("1}", false, true)] {
            all.extend_from_slice(&Responses.event_part(piece.into(), first, last));
        }
        let expected = "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{ \"id\":1}}\n\n";
        assert_eq!(String::from_utf8(all).unwrap(), expected);
    }
}
