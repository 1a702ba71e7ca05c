//! What a gateway must know of a request body, read in one pass, and the edits that its policy
//! asks for. No other byte is looked at twice.

use std::{borrow::Cow, ops::Range};

use serde_json::Value;

use super::{
    edit::Edit,
    json::{self, SyntaxError},
};

/// What the body says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peek {
    /// `model`, when it is a string.
    pub model: Option<String>,
    /// `model` is there but is no string.
    pub model_invalid: bool,
    /// `stream` is `true`.
    pub stream: bool,
    /// A switch that is neither `true`, `false` nor `null`. Engines read some of these as `true`,
    /// and not all in the same way.
    pub bad_switch: Option<&'static str>,
    /// `stream_options`, when it is there.
    pub stream_options: Option<StreamOptions>,
    /// `max_completion_tokens`, else `max_tokens`.
    pub max_tokens: Option<u64>,
    /// `n`: how many answers are wanted.
    pub choices: Option<u64>,
    /// `prompt` is a list of prompts.
    pub several_prompts: bool,
    /// One of the fields asked for is there.
    pub guarded: bool,
    /// Where the conversation stands: `messages`, `prompt` or `input`.
    pub prompt: Option<Range<usize>>,
    /// Where the tools stand, which engines put before the conversation.
    pub tools: Option<Range<usize>>,
    /// The value of the last `model`, whatever it is.
    named: Option<Range<usize>>,
    /// There is no member.
    empty: bool,
    /// Offset of the closing brace.
    close: usize,
}

/// `stream_options` of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// `include_usage` is `true`. Without it nothing is asked for, whatever else stands there.
    pub include_usage: bool,
    /// `continuous_usage_stats` is `true` (vLLM).
    pub continuous: bool,
    range: Range<usize>,
    kind: OptionsKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OptionsKind {
    Object,
    Null,
    Other,
}

