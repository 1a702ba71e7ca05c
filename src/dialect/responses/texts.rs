//! Where the texts of Responses stand.

use xxhash_rust::xxh3::xxh3_64;

use crate::dialect::{
    node::Node,
    texts::{AnswerTexts, Ending, Part, RequestTexts, Role, key},
};

/// The texts of a request. The instructions come first, wherever they stand.
pub fn of_request(body: &[u8]) -> RequestTexts {
    let mut found = RequestTexts::default();
    let body = Node::root(body);
    for (_, value) in body.members().filter(|(key, _)| key.is("instructions")) {
        found.content(&value, Role::System);
    }
    for (key, value) in body.members() {
        if key.is("input") {
            found.content(&value, Role::User);
        } else if key.is("prompt")
            && let Some(variables) = value.get("variables")
        {
            found.leaves(&variables, Role::User);
        }
    }
    found
}

/// Whether the answer is JSON.
pub fn asks_for_json(body: &[u8]) -> bool {
    let format = Node::root(body).get("text").and_then(|text| text.get("format"));
    format.and_then(|format| format.get("type")).is_some_and(|kind| !kind.says("text"))
}

/// Events of running texts: how their names begin, the members of their ends, and what the text is.
const RUNNING: [(&str, &str, Part); 6] = [
    ("response.output_text.", "text", Part::Content),
    ("response.refusal.", "refusal", Part::Refusal),
    ("response.function_call_arguments.", "arguments", Part::Arguments),
    ("response.custom_tool_call_input.", "input", Part::Arguments),
    ("response.reasoning_text.", "text", Part::Reasoning),
    ("response.reasoning_summary_text.", "text", Part::Reasoning),
];

/// The texts of an answer, or of an event of one.
pub fn of_answer(document: &[u8], streamed: bool) -> AnswerTexts {
    let mut found = AnswerTexts::default();
    let document = Node::root(document);
    if !streamed {
        of_response(&document, &mut found);
        return found;
    }
    let kind = document.get("type").and_then(|kind| kind.text()).unwrap_or_default();
    let kind = &*kind;
    if let Some((before, end, part)) = RUNNING.iter().find(|(before, ..)| kind.starts_with(before))
    {
        running(&document, (before, &kind[before.len()..], end), *part, &mut found);
        return found;
    }
    let group = item_of(&document);
    match kind {
        "response.content_part.added" | "response.content_part.done" => {
            if let Some(part) = document.get("part") {
                of_part(&part, group, &mut found);
            }
        }
        "response.reasoning_summary_part.added" | "response.reasoning_summary_part.done" => {
            if let Some(text) = document.get("part").and_then(|part| part.get("text")) {
                found.push(&text, Part::Reasoning, group, "part").with(|text| text.whole = true);
            }
        }
        "response.output_item.added" | "response.output_item.done" => {
            if let Some(item) = document.get("item") {
                of_item(&item, group, &mut found);
            }
            if kind.ends_with("done") {
                found.ends.push(Ending::Group(group));
            }
        }
        "error" => found.ends.push(Ending::All),
        _ => {
            if let Some(response) = document.get("response") {
                of_response(&response, &mut found);
            }
            let state = kind.strip_prefix("response.").unwrap_or_default();
            if matches!(state, "completed" | "incomplete" | "failed" | "cancelled") {
                found.ends.push(Ending::All);
            }
        }
    }
    found
}

/// A piece of a running text, or its end, which repeats all of it.
fn running(
    document: &Node<'_>,
    (before, what, end): (&str, &str, &str),
    part: Part,
    found: &mut AnswerTexts,
) {
    let group = item_of(document);
    let number = |name| document.get(name).and_then(|index| index.number());
    let index = number("content_index").or_else(|| number("summary_index")).unwrap_or(0);
    let name = before.trim_start_matches("response.");
    let text = key(group, name, index);
    let value = document.get(if what == "done" { end } else { "delta" });
    if let Some(value) = value.filter(Node::is_text) {
        found.push(&value, part, group, name).with(|found| {
            found.key = text;
            found.whole = what == "done";
            found.embedded = end == "arguments";
        });
    }
    if what == "done" {
        found.ends.push(Ending::Text(text));
    }
}

/// The item that an event is about. Not every server gives both its place and its id.
fn item_of(document: &Node<'_>) -> u64 {
    if let Some(index) = document.get("output_index").and_then(|index| index.number()) {
        return index;
    }
    let id = document.get("item_id").or_else(|| document.get("item")?.get("id"));
    id.map_or(0, |id| xxh3_64(id.bytes()))
}

fn of_response(response: &Node<'_>, found: &mut AnswerTexts) {
    for (key, value) in response.members() {
        if key.is("instructions") {
            for leaf in value.leaves() {
                found.push(&leaf, Part::Echo, 0, "echo").with(|text| text.whole = true);
            }
        } else if key.is("output") {
            for (at, item) in value.elements().enumerate() {
                of_item(&item, at as u64, found);
            }
        }
    }
}

