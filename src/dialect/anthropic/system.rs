//! The system prompt of Messages: `system`, which is beside the messages.

use crate::{
    dialect::system::{Located, SystemText, locate},
    wire::{edit::Edit, json},
};

/// The edits that put texts around the system prompt of a body, or make it one.
pub fn insert(doc: &[u8], text: &SystemText) -> Vec<Edit> {
    let found = locate(doc, ["messages", "system"]);
    let Some(Located { values: [Some(messages), system], close }) = found else {
        return Vec::new();
    };
    if json::elements(&doc[messages]).next().is_none() {
        return Vec::new();
    }
    match system {
        Some(system) => text.around_parts(doc, system),
        None => vec![text.as_member("system", close)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::system::tests::{edited, texts};

    fn with(doc: &str, text: &SystemText) -> String {
        edited(doc, insert(doc.as_bytes(), text))
    }

    const MESSAGES: &str = r#""messages": [{"role":"user","content":"u"}]"#;

    #[test]
    fn a_text_stands_around_the_system_prompt() {
        let both = texts(&["B1", "B2"], &["A"]);
        for (system, expected) in [
            (r#""x\"""#, r#""B1|B2|x\"|A""#),
            (r#""""#, r#""B1|B2|A""#),
            ("null", r#""B1|B2|A""#),
            (
                r#"[ {"type":"text","text":"x","cache_control":{"type":"ephemeral","ttl":"1h"}} ]"#,
                r#"[{"type":"text","text":"B1|B2|"}, {"type":"text","text":"x","cache_control":{"type":"ephemeral","ttl":"1h"}} ,{"type":"text","text":"|A"}]"#,
            ),
            ("[]", r#"[{"type":"text","text":"B1|B2|A"}]"#),
            ("7", "7"),
            ("{}", "{}"),
        ] {
            let doc = |system: &str| format!(r#"{{"system" : {system} , {MESSAGES}}}"#);
            assert_eq!(with(&doc(system), &both), doc(expected));
        }
    }

    #[test]
    fn a_conversation_without_a_system_prompt_gets_one() {
        let doc = format!(r#"{{"max_tokens":5, {MESSAGES} }}"#);
        let expected = format!(r#"{{"max_tokens":5, {MESSAGES} ,"system":"B"}}"#);
        assert_eq!(with(&doc, &texts(&["B"], &[])), expected);
        // A message of the system is no system prompt of this language.
        let doc = r#"{"messages":[{"role":"system","content":"x"}]}"#;
        let expected = r#"{"messages":[{"role":"system","content":"x"}],"system":"A"}"#;
        assert_eq!(with(doc, &texts(&[], &["A"])), expected);
    }

    #[test]
    fn the_last_of_two_keys_counts() {
        let doc = format!(r#"{{"system":"w","syst\u0065m":"x",{MESSAGES}}}"#);
        let expected = format!(r#"{{"system":"w","syst\u0065m":"B|x",{MESSAGES}}}"#);
        assert_eq!(with(&doc, &texts(&["B"], &[])), expected);
    }

    #[test]
    fn what_is_no_conversation_stays_as_it_is() {
        for doc in ["", "{}", "[1]", r#"{"system":"x"}"#, r#"{"system":"x","messages":[]}"#] {
            assert_eq!(with(doc, &texts(&["B"], &["A"])), doc);
        }
    }
}
