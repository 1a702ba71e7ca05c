//! What an API language is.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    counting::Counting,
    event_words::EventWord,
    glance::{Glance, Want},
    hub::{Codec, ModelFacts},
    limit_headers::LimitHeaders,
    meter::{Meter, Metering},
    model_list::Model,
    operation::Operation,
    system::SystemText,
    texts::{AnswerTexts, RequestTexts},
};
use crate::{
    base::{Rejection, limits::Standings},
    wire::edit::Edit,
};

/// Words the body of an error anew; nothing if that one needs no other words.
pub type Rewording = fn(&[u8]) -> Option<Bytes>;

/// One API language.
pub trait Dialect: Sync {
    /// Its name, which is also the value of `protocol` of a backend.
    fn name(&self) -> &'static str;

    /// What clients can ask for in it.
    fn operations(&self) -> &'static [Operation];

    /// Whether a request is in this language by its header fields alone. Asked where the path does
    /// not say it: at paths that several languages have, at paths that do not exist, and before a path
    /// is known.
    fn claims(&self, _headers: &HeaderMap) -> bool {
        false
    }

    /// The path of its most common operation that generates text. Decisions about models that no
    /// request names a path for (model lists) are made as if they were asked for there.
    fn usual_path(&self) -> &'static str;

    /// Reads what the gateway needs of a request, in one pass over its body. `path` is the path of
    /// the request, in which a model may be named; `guarded` names fields to look out for.
    ///
    /// # Errors
    /// 400 if the body cannot be read or a field has a value that engines read in different ways.
    fn glance(
        &self,
        operation: &Operation,
        path: &str,
        body: &[u8],
        guarded: &[String],
    ) -> Result<Glance, Rejection>;

