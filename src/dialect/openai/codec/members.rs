//! Reading members of objects with the error that a client understands, and members of inner
//! objects that have no word in the hub.

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::words::{LANGUAGE, MORE};
use crate::dialect::hub::{Extension, Json, Object, Refused, Writer};

/// An object.
///
/// # Errors
/// If it is something else.
pub fn object<'a>(raw: &'a RawValue, path: &str) -> Result<Object<'a>, Refused> {
    Object::parse(raw.get()).map_err(|_| Refused::invalid(path, "It must be an object"))
}

/// A list.
///
/// # Errors
/// If it is something else.
pub fn list<'a>(raw: &'a RawValue, path: &str) -> Result<Vec<&'a RawValue>, Refused> {
    serde_json::from_str(raw.get()).map_err(|_| Refused::invalid(path, "It must be a list"))
}

/// Takes a member of a type; `what` names it: `a string`.
///
/// # Errors
/// If it is of another type.
pub fn take<T: DeserializeOwned>(
    object: &mut Object<'_>,
    name: &str,
    path: &str,
    what: &str,
) -> Result<Option<T>, Refused> {
    let Some(raw) = object.take(name) else { return Ok(None) };
    match serde_json::from_str(raw.get()) {
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(Refused::invalid(join(path, name), format!("It must be {what}"))),
    }
}

/// Takes a string.
///
/// # Errors
/// If it is something else.
pub fn text(object: &mut Object<'_>, name: &str, path: &str) -> Result<Option<String>, Refused> {
    take(object, name, path, "a string")
}

/// Takes a string that must be there.
///
/// # Errors
/// If it is not there, or something else.
pub fn required(object: &mut Object<'_>, name: &str, path: &str) -> Result<String, Refused> {
    text(object, name, path)?.ok_or_else(|| Refused::invalid(join(path, name), "It is missing"))
}

/// Takes a number as it was written.
///
/// # Errors
/// If it is something else.
pub fn number(object: &mut Object<'_>, name: &str) -> Result<Option<Json>, Refused> {
    match object.take(name) {
        Some(raw) if raw.get().starts_with(|c: char| c == '-' || c.is_ascii_digit()) => {
            Ok(Some(Json::of(raw)))
        }
        Some(_) => Err(Refused::invalid(name, "It must be a number")),
        None => Ok(None),
    }
}

/// A path with one more member.
pub fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// What is left of an object, and of one inside it, whose members' names begin with its name:
/// `function.x`.
pub fn rest(outer: Object<'_>, inner: Option<(&str, Object<'_>)>) -> Extension {
    let mut members = outer.rest();
    if let Some((name, inner)) = inner {
        members.extend(prefixed(name, inner));
    }
    Extension::new(LANGUAGE, members)
}

/// What is left of an inner object.
pub fn prefixed(name: &str, inner: Object<'_>) -> impl Iterator<Item = (String, Json)> {
    inner.rest().into_iter().map(move |(key, value)| (format!("{name}.{key}"), value))
}

/// The inner objects whose members stand in the extension of the outer one.
const INNER: [&str; 10] = [
    "audio_url",
    "custom",
    "file",
    "function",
    "image_url",
    "input_audio",
    "message",
    "response_format.json_schema",
    "stream_options",
    "video_url",
];

/// A member of an inner object.
pub fn is_inner(name: &str) -> bool {
    INNER.iter().any(|inner| name.strip_prefix(inner).is_some_and(|rest| rest.starts_with('.')))
}

/// Writes those members that are of the outer object itself.
pub fn write_outer(out: &mut Writer, ext: &Extension) {
    for (name, value) in ext.of(LANGUAGE).iter().chain(ext.of(MORE)) {
        if !is_inner(name) {
            out.json_at(name, value);
        }
    }
}

/// Writes those members that are of the inner object with this name.
pub fn write_inner(out: &mut Writer, ext: &Extension, inner: &str) {
    for (name, value) in ext.of(LANGUAGE) {
        if let Some(name) = name.strip_prefix(inner).and_then(|name| name.strip_prefix('.')) {
            out.json_at(name, value);
        }
    }
}
