//! OpenAI's requests: what only they have of what the gateway reads of a body, and the edits that ask
//! for usage.

use std::borrow::Cow;

use crate::{
    base::Rejection,
    dialect::{
        Glance, UsageRequest, Want,
        body::{self, BadSwitch, Field, number, switch},
    },
    wire::{edit::Edit, json},
};

/// Reads a request body.
///
/// # Errors
/// As `body::glance`; also if a switch in `stream_options` is none.
pub fn glance(doc: &[u8], guarded: &[String]) -> Result<Glance, Rejection> {
    // `max_tokens` and `max_completion_tokens`, which takes precedence.
    let mut limits = (None, None);
    let own = |found: &mut Glance, field: &Field<'_>| own(found, &mut limits, field);
    let mut found = body::glance(doc, guarded, own)?;
    found.max_tokens = limits.1.or(limits.0);
    Ok(found)
}

fn own(
    found: &mut Glance,
    limits: &mut (Option<u64>, Option<u64>),
    field: &Field<'_>,
) -> Result<(), BadSwitch> {
    let value = field.value();
    if field.is("stream_options") {
        let asked = stream_options(value).map_err(|()| BadSwitch("stream_options"))?;
        found.offsets.options = Some(field.range());
        found.usage = Some(asked);
    } else if field.is("max_tokens") {
        limits.0 = number(value);
    } else if field.is("max_completion_tokens") {
        limits.1 = number(value);
    } else if ["messages", "prompt", "input"].iter().any(|name| field.is(name)) {
        found.conversation = Some(field.range());
        // A list of numbers is one prompt, in tokens.
        let inner = value.strip_prefix(b"[").map(<[u8]>::trim_ascii_start);
        let several = inner.is_some_and(|inner| matches!(inner.first(), Some(b'"' | b'[')));
        found.several_prompts = several && field.is("prompt");
    } else if field.is("n") {
        found.choices = number(value);
    } else if field.is("tools") {
        found.tools = Some(field.range());
    }
    Ok(())
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

/// The edits that make a body fit a backend.
pub fn edits(doc: &[u8], glance: &Glance, want: &Want<'_>) -> Vec<Edit> {
    let mut edits = match want.usage {
        Some(usage) => usage_edits(doc, glance, usage),
        None => Vec::new(),
    };
    edits.extend(body::edits(glance, want));
    edits
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
    use serde_json::Value;

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
            let doc = format!(r#"{{"stream_options":{{"include_usage":{bad}}}}}"#);
            assert_eq!(refusal(doc.as_bytes()).param.as_deref(), Some("stream_options"));
        }
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
    fn all_edits_can_be_made_together() {
        let doc = r#"{"model":"a","stream":true}"#;
        let p = look(doc.as_bytes(), &[]);
        let fields = vec![("priority", Value::from(-3))];
        let want = Want { usage: Some(FINAL), model: Some("longer"), fields };
        let all: Value =
            serde_json::from_str(&edited(doc, edits(doc.as_bytes(), &p, &want))).unwrap();
        assert_eq!(
            all,
            serde_json::json!({"model": "longer", "stream": true, "priority": -3,
                "stream_options": {"include_usage": true}})
        );
    }
}
