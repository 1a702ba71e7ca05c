//! Paths into a YAML document, as problems name them.

use serde_yaml::Value;

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A key of a mapping.
    Key(String),
    /// An element of a sequence.
    Index(usize),
}

/// Writes a path as `backends[1].url`.
pub fn show(path: &[Step]) -> String {
    let mut out = String::new();
    for step in path {
        match step {
            Step::Key(key) if out.is_empty() => out.push_str(key),
            Step::Key(key) => {
                out.push('.');
                out.push_str(key);
            }
            Step::Index(i) => out.push_str(&format!("[{i}]")),
        }
    }
    out
}

/// Reads a path back from its text. Keys with dots or brackets are read wrongly, which only costs a
/// problem its line number.
pub fn parse(text: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    for part in text.split('.').filter(|p| !p.is_empty()) {
        let mut pieces = part.split('[');
        if let Some(key) = pieces.next().filter(|k| !k.is_empty()) {
            steps.push(Step::Key(key.to_owned()));
        }
        for index in pieces {
            if let Ok(i) = index.trim_end_matches(']').parse() {
                steps.push(Step::Index(i));
            }
        }
    }
    steps
}

/// The value at a path.
pub fn get_mut<'v>(value: &'v mut Value, path: &[Step]) -> Option<&'v mut Value> {
    path.iter().try_fold(value, |value, step| match step {
        Step::Key(key) => value.as_mapping_mut()?.get_mut(key.as_str()),
        Step::Index(i) => value.as_sequence_mut()?.get_mut(*i),
    })
}

/// Removes the value at a path. `false` if there is none.
pub fn remove(value: &mut Value, path: &[Step]) -> bool {
    let Some((last, parents)) = path.split_last() else {
        return false;
    };
    let Some(parent) = get_mut(value, parents) else {
        return false;
    };
    match (last, parent) {
        (Step::Key(key), Value::Mapping(map)) => map.remove(key.as_str()).is_some(),
        (Step::Index(i), Value::Sequence(seq)) if *i < seq.len() => {
            seq.remove(*i);
            true
        }
        _ => false,
    }
}

/// Makes every key a string: all known keys are strings, and an unknown one can then be reported
/// with its path.
pub fn name_keys(node: &mut Value) {
    match node {
        Value::Sequence(items) => items.iter_mut().for_each(name_keys),
        Value::Mapping(map) => {
            let named = std::mem::take(map).into_iter().map(|(key, mut item)| {
                name_keys(&mut item);
                let text = match &key {
                    Value::String(_) => return (key, item),
                    other => serde_yaml::to_string(other).unwrap_or_default(),
                };
                (Value::String(text.trim().to_owned()), item)
            });
            *map = named.collect();
        }
        _ => {}
    }
}
