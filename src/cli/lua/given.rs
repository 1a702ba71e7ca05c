//! What a script sees at a stage: made-up values of all its globals, changed by the command line.

use std::{path::PathBuf, sync::Arc};

use clap::Args;
use serde_json::{Map, Value};

use super::{key, source};
use crate::{
    base::Stage,
    hooks::{Call, Global, Input, reference},
};

/// The stage of a script, and its globals.
#[derive(Args)]
pub struct StageArgs {
    /// The stage, for instance `on_request`.
    #[arg(long, value_parser = source::stage)]
    pub stage: Option<Stage>,
    /// Globals in place of the made-up ones: JSON such as `{"request": {"model": "m"}}`, or a file
    /// with it. Objects are merged, null removes a field.
    #[arg(long, value_name = "FILE_OR_JSON")]
    pub given: Option<String>,
}

/// The globals of a call.
#[derive(Clone)]
pub struct Given {
    pub stage: Stage,
    pub values: Map<String, Value>,
}

impl Given {
    /// The made-up values of a stage, with those of the command line.
    ///
    /// # Errors
    /// If these are no JSON object of globals of this stage.
    pub fn read(stage: Stage, given: Option<&str>) -> Result<Self, String> {
        let mut values = fixture(stage);
        let Some(given) = given else { return Ok(Self { stage, values }) };
        let text = match given.trim_start().starts_with('{') {
            true => given.to_owned(),
            false => std::fs::read_to_string(PathBuf::from(given))
                .map_err(|e| format!("--given: cannot read {given}: {e}"))?,
        };
        let given: Map<String, Value> =
            serde_json::from_str(&text).map_err(|e| format!("--given: {e}"))?;
        for (name, value) in given {
            if !reference::globals(stage).any(|word| word.name == name) {
                let known: Vec<_> = reference::globals(stage).map(|word| word.name).collect();
                let (stage, known) = (stage.key(), known.join(", "));
                return Err(format!("--given: {stage} has no global `{name}`; it has {known}"));
            }
            merge(values.entry(name).or_insert(Value::Null), value);
        }
        Ok(Self { stage, values })
    }

    /// A call with these globals.
    ///
    /// # Errors
    /// If `headers` are no header fields.
    pub fn call(&self) -> Result<Call, String> {
        let mut globals: Vec<Global> = Vec::new();
        for word in reference::globals(self.stage) {
            if let Some(value) = self.values.get(word.name) {
                globals.push((word.name, input(value)?));
            }
        }
        Ok(Call { stage: self.stage, globals: globals.into() })
    }

    /// A field of a global.
    pub fn field(&self, global: &str, field: &str) -> Option<&Value> {
        self.values.get(global)?.get(field)
    }
}

fn input(value: &Value) -> Result<Input, String> {
    let Value::Object(fields) = value else { return Ok(json(value)) };
    let field = |(name, value): (&String, &Value)| {
        let value = match (name.as_str(), value) {
            ("headers", Value::Object(fields)) => {
                let fields = key::headers(fields).map_err(|why| format!("--given: {why}"))?;
                Input::Headers(Arc::new(fields))
            }
            _ => json(value),
        };
        Ok((name.clone(), value))
    };
    fields.iter().map(field).collect::<Result<_, String>>().map(Input::Named)
}

fn json(value: &Value) -> Input {
    Input::Json(Arc::new(value.clone()))
}

fn merge(place: &mut Value, value: Value) {
    match (place, value) {
        (Value::Object(old), Value::Object(new)) => {
            for (name, value) in new {
                match value {
                    Value::Null => _ = old.remove(&name),
                    value => merge(old.entry(name).or_insert(Value::Null), value),
                }
            }
        }
        (place, value) => *place = value,
    }
}

/// The made-up values of a stage's globals.
pub fn fixture(stage: Stage) -> Map<String, Value> {
    let all: Map<String, Value> =
        serde_json::from_str(include_str!("fixtures.json")).unwrap_or_default();
    let own = |name| {
        let mut value = match name {
            "result" => all.get("record")?.clone(),
            "backends" => by_name(all.get("candidates")?),
            name => all.get(name)?.clone(),
        };
        let fields = value.as_object_mut();
        match (name, stage) {
            ("response", Stage::Usage) => fields?.retain(|k, _| k == "status_code" || k == "body"),
            ("response", Stage::Complete) => fields?.retain(|k, _| k == "status_code"),
            ("metadata", stage) if stage != Stage::Usage => fields?.clear(),
            ("request", Stage::Request | Stage::Auth | Stage::RateLimit | Stage::Route) => {
                fields?.remove("backend_url");
            }
            ("request", Stage::StreamEvent) => {
                fields?.insert("stream".to_owned(), true.into());
            }
            _ => {}
        }
        Some((name.to_owned(), value))
    };
    reference::globals(stage).filter_map(|word| own(word.name)).collect()
}

fn by_name(candidates: &Value) -> Value {
    let named = candidates.as_array().into_iter().flatten().filter_map(|candidate| {
        Some((candidate.get("name")?.as_str()?.to_owned(), candidate.clone()))
    });
    Value::Object(named.collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_stage_has_all_its_globals() {
        for stage in Stage::ALL {
            let fixture = fixture(stage);
            for word in reference::globals(stage) {
                let at = format!("{} {}", stage.key(), word.name);
                let value = fixture.get(word.name).unwrap_or_else(|| panic!("{at} is missing"));
                if word.fields.is_empty() {
                    assert!(is_of(word.kind, value), "{at}: {value} is no {}", word.kind);
                    continue;
                }
                let one = value.get(0).unwrap_or(value);
                // Late stages do not have all of it, as its documentation says.
                let part = word.name == "response" && stage != Stage::Response;
                for field in word.fields {
                    match one.get(field.name) {
                        Some(value) => {
                            assert!(is_of(field.kind, value), "{at}.{}: {value}", field.name);
                        }
                        None => assert!(field.kind.ends_with('?') || part, "{at}.{}", field.name),
                    }
                }
                for name in one.as_object().unwrap().keys() {
                    let known = word.fields.iter().any(|field| field.name == name);
                    assert!(known, "{at}.{name} is not in the reference");
                }
            }
            assert_eq!(fixture.len(), reference::globals(stage).count());
            Given { stage, values: fixture }.call().unwrap();
        }
    }

    fn is_of(kind: &str, value: &Value) -> bool {
        kind.trim_end_matches('?').split('|').any(|kind| match kind {
            "string" => value.is_string(),
            "integer" => value.is_i64(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            "any" => true,
            "string[]" => value.is_array(),
            kind => kind.starts_with("table") && value.is_object(),
        })
    }

    #[test]
    fn what_is_given_is_merged() {
        let text = r#"{"request": {"body": {"top_k": 3, "max_tokens": null}}, "timestamp": 5}"#;
        let given = Given::read(Stage::Request, Some(text)).unwrap();
        let body = given.field("request", "body").unwrap();
        assert_eq!((&body["top_k"], body.get("max_tokens")), (&json!(3), None));
        assert_eq!(body["model"], "qwen-7b");
        assert_eq!(given.values["timestamp"], 5);
        for (text, named) in [
            (r#"{"event": {}}"#, "event"),
            (r#"{"request": "#, "--given"),
            ("no/such/file.json", "no/such/file.json"),
        ] {
            let why = Given::read(Stage::Request, Some(text)).err().unwrap();
            assert!(why.contains(named), "{why}");
        }
    }
}