/// The texts of an item; they are complete.
fn of_item(item: &Node<'_>, group: u64, found: &mut AnswerTexts) {
    let from = found.texts.len();
    for (key, value) in item.members() {
        if key.is("content") {
            for part in value.elements() {
                of_part(&part, group, found);
            }
        } else if key.is("summary") {
            for text in value.elements().filter_map(|part| part.get("text")) {
                found.push(&text, Part::Reasoning, group, "summary");
            }
        } else if key.is("arguments") && value.is_text() {
            found.push(&value, Part::Arguments, group, "item").with(|text| text.embedded = true);
        } else if key.is("input") {
            found.push(&value, Part::Arguments, group, "item");
        }
    }
    found.texts[from..].iter_mut().for_each(|text| text.whole = true);
}

/// A part of a message, or of reasoning.
fn of_part(part: &Node<'_>, group: u64, found: &mut AnswerTexts) {
    let reasons = part.get("type").is_some_and(|kind| kind.says("reasoning_text"));
    let said = if reasons { Part::Reasoning } else { Part::Content };
    for (key, value) in part.members() {
        if key.is("text") && value.is_text() {
            found.push(&value, said, group, "part").with(|text| text.whole = true);
        } else if key.is("refusal") && value.is_text() {
            found.push(&value, Part::Refusal, group, "part").with(|text| text.whole = true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::texts::AnswerText;

    #[test]
    fn finds_the_texts_of_a_request() {
        let body = r#"{"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"two"},
              {"type":"input_image","image_url":"data:image/png;base64,AAAA"}]},
            {"type":"reasoning","summary":[{"type":"summary_text","text":"three"}],"encrypted_content":"no"},
            {"type":"function_call","name":"f","arguments":"four","call_id":"c"},
            {"type":"function_call_output","call_id":"c","output":"five"},
            {"type":"function_call_output","call_id":"d","output":[{"type":"input_text","text":"six"}]}],
            "instructions":"one","tools":[{"description":"no"}],"text":{"format":{"type":"json_schema"}}}"#;
        let found = of_request(body.as_bytes());
        let texts: Vec<_> =
            found.texts.iter().map(|t| (body[t.range.clone()].trim_matches('"'), t.role)).collect();
        let expected = [
            ("one", Role::System),
            ("two", Role::User),
            ("three", Role::Assistant),
            ("four", Role::Assistant),
            ("five", Role::Tool),
            ("six", Role::Tool),
        ];
        assert_eq!(texts, expected);
        assert_eq!(found.images.len(), 1);
        assert!(asks_for_json(body.as_bytes()));
        assert_eq!(of_request(br#"{"input":"x"}"#).texts.len(), 1);
    }

    fn texts(document: &str, streamed: bool) -> (Vec<AnswerText>, Vec<Ending>) {
        let found = of_answer(document.as_bytes(), streamed);
        (found.texts, found.ends)
    }

    #[test]
    fn pieces_and_their_end_are_one_text() {
        for id in [r#""item_id":"msg_1""#, r#""output_index":3,"item_id":"msg_1""#] {
            let delta = format!(r#"{{"type":"response.output_text.delta",{id},"delta":"x"}}"#);
            let done = format!(r#"{{"type":"response.output_text.done",{id},"text":"x"}}"#);
            let ((piece, none), (all, ends)) = (texts(&delta, true), texts(&done, true));
            assert!(none.is_empty() && !piece[0].whole && all[0].whole, "{piece:?} {all:?}");
            assert_eq!((piece[0].key, &ends[..]), (all[0].key, &[Ending::Text(piece[0].key)][..]));
        }
        let item = r#"{"type":"response.output_item.done","item":{"id":"msg_1","content":[
            {"type":"output_text","text":"x"},{"type":"refusal","refusal":"y"}]}}"#;
        let (found, ends) = texts(item, true);
        assert_eq!(
            found.iter().map(|t| t.part).collect::<Vec<_>>(),
            [Part::Content, Part::Refusal]
        );
        let delta = r#"{"type":"response.refusal.delta","item_id":"msg_1","delta":"x"}"#;
        assert_eq!(ends, [Ending::Group(texts(delta, true).0[0].group)]);
    }

    #[test]
    fn whole_responses_have_all_texts() {
        let response = r#"{"object":"response","instructions":"be brief","output":[
            {"type":"reasoning","summary":[],"content":[{"type":"reasoning_text","text":"x"}]},
            {"type":"function_call","arguments":"{}"}]}"#;
        let parts = |found: Vec<AnswerText>| found.iter().map(|t| t.part).collect::<Vec<_>>();
        let expected = [Part::Echo, Part::Reasoning, Part::Arguments];
        assert_eq!(parts(texts(response, false).0), expected);
        let event = format!(r#"{{"type":"response.completed","response":{response}}}"#);
        let (found, ends) = texts(&event, true);
        assert_eq!((parts(found), &ends[..]), (expected.to_vec(), &[Ending::All][..]));
    }
}
