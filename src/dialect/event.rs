//! One event of a stream: its document, and how that is changed.

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

/// A JSON value in which nothing stands.
pub fn is_empty(value: &[u8]) -> bool {
    matches!(value, b"null" | b"\"\"" | b"[]" | b"{}")
}

/// A member of a member.
pub fn within<'a>(document: &'a [u8], outer: &str, inner: &str) -> Option<&'a [u8]> {
    let outer = document.get(json::find(document, outer)?.value)?;
    outer.get(json::find(outer, inner)?.value)
}
