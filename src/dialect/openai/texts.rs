//! Where the texts of Chat Completions, Completions and Embeddings stand.

use crate::dialect::{
    node::Node,
    texts::{AnswerTexts, Ending, Part, RequestTexts, Role, key},
};

/// The texts of a request.
pub fn of_request(body: &[u8]) -> RequestTexts {
    let mut found = RequestTexts::default();
    for (key, value) in Node::root(body).members() {
        if key.is("messages") {
            found.content(&value, Role::User);
        } else if key.is_any(&["prompt", "suffix", "input"]) {
            found.leaves(&value, Role::User);
        } else if key.is("prediction") {
            found.content(&value, Role::Assistant);
        }
    }
    found
}

/// Whether the answer is JSON.
pub fn asks_for_json(body: &[u8]) -> bool {
    Node::root(body).members().any(|(key, value)| {
        let format =
            key.is("response_format") && value.get("type").is_some_and(|t| !t.says("text"));
        let guided = key.is("guided_json") || key.is("structured_outputs");
        format || guided && value.bytes() != b"null"
    })
}

/// The texts of an answer, or of a chunk of one.
pub fn of_answer(document: &[u8], streamed: bool) -> AnswerTexts {
    let mut found = AnswerTexts::default();
    let document = Node::root(document);
    if document.bytes() == b"[DONE]" {
        found.ends.push(Ending::All);
        return found;
    }
    for (key, value) in document.members() {
        if key.is("choices") {
            for choice in value.elements() {
                of_choice(&choice, streamed, &mut found);
            }
        } else if key.is("error") && value.is_object() {
            found.ends.push(Ending::All);
        }
    }
    found
}

fn of_choice(choice: &Node<'_>, streamed: bool, found: &mut AnswerTexts) {
    let group = choice.get("index").and_then(|index| index.number()).unwrap_or(0);
    let from = found.texts.len();
    for (key, value) in choice.members() {
        if key.is("delta") {
            of_message(&value, group, found);
        } else if key.is("message") {
            let from = found.texts.len();
            of_message(&value, group, found);
            found.texts[from..].iter_mut().for_each(|text| text.whole = true);
        } else if key.is("text") {
            found.push(&value, Part::Content, group, "text");
        } else if key.is("finish_reason") && value.is_text() {
            found.ends.push(Ending::Group(group));
        }
    }
    if !streamed {
        found.texts[from..].iter_mut().for_each(|text| text.whole = true);
    }
}

/// A message, or what is new of it.
fn of_message(message: &Node<'_>, group: u64, found: &mut AnswerTexts) {
    for (key, value) in message.members() {
        if key.is("content") {
            content(&value, group, found);
        } else if key.is("refusal") {
            found.push(&value, Part::Refusal, group, "refusal");
        } else if key.is("reasoning") {
            found.push(&value, Part::Reasoning, group, "reasoning");
        } else if key.is("reasoning_content") {
            found.push(&value, Part::Reasoning, group, "reasoning_content");
        } else if key.is("tool_calls") {
            for (at, call) in value.elements().enumerate() {
                let index = call.get("index").and_then(|index| index.number());
                of_call(&call, group, index.unwrap_or(at as u64), found);
            }
        } else if key.is("function_call") {
            of_call(&value, group, u64::MAX, found);
        } else if key.is("audio")
            && let Some(transcript) = value.get("transcript")
        {
            found.push(&transcript, Part::Content, group, "transcript");
        }
    }
}

/// A text, or a list of parts as Mistral has it.
fn content(value: &Node<'_>, group: u64, found: &mut AnswerTexts) {
    found.push(value, Part::Content, group, "content");
    for element in value.elements() {
        for (key, value) in element.members() {
            if key.is("text") {
                found.push(&value, Part::Content, group, "content");
            } else if key.is("thinking") {
                let parts = value.elements().filter_map(|part| part.get("text"));
                for text in parts.chain([value.clone()]) {
                    found.push(&text, Part::Reasoning, group, "thinking");
                }
            }
        }
    }
}

fn of_call(call: &Node<'_>, group: u64, index: u64, found: &mut AnswerTexts) {
    for (name, value) in call.members() {
        if name.is_any(&["function", "custom"]) {
            of_call(&value, group, index, found);
        } else if name.is_any(&["arguments", "input"]) && value.is_text() {
            let embedded = name.is("arguments");
            found.push(&value, Part::Arguments, group, "call").with(|text| {
                text.key = key(group, "call", index);
                text.embedded = embedded;
            });
        } else if name.is("arguments") {
            found.leaves(&value, Part::Arguments, group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_texts_of_a_request() {
        let body = r#"{"model":"m","tools":[{"function":{"description":"no"}}],"messages":[
            {"role":"developer","content":"one"},
            {"content":[{"type":"text","text":"two"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAAAAAA"}},
              {"type":"image_url","image_url":{"url":"https://x/y.png"}}],"role":"user"},
            {"role":"assistant","content":null,"reasoning_content":"three","tool_calls":[
              {"id":"c","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]},
            {"role":"tool","tool_call_id":"c","content":"five"}],"user":"no"}"#;
        let found = of_request(body.as_bytes());
        let texts: Vec<_> = found
            .texts
            .iter()
            .map(|text| (&body[text.range.clone()], text.role, text.embedded))
            .collect();
        let expected = [
            ("\"one\"", Role::System, false),
            ("\"two\"", Role::User, false),
            ("\"three\"", Role::Assistant, false),
            (r#""{\"a\":1}""#, Role::Assistant, true),
            ("\"five\"", Role::Tool, false),
        ];
        assert_eq!(texts, expected);
        let sizes: Vec<_> = found.images.iter().map(|image| image.bytes).collect();
        assert_eq!(sizes, [Some(6), None]);
        let body = br#"{"prompt":["a","b"],"suffix":"c"}"#;
        assert_eq!(of_request(body).texts.len(), 3);
        assert_eq!(of_request(br#"{"input":[1,2]}"#).texts, []);
        assert!(asks_for_json(br#"{"response_format":{"type":"json_object"}}"#));
        assert!(!asks_for_json(br#"{"response_format":{"type":"text"},"guided_json":null}"#));
    }

    #[test]
    fn finds_the_texts_of_an_answer() {
        let chunk = r#"{"choices":[{"index":1,"delta":{"content":"a","reasoning":"b",
            "tool_calls":[{"index":2,"function":{"name":"f","arguments":"{"}}]},"finish_reason":"stop"}]}"#;
        let found = of_answer(chunk.as_bytes(), true);
        let texts: Vec<_> = found
            .texts
            .iter()
            .map(|t| (&chunk[t.range.clone()], t.part, t.group, t.whole, t.embedded))
            .collect();
        let expected = [
            ("\"a\"", Part::Content, 1, false, false),
            ("\"b\"", Part::Reasoning, 1, false, false),
            ("\"{\"", Part::Arguments, 1, false, true),
        ];
        assert_eq!(texts, expected);
        assert_eq!(found.ends, [Ending::Group(1)]);
        let other = of_answer(br#"{"choices":[{"index":1,"delta":{"content":"x"}}]}"#, true);
        assert_eq!((other.texts[0].key, &other.ends[..]), (found.texts[0].key, &[][..]));
        let plain = of_answer(br#"{"choices":[{"message":{"content":"x"}},{"text":"y"}]}"#, false);
        assert!(plain.texts.len() == 2 && plain.texts.iter().all(|text| text.whole));
        assert_eq!(of_answer(b"[DONE]", true).ends, [Ending::All]);
    }
}
