//! What a script wants of heads and bodies, done.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, header};
use serde_json::Value;

use crate::{
    hooks::{HeaderChange, Unusable},
    lua::json,
    wire::{edit::Edit, headers, splice},
};

/// Members that are named in a trace, and bytes of each name: clients choose them.
const MOST_NAMED: usize = 32;
const MOST_BYTES: usize = 100;

/// Fields that say how a message is framed or where it goes: scripts leave them as they are.
pub fn is_framing(name: &HeaderName) -> bool {
    headers::is_hop_by_hop(name.as_str())
        || [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::HOST, header::CONNECTION]
            .contains(name)
}

/// Changes header fields; returns what has changed.
pub fn headers(fields: &mut HeaderMap, changes: Vec<HeaderChange>) -> Vec<String> {
    let mut changed = Vec::new();
    for HeaderChange { name, value } in changes {
        let same = value.as_ref() == fields.get(&name);
        if same || is_framing(&name) {
            continue;
        }
        changed.push(format!("headers.{name}"));
        match value {
            Some(value) => _ = fields.insert(name, value),
            None => _ = fields.remove(&name),
        }
    }
    changed
}

/// The edits that make a body say what a script returned, and what of it has changed.
///
/// # Errors
/// If it is no JSON object in the place of one.
pub fn body(
    present: &[u8],
    parsed: &Value,
    new: &Value,
) -> Result<(Vec<Edit>, Vec<String>), Unusable> {
    let old = json::normalised(parsed);
    if old.is_object() && !new.is_object() {
        // An empty Lua table may be an empty list.
        return Err(Unusable("`body` is not a table with string keys".to_owned()));
    }
    let edits = splice::edits(present, &old, new);
    let changed = match edits.is_empty() {
        true => Vec::new(),
        false => members_changed(&old, new),
    };
    Ok((edits, changed))
}

/// The members of an object that have changed.
fn members_changed(old: &Value, new: &Value) -> Vec<String> {
    let (Value::Object(old), Value::Object(new)) = (old, new) else {
        return vec!["body".to_owned()];
    };
    let all = old.keys().chain(new.keys().filter(|name| !old.contains_key(*name)));
    let mut changed = all.filter(|name| old.get(*name) != new.get(*name));
    let short = |name: &String| format!("body.{}", &name[..name.floor_char_boundary(MOST_BYTES)]);
    let mut named: Vec<_> = changed.by_ref().take(MOST_NAMED).map(short).collect();
    let more = changed.count();
    if more > 0 {
        named.push(format!("and {more} more"));
    }
    named
}

/// The bytes of a body that a script gives whole: text as it is, anything else as JSON.
pub fn whole(body: &Value) -> Bytes {
    match body {
        Value::String(text) => Bytes::copy_from_slice(text.as_bytes()),
        other => serde_json::to_vec(other).unwrap_or_default().into(),
    }
}
