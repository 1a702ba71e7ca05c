//! Changes of a JSON document, as edits of its bytes: what did not change stays as it was written, byte
//! for byte, also inside of what did change.

use std::{collections::HashSet, ops::Range};

use serde_json::{Map, Value};

use super::{edit::Edit, json};

/// The edits that turn `doc`, which says `old`, into a document that says `new`. Members of `doc` that
/// `old` does not have, and `new` does not have either, stay: a reader may not have seen them.
pub fn edits(doc: &[u8], old: &Value, new: &Value) -> Vec<Edit> {
    let start = doc.iter().position(|b| !b.is_ascii_whitespace()).unwrap_or(doc.len());
    let end = doc.iter().rposition(|b| !b.is_ascii_whitespace()).map_or(start, |last| last + 1);
    let mut splice = Splice { doc, edits: Vec::new() };
    splice.value(start..end.max(start), old, new);
    splice.edits
}

struct Splice<'a> {
    doc: &'a [u8],
    edits: Vec<Edit>,
}

impl Splice<'_> {
    fn value(&mut self, at: Range<usize>, old: &Value, new: &Value) {
        if old == new {
            return;
        }
        let done = match (old, new) {
            (Value::Object(old), Value::Object(new)) => self.object(&at, old, new),
            (Value::Array(old), Value::Array(new)) => self.array(&at, old, new),
            _ => false,
        };
        if !done {
            self.replace(at, written(new));
        }
    }

    fn replace(&mut self, at: Range<usize>, with: Vec<u8>) {
        self.edits.push(Edit { range: at, with: with.into() });
    }

    /// `false`: it has to be written as a whole.
    fn object(
        &mut self,
        at: &Range<usize>,
        old: &Map<String, Value>,
        new: &Map<String, Value>,
    ) -> bool {
        let doc = &self.doc[at.clone()];
        let mut members = Vec::new();
        for member in json::members(doc, 0) {
            let Ok(member) = member else { return false };
            let Some(name) = json::unescape(&doc[member.key.clone()]) else { return false };
            members.push((name, member));
        }
        let is_removed = |name: &str| old.contains_key(name) && !new.contains_key(name);
        let stays = members.iter().filter(|(name, _)| !is_removed(name)).count();
        if stays == 0 {
            return false;
        }
        if stays < members.len() {
            let removed: Vec<_> = members.iter().map(|(name, _)| is_removed(name)).collect();
            for cut in cuts(members.iter().map(|(_, member)| member.span()), &removed, doc) {
                self.edits.push(Edit::cut(at.start + cut.start..at.start + cut.end));
            }
        }
        for (name, member) in &members {
            let Some(value) = new.get(name) else { continue };
            let place = at.start + member.value.start..at.start + member.value.end;
            match old.get(name) {
                Some(old) => self.value(place, old, value),
                None => self.replace(place, written(value)),
            }
        }
        let mut added = Vec::new();
        let known: HashSet<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
        for (name, value) in new {
            if !known.contains(name.as_str()) {
                added.push(b',');
                added.extend_from_slice(&json::quoted(name));
                added.push(b':');
                added.extend_from_slice(&written(value));
            }
        }
        if !added.is_empty() {
            self.edits.push(Edit::insert(at.end - 1, added));
        }
        true
    }

    /// `false`: it has to be written as a whole.
    fn array(&mut self, at: &Range<usize>, old: &[Value], new: &[Value]) -> bool {
        let doc = &self.doc[at.clone()];
        let places: Vec<_> = json::elements(doc).collect();
        if places.len() != old.len() || old.is_empty() || new.is_empty() {
            return false;
        }
        let same = |(a, b): &(&Value, &Value)| a == b;
        let before = old.iter().zip(new).take_while(same).count();
        let rest = old.len().min(new.len()) - before;
        let after = old.iter().rev().zip(new.iter().rev()).take(rest).take_while(same).count();
        let (gone, come) = (&old[before..old.len() - after], &new[before..new.len() - after]);
        let place = |n: usize| at.start + places[n].start..at.start + places[n].end;
        if gone.len() == come.len() {
            for (n, (old, new)) in gone.iter().zip(come).enumerate() {
                self.value(place(before + n), old, new);
            }
            return true;
        }
        if come.is_empty() {
            let removed: Vec<_> =
                (0..old.len()).map(|n| (before..old.len() - after).contains(&n)).collect();
            for cut in cuts(places.iter().cloned(), &removed, doc) {
                self.edits.push(Edit::cut(at.start + cut.start..at.start + cut.end));
            }
            return true;
        }
        let text = come.iter().map(written).collect::<Vec<_>>().join(&b","[..]);
        if gone.is_empty() {
            let (at, with) = match before {
                0 => (place(0).start, [&text[..], b","].concat()),
                n => (place(n - 1).end, [b",", &text[..]].concat()),
            };
            self.edits.push(Edit::insert(at, with));
        } else {
            let last = place(old.len() - after - 1).end;
            self.replace(place(before).start..last, text);
        }
        true
    }
}

