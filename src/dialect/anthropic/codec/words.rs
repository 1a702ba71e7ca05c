//! The language's name, and words of an answer: why it ended, and its id.

use crate::dialect::hub::{Exchange, StopReason, Writer};

/// The language's name in the hub.
pub const LANGUAGE: &str = "messages";

/// The reason that a backend says.
pub fn read(reason: &str, sequence: Option<String>) -> StopReason {
    match reason {
        "end_turn" => StopReason::EndTurn,
        "stop_sequence" => StopReason::StopSequence(sequence),
        "max_tokens" => StopReason::MaxTokens,
        "model_context_window_exceeded" => StopReason::Context,
        "tool_use" => StopReason::ToolUse,
        "refusal" => StopReason::Refusal,
        "pause_turn" => StopReason::Pause,
        "compaction" => StopReason::Compacted,
        // Words of engines that speak Chat beside it.
        "abort" | "error" => StopReason::Aborted,
        other => StopReason::Other(other.to_owned()),
    }
}

/// `stop_reason` and `stop_sequence`. A word that no client of this language can know is not passed
/// on; one of a backend of this language is, whatever it is.
fn write<'a>(reason: &'a StopReason, exchange: &Words) -> (&'a str, Option<&'a str>) {
    let word = match reason {
        StopReason::StopSequence(sequence) => return ("stop_sequence", sequence.as_deref()),
        StopReason::MaxTokens => "max_tokens",
        StopReason::Context => "model_context_window_exceeded",
        StopReason::ToolUse => "tool_use",
        StopReason::Filter | StopReason::Refusal => "refusal",
        StopReason::Pause => "pause_turn",
        StopReason::Compacted => "compaction",
        StopReason::Other(word) if exchange.native && !word.is_empty() => word,
        StopReason::EndTurn
        | StopReason::BadToolCall
        | StopReason::Aborted
        | StopReason::Other(_) => "end_turn",
    };
    (word, None)
}

/// Writes `stop_reason`, `stop_sequence`, and `stop_details` of a refusal that the vendor explains.
pub fn end(out: &mut Writer, reason: &StopReason, explained: &str, exchange: &Words) {
    let (reason, sequence) = write(reason, exchange);
    out.text_at("stop_reason", reason);
    match sequence {
        Some(sequence) => out.text_at("stop_sequence", sequence),
        None => out.raw_at("stop_sequence", "null"),
    }
    if !explained.is_empty() {
        out.object_at("stop_details", |o| {
            o.text_at("type", "refusal");
            o.raw_at("category", "null");
            o.text_at("explanation", explained);
        });
    }
}

/// What the words of an answer depend on.
#[derive(Clone, Debug)]
pub struct Words {
    /// The backend speaks this language as well.
    pub native: bool,
    created: i64,
}

impl Words {
    /// For one answer.
    pub fn new(exchange: &Exchange) -> Self {
        Self { native: exchange.backend == LANGUAGE, created: exchange.created }
    }

    /// The id of an answer: `msg_` and the backend's, unless it has that form. A backend that says
    /// none has answered at a time.
    pub fn id(&self, backend: &str) -> String {
        match backend {
            "" => format!("msg_{:x}", self.created),
            id if id.starts_with("msg_") => id.to_owned(),
            id => format!("msg_{id}"),
        }
    }
}

/// A call whose arguments are no whole object may stand where the answer was cut off.
pub fn was_cut(reason: Option<&StopReason>) -> bool {
    matches!(
        reason,
        Some(
            StopReason::MaxTokens | StopReason::Context | StopReason::Filter | StopReason::Refusal
        )
    )
}

/// The arguments are a whole JSON object, or none at all.
pub fn are_whole(arguments: &str) -> bool {
    let text = arguments.trim_start();
    text.is_empty()
        || (text.starts_with('{') && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok())
}
