//! How a stream of Responses says that it failed: `response.failed`, whatever came before. Readers take
//! a stream without a terminal event for a broken connection, and try again.

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};

use crate::dialect::typed_stream;

/// What a stream has said of its response, as far as its end has to repeat it.
#[derive(Clone)]
pub struct Identity {
    pub id: Box<str>,
    /// Seconds since 1970.
    pub created_at: u64,
    /// As the client knows it.
    pub model: Option<Box<str>>,
}

/// The id of a response of which no backend has said anything.
const NO_ID: &str = "resp_none";

impl Identity {
    /// The event that ends the response. `number`: its number, if the engine writes any; `open`: the
    /// items that have begun and have not ended, as they were announced. They are in the response as
    /// incomplete: readers look for them.
    pub fn failed(&self, number: Option<u64>, open: &[Value], message: &str, code: &str) -> Bytes {
        let mut items = open.to_vec();
        for item in items.iter_mut().filter_map(Value::as_object_mut) {
            item.insert("status".to_owned(), "incomplete".into());
        }
        let error = json!({"code": code, "message": message});
        event("response.failed", number, self.response("failed", error, items))
    }

    fn response(&self, status: &str, error: Value, output: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": "response", "created_at": self.created_at, "status": status,
            "error": error, "incomplete_details": null, "model": self.model, "output": output,
            "parallel_tool_calls": true, "tool_choice": "auto", "tools": [], "usage": null,
        })
    }
}

fn event(name: &str, number: Option<u64>, response: Value) -> Bytes {
    let mut document = json!({"type": name, "response": response});
    if let Some(number) = number {
        document["sequence_number"] = number.into();
    }
    typed_stream::named(name, document.to_string().as_bytes())
}

/// A response that fails before any event of it: readers want to see it begin.
pub fn from_nothing(message: &str, code: &str) -> Bytes {
    let nothing = Identity { id: NO_ID.into(), created_at: 0, model: None };
    let response = nothing.response("in_progress", Value::Null, Vec::new());
    let mut all = BytesMut::from(&event("response.created", Some(0), response)[..]);
    all.extend_from_slice(&nothing.failed(Some(1), &[], message, code));
    all.freeze()
}

/// Message and code of an error body, of OpenAI's form or of the flat one; `None` if it has neither.
pub fn said(document: &[u8]) -> Option<(String, String)> {
    let document: Value = serde_json::from_slice(document).ok()?;
    let error = document.get("error")?;
    let word = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    if let Value::String(message) = error {
        return Some((message.clone(), word(&document["code"]).unwrap_or_default()));
    }
    let message = error.get("message")?.as_str()?.to_owned();
    let code = word(&error["code"]).or_else(|| word(&error["type"]));
    Some((message, code.unwrap_or_else(|| "server_error".to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(events: &Bytes) -> Vec<Value> {
        let text = std::str::from_utf8(events).unwrap();
        let of = |event: &str| {
            let (name, data) = event.split_once('\n').unwrap();
            let document: Value =
                serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
            assert_eq!(name, format!("event: {}", document["type"].as_str().unwrap()));
            document
        };
        text.trim_end().split("\n\n").map(of).collect()
    }

    #[test]
    fn a_response_that_began_ends_by_its_id() {
        let begun = Identity { id: "resp_7".into(), created_at: 5, model: Some("m".into()) };
        let open = [json!({"id": "msg_1", "type": "message", "status": "in_progress"})];
        let all = documents(&begun.failed(Some(9), &open, "no", "backend_failed"));
        assert_eq!(all.len(), 1);
        assert_eq!(all[0]["sequence_number"], 9);
        let response = &all[0]["response"];
        assert_eq!((&response["id"], &response["status"]), (&json!("resp_7"), &json!("failed")));
        assert_eq!(response["error"], json!({"code": "backend_failed", "message": "no"}));
        assert_eq!(response["output"][0]["status"], "incomplete");
        assert_eq!(documents(&begun.failed(None, &[], "no", "x"))[0].get("sequence_number"), None);
    }

    #[test]
    fn a_response_that_has_not_begun_begins_first() {
        let all = documents(&from_nothing("no", "x"));
        let types: Vec<_> = all.iter().map(|event| event["type"].as_str().unwrap()).collect();
        assert_eq!(types, ["response.created", "response.failed"]);
        let numbers: Vec<_> = all.iter().map(|event| &event["sequence_number"]).collect();
        assert_eq!(numbers, [&json!(0), &json!(1)]);
        assert_eq!(all[0]["response"]["id"], all[1]["response"]["id"]);
        assert_eq!(all[1]["response"]["error"]["message"], "no");
    }

    #[test]
    fn errors_are_read_in_every_form() {
        for (document, expected) in [
            (r#"{"error":{"message":"a","code":"b","type":"t"}}"#, Some(("a", "b"))),
            (r#"{"error":{"message":"a","code":null,"type":"t"}}"#, Some(("a", "t"))),
            (r#"{"error":{"message":"a","code":400}}"#, Some(("a", "400"))),
            (r#"{"error":{"message":"a"}}"#, Some(("a", "server_error"))),
            (r#"{"error":"a","code":503}"#, Some(("a", "503"))),
            (r#"{"error":{}}"#, None),
            (r#"{"error":null}"#, None),
            ("<html>", None),
        ] {
            let expected = expected.map(|(message, code)| (message.to_owned(), code.to_owned()));
            assert_eq!(said(document.as_bytes()), expected, "{document}");
        }
    }
}
