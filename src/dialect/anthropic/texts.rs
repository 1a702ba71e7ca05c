//! Where the texts of Messages stand.

use crate::dialect::{
    node::Node,
    texts::{AnswerTexts, Ending, Part, RequestTexts, Role},
};

/// The texts of a request. The system prompt comes first, wherever it stands.
pub fn of_request(body: &[u8]) -> RequestTexts {
    let mut found = RequestTexts::default();
    let body = Node::root(body);
    for (_, value) in body.members().filter(|(key, _)| key.is("system")) {
        found.content(&value, Role::System);
    }
    for (_, value) in body.members().filter(|(key, _)| key.is("messages")) {
        found.content(&value, Role::User);
    }
    found
}

/// Whether the answer is JSON.
pub fn asks_for_json(body: &[u8]) -> bool {
    Node::root(body).members().any(|(key, value)| {
        let format = match key.is("output_config") {
            true => value.get("format"),
            false => key.is("output_format").then_some(value),
        };
        format.is_some_and(|format| format.is_object())
    })
}

/// The texts of an answer, or of an event of one.
pub fn of_answer(document: &[u8], _streamed: bool) -> AnswerTexts {
    let mut found = AnswerTexts::default();
    let document = Node::root(document);
    let index = || document.get("index").and_then(|index| index.number()).unwrap_or(0);
    let kind = document.get("type").and_then(|kind| kind.text()).unwrap_or_default();
    match &*kind {
        "content_block_delta" => {
            if let Some(delta) = document.get("delta") {
                block(&delta, index(), false, &mut found);
            }
        }
        "content_block_start" => {
            if let Some(start) = document.get("content_block") {
                block(&start, index(), false, &mut found);
            }
        }
        "content_block_stop" => found.ends.push(Ending::Group(index())),
        "message_delta" | "message_stop" | "error" => found.ends.push(Ending::All),
        "message" => {
            let content = document.get("content");
            let blocks = content.iter().flat_map(Node::elements);
            for (index, element) in blocks.enumerate() {
                block(&element, index as u64, true, &mut found);
            }
        }
        _ => {}
    }
    found
}

/// The texts of a block, or of a piece of one. Reasoning is signed, as vendors have it.
fn block(block: &Node<'_>, index: u64, whole: bool, found: &mut AnswerTexts) {
    for (key, value) in block.members() {
        if key.is("text") {
            found.push(&value, Part::Content, index, "text").with(|text| text.whole = whole);
        } else if key.is("thinking") && value.is_text() {
            found.push(&value, Part::Reasoning, index, "thinking").with(|text| {
                text.whole = whole;
                text.sealed = true;
            });
        } else if key.is("partial_json") && value.is_text() {
            found.push(&value, Part::Arguments, index, "input").with(|text| text.embedded = true);
        } else if key.is("input") {
            found.leaves(&value, Part::Arguments, index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_texts_of_a_request() {
        let body = r#"{"model":"m","messages":[{"role":"user","content":"two"},
            {"role":"assistant","content":[{"type":"thinking","thinking":"three","signature":"s"},
              {"type":"redacted_thinking","data":"no"},
              {"type":"tool_use","id":"t","name":"f","input":{"a":["four"],"type":"five"}}]},
            {"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":[{"type":"text","text":"six"}]},
              {"type":"image","source":{"type":"base64","media_type":"image/png","data":"AAAA"}},
              {"type":"document","title":"seven","source":{"type":"text","data":"eight"}}]}],
            "tools":[{"name":"f","description":"no"}],"system":[{"type":"text","text":"one"}]}"#;
        let found = of_request(body.as_bytes());
        let texts: Vec<_> =
            found.texts.iter().map(|t| (body[t.range.clone()].trim_matches('"'), t.role)).collect();
        let expected = [
            ("one", Role::System),
            ("two", Role::User),
            ("three", Role::Assistant),
            ("four", Role::Assistant),
            ("five", Role::Assistant),
            ("six", Role::Tool),
            ("seven", Role::User),
            ("eight", Role::User),
        ];
        assert_eq!(texts, expected);
        let sealed: Vec<_> = found.texts.iter().map(|t| t.sealed).collect();
        assert_eq!(sealed, [false, false, true, false, false, false, false, false]);
        assert_eq!(found.images.iter().map(|i| i.bytes).collect::<Vec<_>>(), [Some(3)]);
    }

    #[test]
    fn finds_the_texts_of_an_answer() {
        let texts = |document: &str, streamed| -> Vec<(String, Part, u64, bool, bool)> {
            let found = of_answer(document.as_bytes(), streamed);
            let say = |t: &crate::dialect::texts::AnswerText| {
                let text = document[t.range.clone()].to_owned();
                (text, t.part, t.group, t.whole, t.sealed)
            };
            found.texts.iter().map(say).collect()
        };
        let delta = r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\"a"}}"#;
        let expected = (r#""{\"a""#.to_owned(), Part::Arguments, 2, false, false);
        assert_eq!(texts(delta, true), [expected]);
        let delta = r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"x"}}"#;
        assert_eq!(texts(delta, true), [("\"x\"".to_owned(), Part::Reasoning, 0, false, true)]);
        let whole = r#"{"type":"message","content":[{"type":"text","text":"x"},
            {"type":"tool_use","input":{"a":"y"}}],"stop_reason":"tool_use"}"#;
        let expected = [
            ("\"x\"".to_owned(), Part::Content, 0, true, false),
            ("\"y\"".to_owned(), Part::Arguments, 1, true, false),
        ];
        assert_eq!(texts(whole, false), expected);
        let stop = of_answer(br#"{"type":"content_block_stop","index":2}"#, true);
        assert_eq!(stop.ends, [Ending::Group(2)]);
    }
}
