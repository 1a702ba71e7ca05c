//! Events of an answer in the neutral form. A plain answer is a stream whose events come at once.

use super::{
    fault::StreamFault,
    json::Json,
    request::{State, ToolKind},
    usage::Usage,
};

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The first word of an answer; comes once.
    Start(Start),
    /// A part opens. Numbers of parts are dense and rise within a choice.
    PartStart { choice: u32, part: u32, kind: PartKind },
    /// Visible text; `logprobs` in the words of Chat.
    Text { choice: u32, part: u32, text: String, logprobs: Option<Json> },
    /// Reasoning; `summary`: of the summary with this number, not of the text itself.
    Reasoning { choice: u32, part: u32, text: String, summary: Option<u32> },
    /// A piece of a call's arguments, which may be empty.
    Arguments { choice: u32, part: u32, text: String },
    /// State of a reasoning part or of a call, whole.
    State { choice: u32, part: u32, state: State },
    /// A citation of the open text.
    Citation { choice: u32, part: u32, citation: Citation },
    /// Text of a refusal.
    Refusal { choice: u32, part: u32, text: String },
    /// A part closes.
    PartStop { choice: u32, part: u32 },
    /// What is known of the usage: replaces what was said before.
    Usage(Usage),
    /// Why a choice ended.
    Stop { choice: u32, reason: StopReason },
    /// The backend's answer is whole.
    End,
    /// The answer broke. Nothing follows.
    Fault(StreamFault),
    /// A sign of life.
    Ping,
    /// What has no word in the hub.
    Opaque { language: &'static str, name: String, json: Json },
}

/// How an answer begins.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Start {
    /// The backend's id of the answer; empty: it said none.
    pub id: String,
    /// The model, as the backend names it.
    pub model: Option<String>,
    /// In seconds since 1970, if the backend says it.
    pub created: Option<i64>,
    /// What is known of the usage at the beginning.
    pub usage: Option<Usage>,
    pub service_tier: Option<String>,
    pub fingerprint: Option<String>,
}

/// What a part is.
#[derive(Clone, Debug, PartialEq)]
pub enum PartKind {
    Text {
        phase: Option<String>,
    },
    Reasoning {
        /// Hidden by its issuer: only a state comes.
        redacted: bool,
    },
    Refusal,
    ToolCall {
        /// Empty: the backend said none, and the translator makes one.
        id: String,
        name: String,
        kind: ToolKind,
        namespace: Option<String>,
    },
    /// A part that has no word in the hub.
    Opaque {
        language: &'static str,
        kind: String,
        json: Json,
    },
}

/// A citation.
#[derive(Clone, Debug, PartialEq)]
pub struct Citation {
    pub language: &'static str,
    /// In its language's words.
    pub json: Json,
    /// A source that has an address.
    pub url: Option<String>,
    pub title: Option<String>,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    EndTurn,
    /// By this text, if the backend says which.
    StopSequence(Option<String>),
    MaxTokens,
    /// The context is full.
    Context,
    ToolUse,
    Filter,
    Refusal,
    /// The vendor's own tool paused the turn.
    Pause,
    Compacted,
    BadToolCall,
    /// The engine broke it off: no success.
    Aborted,
    /// A word that is not known.
    Other(String),
}

impl Event {
    /// Something of the answer itself: before such an event another backend can still take over.
    pub fn is_content(&self) -> bool {
        match self {
            Self::Text { text, .. } | Self::Reasoning { text, .. } | Self::Refusal { text, .. } => {
                !text.is_empty()
            }
            Self::Arguments { text, .. } => !text.is_empty(),
            Self::PartStart { kind, .. } => {
                matches!(kind, PartKind::ToolCall { .. } | PartKind::Opaque { .. })
            }
            Self::State { .. } | Self::Citation { .. } => true,
            _ => false,
        }
    }
}
