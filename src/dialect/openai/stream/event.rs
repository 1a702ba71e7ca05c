//! One event: its document, what that says, and how it is changed.

use bytes::{BufMut, Bytes, BytesMut};

use crate::wire::{
    edit::Edit,
    json,
    sse::{self, Data},
};

/// How documents stand in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As the data of events.
    Events,
    /// Each on a line of its own (NDJSON).
    Lines,
}

/// Where a document stands in its event.
#[derive(Clone, Copy)]
pub enum Place {
    /// From this offset on.
    At(usize),
    /// In several `data` lines.
    Spread,
}

/// The document of an event; `None` for a comment, for white space, and for empty data.
pub fn document(form: Form, event: &Bytes) -> Option<(Bytes, Place)> {
    let range = match form {
        Form::Lines => {
            let start = event.iter().position(|b| !b.is_ascii_whitespace())?;
            start..event.trim_ascii_end().len()
        }
        Form::Events => match sse::data(event) {
            Data::None => return None,
            Data::One(range) => range,
            Data::Many(joined) => return Some((Bytes::from(joined.into_owned()), Place::Spread)),
        },
    };
    let document = event.slice(range.clone());
    (!document.trim_ascii().is_empty()).then_some((document, Place::At(range.start)))
}

/// The event with these edits of its document.
pub fn edited(event: &Bytes, document: &[u8], place: Place, mut edits: Vec<Edit>) -> Bytes {
    if edits.is_empty() {
        return event.clone();
    }
    edits.sort_by_key(|edit| edit.range.start);
    let room = event.len() + edits.iter().map(|edit| edit.with.len()).sum::<usize>();
    let mut out = BytesMut::with_capacity(room);
    match place {
        Place::At(start) => {
            out.put_slice(&event[..start]);
            put_edited(&mut out, document, &edits);
            out.put_slice(&event[start + document.len()..]);
        }
        Place::Spread => {
            let mut text = BytesMut::with_capacity(room);
            put_edited(&mut text, document, &edits);
            let others = sse::lines(event).filter(|line| !line.is_empty());
            for line in others.filter(|line| sse::field(event, line.clone(), b"data").is_none()) {
                out.put_slice(&event[line]);
                out.put_u8(b'\n');
            }
            for line in text.as_ref().split(|b: &u8| *b == b'\n') {
                out.put_slice(b"data: ");
                out.put_slice(line);
                out.put_u8(b'\n');
            }
            out.put_u8(b'\n');
        }
    }
    out.freeze()
}

fn put_edited(out: &mut BytesMut, document: &[u8], edits: &[Edit]) {
    let mut from = 0;
    for edit in edits {
        out.put_slice(&document[from..edit.range.start]);
        out.put_slice(&edit.with);
        from = edit.range.end;
    }
    out.put_slice(&document[from..]);
}

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

/// A JSON value in which nothing stands.
pub fn is_empty(value: &[u8]) -> bool {
    matches!(value, b"null" | b"\"\"" | b"[]" | b"{}")
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

/// A member of a member.
pub fn within<'a>(document: &'a [u8], outer: &str, inner: &str) -> Option<&'a [u8]> {
    let outer = document.get(json::find(document, outer)?.value)?;
    outer.get(json::find(outer, inner)?.value)
}
