//! OpenAI's requests: what the gateway needs of a body, read in one pass, and the edits that a
//! backend's version of it needs.

use std::borrow::Cow;

use serde_json::Value;

use crate::{
    base::Rejection,
    dialect::{Glance, UsageRequest, Want},
    wire::{
        edit::Edit,
        json::{self, SyntaxError},
    },
};

/// Bytes of the name of a model. Names are kept, in traces and for circuits.
const LONGEST_MODEL: usize = 1024;

/// Reads a request body. When a key stands twice the last one applies, as in the JSON parsers of
/// the engines. `guarded` names fields to look out for.
///
/// # Errors
/// 400 if the body is not one JSON object, in UTF-8, with nothing but white space behind it; if
/// `model` is not a string, or is too long; if a switch is neither `true`, `false` nor `null`:
/// engines read some of these as `true`, and not all in the same way.
pub fn glance(doc: &[u8], guarded: &[String]) -> Result<Glance, Rejection> {
    let (found, faults) = read(doc, guarded).map_err(Rejection::not_json)?;
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

fn read(doc: &[u8], guarded: &[String]) -> Result<(Glance, Faults), SyntaxError> {
    if let Err(e) = std::str::from_utf8(doc) {
        return Err(SyntaxError { at: e.valid_up_to(), what: "invalid UTF-8" });
    }
    let (mut found, mut faults) = (Glance::default(), Faults::default());
    found.offsets.empty = true;
    // `max_tokens` and `max_completion_tokens`, which takes precedence.
    let mut limits = (None, None);
    let mut walk = json::members(doc, 0);
    for member in walk.by_ref() {
        let member = member?;
        let value = &doc[member.value.clone()];
        found.offsets.empty = false;
        if member.is(doc, "model") {
            found.offsets.model = Some(member.value.clone());
            found.model = string(value);
            faults.model = found.model.is_none() && value != b"null";
        } else if member.is(doc, "stream") {
            match switch(value) {
                Ok(on) => found.stream = on == Some(true),
                Err(()) => faults.switch = Some("stream"),
            }
        } else if member.is(doc, "stream_options") {
            match stream_options(value) {
                Ok(asked) => {
                    found.offsets.options = Some(member.value.clone());
                    found.usage = Some(asked);
                }
                Err(()) => faults.switch = Some("stream_options"),
            }
        } else if member.is(doc, "max_tokens") {
            limits.0 = number(value);
        } else if member.is(doc, "max_completion_tokens") {
            limits.1 = number(value);
        } else if ["messages", "prompt", "input"].iter().any(|name| member.is(doc, name)) {
            found.conversation = Some(member.value.clone());
            // A list of numbers is one prompt, in tokens.
            let inner = value.strip_prefix(b"[").map(<[u8]>::trim_ascii_start);
            let several = inner.is_some_and(|inner| matches!(inner.first(), Some(b'"' | b'[')));
            found.several_prompts = several && member.is(doc, "prompt");
        } else if member.is(doc, "n") {
            found.choices = number(value);
        } else if member.is(doc, "tools") {
            found.tools = Some(member.value.clone());
        }
        found.guarded |= guarded.iter().any(|name| member.is(doc, name));
    }
    found.offsets.close = walk.position() - 1;
    found.max_tokens = limits.1.or(limits.0);
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

fn number(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn switch(value: &[u8]) -> Result<Option<bool>, ()> {
    match value {
        b"true" => Ok(Some(true)),
        b"false" => Ok(Some(false)),
        b"null" => Ok(None),
        _ => Err(()),
    }
}

/// Without `include_usage` nothing is asked for, whatever else stands there.
fn stream_options(value: &[u8]) -> Result<UsageRequest, ()> {
    let (mut include_usage, mut continuous) = (false, None);
    // As above, the last of two equal keys applies.
    for member in json::members(value, 0).map_while(Result::ok) {
        let set = || switch(&value[member.value.clone()]);
        if member.is(value, "include_usage") {
            include_usage = set()? == Some(true);
        } else if member.is(value, "continuous_usage_stats") {
            continuous = set()?;
        }
    }
    Ok(UsageRequest { at_the_end: include_usage, running: continuous == Some(true) })
}

/// The edits that delete every guarded field.
pub fn guard_edits(doc: &[u8], guarded: &[String]) -> Vec<Edit> {
    let cuts = json::cuts(doc, |m| guarded.iter().any(|name| m.is(doc, name)));
    cuts.into_iter().flatten().map(Edit::cut).collect()
}

/// The edits that make a body fit a backend.
pub fn edits(doc: &[u8], glance: &Glance, want: &Want<'_>) -> Vec<Edit> {
    let mut edits = match want.usage {
        Some(usage) => usage_edits(doc, glance, usage),
        None => Vec::new(),
    };
    if let Some(model) = want.model {
        edits.extend(replace_model(glance, model));
    }
    edits.extend(insert_fields(glance, &want.fields));
    edits
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

/// The edits that make a streaming request ask for usage; empty when it asks already, or when its
/// `stream_options` are of a kind that the engine itself must refuse.
fn usage_edits(doc: &[u8], glance: &Glance, usage: UsageRequest) -> Vec<Edit> {
    let wanted: &'static str = match usage.running {
        false => r#""include_usage":true"#,
        true => r#""include_usage":true,"continuous_usage_stats":true"#,
    };
    let Some(range) = &glance.offsets.options else {
        let text = format!(r#","stream_options":{{{wanted}}}"#);
        return vec![Edit::insert(glance.offsets.close, text.into_bytes())];
    };
    let asked = glance.usage.unwrap_or_default();
    let value = &doc[range.clone()];
    match value.first() {
        _ if asked.at_the_end && (asked.running || !usage.running) => Vec::new(),
        Some(b'n') => {
            let with = Cow::Owned(format!("{{{wanted}}}").into_bytes());
            vec![Edit { range: range.clone(), with }]
        }
        Some(b'{') => {
            let ours = ["include_usage", "continuous_usage_stats"];
            let is_ours = |m: &json::Member| ours.iter().any(|name| m.is(value, name));
            let Ok(cuts) = json::cuts(value, is_ours) else {
                return Vec::new();
            };
            let others = json::members(value, 0).flatten().any(|m| !is_ours(&m));
            let base = range.start;
            let mut edits: Vec<Edit> =
                cuts.into_iter().map(|c| Edit::cut(base + c.start..base + c.end)).collect();
            let comma = if others { "," } else { "" };
            let text = format!("{comma}{wanted}");
            edits.push(Edit::insert(range.end - 1, text.into_bytes()));
            edits
        }
        _ => Vec::new(),
    }
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
        glance(doc, guarded).unwrap()
    }

    fn refusal(doc: &[u8]) -> Rejection {
        glance(doc, &[]).unwrap_err()
    }

    const FINAL: UsageRequest = UsageRequest { at_the_end: true, running: false };
    const CONTINUOUS: UsageRequest = UsageRequest { at_the_end: true, running: true };

    fn asking(doc: &str, ask: UsageRequest) -> String {
        let p = look(doc.as_bytes(), &[]);
        edited(doc, usage_edits(doc.as_bytes(), &p, ask))
    }

    #[test]
    fn reads_the_fields() {
        let doc = br#"{"model":"a\/b","stream":true,"max_tokens":5,"max_completion_tokens":7,
                       "stream_options":{"include_usage":true}}"#;
        let p = look(doc, &[]);
        assert_eq!(p.model.as_deref(), Some("a/b"));
        assert!(p.stream && !p.guarded);
        assert_eq!(p.max_tokens, Some(7));
        assert_eq!(p.usage, Some(FINAL));
    }

    #[test]
    fn reads_how_many_answers_are_wanted() {
        for (doc, several, choices) in [
            (r#"{"prompt":"a","n":2}"#, false, Some(2)),
            (r#"{"prompt":["a","b"],"n":3}"#, true, Some(3)),
            (r#"{"prompt":[ [1,2],[3]]}"#, true, None),
            (r#"{"prompt":[1,2]}"#, false, None),
            (r#"{"prompt":[],"n":"2"}"#, false, None),
            (r#"{"input":["a","b"]}"#, false, None),
        ] {
            let found = look(doc.as_bytes(), &[]);
            assert_eq!((found.several_prompts, found.choices), (several, choices), "{doc}");
        }
    }

    #[test]
    fn only_include_usage_asks_for_usage() {
        for (options, asked) in [
            ("{}", false),
            ("null", false),
            (r#"{"continuous_usage_stats":true}"#, false),
            (r#"{"include_usage":null}"#, false),
            (r#"{"include_usage":true}"#, true),
        ] {
            let doc = format!(r#"{{"stream":true,"stream_options":{options}}}"#);
            let found = look(doc.as_bytes(), &[]).usage.unwrap();
            assert_eq!(found.at_the_end, asked, "{options}");
            let edited = asking(&doc, FINAL);
            assert!(edited.contains(r#""include_usage":true"#), "{edited}");
        }
    }

    #[test]
    fn the_last_of_two_keys_counts() {
        let p = look(br#"{"model":"a","model":"b","stream":true,"stream":false}"#, &[]);
        assert_eq!(p.model.as_deref(), Some("b"));
        assert!(!p.stream);
    }

    #[test]
    fn the_last_of_two_options_counts() {
        let doc = r#"{"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true,"include_usage":false}}"#;
        assert_eq!(
            asking(doc, CONTINUOUS),
            r#"{"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}"#
        );
    }

    #[test]
    fn switches_are_true_or_false() {
        for bad in ["1", "\"true\"", "[]", "1.0"] {
            let doc = format!(r#"{{"stream":{bad}}}"#);
            assert_eq!(refusal(doc.as_bytes()).param.as_deref(), Some("stream"));
            let doc = format!(r#"{{"stream_options":{{"include_usage":{bad}}}}}"#);
            assert_eq!(refusal(doc.as_bytes()).param.as_deref(), Some("stream_options"));
        }
        assert!(glance(br#"{"stream":null}"#, &[]).is_ok());
    }

    #[test]
    fn refuses_what_is_no_document() {
        let what = |doc| read(doc, &[]).map(|_| ()).unwrap_err().what;
        assert_eq!(what(&b"{} x"[..]), "unexpected text after the document");
        assert_eq!(what(b"{\"a\":\"\xff\"}"), "invalid UTF-8");
        assert!(glance(b"[1]", &[]).is_err());
        assert_eq!(refusal(br#"{"model":1}"#).param.as_deref(), Some("model"));
        assert_eq!(refusal(br#"{"model":1,"stream":3}"#).param.as_deref(), Some("model"));
        let long = format!(r#"{{"model":"{}"}}"#, "m".repeat(LONGEST_MODEL + 1));
        assert_eq!(refusal(long.as_bytes()).param.as_deref(), Some("model"));
    }

    #[test]
    fn asks_for_usage() {
        assert_eq!(
            asking(r#"{"stream":true } "#, CONTINUOUS),
            r#"{"stream":true ,"stream_options":{"include_usage":true,"continuous_usage_stats":true}} "#
        );
        assert_eq!(
            asking(r#"{"stream":true,"stream_options":null}"#, FINAL),
            r#"{"stream":true,"stream_options":{"include_usage":true}}"#
        );
        assert_eq!(
            asking(r#"{"stream_options":{"include_usage":false,"x":1},"a":2}"#, FINAL),
            r#"{"stream_options":{"x":1,"include_usage":true},"a":2}"#
        );
        assert_eq!(
            asking(r#"{"stream_options":{}}"#, FINAL),
            r#"{"stream_options":{"include_usage":true}}"#
        );
        let already = r#"{"stream_options":{"include_usage":true}}"#;
        assert_eq!(asking(already, FINAL), already);
        assert_eq!(
            asking(already, CONTINUOUS),
            r#"{"stream_options":{"include_usage":true,"continuous_usage_stats":true}}"#
        );
        let wrong = r#"{"stream_options":"yes"}"#;
        assert_eq!(asking(wrong, FINAL), wrong);
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
        // Together with the others that one look may give.
        let doc = r#"{"model":"a","stream":true}"#;
        let p = look(doc.as_bytes(), &[]);
        let mut edits = usage_edits(doc.as_bytes(), &p, FINAL);
        edits.extend(insert_fields(&p, &both[..1]));
        edits.extend(replace_model(&p, "longer"));
        let all: Value = serde_json::from_str(&edited(doc, edits)).unwrap();
        assert_eq!(
            all,
            serde_json::json!({"model": "longer", "stream": true, "priority": -3,
                "stream_options": {"include_usage": true}})
        );
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
            let edits = insert_fields(&p, &[(key, 2.into())]).into_iter();
            let text = edited(&doc, edits.chain(replace_model(&p, &model)).collect());
            said.insert("model".to_owned(), model.into());
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