    /// How an operation's requests and answers go to the hub and back; `None`: it has no counterpart
    /// in other languages.
    fn codec(&self, _operation: &Operation) -> Option<&'static dyn Codec> {
        None
    }

    /// The path and the codec of its most common operation.
    fn usual_codec(&self) -> Option<(&'static str, &'static dyn Codec)> {
        let usual = |operation: &&Operation| operation.path == self.usual_path();
        let operation = self.operations().iter().find(usual)?;
        Some((operation.path, self.codec(operation)?))
    }

    /// Where the words stand that scripts know of the events of its streams. Of several places of one
    /// word the first that an event has is used.
    fn event_words(&self) -> &'static [EventWord] {
        &[]
    }

    /// The path at which servers of this language count the tokens of a request, and how. `tokenizes`:
    /// the server has vLLM's `/tokenize`; `hosted`: it is a
    /// vendor's, or speaks nothing else.
    fn counter(
        &self,
        _tokenizes: bool,
        _hosted: bool,
    ) -> Option<(&'static str, &'static Counting)> {
        None
    }

    /// Whether a model can serve such a request in this language at all.
    fn serves(&self, _glance: &Glance, _facts: &ModelFacts) -> bool {
        true
    }

    /// The other languages that its requests lose least in, the best first.
    fn nearest(&self) -> &'static [&'static str] {
        &[]
    }

    /// Engines take their own fields (`cache_salt`) in it.
    fn takes_engine_fields(&self) -> bool {
        true
    }

    /// How the names of header fields begin that only servers of this language understand: a
    /// translated request goes without them.
    fn own_prefixes(&self) -> &'static [&'static str] {
        &[]
    }

    /// The texts of a request that a model reads, and its images: where each of them stands in the body.
    fn request_texts(&self, _operation: &Operation, _body: &[u8]) -> RequestTexts {
        RequestTexts::default()
    }

    /// The texts of an answer, and which of them end: of the document of one event, or (`streamed` is
    /// `false`) of a whole answer.
    fn answer_texts(&self, _document: &[u8], _streamed: bool) -> AnswerTexts {
        AnswerTexts::default()
    }

    /// The member in which a request of this operation limits the tokens of its answer; `None`: it generates
    /// none.
    fn output_limit(&self, _operation: &Operation) -> Option<&'static str> {
        None
    }

    /// Whether a request asks for an answer whose text is JSON.
    fn asks_for_json(&self, _body: &[u8]) -> bool {
        false
    }

    /// The edits that remove the guarded fields from a body.
    fn guard_edits(&self, body: &[u8], guarded: &[String]) -> Vec<Edit>;

    /// The edits that put texts of the operator around the system prompt of a request, or give it one;
    /// none if such a request has no system prompt, or one of a form that is not valid.
    fn insert_system(&self, _operation: &Operation, _body: &[u8], _text: &SystemText) -> Vec<Edit> {
        Vec::new()
    }

    /// The edits that make a body fit one backend that speaks this language.
    fn edits(&self, body: &[u8], glance: &Glance, want: &Want<'_>) -> Vec<Edit>;

    /// Whether the stream of an answer is changed on its way to the client.
    fn changes_stream(&self, metering: &Metering) -> bool;

    /// Reads the counts from a plain answer, which is not changed.
    fn document_meter(&self) -> Box<dyn Meter>;

    /// Reads the counts from a stream, and removes what the gateway had asked for. `by_line`: the
    /// stream is a document on each line (NDJSON), not server-sent events.
    fn stream_meter(&self, metering: &Metering, by_line: bool) -> Box<dyn Meter>;

    /// A whole document in which the model has the name that the client knows.
    fn rename_model(&self, document: Bytes, name: &str) -> Bytes;

    /// The body of a rejection.
    fn rejection(&self, rejection: &Rejection) -> Bytes;

    /// The body of an answer to a failure; `code` is one of the gateway's error codes.
    fn failure(&self, message: &str, code: &str) -> Bytes;

    /// The status with which an error goes to clients. `overloaded`: there is no room now, in contrast
    /// to a backend that is down.
    fn status(&self, status: u16, _overloaded: bool) -> u16 {
        status
    }

    /// A document as an event of a stream, for instance one of [`Self::failure`].
    fn event(&self, document: &[u8]) -> Bytes;

    /// A piece of a document as a piece of an event; `first` and `last`: it begins or ends there.
    fn event_part(&self, piece: Bytes, first: bool, last: bool) -> Bytes;

    /// A backend's error body as an event of a stream; `None` if readers of streams would not take
    /// it for an error.
    fn error_event(&self, body: &[u8]) -> Option<Bytes>;

    /// How an engine's own error says in words that its clients know that the context is too small;
    /// `None`: they know the engine's. What it is given is no such error if it gives nothing.
    fn overflow_wording(&self) -> Option<Rewording> {
        None
    }

    /// What keeps a client's connection alive while its stream has no content. Readers ignore it.
    fn keep_alive(&self) -> Bytes;

    /// The `Content-Type` of its streams.
    fn stream_type(&self) -> HeaderValue;

    /// The header fields in which its clients send their keys, the first takes precedence.
    fn credential_fields(&self) -> &'static [HeaderName];

    /// The header field that carries a key to a backend, and the scheme before the key (`""`: none),
    /// where the configuration does not say otherwise.
    fn backend_credential(&self) -> (HeaderName, &'static str);

    /// How the names of header fields for limits begin: a backend's limits are not the client's.
    fn limit_prefixes(&self) -> &'static [&'static str];

    /// The states of a request's limits, under its names.
    fn limit_headers(&self, standings: &Standings, out: &mut LimitHeaders);

    /// The list of models. `query`: that of the request, which may ask for a part of the list.
    ///
    /// # Errors
    /// 400 if the query asks for something that is no part of a list.
    fn models(&self, models: &[Model], query: Option<&str>) -> Result<Bytes, Rejection>;

    /// One model of the list.
    fn model(&self, model: &Model) -> Bytes;

    /// Where a backend lists all its models, below the base path of its API.
    fn models_path(&self) -> &'static str {
        "/models"
    }

    /// Header fields without which backends do not answer what the gateway asks by itself, or for a
    /// client of another language.
    fn own_fields(&self) -> &'static [(HeaderName, HeaderValue)] {
        &[]
    }

    /// Reads the list of a backend.
    fn read_models(&self, body: &[u8]) -> Vec<Model>;
}
