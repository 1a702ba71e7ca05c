//! The system prompt of Responses: `instructions`, which apply to one request and come before its input.

use crate::{
    dialect::system::{Located, SystemText, locate},
    wire::edit::Edit,
};

/// The edits that put texts around the instructions of a body, or make it some. Its input may be
/// elsewhere: in a stored prompt, or in the response that it continues.
pub fn insert(doc: &[u8], text: &SystemText) -> Vec<Edit> {
    match locate(doc, ["instructions"]) {
        Some(Located { values: [Some(instructions)], .. }) => text.around_text(doc, instructions),
        Some(Located { close, .. }) => vec![text.as_member("instructions", close)],
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::system::tests::{edited, texts};

    #[test]
    fn a_text_stands_around_the_instructions() {
        for (doc, expected) in [
            (r#"{"input":"i","instructions":"x"}"#, r#"{"input":"i","instructions":"B1|B2|x|A"}"#),
            (
                r#"{"instructions": null ,"input":"i"}"#,
                r#"{"instructions": "B1|B2|A" ,"input":"i"}"#,
            ),
            (r#"{"instructions":"","input":"i"}"#, r#"{"instructions":"B1|B2|A","input":"i"}"#),
            (
                r#"{"input":[{"role":"developer","content":"x"}] }"#,
                r#"{"input":[{"role":"developer","content":"x"}] ,"instructions":"B1|B2|A"}"#,
            ),
            (
                r#"{"previous_response_id":"r"}"#,
                r#"{"previous_response_id":"r","instructions":"B1|B2|A"}"#,
            ),
            (
                r#"{"instructions":"w","instructions":"x"}"#,
                r#"{"instructions":"w","instructions":"B1|B2|x|A"}"#,
            ),
            (r#"{"instructions":["x"]}"#, r#"{"instructions":["x"]}"#),
            (r#"{"instructions":7}"#, r#"{"instructions":7}"#),
            ("{}", "{}"),
            ("", ""),
        ] {
            let edits = insert(doc.as_bytes(), &texts(&["B1", "B2"], &["A"]));
            assert_eq!(edited(doc, edits), expected);
        }
    }
}
