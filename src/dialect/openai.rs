//! OpenAI's language: its paths, and its form of errors.

use serde_json::json;

use super::{Kind, Route};
use crate::base::Rejection;

/// Its paths.
pub static ROUTES: [Route; 4] = [
    Route { path: "/v1/chat/completions", allow: "POST", kind: Kind::Inference { streams: true } },
    Route { path: "/v1/completions", allow: "POST", kind: Kind::Inference { streams: true } },
    Route { path: "/v1/embeddings", allow: "POST", kind: Kind::Inference { streams: false } },
    Route { path: "/v1/models", allow: "GET, HEAD", kind: Kind::Models },
];

/// The body of a refusal.
pub fn rejection(no: &Rejection) -> Vec<u8> {
    body(&no.message, no.kind, no.param, no.code.as_deref())
}

/// The body of an error that is nobody's refusal; as an event of a stream, the SDKs raise it.
pub fn failure(message: &str, code: &str) -> Vec<u8> {
    body(message, "server_error", None, Some(code))
}

fn body(message: &str, kind: &str, param: Option<&str>, code: Option<&str>) -> Vec<u8> {
    json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
        .to_string()
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_openais_form() {
        let body = rejection(&Rejection::unknown_model("x\"y"));
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(value["error"]["message"], "The model `x\"y` does not exist");
        assert_eq!(value["error"]["type"], "invalid_request_error");
        assert_eq!(value["error"]["param"], "model");
        assert_eq!(value["error"]["code"], "model_not_found");
    }
}
