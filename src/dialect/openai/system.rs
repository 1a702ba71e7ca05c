//! The system prompt of Chat: the first message of the system or the developer.

use std::ops::Range;

use crate::{
    dialect::system::{Located, SystemText, locate},
    wire::{edit::Edit, json},
};

/// The edits that put texts around the system prompt of a body, or make it one.
pub fn insert(doc: &[u8], text: &SystemText) -> Vec<Edit> {
    let Some(Located { values: [Some(messages)], .. }) = locate(doc, ["messages"]) else {
        return Vec::new();
    };
    let start = messages.start;
    let mut list = json::elements(&doc[messages])
        .map(|message| message.start + start..message.end + start)
        .peekable();
    if list.peek().is_none() {
        return Vec::new();
    }
    match list.find_map(|range| Message::of_system(doc, range)) {
        Some(message) => message.edits(doc, text),
        None => {
            let message = [br#"{"role":"system","content":"#, &*text.quoted(), b"},"].concat();
            vec![Edit::insert(start + 1, message)]
        }
    }
}

/// A message with a system prompt.
struct Message {
    content: Option<Range<usize>>,
    /// The brace that closes it.
    close: usize,
}

impl Message {
    /// The message that stands there, if it is the system's.
    fn of_system(doc: &[u8], range: Range<usize>) -> Option<Self> {
        let message = &doc[range.clone()];
        let Located { values: [role, content], close } = locate(message, ["role", "content"])?;
        let role = message[role?].strip_prefix(b"\"")?.strip_suffix(b"\"")?;
        let role = json::unescape(role)?;
        let content = content.map(|c| c.start + range.start..c.end + range.start);
        let own = ["system", "developer"].contains(&role.as_str());
        own.then_some(Self { content, close: close + range.start })
    }

    fn edits(self, doc: &[u8], text: &SystemText) -> Vec<Edit> {
        match self.content {
            Some(content) => text.around_parts(doc, content),
            None => vec![text.as_member("content", self.close)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::system::tests::{edited, texts};

    fn with(doc: &str, text: &SystemText) -> String {
        edited(doc, insert(doc.as_bytes(), text))
    }

    #[test]
    fn a_text_stands_around_that_of_the_first_message() {
        let both = texts(&["B\"1", "B2"], &["A1", "A2"]);
        for (doc, expected) in [
            (
                r#"{"messages": [ {"role":"system", "content" : "x\u00e4\n"} ,{"role":"user","content":"u"}],"model":"m"}"#,
                r#"{"messages": [ {"role":"system", "content" : "B\"1|B2|x\u00e4\n|A1|A2"} ,{"role":"user","content":"u"}],"model":"m"}"#,
            ),
            (
                r#"{"messages":[{"content":"x","role":"developer"}]}"#,
                r#"{"messages":[{"content":"B\"1|B2|x|A1|A2","role":"developer"}]}"#,
            ),
            (
                r#"{"messages":[{"role":"user","content":"u"},{"role":"syst\u0065m","content":"x"},{"role":"system","content":"y"}]}"#,
                r#"{"messages":[{"role":"user","content":"u"},{"role":"syst\u0065m","content":"B\"1|B2|x|A1|A2"},{"role":"system","content":"y"}]}"#,
            ),
            (
                r#"{"messages":[{"role":"system","content":""}]}"#,
                r#"{"messages":[{"role":"system","content":"B\"1|B2|A1|A2"}]}"#,
            ),
            (
                r#"{"messages":[{"role":"system","content":null}]}"#,
                r#"{"messages":[{"role":"system","content":"B\"1|B2|A1|A2"}]}"#,
            ),
            (
                r#"{"messages":[{"role":"system" }]}"#,
                r#"{"messages":[{"role":"system" ,"content":"B\"1|B2|A1|A2"}]}"#,
            ),
        ] {
            assert_eq!(with(doc, &both), expected);
        }
    }

    #[test]
    fn parts_stay_as_they_are() {
        let parts = r#"{"type":"text","text":"x","cache_control":{"type":"ephemeral"}}, {"type":"text","text":"y"} "#;
        let doc = |content: &str| {
            format!(r#"{{"messages":[{{"role":"system","content":[{content}]}}]}}"#)
        };
        let part = |text: &str| format!(r#"{{"type":"text","text":"{text}"}}"#);
        assert_eq!(
            with(&doc(parts), &texts(&["B"], &["A"])),
            doc(&format!("{},{parts},{}", part("B|"), part("|A")))
        );
        assert_eq!(with(&doc(parts), &texts(&["B"], &[])), doc(&format!("{},{parts}", part("B|"))));
        assert_eq!(with(&doc(parts), &texts(&[], &["A"])), doc(&format!("{parts},{}", part("|A"))));
        assert_eq!(with(&doc(" "), &texts(&["B"], &["A"])), doc(&format!("{} ", part("B|A"))));
    }

    #[test]
    fn a_conversation_without_a_system_prompt_gets_one() {
        for (doc, expected) in [
            (
                r#"{"messages":[ {"role":"user","content":"u"}]}"#,
                r#"{"messages":[{"role":"system","content":"B|A"}, {"role":"user","content":"u"}]}"#,
            ),
            (
                r#"{"messages":[7,{"role":7},{}]}"#,
                r#"{"messages":[{"role":"system","content":"B|A"},7,{"role":7},{}]}"#,
            ),
        ] {
            assert_eq!(with(doc, &texts(&["B"], &["A"])), expected);
        }
    }

    #[test]
    fn the_last_of_two_keys_counts() {
        let doc = r#"{"messages":[{"role":"system","content":"w"}],"messages":[{"role":"user","content":"v","role":"system","content":"x"}]}"#;
        let expected = r#"{"messages":[{"role":"system","content":"w"}],"messages":[{"role":"user","content":"v","role":"system","content":"B|x"}]}"#;
        assert_eq!(with(doc, &texts(&["B"], &[])), expected);
    }

    #[test]
    fn what_is_no_conversation_stays_as_it_is() {
        for doc in [
            "",
            "{}",
            "[]",
            "nonsense",
            r#"{"model":"m"}"#,
            r#"{"messages":[]}"#,
            r#"{"messages":null}"#,
            r#"{"messages":"x"}"#,
            r#"{"messages":{"role":"system","content":"x"}}"#,
            r#"{"messages":[{"role":"system","content":7}]}"#,
            r#"{"messages":[{"role":"system","content":{"a":1}}]}"#,
            r#"{"messages":[{"role":"system","content":"x"}]"#,
            r#"{"messages":[{"role":"user","content":"u"}],"messages":null}"#,
        ] {
            assert_eq!(with(doc, &texts(&["B"], &["A"])), doc);
        }
    }
}
