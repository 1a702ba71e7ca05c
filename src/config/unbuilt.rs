//! Features that a configuration may name but that this version does not have. They are refused
//! by name: a limit or a lock that is silently ignored is worse than none.

use serde_yaml::Value;

use super::{problem::Problem, raw::Raw};

/// Refuses every feature that is switched on and missing.
pub fn refuse(raw: &Raw, problems: &mut Vec<Problem>) {
    let mut section = |value: &Option<Value>, path: &str, what: &str| {
        if value.as_ref().is_some_and(is_on) {
            problems.push(
                Problem::new(path, format!("{what} is not available in this version")).hint(
                    match value {
                        Some(Value::Mapping(_)) => {
                            format!("remove `{path}`, or set `enabled: false` in it")
                        }
                        _ => format!("remove `{path}`"),
                    },
                ),
            );
        }
    };
    section(&raw.routing.retry, "routing.retry", "retrying after an answer");
    section(&raw.routing.fallback, "routing.fallback", "fallback routing");
}

/// A section is on when it holds anything and does not say `enabled: false`.
fn is_on(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Sequence(items) => !items.is_empty(),
        Value::Mapping(map) => map.get("enabled").is_none_or(|on| on.as_bool() != Some(false)),
        _ => true,
    }
}
