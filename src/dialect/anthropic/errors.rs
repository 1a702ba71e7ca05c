//! Anthropic's form of errors: `{"type":"error","error":{"type":...,"message":...}}`.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::{
    base::{Rejection, RejectionKind},
    dialect::typed_stream,
};

/// The status of Anthropic for servers that have no room.
pub const OVERLOADED: u16 = 529;

/// The body of a rejection.
pub fn rejection(rejection: &Rejection) -> Bytes {
    let kind = match rejection.kind {
        // What the configuration sets for a full queue.
        _ if matches!(rejection.status, OVERLOADED | 503) => "overloaded_error",
        RejectionKind::InvalidRequest => "invalid_request_error",
        RejectionKind::Authentication => "authentication_error",
        RejectionKind::PermissionDenied => "permission_error",
        RejectionKind::NotFound => "not_found_error",
        RejectionKind::TooLarge => "request_too_large",
        RejectionKind::Timeout => "timeout_error",
        RejectionKind::QuotaExceeded if rejection.status == 402 => "billing_error",
        RejectionKind::QuotaExceeded
        | RejectionKind::RequestLimit
        | RejectionKind::TokenLimit
        | RejectionKind::ConcurrencyLimit => "rate_limit_error",
        RejectionKind::Unavailable => "overloaded_error",
        RejectionKind::ServerError => "api_error",
    };
    if is_for_a_thread(rejection) {
        let details = json!({"error_code": "thread_unsupported_request"});
        let error = json!({"type": kind, "message": rejection.message, "details": details});
        return json!({"type": "error", "error": error}).to_string().into();
    }
    error(kind, &rejection.message)
}

/// Whether it is for a `thread`, by which the vendor keeps the conversation. With the vendor's code for
/// it the SDKs' tool runners send the whole conversation from then on.
fn is_for_a_thread(rejection: &Rejection) -> bool {
    let code = rejection.code.as_deref() == Some("translation_unsupported");
    code && rejection.param.as_deref() == Some("thread")
}

/// The body of an answer to a failure, by one of the gateway's error codes.
pub fn failure(message: &str, code: &str) -> Bytes {
    let kind = match code {
        "backend_timeout" | "request_timeout" => "timeout_error",
        "shutting_down" => "overloaded_error",
        _ => "api_error",
    };
    error(kind, message)
}

fn error(kind: &str, message: &str) -> Bytes {
    json!({"type": "error", "error": {"type": kind, "message": message}}).to_string().into()
}

/// A document as an event, which has the name of the document's type. What has none is an error.
pub fn event(document: &[u8]) -> Bytes {
    let kind = std::str::from_utf8(typed_stream::text(document, "type")).unwrap_or_default();
    let plain = !kind.is_empty() && kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    typed_stream::named(if plain { kind } else { "error" }, document)
}

/// A backend's error body as an event. vLLM and llama.cpp answer some errors of this API in OpenAI's
/// form: the sentence is taken from there.
pub fn error_event(body: &[u8]) -> Option<Bytes> {
    let said: Value = serde_json::from_slice(body).ok()?;
    let message = said.get("error")?.get("message")?.as_str()?;
    Some(match said["type"].as_str() {
        Some("error") => event(body),
        _ => event(&error("api_error", message)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_anthropics_form() {
        let body = rejection(&Rejection::unknown_model("x\"y"));
        let value: Value = serde_json::from_slice(&body).unwrap();
        let message = "The model `x\"y` does not exist";
        let expected = json!({"type": "error",
            "error": {"type": "not_found_error", "message": message}});
        assert_eq!(value, expected);
    }

    #[test]
    fn a_thread_is_refused_so_that_sdks_go_on_without_it() {
        let thread = |refused: &Rejection| {
            let value: Value = serde_json::from_slice(&rejection(refused)).unwrap();
            value["error"]["details"].clone()
        };
        let refused = Rejection::untranslatable("thread", "no");
        assert_eq!(thread(&refused), json!({"error_code": "thread_unsupported_request"}));
        for other in [
            Rejection::untranslatable("container", "no"),
            Rejection::untranslatable("thread.type", "no"),
            Rejection::invalid_member("thread", "no"),
        ] {
            assert_eq!(thread(&other), Value::Null, "{other:?}");
        }
    }

    #[test]
    fn every_rejection_has_its_type() {
        for (refused, kind) in [
            (Rejection::not_json("x"), "invalid_request_error"),
            (Rejection::denied(401, "x", "x"), "authentication_error"),
            (Rejection::denied(402, "x", "x"), "billing_error"),
            (Rejection::denied(403, "x", "x"), "permission_error"),
            (Rejection::denied(429, "x", "x"), "rate_limit_error"),
            (Rejection::unknown_path("GET", "/x"), "not_found_error"),
            (Rejection::body_too_large(1), "request_too_large"),
            (Rejection::body_timeout(), "timeout_error"),
            (Rejection::no_healthy_backend(1), "overloaded_error"),
            (Rejection::buffers_full(1), "overloaded_error"),
            (Rejection::denied(500, "x", "x"), "api_error"),
        ] {
            let value: Value = serde_json::from_slice(&rejection(&refused)).unwrap();
            assert_eq!(value["error"]["type"], kind, "{refused:?}");
        }
        for (code, kind) in [
            ("backend_failed", "api_error"),
            ("backend_timeout", "timeout_error"),
            ("request_timeout", "timeout_error"),
            ("shutting_down", "overloaded_error"),
            ("internal_error", "api_error"),
        ] {
            let value: Value = serde_json::from_slice(&failure("x", code)).unwrap();
            assert_eq!(value["error"]["type"], kind, "{code}");
        }
    }

    #[test]
    fn an_error_is_an_event_of_its_name() {
        assert_eq!(
            event(b"{\"type\":\"error\",\n\"error\":{}}"),
            "event: error\ndata: {\"type\":\"error\", \"error\":{}}\n\n"
        );
        assert_eq!(
            event(br#"{"error":"x","code":503}"#),
            "event: error\ndata: {\"error\":\"x\",\"code\":503}\n\n"
        );
        assert_eq!(event(br#"{"type":"a\nb"}"#), "event: error\ndata: {\"type\":\"a\\nb\"}\n\n");
    }

    #[test]
    fn a_backends_error_is_an_event_in_either_form() {
        let own = r#"{"type":"error","error":{"type":"NotFoundError","message":"no"}}"#;
        let event = |body: &str| error_event(body.as_bytes());
        assert_eq!(event(own).unwrap(), format!("event: error\ndata: {own}\n\n"));
        let other = r#"{"error":{"message":"bad","type":"Bad Request","code":400}}"#;
        assert_eq!(
            event(other).unwrap(),
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"bad\"}}\n\n"
        );
        for none in ["<html>", "{}", r#"{"error":"Unauthorized"}"#, r#"{"error":{"message":1}}"#] {
            assert_eq!(event(none), None, "{none}");
        }
    }
}
