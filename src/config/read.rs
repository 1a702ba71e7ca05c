//! From a YAML document to a typed value, with every problem instead of only the first.
//!
//! `serde` stops at the first error. So the part of the document with the error is removed, and the
//! rest is deserialized again, until there is no error.

use serde::de::DeserializeOwned;
use serde_yaml::Value;

use super::{
    legacy,
    problem::{Problem, closest},
    raw::UNQUOTED,
    value::{self, Step},
};

/// Reads `document`; `expanded` are the paths of strings that came from the environment, where a
/// text like `8000` may stand for a number. The value is `None` only if nothing could be read.
pub fn read<T: DeserializeOwned>(
    mut document: Value,
    expanded: &[String],
    problems: &mut Vec<Problem>,
) -> (Option<T>, Removed) {
    let mut removed = Removed::default();
    let mut scalars: Vec<String> = expanded.to_vec();
    loop {
        let error = match serde_path_to_error::deserialize::<_, T>(document.clone()) {
            Ok(value) => return (Some(value), removed),
            Err(error) => error,
        };
        let mut path = steps(error.path());
        let message = error.inner().to_string();
        if let Some(at) = scalars.iter().position(|p| *p == value::show(&path)) {
            scalars.remove(at);
            if reinterpret(&mut document, &path) {
                continue;
            }
        }
        if let Some(unknown) = between(&message, "unknown field `", "`") {
            if path.last() != Some(&Step::Key(unknown.clone())) {
                path.push(Step::Key(unknown.clone()));
            }
            problems.push(unknown_key(&removed.original(&path), &unknown, &message));
        } else {
            let given = value::get_mut(&mut document, &path).and_then(|v| v.as_str());
            let hint = hint(&message, given);
            let mut problem = Problem::new(value::show(&removed.original(&path)), plain(&message));
            problem.hint = hint.map(str::to_owned);
            problems.push(problem);
        }
        if !removed.take_out(&mut document, &mut path) {
            return (None, removed);
        }
    }
}

/// The list elements that were removed. Later elements have moved up, so that their paths must be
/// mapped back to the file.
#[derive(Default)]
pub struct Removed(Vec<(Vec<Step>, usize)>);

impl Removed {
    /// The path in the file of the value that is now at `path`.
    pub fn original(&self, path: &[Step]) -> Vec<Step> {
        let mut path = path.to_vec();
        for (list, index) in self.0.iter().rev() {
            if !path.starts_with(list) {
                continue;
            }
            if let Some(Step::Index(at)) = path.get_mut(list.len())
                && *at >= *index
            {
                *at += 1;
            }
        }
        path
    }

    /// Removes the value at the path, or the closest parent that can be removed.
    fn take_out(&mut self, document: &mut Value, path: &mut Vec<Step>) -> bool {
        while let Some(last) = path.last() {
            let last = last.clone();
            if value::remove(document, path) {
                path.pop();
                if let Step::Index(index) = last {
                    self.0.push((path.clone(), index));
                }
                return true;
            }
            path.pop();
        }
        false
    }
}

fn steps(path: &serde_path_to_error::Path) -> Vec<Step> {
    use serde_path_to_error::Segment;
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(Step::Index(*index)),
            Segment::Map { key } => Some(Step::Key(key.clone())),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect()
}

/// Reads the text at the path as a YAML scalar. `false` if that is a string as well.
fn reinterpret(document: &mut Value, path: &[Step]) -> bool {
    let Some(slot) = value::get_mut(document, path) else {
        return false;
    };
    let Some(scalar) = slot.as_str().and_then(|text| serde_yaml::from_str::<Value>(text).ok())
    else {
        return false;
    };
    let changed = matches!(scalar, Value::Bool(_) | Value::Number(_) | Value::Null);
    if changed {
        *slot = scalar;
    }
    changed
}

fn unknown_key(path: &[Step], unknown: &str, message: &str) -> Problem {
    let known: Vec<&str> = message
        .split_once("expected")
        .map_or("", |(_, list)| list)
        .split('`')
        .skip(1)
        .step_by(2)
        .collect();
    let problem = Problem::new(value::show(path), format!("unknown key `{unknown}`"));
    if let Some(hint) = legacy::hint(path) {
        return problem.hint(hint);
    }
    match closest(unknown, known.iter().copied()) {
        Some(name) => problem.hint(format!("did you mean `{name}`?")),
        None => problem.hint(format!("known keys: {}", known.join(", "))),
    }
}

/// The correction of a value that YAML reads differently from its intention.
fn hint(message: &str, given: Option<&str>) -> Option<&'static str> {
    if message.contains(UNQUOTED) {
        return Some("put it in quotes");
    }
    let switch = message.contains("a boolean") || message.contains("true or false");
    match given?.to_ascii_lowercase().as_str() {
        "yes" | "on" | "y" if switch => Some("write `true`"),
        "no" | "off" | "n" if switch => Some("write `false`"),
        _ => None,
    }
}

/// The message without serde's description of the position, which the path replaces, and without
/// the wrong value, which may be a misplaced secret.
fn plain(message: &str) -> String {
    let cut = message.find(" at line ").unwrap_or(message.len());
    let text = match message[..cut].split_once(": ") {
        // "backends[0].url: invalid type: ..." repeats the path.
        Some((head, rest)) if !head.contains(' ') => rest,
        _ => &message[..cut],
    };
    if let Some((kind, expected)) =
        text.strip_prefix("invalid type: ").and_then(|t| t.rsplit_once(", expected "))
    {
        let kind = kind.split([' ', '`', '"']).next().unwrap_or_default();
        let article = if kind.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
        let expected = if expected.starts_with("struct ") { "a mapping of keys" } else { expected };
        return format!("is {article} {kind}, not {expected}");
    }
    match text.split_once(", expected ") {
        Some((head, known)) if head.starts_with("unknown variant") => format!("must be {known}"),
        _ => text.to_owned(),
    }
}

fn between(text: &str, start: &str, end: &str) -> Option<String> {
    let (_, rest) = text.split_once(start)?;
    rest.split_once(end).map(|(inner, _)| inner.to_owned())
}
