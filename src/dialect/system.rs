//! Texts of the operator around the system prompt of a request, as edits of its body: everything else
//! stays byte for byte. Where the system prompt stands is known by the languages.

use std::ops::Range;

use crate::wire::{edit::Edit, json};

/// Texts that go before and after a client's own system prompt, with what separates them from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemText {
    before: String,
    /// Between `before` and the client's text.
    before_separator: String,
    after: String,
    /// Between the client's text and `after`.
    after_separator: String,
}

impl SystemText {
    /// Adds a text before the client's, behind those that were added there earlier.
    pub fn add_before(&mut self, text: &str, separator: &str) {
        if !self.before.is_empty() {
            self.before += &self.before_separator;
        }
        self.before += text;
        self.before_separator = separator.to_owned();
    }

    /// Adds a text after the client's, and after those that were added there earlier.
    pub fn add_after(&mut self, text: &str, separator: &str) {
        if self.after.is_empty() {
            self.after_separator = separator.to_owned();
        } else {
            self.after += separator;
        }
        self.after += text;
    }

    /// The texts where the client has none.
    fn alone(&self) -> String {
        match (self.before.as_str(), self.after.as_str()) {
            (before, "") => before.to_owned(),
            ("", after) => after.to_owned(),
            (before, after) => format!("{before}{}{after}", self.after_separator),
        }
    }

    /// The text that comes before the client's.
    fn head(&self) -> Option<String> {
        (!self.before.is_empty()).then(|| format!("{}{}", self.before, self.before_separator))
    }

    /// The text that comes after the client's.
    fn tail(&self) -> Option<String> {
        (!self.after.is_empty()).then(|| format!("{}{}", self.after_separator, self.after))
    }

    /// The texts alone, as a JSON string.
    pub(super) fn quoted(&self) -> Vec<u8> {
        json::quoted(&self.alone())
    }

    /// A member with the texts alone. `close` is the brace that closes an object which has others.
    pub(super) fn as_member(&self, name: &str, close: usize) -> Edit {
        let text = [b",", &*json::quoted(name), b":", &*self.quoted()].concat();
        Edit::insert(close, text)
    }

