//! Request bodies that are one JSON object: what is read alike in all languages that have them, and the
//! edits that a backend's version of a body needs.

use std::{borrow::Cow, ops::Range};

use serde_json::Value;

use super::glance::{Glance, Want};
use crate::{
    base::Rejection,
    wire::{
        edit::Edit,
        json::{self, Member, SyntaxError},
    },
};

/// Bytes of the name of a model. Names are kept, in traces and for circuits.
const LONGEST_MODEL: usize = 1024;

/// One member of a body.
pub struct Field<'a> {
    doc: &'a [u8],
    member: Member,
}

impl<'a> Field<'a> {
    /// Whether it has this name, with or without escapes.
    pub fn is(&self, name: &str) -> bool {
        self.member.is(self.doc, name)
    }

    /// Its value.
    pub fn value(&self) -> &'a [u8] {
        &self.doc[self.member.value.clone()]
    }

    /// Where its value stands.
    pub fn range(&self) -> Range<usize> {
        self.member.value.clone()
    }
}

/// A switch in this field is neither `true`, `false` nor `null`.
#[derive(Debug)]
pub struct BadSwitch(pub &'static str);

/// Reads a request body in one pass. When a key stands twice the last one applies, as in the JSON
/// parsers of the engines. `guarded` names fields to look out for; `own` reads what only one language
/// has, and is given every member but `model` and `stream`.
///
/// # Errors
/// 400 if the body is not one JSON object, in UTF-8, with nothing but white space behind it; if
/// `model` is not a string, or is too long; if a switch is neither `true`, `false` nor `null`:
/// engines read some of these as `true`, and not all in the same way.
pub fn glance(
    doc: &[u8],
    guarded: &[String],
    own: impl FnMut(&mut Glance, &Field<'_>) -> Result<(), BadSwitch>,
) -> Result<Glance, Rejection> {
    let (found, faults) = read(doc, guarded, own).map_err(Rejection::not_json)?;
    if faults.model {
        return Err(Rejection::bad_field("model", "it must be a string"));
    }
    if found.model.as_ref().is_some_and(|name| name.len() > LONGEST_MODEL) {
        let why = format!("it is longer than {LONGEST_MODEL} bytes");
        return Err(Rejection::bad_field("model", &why));
    }
    if let Some(param) = faults.switch {
        let why = "its switches must be true, false or null";
        return Err(Rejection::bad_field(param, why));
    }
    Ok(found)
}

/// What a body says that is not to be passed on.
#[derive(Default)]
struct Faults {
    /// `model` is there but is no string.
    model: bool,
    /// This switch is neither `true`, `false` nor `null`.
    switch: Option<&'static str>,
}

fn read(
    doc: &[u8],
    guarded: &[String],
    mut own: impl FnMut(&mut Glance, &Field<'_>) -> Result<(), BadSwitch>,
) -> Result<(Glance, Faults), SyntaxError> {
    if let Err(e) = std::str::from_utf8(doc) {
        return Err(SyntaxError { at: e.valid_up_to(), what: "invalid UTF-8" });
    }
    let (mut found, mut faults) = (Glance::default(), Faults::default());
    found.offsets.empty = true;
    let mut walk = json::members(doc, 0);
    for member in walk.by_ref() {
        let field = Field { doc, member: member? };
        let value = field.value();
        found.offsets.empty = false;
        if field.is("model") {
            found.offsets.model = Some(field.range());
            found.model = string(value);
            faults.model = found.model.is_none() && value != b"null";
        } else if field.is("stream") {
            match switch(value) {
                Ok(on) => found.stream = on == Some(true),
                Err(()) => faults.switch = Some("stream"),
            }
        } else if let Err(BadSwitch(name)) = own(&mut found, &field) {
            faults.switch = Some(name);
        }
        found.guarded |= guarded.iter().any(|name| field.is(name));
    }
    found.offsets.close = walk.position() - 1;
    if let Some(extra) = doc[walk.position()..].iter().position(|b| !b.is_ascii_whitespace()) {
        let at = walk.position() + extra;
        return Err(SyntaxError { at, what: "unexpected text after the document" });
    }
    Ok((found, faults))
}

fn string(value: &[u8]) -> Option<String> {
    let inner = value.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if inner.contains(&b'\\') {
        return json::unescape(inner);
    }
    String::from_utf8(inner.to_vec()).ok()
}

/// A whole number.
pub fn number(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// `true`, `false` or `null`.
///
/// # Errors
/// If it is something else.
pub fn switch(value: &[u8]) -> Result<Option<bool>, ()> {
    match value {
        b"true" => Ok(Some(true)),
        b"false" => Ok(Some(false)),
        b"null" => Ok(None),
        _ => Err(()),
    }
}

/// The edits that delete every guarded field.
pub fn guard_edits(doc: &[u8], guarded: &[String]) -> Vec<Edit> {
    let cuts = json::cuts(doc, |m| guarded.iter().any(|name| m.is(doc, name)));
    cuts.into_iter().flatten().map(Edit::cut).collect()
}

/// The edits that give a body the backend's name of the model and the fields that are added.
pub fn edits(glance: &Glance, want: &Want<'_>) -> Vec<Edit> {
    let model = want.model.and_then(|model| replace_model(glance, model));
    model.into_iter().chain(insert_fields(glance, &want.fields)).collect()
}

/// The edit that adds members to the document, behind all others: of two equal keys the engines
/// take the last. All of them in one call, and not together with edits that cut members out: what
/// separates them must be known.
fn insert_fields(glance: &Glance, fields: &[(&'static str, Value)]) -> Option<Edit> {
    let mut text = String::new();
    for (name, value) in fields {
        let comma = if glance.offsets.empty && text.is_empty() { "" } else { "," };
        text += &format!("{comma}{}:{value}", Value::from(*name));
    }
    (!text.is_empty()).then(|| Edit::insert(glance.offsets.close, text.into_bytes()))
}

/// The edit that replaces the model's name; `None` if the document has no `model`.
fn replace_model(glance: &Glance, name: &str) -> Option<Edit> {
    let with = Cow::Owned(Value::from(name).to_string().into_bytes());
    Some(Edit { range: glance.offsets.model.clone()?, with })
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::*;
    use crate::wire::edit;

    fn edited(doc: &str, edits: Vec<Edit>) -> String {
        let mut buf = BytesMut::from(doc.as_bytes());
        edit::apply(&mut buf, edits);
        String::from_utf8(buf.to_vec()).unwrap()
    }

    fn look(doc: &[u8], guarded: &[String]) -> Glance {
        glance(doc, guarded, |_, _| Ok(())).unwrap()
    }

    fn refusal(doc: &[u8]) -> Rejection {
        glance(doc, &[], |_, _| Ok(())).unwrap_err()
    }

    #[test]
    fn the_last_of_two_keys_counts() {
        let p = look(br#"{"model":"a","model":"b","stream":true,"stream":false}"#, &[]);
        assert_eq!(p.model.as_deref(), Some("b"));
        assert!(!p.stream);
    }

    #[test]
    fn refuses_what_is_no_document() {
        let what = |doc| read(doc, &[], |_, _| Ok(())).map(|_| ()).unwrap_err().what;
        assert_eq!(what(&b"{} x"[..]), "unexpected text after the document");
        assert_eq!(what(b"{\"a\":\"\xff\"}"), "invalid UTF-8");
        assert!(glance(b"[1]", &[], |_, _| Ok(())).is_err());
        assert_eq!(refusal(br#"{"model":1}"#).param.as_deref(), Some("model"));
        assert_eq!(refusal(br#"{"model":1,"stream":3}"#).param.as_deref(), Some("model"));
        let long = format!(r#"{{"model":"{}"}}"#, "m".repeat(LONGEST_MODEL + 1));
        assert_eq!(refusal(long.as_bytes()).param.as_deref(), Some("model"));
    }

    #[test]
    fn switches_are_true_or_false() {
        for bad in ["1", "\"true\"", "[]", "1.0"] {
            let doc = format!(r#"{{"stream":{bad}}}"#);
            assert_eq!(refusal(doc.as_bytes()).param.as_deref(), Some("stream"));
            let own = |_: &mut Glance, field: &Field<'_>| match switch(field.value()) {
                Ok(_) => Ok(()),
                Err(()) => Err(BadSwitch("own")),
            };
            let doc = format!(r#"{{"x":{bad}}}"#);
            assert_eq!(glance(doc.as_bytes(), &[], own).unwrap_err().param.as_deref(), Some("own"));
        }
        assert!(glance(br#"{"stream":null}"#, &[], |_, _| Ok(())).is_ok());
    }

    #[test]
    fn adds_fields_behind_all_others() {
        let with = |doc: &str, fields: &[(&'static str, Value)]| {
            let p = look(doc.as_bytes(), &[]);
            edited(doc, insert_fields(&p, fields).into_iter().collect())
        };
        let both = [("priority", Value::from(-3)), ("cache_salt", Value::from("a\"b"))];
        assert_eq!(
            with("{ } \n", &both),
            r#"{ "priority":-3,"cache_salt":"a\"b"} "#.to_owned() + "\n"
        );
        assert_eq!(
            with(r#"{"priority":7,"a":{}} "#, &both),
            r#"{"priority":7,"a":{},"priority":-3,"cache_salt":"a\"b"} "#
        );
        assert_eq!(with("{}", &[]), "{}");
    }

    #[test]
    fn replaces_the_model_that_counts() {
        let named = |doc: &str, name: &str| {
            let p = look(doc.as_bytes(), &[]);
            replace_model(&p, name).map(|edit| edited(doc, vec![edit]))
        };
        assert_eq!(
            named(r#"{"mod\u0065l" : "gpt-4o" ,"a":{"model":"x"}}"#, "Qwen/\"72b\"").unwrap(),
            r#"{"mod\u0065l" : "Qwen/\"72b\"" ,"a":{"model":"x"}}"#
        );
        assert_eq!(
            named(r#"{"model":"a","model":"b"}"#, "c").unwrap(),
            r#"{"model":"a","model":"c"}"#
        );
        assert_eq!(named(r#"{"model":null}"#, "c").unwrap(), r#"{"model":"c"}"#);
        assert_eq!(named(r#"{"a":1}"#, "c"), None);
    }

    proptest! {
        #[test]
        fn an_edited_document_is_a_document_that_says_what_was_said(
            name in ".{0,20}", model in ".{0,20}", keys in prop::collection::vec("[a-c]{1,2}", 0..4)
        ) {
            let mut said: serde_json::Map<_, _> =
                keys.into_iter().map(|key| (key, Value::from(1))).collect();
            said.insert("model".to_owned(), "before".into());
            let doc = Value::from(said.clone()).to_string();
            let p = look(doc.as_bytes(), &[]);
            let key: &'static str = name.clone().leak();
            let fields = vec![(key, 2.into())];
            let want = Want { model: Some(&model), fields, ..Want::default() };
            let text = edited(&doc, edits(&p, &want));
            said.insert("model".to_owned(), model.clone().into());
            said.insert(name, 2.into());
            prop_assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), Value::from(said));
        }
    }

    #[test]
    fn guards_fields_however_they_are_written() {
        let names = ["priority".to_owned(), "cache_salt".to_owned()];
        let doc =
            r#"{"priority":1,"a":2,"cache\u005fsalt":"x","priority":3,"nested":{"priority":4}}"#;
        let p = look(doc.as_bytes(), &names);
        assert!(p.guarded);
        let edits = guard_edits(doc.as_bytes(), &names);
        assert_eq!(edited(doc, edits), r#"{"a":2,"nested":{"priority":4}}"#);
    }
}