/// The ranges to delete so that the removed ones of some parts disappear, each with the comma that it has
/// in common with a part that stays. At least one part stays.
fn cuts(
    parts: impl Iterator<Item = Range<usize>>,
    removed: &[bool],
    doc: &[u8],
) -> Vec<Range<usize>> {
    let parts: Vec<_> = parts.collect();
    let first = removed.iter().position(|removed| !removed).unwrap_or(removed.len());
    let mut cuts = Vec::new();
    for (n, part) in parts.iter().enumerate().filter(|(n, _)| removed[*n]) {
        let cut = match parts.get(n + 1) {
            // Before the first that stays: up to the next part.
            Some(next) if n < first => part.start..next.start,
            // Else from the end of the part before.
            _ if n > 0 => parts[n - 1].end..part.end,
            _ => part.clone(),
        };
        debug_assert!(cut.end <= doc.len());
        cuts.push(cut);
    }
    cuts
}

fn written(value: &Value) -> Vec<u8> {
    // Values that JSON cannot hold do not occur.
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::wire::edit;

    fn spliced(doc: &str, old: &Value, new: &Value) -> String {
        let mut bytes = BytesMut::from(doc.as_bytes());
        edit::apply(&mut bytes, edits(doc.as_bytes(), old, new));
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    fn changed(doc: &str, change: impl FnOnce(&mut Value)) -> String {
        let old: Value = serde_json::from_str(doc).unwrap();
        let mut new = old.clone();
        change(&mut new);
        let text = spliced(doc, &old, &new);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), new, "{text}");
        text
    }

    #[test]
    fn what_does_not_change_keeps_its_bytes() {
        let doc = r#" { "a" : 1.50 , "b":{"c":[1 , {"d": "\u00e9"}, 3]},"e":null } "#;
        assert_eq!(changed(doc, |_| {}), doc);
        assert_eq!(
            changed(doc, |v| v["b"]["c"][1]["d"] = json!("x")),
            r#" { "a" : 1.50 , "b":{"c":[1 , {"d": "x"}, 3]},"e":null } "#
        );
        assert_eq!(
            changed(doc, |v| v["n"] = json!({"y": []})),
            r#" { "a" : 1.50 , "b":{"c":[1 , {"d": "\u00e9"}, 3]},"e":null ,"n":{"y":[]}} "#
        );
        let without = |name| changed(doc, |v| _ = v.as_object_mut().unwrap().shift_remove(name));
        assert_eq!(without("a"), r#" { "b":{"c":[1 , {"d": "\u00e9"}, 3]},"e":null } "#);
        assert_eq!(without("e"), r#" { "a" : 1.50 , "b":{"c":[1 , {"d": "\u00e9"}, 3]} } "#);
        assert_eq!(
            changed(doc, |v| v["b"]["c"].as_array_mut().unwrap().insert(1, json!(2))),
            r#" { "a" : 1.50 , "b":{"c":[1,2 , {"d": "\u00e9"}, 3]},"e":null } "#
        );
    }

    #[test]
    fn members_that_a_reader_has_not_seen_stay() {
        let doc = r#"{"stop":null,"model":"m"}"#;
        let old = json!({"model": "m"});
        assert_eq!(spliced(doc, &old, &json!({"model": "n"})), r#"{"stop":null,"model":"n"}"#);
        let new = json!({"model": "m", "stop": ["x"]});
        assert_eq!(spliced(doc, &old, &new), r#"{"stop":["x"],"model":"m"}"#);
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0i64..4).prop_map(Value::from),
            "[a-c\"\\\\é]{0,3}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec(("[a-d]", inner), 0..5)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    fn loose(value: &Value, out: &mut String) {
        // White space in every place that may have some.
        match value {
            Value::Array(items) => {
                out.push_str(" [ ");
                for (n, item) in items.iter().enumerate() {
                    out.push_str(if n > 0 { " ,\n" } else { "" });
                    loose(item, out);
                }
                out.push_str(" ] ");
            }
            Value::Object(map) => {
                out.push_str(" { ");
                for (n, (name, item)) in map.iter().enumerate() {
                    out.push_str(if n > 0 { " ,\n" } else { "" });
                    out.push_str(&format!("{} : ", Value::from(name.as_str())));
                    loose(item, out);
                }
                out.push_str(" } ");
            }
            leaf => out.push_str(&leaf.to_string()),
        }
    }

    proptest! {
        #[test]
        fn any_change_can_be_spliced(old in value(), new in value()) {
            let mut doc = String::new();
            loose(&old, &mut doc);
            let text = spliced(&doc, &old, &new);
            prop_assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), new, "{} -> {}", doc, text);
        }
    }
}
