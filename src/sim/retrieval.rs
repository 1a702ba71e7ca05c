//! The paths of a stored response: `GET` and `DELETE /v1/responses/{id}`, `POST …/cancel`,
//! `GET …/input_items`.

use std::sync::Mutex;

use serde_json::{Value, json};

use super::{refusal, stored::StoredResponses};
use crate::base::lock;

/// Answers a request; `rest` is the path after `/v1/responses/`. Returns the status and the body.
pub fn answer(responses: &Mutex<StoredResponses>, method: &str, rest: &str) -> (u16, Value) {
    let (id, action) = rest.split_once('/').unwrap_or((rest, ""));
    let mut responses = lock(responses);
    let found = match (method, action) {
        ("GET", "") => responses.get(id),
        ("DELETE", "") => {
            responses.remove(id).then(|| json!({"id": id, "object": "response", "deleted": true}))
        }
        ("GET", "input_items") => responses.input(id).map(|items| list(id, items)),
        ("POST", "cancel") => match responses.cancel(id) {
            Some(None) => return too_late(),
            Some(cancelled) => cancelled,
            None => None,
        },
        (_, "" | "input_items" | "cancel") => {
            return (405, json!({"detail": "Method Not Allowed"}));
        }
        _ => return (404, json!({"detail": "Not Found"})),
    };
    match found {
        Some(body) => (200, body),
        None => {
            let (status, _, body) = refusal::no_response(id);
            (status, body)
        }
    }
}

fn too_late() -> (u16, Value) {
    let text = "Cannot cancel a synchronous response.";
    (400, refusal::error(text, "invalid_request_error", Some("response_id"), 400))
}

fn list(response: &str, items: Vec<Value>) -> Value {
    let data: Vec<Value> = items
        .into_iter()
        .enumerate()
        .map(|(number, mut item)| {
            if item["id"].is_null() && item.is_object() {
                let suffix = response.trim_start_matches("resp_");
                item["id"] = format!("msg_{suffix}_{number}").into();
            }
            item
        })
        .collect();
    let id = |item: Option<&Value>| item.map_or(Value::Null, |item| item["id"].clone());
    json!({"object": "list", "first_id": id(data.first()), "last_id": id(data.last()), "has_more": false,
           "data": data})
}
