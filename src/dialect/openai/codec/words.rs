//! Chat's words for why an answer ended, and its name.

use serde_json::value::RawValue;

use crate::dialect::hub::{StopReason, request::State};

/// The language's name.
pub const LANGUAGE: &str = "chat";

/// The language of the extension of a system text that belongs to the message of the one before it.
pub const MORE: &str = "chat part";

/// Gateways that put a signature of a call into its id write this between the two.
const IN_ID: &str = "__thought__";

/// A call's id, and the state that another gateway has put behind it.
pub fn split_id(id: &str) -> (String, Option<State>) {
    match id.split_once(IN_ID) {
        Some((id, state)) if !id.is_empty() && !state.is_empty() => {
            (id.to_owned(), Some(crate::dialect::hub::envelope::unwrap(state, LANGUAGE)))
        }
        _ => (id.to_owned(), None),
    }
}

/// Why an answer ended. `stop_reason` is vLLM's: the text that ended it, or a token's number.
pub fn stop_reason(finish: &str, stop_reason: Option<&RawValue>) -> StopReason {
    let text = || stop_reason.and_then(|text| serde_json::from_str(text.get()).ok());
    match finish.to_ascii_lowercase().as_str() {
        "stop" => match text() {
            Some(text) => StopReason::StopSequence(Some(text)),
            None => StopReason::EndTurn,
        },
        "length" | "max_tokens" => StopReason::MaxTokens,
        // Mistral's.
        "model_length" => StopReason::Context,
        "tool_calls" | "function_call" | "tool_use" => StopReason::ToolUse,
        "content_filter" => StopReason::Filter,
        // vLLM's and Mistral's; the last is DeepSeek's.
        "abort" | "error" | "insufficient_system_resource" => StopReason::Aborted,
        _ => StopReason::Other(finish.to_owned()),
    }
}

/// The word for a client: never one that Chat does not have. `functions`: the client knows calls
/// only as `function_call`. `refused`: it reads the words of a refusal; without any, an answer that was
/// refused must not look as if it were whole.
pub fn finish_reason(reason: &StopReason, functions: bool, refused: bool) -> &'static str {
    match reason {
        StopReason::MaxTokens | StopReason::Context => "length",
        StopReason::ToolUse if functions => "function_call",
        StopReason::ToolUse => "tool_calls",
        StopReason::Filter => "content_filter",
        StopReason::Refusal if !refused => "content_filter",
        StopReason::EndTurn
        | StopReason::StopSequence(_)
        | StopReason::Refusal
        | StopReason::Pause
        | StopReason::Compacted
        | StopReason::BadToolCall
        | StopReason::Aborted
        | StopReason::Other(_) => "stop",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_words_are_not_sent_to_clients() {
        for word in ["eos", "repetition", "SAFETY", "", "pause_turn"] {
            let reason = stop_reason(word, None);
            assert!(matches!(reason, StopReason::Other(_)), "{word}");
            assert_eq!(finish_reason(&reason, false, false), "stop");
        }
        for word in ["abort", "error", "insufficient_system_resource"] {
            assert_eq!(stop_reason(word, None), StopReason::Aborted);
        }
        for word in ["stop", "length", "tool_calls", "content_filter"] {
            assert_eq!(finish_reason(&stop_reason(word, None), false, false), word);
        }
    }

    #[test]
    fn a_refusal_without_words_is_no_whole_answer() {
        assert_eq!(finish_reason(&StopReason::Refusal, false, false), "content_filter");
        assert_eq!(finish_reason(&StopReason::Refusal, false, true), "stop");
    }

    #[test]
    fn a_stop_text_is_a_text_and_not_a_tokens_number() {
        let raw = |text: &str| RawValue::from_string(text.into()).unwrap();
        assert_eq!(
            stop_reason("stop", Some(&raw("\"END\""))),
            StopReason::StopSequence(Some("END".into()))
        );
        assert_eq!(stop_reason("stop", Some(&raw("128009"))), StopReason::EndTurn);
        assert_eq!(stop_reason("stop", Some(&raw("null"))), StopReason::EndTurn);
    }

    #[test]
    fn signatures_in_ids_are_read() {
        let (id, state) = split_id("call_1__thought__abc");
        assert_eq!((id.as_str(), state.unwrap().value.as_str()), ("call_1", "abc"));
        assert_eq!(split_id("__thought__abc").1, None);
        assert_eq!(split_id("call_2"), ("call_2".into(), None));
    }
}
