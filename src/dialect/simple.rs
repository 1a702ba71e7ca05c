//! The flat form of errors that LLMProxy 0.3 had: `{"error": "...", "code": 403}`.

use serde_json::json;

/// The body of an error; `code` is the HTTP status.
pub fn error(status: u16, message: &str) -> Vec<u8> {
    json!({"error": message, "code": status}).to_string().into_bytes()
}