/// Reads a request body. When a key stands twice the last one counts, as in the JSON parsers of
/// the engines. `guarded` names fields to look out for.
///
/// # Errors
/// If the body is not one JSON object, in UTF-8, with nothing but white space behind it.
pub fn peek(doc: &[u8], guarded: &[String]) -> Result<Peek, SyntaxError> {
    if let Err(e) = std::str::from_utf8(doc) {
        return Err(SyntaxError { at: e.valid_up_to(), what: "invalid UTF-8" });
    }
    let mut found = Peek { empty: true, ..Peek::default() };
    let mut limits = (None, None);
    let mut walk = json::members(doc, 0);
    for member in walk.by_ref() {
        let member = member?;
        let value = &doc[member.value.clone()];
        found.empty = false;
        if member.is(doc, "model") {
            found.named = Some(member.value.clone());
            found.model = string(value);
            found.model_invalid = found.model.is_none() && value != b"null";
        } else if member.is(doc, "stream") {
            match switch(value) {
                Ok(on) => found.stream = on == Some(true),
                Err(()) => found.bad_switch = Some("stream"),
            }
        } else if member.is(doc, "stream_options") {
            match stream_options(doc, member.value.clone()) {
                Ok(options) => found.stream_options = Some(options),
                Err(()) => found.bad_switch = Some("stream_options"),
            }
        } else if member.is(doc, "max_tokens") {
            limits.0 = number(value);
        } else if member.is(doc, "max_completion_tokens") {
            limits.1 = number(value);
        } else if ["messages", "prompt", "input"].iter().any(|name| member.is(doc, name)) {
            found.prompt = Some(member.value.clone());
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
    found.close = walk.position() - 1;
    found.max_tokens = limits.1.or(limits.0);
    if let Some(extra) = doc[walk.position()..].iter().position(|b| !b.is_ascii_whitespace()) {
        let at = walk.position() + extra;
        return Err(SyntaxError { at, what: "unexpected text after the document" });
    }
    Ok(found)
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

fn stream_options(doc: &[u8], range: Range<usize>) -> Result<StreamOptions, ()> {
    let value = &doc[range.clone()];
    let kind = match value.first() {
        Some(b'{') => OptionsKind::Object,
        Some(b'n') => OptionsKind::Null,
        _ => OptionsKind::Other,
    };
    let (mut include_usage, mut continuous) = (false, None);
    // As above, the last of two equal keys counts.
    for member in json::members(value, 0).map_while(Result::ok) {
        let set = || switch(&value[member.value.clone()]);
        if member.is(value, "include_usage") {
            include_usage = set()? == Some(true);
        } else if member.is(value, "continuous_usage_stats") {
            continuous = set()?;
        }
    }
    Ok(StreamOptions { include_usage, continuous: continuous == Some(true), range, kind })
}

/// What is asked of an engine beyond what the client asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// A usage chunk at the end (OpenAI).
    Final,
    /// That, and running figures in every chunk (vLLM).
    Continuous,
}

/// The edits that delete every guarded field.
///
/// # Errors
/// If the document is broken, which [`peek`] has found before.
pub fn guard_edits(doc: &[u8], guarded: &[String]) -> Result<Vec<Edit>, SyntaxError> {
    let cuts = json::cuts(doc, |m| guarded.iter().any(|name| m.is(doc, name)))?;
    Ok(cuts.into_iter().map(Edit::cut).collect())
}

/// The edit that adds members to the document, behind all others: of two equal keys the engines
/// take the last. All of them in one call, and not together with edits that cut members out: what
/// separates them must be known.
pub fn insert_fields(peek: &Peek, fields: &[(&str, Value)]) -> Option<Edit> {
    let mut text = String::new();
    for (name, value) in fields {
        let comma = if peek.empty && text.is_empty() { "" } else { "," };
        text += &format!("{comma}{}:{value}", Value::from(*name));
    }
    (!text.is_empty()).then(|| Edit::insert(peek.close, text.into_bytes()))
}

/// The edit that puts another name in the place of the model's; `None` if the document has no
/// `model`.
pub fn replace_model(peek: &Peek, name: &str) -> Option<Edit> {
    let with = Cow::Owned(Value::from(name).to_string().into_bytes());
    Some(Edit { range: peek.named.clone()?, with })
}

/// The edits that make a streaming request ask for usage; empty when it asks already, or when its
/// `stream_options` are of a kind that the engine itself must refuse.
pub fn usage_edits(doc: &[u8], peek: &Peek, ask: Ask) -> Vec<Edit> {
    let wanted: &'static str = match ask {
        Ask::Final => r#""include_usage":true"#,
        Ask::Continuous => r#""include_usage":true,"continuous_usage_stats":true"#,
    };
    let Some(options) = &peek.stream_options else {
        let text = format!(r#","stream_options":{{{wanted}}}"#);
        return vec![Edit::insert(peek.close, text.into_bytes())];
    };
    let already = options.include_usage && (options.continuous || ask == Ask::Final);
    match options.kind {
        OptionsKind::Other => Vec::new(),
        _ if already => Vec::new(),
        OptionsKind::Null => {
            let with = Cow::Owned(format!("{{{wanted}}}").into_bytes());
            vec![Edit { range: options.range.clone(), with }]
        }
        OptionsKind::Object => {
            let value = &doc[options.range.clone()];
            let ours = ["include_usage", "continuous_usage_stats"];
            let is_ours = |m: &json::Member| ours.iter().any(|name| m.is(value, name));
            let Ok(cuts) = json::cuts(value, is_ours) else {
                return Vec::new();
            };
            let others = json::members(value, 0).flatten().any(|m| !is_ours(&m));
            let base = options.range.start;
            let mut edits: Vec<Edit> =
                cuts.into_iter().map(|c| Edit::cut(base + c.start..base + c.end)).collect();
            let comma = if others { "," } else { "" };
            let text = format!("{comma}{wanted}");
            edits.push(Edit::insert(options.range.end - 1, text.into_bytes()));
            edits
        }
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

    fn asking(doc: &str, ask: Ask) -> String {
        let p = peek(doc.as_bytes(), &[]).unwrap();
        edited(doc, usage_edits(doc.as_bytes(), &p, ask))
    }

    #[test]
    fn reads_the_fields() {
        let doc = br#"{"model":"a\/b","stream":true,"max_tokens":5,"max_completion_tokens":7,
                       "stream_options":{"include_usage":true}}"#;
        let p = peek(doc, &[]).unwrap();
        assert_eq!(p.model.as_deref(), Some("a/b"));
        assert!(p.stream && !p.guarded);
        assert_eq!(p.max_tokens, Some(7));
        let options = p.stream_options.unwrap();
        assert!(options.include_usage && !options.continuous);
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
            let found = peek(doc.as_bytes(), &[]).unwrap();
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
            let found = peek(doc.as_bytes(), &[]).unwrap().stream_options.unwrap();
            assert_eq!(found.include_usage, asked, "{options}");
            let edited = asking(&doc, Ask::Final);
            assert!(edited.contains(r#""include_usage":true"#), "{edited}");
        }
    }

    #[test]
    fn the_last_of_two_keys_counts() {
        let p = peek(br#"{"model":"a","model":"b","stream":true,"stream":false}"#, &[]).unwrap();
        assert_eq!(p.model.as_deref(), Some("b"));
        assert!(!p.stream);
    }

    #[test]
    fn the_last_of_two_options_counts() {
        let doc = r#"{"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true,"include_usage":false}}"#;
        assert_eq!(
            asking(doc, Ask::Continuous),
            r#"{"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}"#
        );
    }

    #[test]
    fn switches_are_true_or_false() {
        for bad in ["1", "\"true\"", "[]", "1.0"] {
            let doc = format!(r#"{{"stream":{bad}}}"#);
            assert_eq!(peek(doc.as_bytes(), &[]).unwrap().bad_switch, Some("stream"));
            let doc = format!(r#"{{"stream_options":{{"include_usage":{bad}}}}}"#);
            assert_eq!(peek(doc.as_bytes(), &[]).unwrap().bad_switch, Some("stream_options"));
        }
        assert_eq!(peek(br#"{"stream":null}"#, &[]).unwrap().bad_switch, None);
    }

    #[test]
    fn refuses_what_is_no_document() {
        assert_eq!(peek(b"{} x", &[]).unwrap_err().what, "unexpected text after the document");
        assert_eq!(peek(b"{\"a\":\"\xff\"}", &[]).unwrap_err().what, "invalid UTF-8");
        assert!(peek(b"[1]", &[]).is_err());
        assert!(peek(br#"{"model":1}"#, &[]).unwrap().model_invalid);
    }

    #[test]
    fn asks_for_usage() {
        assert_eq!(
            asking(r#"{"stream":true } "#, Ask::Continuous),
            r#"{"stream":true ,"stream_options":{"include_usage":true,"continuous_usage_stats":true}} "#
        );
        assert_eq!(
            asking(r#"{"stream":true,"stream_options":null}"#, Ask::Final),
            r#"{"stream":true,"stream_options":{"include_usage":true}}"#
        );
        assert_eq!(
            asking(r#"{"stream_options":{"include_usage":false,"x":1},"a":2}"#, Ask::Final),
            r#"{"stream_options":{"x":1,"include_usage":true},"a":2}"#
        );
        assert_eq!(
            asking(r#"{"stream_options":{}}"#, Ask::Final),
            r#"{"stream_options":{"include_usage":true}}"#
        );
        let already = r#"{"stream_options":{"include_usage":true}}"#;
        assert_eq!(asking(already, Ask::Final), already);
        assert_eq!(
            asking(already, Ask::Continuous),
            r#"{"stream_options":{"include_usage":true,"continuous_usage_stats":true}}"#
        );
        let wrong = r#"{"stream_options":"yes"}"#;
        assert_eq!(asking(wrong, Ask::Final), wrong);
    }

    #[test]
    fn adds_fields_behind_all_others() {
        let with = |doc: &str, fields: &[(&str, Value)]| {
            let p = peek(doc.as_bytes(), &[]).unwrap();
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
        let p = peek(doc.as_bytes(), &[]).unwrap();
        let mut edits = usage_edits(doc.as_bytes(), &p, Ask::Final);
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
            let p = peek(doc.as_bytes(), &[]).unwrap();
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
            let p = peek(doc.as_bytes(), &[]).unwrap();
            let edits = insert_fields(&p, &[(&name, 2.into())]).into_iter();
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
        let p = peek(doc.as_bytes(), &names).unwrap();
        assert!(p.guarded);
        let edits = guard_edits(doc.as_bytes(), &names).unwrap();
        assert_eq!(edited(doc, edits), r#"{"a":2,"nested":{"priority":4}}"#);
    }
}
