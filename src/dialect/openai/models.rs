//! OpenAI's form of model lists.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::dialect::{Entry, Model};

/// The language's name.
pub const LANGUAGE: &str = "chat";

/// Who owns models that the configuration names.
const OWNER: &str = "llmproxy";

/// `{"object":"list","data":[...]}`
pub fn list(models: &[Model]) -> Bytes {
    let data: Vec<Value> = models.iter().map(entry).collect();
    json!({"object": "list", "data": data}).to_string().into()
}

/// One model; as the backend wrote it, if one did in this language.
pub fn entry(model: &Model) -> Value {
    let made = || {
        json!({
            "id": model.name,
            "object": "model",
            "created": model.created,
            "owned_by": OWNER,
        })
    };
    model.entry_in(LANGUAGE).cloned().unwrap_or_else(made)
}

/// Reads a list. Entries without a name are left out.
pub fn read(body: &[u8]) -> Vec<Model> {
    let Ok(Value::Object(mut list)) = serde_json::from_slice::<Value>(body) else {
        return Vec::new();
    };
    let Some(Value::Array(entries)) = list.remove("data") else {
        return Vec::new();
    };
    let model = |entry: Value| {
        let name = entry["id"].as_str()?.to_owned();
        let created = entry["created"].as_i64().unwrap_or_default();
        Some(Model { name, created, entry: Some(Entry { language: LANGUAGE, value: entry }) })
    };
    entries.into_iter().filter_map(model).collect()
}