    /// The edits for a system prompt that is a string, or `null`; none if it is something else.
    pub(super) fn around_text(&self, doc: &[u8], prompt: Range<usize>) -> Vec<Edit> {
        match &doc[prompt.clone()] {
            b"null" | br#""""# => vec![Edit { range: prompt, with: self.quoted().into() }],
            [b'"', ..] => {
                let inside = |text: &str| {
                    let quoted = json::quoted(text);
                    quoted[1..quoted.len() - 1].to_vec()
                };
                let head = self.head().map(|text| Edit::insert(prompt.start + 1, inside(&text)));
                let tail = self.tail().map(|text| Edit::insert(prompt.end - 1, inside(&text)));
                head.into_iter().chain(tail).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The same for one that may also be a list of parts, which stay as they are.
    pub(super) fn around_parts(&self, doc: &[u8], prompt: Range<usize>) -> Vec<Edit> {
        let value = &doc[prompt.clone()];
        if !value.starts_with(b"[") {
            return self.around_text(doc, prompt);
        }
        let (first, last) = (prompt.start + 1, prompt.end - 1);
        if json::elements(value).next().is_none() {
            return vec![Edit::insert(first, part(&self.alone()))];
        }
        let head = self.head().map(|text| [&*part(&text), b","].concat());
        let tail = self.tail().map(|text| [b",", &*part(&text)].concat());
        let head = head.map(|text| Edit::insert(first, text));
        head.into_iter().chain(tail.map(|text| Edit::insert(last, text))).collect()
    }
}

/// A part of a content, as Chat and Messages have it.
fn part(text: &str) -> Vec<u8> {
    serde_json::json!({"type": "text", "text": text}).to_string().into_bytes()
}

/// Where members of an object stand.
pub(super) struct Located<const N: usize> {
    /// The values of the members, in the order of their names. Of equal keys the last one applies, as in
    /// the JSON parsers of the engines.
    pub values: [Option<Range<usize>>; N],
    /// The brace that closes the object.
    pub close: usize,
}

/// Finds members of the object that is `doc`; `None` if it is no valid object, or has no members.
pub(super) fn locate<const N: usize>(doc: &[u8], names: [&str; N]) -> Option<Located<N>> {
    let mut walk = json::members(doc, 0);
    let mut values = [const { None }; N];
    let mut empty = true;
    for member in walk.by_ref() {
        let member = member.ok()?;
        empty = false;
        if let Some(i) = names.iter().position(|name| member.is(doc, name)) {
            values[i] = Some(member.value);
        }
    }
    (!empty).then(|| Located { values, close: walk.position() - 1 })
}

#[cfg(test)]
pub mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        dialect::{DIALECTS, Dialect, Operation},
        wire::edit,
    };

    /// Texts, separated by `|`.
    pub fn texts(before: &[&str], after: &[&str]) -> SystemText {
        let mut texts = SystemText::default();
        before.iter().for_each(|text| texts.add_before(text, "|"));
        after.iter().for_each(|text| texts.add_after(text, "|"));
        texts
    }

    pub fn edited(doc: &str, edits: Vec<Edit>) -> String {
        let mut buf = BytesMut::from(doc.as_bytes());
        edit::apply(&mut buf, edits);
        String::from_utf8(buf.to_vec()).unwrap()
    }

    #[test]
    fn a_separator_stands_between_a_text_and_what_it_is_added_to() {
        let mut texts = SystemText::default();
        texts.add_before("b1", "1");
        texts.add_before("b2", "2");
        texts.add_after("a1", "3");
        texts.add_after("a2", "4");
        assert_eq!(texts.alone(), "b11b23a14a2");
        let around = |doc: &str| edited(doc, texts.around_text(doc.as_bytes(), 0..doc.len()));
        assert_eq!(around(r#""x""#), r#""b11b22x3a14a2""#);
        assert_eq!(around(r#""""#), r#""b11b23a14a2""#);
    }

    fn operation(path: &str) -> (&'static dyn Dialect, &'static Operation) {
        let all = DIALECTS.iter().flat_map(|language| {
            language.operations().iter().map(move |operation| (*language, operation))
        });
        all.clone().find(|(_, operation)| operation.path == path).unwrap()
    }

    #[test]
    fn only_conversations_have_a_system_prompt() {
        let body = br#"{"messages":[{"role":"user","content":"x"}],"input":"x","prompt":"x"}"#;
        let mut with = Vec::new();
        for language in DIALECTS {
            for operation in language.operations() {
                if !language.insert_system(operation, body, &texts(&["B"], &[])).is_empty() {
                    with.push(operation.path);
                }
            }
        }
        assert_eq!(
            with,
            [
                "/v1/chat/completions",
                "/v1/responses",
                "/v1/responses/input_tokens",
                "/v1/messages",
                "/v1/messages/count_tokens"
            ]
        );
    }

    /// The text of a system prompt, whatever its form.
    fn said(value: &Value) -> String {
        match value {
            Value::String(text) => text.clone(),
            Value::Array(parts) => parts.iter().map(|part| said(&part["text"])).collect(),
            _ => String::new(),
        }
    }

    fn system_value() -> impl Strategy<Value = Value> {
        prop_oneof![
            ".{0,20}".prop_map(Value::from),
            Just(Value::Null),
            prop::collection::vec(".{1,10}", 0..3).prop_map(|parts| {
                let part = |text| json!({"type": "text", "text": text, "cache_control": {}});
                parts.into_iter().map(part).collect()
            }),
        ]
    }

    /// A body as one line, or with white space everywhere.
    fn written(body: &Value, pretty: bool) -> String {
        if pretty { serde_json::to_string_pretty(body).unwrap() } else { body.to_string() }
    }

    proptest! {
        #[test]
        fn only_the_system_prompt_changes(
            system in prop::option::of(system_value()),
            // No separator is at an end if nothing is there to separate.
            before in prop::option::of("[^|]{1,20}"),
            after in prop::option::of("[^|]{1,20}"),
            user in ".{0,20}",
            pretty in any::<bool>(),
        ) {
            let list = |text| Option::as_slice(text).iter().map(String::as_str).collect::<Vec<_>>();
            let texts = texts(&list(&before), &list(&after));
            let own = system.as_ref().map(said).unwrap_or_default();
            let all = [before.as_deref(), Some(own.as_str()).filter(|own| !own.is_empty()), after.as_deref()];
            let expected: Vec<_> = all.into_iter().flatten().collect();
            let expected = expected.join("|");
            let turn = json!({"role": "user", "content": user});
            let chat = match &system {
                Some(system) => json!([{"role": "system", "content": system}, turn]),
                None => json!([turn]),
            };
            let mut messages = json!({"model": user, "messages": [turn], "stream": true});
            let mut responses = json!({"model": user, "input": [turn], "stream": true});
            if let Some(system) = &system {
                messages["system"] = system.clone();
                if !system.is_array() {
                    responses["instructions"] = system.clone();
                }
            }
            let responses_expected = match &system {
                Some(Value::Array(_)) => [before.as_deref(), after.as_deref()].into_iter().flatten().collect::<Vec<_>>().join("|"),
                _ => expected.clone(),
            };
            for (path, body, place, expected) in [
                ("/v1/chat/completions", json!({"messages": chat, "model": user}), "/messages/0/content", &expected),
                ("/v1/messages", messages, "/system", &expected),
                ("/v1/responses", responses, "/instructions", &responses_expected),
            ] {
                let doc = written(&body, pretty);
                let (language, operation) = operation(path);
                let edits = language.insert_system(operation, doc.as_bytes(), &texts);
                // What the edits do not replace stays, and they replace nothing but `null` and `""`.
                for edit in &edits {
                    let replaced = &doc[edit.range.clone()];
                    prop_assert!(["", "null", "\"\""].contains(&replaced), "{}", replaced);
                }
                if before.is_none() && after.is_none() {
                    continue;
                }
                let mut new: Value = serde_json::from_str(&edited(&doc, edits)).unwrap();
                let found = new.pointer(place).unwrap();
                prop_assert_eq!(&said(found), expected, "{}", doc);
                // Parts are still there.
                if let (Some(Value::Array(parts)), Value::Array(now)) = (&system, found) {
                    prop_assert!(parts.iter().all(|part| now.contains(part)));
                }
                // And the rest is the same.
                let mut old = body;
                if path == "/v1/chat/completions" {
                    let turns = new["messages"].as_array().unwrap();
                    prop_assert_eq!(&turns[1], &turn);
                    prop_assert_eq!(turns.len(), 2);
                    new["messages"] = Value::Null;
                    old["messages"] = Value::Null;
                } else {
                    let key = &place[1..];
                    new.as_object_mut().unwrap().remove(key);
                    old.as_object_mut().unwrap().remove(key);
                }
                prop_assert_eq!(new, old);
            }
        }

        #[test]
        fn nothing_panics(text in r#"[\{\}\[\],:"a\\ ]{0,30}"#, at in 0usize..40) {
            let bodies = [
                text.clone(),
                format!(r#"{{"messages":[{text}],"system":{text},"instructions":{text}}}"#),
                format!(r#"{{"messages":[{{"role":"system","content":{text}}}]}}"#),
            ];
            for body in bodies {
                let cut = &body.as_bytes()[..body.len().saturating_sub(at)];
                for body in [body.as_bytes(), cut] {
                    for language in DIALECTS {
                        for operation in language.operations() {
                            language.insert_system(operation, body, &texts(&["B"], &["A"]));
                        }
                    }
                }
            }
        }
    }
}
