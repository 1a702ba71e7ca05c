//! One event: what its document says, and how it is changed.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    dialect::event::{Form, document, edited, is_empty},
    wire::{edit::Edit, json, sse},
};

/// The edits that take out `usage`.
pub fn without_usage(document: &[u8]) -> Vec<Edit> {
    let cuts = json::cuts(document, |m| m.is(document, "usage")).unwrap_or_default();
    cuts.into_iter().map(Edit::cut).collect()
}

/// The edit that gives the model another name; `None` if none is named.
pub fn with_model(document: &[u8], name: &Bytes) -> Option<Edit> {
    let member = json::find(document, "model")?;
    Some(Edit { range: member.value, with: name.to_vec().into() })
}

/// Members of a usage chunk that exist only because usage was asked for.
const OWNED_BY_USAGE: [&str; 2] = ["usage", "metrics"];

/// Puts the members that moved to the usage chunk back to the end of the chunk that was held.
pub fn give_back(form: Form, held: Bytes, usage_chunk: &[u8]) -> Bytes {
    let Some((document, place)) = document(form, &held) else {
        return held;
    };
    let mut moved = Vec::new();
    for member in json::members(usage_chunk, 0).flatten() {
        let key = &usage_chunk[member.key.clone()];
        let has = |m: json::Member| document[m.key] == *key;
        if OWNED_BY_USAGE.iter().any(|name| member.is(usage_chunk, name))
            || json::members(&document, 0).flatten().any(has)
        {
            continue;
        }
        moved.push(b',');
        moved.extend_from_slice(&usage_chunk[member.span()]);
    }
    match document.iter().rposition(|b| *b == b'}') {
        Some(brace) if !moved.is_empty() => {
            edited(&held, &document, place, vec![Edit::insert(brace, moved)])
        }
        _ => held,
    }
}

/// A usage chunk made of a chunk of the answer: its members, without choices, and with this usage.
pub fn usage_chunk(form: Form, document: &[u8], usage: &[u8], model: Option<&Bytes>) -> Bytes {
    let mut out = BytesMut::from(match form {
        Form::Events => &b"data: {"[..],
        Form::Lines => b"{",
    });
    for member in json::members(document, 0).map_while(Result::ok) {
        if ["choices", "usage"].iter().any(|name| member.is(document, name)) {
            continue;
        }
        match model.filter(|_| member.is(document, "model")) {
            Some(name) => {
                out.put_slice(b"\"model\":");
                out.put_slice(name);
            }
            None => out.put_slice(&document[member.span()]),
        }
        out.put_u8(b',');
    }
    out.put_slice(b"\"choices\":[],\"usage\":");
    out.put_slice(usage);
    out.put_slice(match form {
        Form::Events => b"}\n\n",
        Form::Lines => b"}\n",
    });
    out.freeze()
}

/// Whether an event reports an error.
pub fn is_error(event: &[u8], document: &[u8], says_error: bool) -> bool {
    let said = says_error && {
        let error = json::find(document, "error").map(|m| &document[m.value]);
        error.is_some_and(|e| !is_empty(e) && e != b"false")
            // FastChat's form, which vLLM had.
            || json::find(document, "object").is_some_and(|m| &document[m.value] == b"\"error\"")
    };
    // Nearly every event is one line of data and nothing else.
    said || event.len() > document.len() + 10 && sse::kind(event) == Some(b"error")
}

/// Whether a chunk carries a part of the answer.
pub fn has_content(document: &[u8]) -> bool {
    let Some(choices) = json::find(document, "choices") else {
        return !is_empty(document.trim_ascii()) && json::find(document, "usage").is_none();
    };
    let choices = &document[choices.value];
    json::elements(choices).any(|choice| {
        let choice = &choices[choice];
        if let Some(text) = json::find(choice, "text") {
            return !is_empty(&choice[text.value]);
        }
        let Some(delta) = json::find(choice, "delta") else {
            // A whole message where a part was expected.
            return json::find(choice, "message").is_some();
        };
        let delta = &choice[delta.value];
        json::members(delta, 0)
            .map_while(Result::ok)
            .any(|m| !m.is(delta, "role") && !is_empty(&delta[m.value]))
    })
}

/// The choices of a chunk, each with its index.
pub fn choices(document: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let choices = json::find(document, "choices").map_or(&b""[..], |m| &document[m.value]);
    json::elements(choices).map(|range| {
        let choice = &choices[range];
        let index = json::find(choice, "index").map(|m| &choice[m.value]);
        let index = index.and_then(|i| std::str::from_utf8(i).ok()?.parse().ok());
        (index.unwrap_or(0), choice)
    })
}
