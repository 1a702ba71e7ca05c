//! Numbers in the data of keys: stores such as Redis have them as text.

use serde_json::Value;

/// A finite number, or a text that holds one.
pub fn number(value: &Value) -> Option<f64> {
    match value {
        Value::String(text) => text.trim().parse().ok().filter(|n: &f64| n.is_finite()),
        other => other.as_f64(),
    }
}
