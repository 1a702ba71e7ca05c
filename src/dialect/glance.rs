//! What the gateway knows of a request's body after one pass over it.

use std::ops::Range;

use serde_json::Value;

/// What a body says. Offsets are into the body that was read: an edit makes them void.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Glance {
    /// The model, when it is named.
    pub model: Option<String>,
    /// A stream is asked for.
    pub stream: bool,
    /// The usage of its stream that the client asks for; `None` if it has no such option.
    pub usage: Option<UsageRequest>,
    /// The most tokens that may be generated, for each choice.
    pub max_tokens: Option<u64>,
    /// How many choices are wanted for each prompt.
    pub choices: Option<u64>,
    /// The request holds several prompts.
    pub several_prompts: bool,
    /// One of the guarded fields is there.
    pub guarded: bool,
    /// Where the conversation stands: requests that share a prefix cache begin alike there.
    pub conversation: Option<Range<usize>>,
    /// The backend stores its answer: it must not be made twice.
    pub stores: bool,
    /// It says that nothing is to be stored.
    pub(super) keeps_nothing: bool,
    /// The response that the request continues, which a backend has stored.
    pub continues: Option<String>,
    /// The stored conversation that the request belongs to, by its id.
    pub held_in: Option<String>,
    /// Where the tools stand, which engines put before the conversation.
    pub tools: Option<Range<usize>>,
    /// Where instructions stand that are no part of the conversation, and which engines put before it.
    pub system: Option<Range<usize>>,
    /// Where the edits of a language go.
    pub(super) offsets: Offsets,
}

/// Offsets that only the language itself needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// The value that names the model.
    pub model: Option<Range<usize>>,
    /// The value of the options of a stream.
    pub options: Option<Range<usize>>,
    /// The body is an object without members.
    pub empty: bool,
    /// The brace that closes the object.
    pub close: usize,
}

/// Which usage of a stream is reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsageRequest {
    /// At its end.
    pub at_the_end: bool,
    /// Also running figures in every chunk (vLLM).
    pub running: bool,
}

/// What a backend's version of a body has that the client's has not.
#[derive(Default)]
pub struct Want<'a> {
    /// The usage of a stream that is asked for; `None`: what the client asks for.
    pub usage: Option<UsageRequest>,
    /// The model's name at the backend; `None`: as the client says.
    pub model: Option<&'a str>,
    /// Fields that are added.
    pub fields: Vec<(&'static str, Value)>,
}
