//! An instance of a JSON schema: the arguments of tool calls, and structured output.

use serde_json::{Map, Value, json};

/// The string of an instance, unless the schema wants another.
const WORD: &str = "Paris";

/// How deep an instance may be: a schema may refer to itself.
const DEEPEST: usize = 12;

/// An instance of a schema: the required members (all, if none is), the first of several choices, the
/// smallest numbers and lists that are allowed. Patterns are not looked at.
pub fn instance(schema: &Value) -> Value {
    of(schema, schema, 0)
}

fn of(schema: &Value, root: &Value, depth: usize) -> Value {
    if depth > DEEPEST {
        return Value::Null;
    }
    if let Some(fixed) = schema.get("const").or_else(|| schema["enum"].get(0)) {
        return fixed.clone();
    }
    if let Some(target) = schema["$ref"].as_str() {
        let target = target.strip_prefix('#').and_then(|at| root.pointer(at));
        return target.map_or(Value::Null, |target| of(target, root, depth + 1));
    }
    for choices in ["anyOf", "oneOf", "allOf"] {
        if let Some(choice) = schema[choices].get(0) {
            return of(choice, root, depth + 1);
        }
    }
    let kind = schema["type"].as_str().or_else(|| {
        let kinds = schema["type"].as_array()?;
        kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null")
    });
    match kind {
        Some("string") => string(schema).into(),
        Some("integer") => json!(smallest(schema).ceil() as i64),
        Some("number") => json!(smallest(schema)),
        Some("boolean") => Value::Bool(false),
        Some("null") => Value::Null,
        Some("array") => {
            let least = schema["minItems"].as_u64().unwrap_or(0).min(100);
            (0..least).map(|_| of(&schema["items"], root, depth + 1)).collect()
        }
        _ => object(schema, root, depth),
    }
}

fn object(schema: &Value, root: &Value, depth: usize) -> Value {
    let mut members = Map::new();
    let Some(properties) = schema["properties"].as_object() else {
        return Value::Object(members);
    };
    let required = schema["required"].as_array().filter(|names| !names.is_empty());
    for (name, property) in properties {
        if required.is_none_or(|names| names.iter().any(|wanted| wanted == name)) {
            members.insert(name.clone(), of(property, root, depth + 1));
        }
    }
    Value::Object(members)
}

fn string(schema: &Value) -> String {
    let word = match schema["format"].as_str() {
        Some("date-time") => "2026-01-02T03:04:05Z",
        Some("date") => "2026-01-02",
        Some("time") => "03:04:05Z",
        Some("email") => "paris@example.com",
        Some("uri") => "https://example.com/paris",
        Some("uuid") => "00000000-0000-4000-8000-000000000000",
        _ => WORD,
    };
    let least = schema["minLength"].as_u64().unwrap_or(0).min(10_000) as usize;
    let most = schema["maxLength"].as_u64().unwrap_or(u64::MAX) as usize;
    word.chars().cycle().take(word.len().max(least).min(most)).collect()
}

fn smallest(schema: &Value) -> f64 {
    let step = schema["multipleOf"].as_f64().filter(|step| *step > 0.0).unwrap_or(1.0);
    let least = schema["minimum"].as_f64().or_else(|| {
        // Strictly more, by a whole step.
        schema["exclusiveMinimum"].as_f64().map(|bound| (bound / step).floor() * step + step)
    });
    let most = schema["maximum"]
        .as_f64()
        .or_else(|| schema["exclusiveMaximum"].as_f64().map(|bound| bound - step));
    let value = least.unwrap_or_else(|| most.unwrap_or(0.0).min(0.0));
    (value / step).ceil() * step
}

/// JSON with a space after each comma and colon, as models write it.
pub fn spaced(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let members: Vec<String> = members
                .iter()
                .map(|(name, value)| format!("{}: {}", Value::from(name.as_str()), spaced(value)))
                .collect();
            format!("{{{}}}", members.join(", "))
        }
        Value::Array(items) => {
            format!("[{}]", items.iter().map(spaced).collect::<Vec<_>>().join(", "))
        }
        scalar => scalar.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn required_members_are_there_and_choices_are_the_first() {
        let schema = json!({
            "type": "object", "required": ["unit", "n", "list", "who", "maybe"],
            "properties": {
                "city": {"type": "string"},
                "unit": {"enum": ["c", "f"]},
                "n": {"type": "integer", "exclusiveMinimum": 4, "multipleOf": 3},
                "list": {"type": "array", "minItems": 2, "items": {"type": "number", "minimum": 0.5, "multipleOf": 0.5}},
                "who": {"$ref": "#/$defs/who"},
                "maybe": {"anyOf": [{"type": ["null", "boolean"]}, {"type": "null"}]},
            },
            "$defs": {"who": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 3}}}},
        });
        let found = json!({"unit": "c", "n": 6, "list": [0.5, 0.5], "who": {"name": "Par"}, "maybe": false});
        assert_eq!(instance(&schema), found);
    }

    #[test]
    fn a_schema_that_says_little_has_an_instance() {
        assert_eq!(instance(&json!({})), json!({}));
        assert_eq!(instance(&Value::Null), json!({}));
        assert_eq!(instance(&json!({"properties": {"a": {"const": null}}})), json!({"a": null}));
        assert_eq!(instance(&json!({"type": "integer", "maximum": -3})), json!(-3));
        let circle = json!({"type": "object", "properties": {"next": {"$ref": "#"}}});
        assert!(instance(&circle).to_string().len() < 1000);
    }

    #[test]
    fn spaced_json_is_json() {
        let value = json!({"a\"": [1, {"b": null}], "c": {}});
        assert_eq!(spaced(&value), r#"{"a\"": [1, {"b": null}], "c": {}}"#);
    }
}
