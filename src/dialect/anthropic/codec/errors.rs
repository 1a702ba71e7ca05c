//! Anthropic's errors to the hub and back.

use bytes::Bytes;

use crate::dialect::{
    hub::{Class, Json, Object, StreamFault},
    openai::codec::errors as openai,
};

/// The `type` of an error.
pub fn word(class: Class) -> &'static str {
    match class {
        Class::InvalidRequest | Class::ContextTooLong { .. } | Class::ContentBlocked => {
            "invalid_request_error"
        }
        Class::Authentication => "authentication_error",
        Class::NoCredit => "billing_error",
        Class::Forbidden => "permission_error",
        Class::NotFound => "not_found_error",
        Class::Conflict => "conflict_error",
        Class::TooLarge => "request_too_large",
        Class::RateLimit => "rate_limit_error",
        Class::Server => "api_error",
        Class::Overloaded => "overloaded_error",
        Class::Timeout => "timeout_error",
    }
}

/// The status to a client.
pub fn status(class: Class) -> u16 {
    match class {
        Class::InvalidRequest | Class::ContextTooLong { .. } | Class::ContentBlocked => 400,
        Class::Authentication => 401,
        Class::NoCredit => 402,
        Class::Forbidden => 403,
        Class::NotFound => 404,
        Class::Conflict => 409,
        Class::TooLarge => 413,
        Class::RateLimit => 429,
        Class::Server => 502,
        Class::Timeout => 504,
        Class::Overloaded => 529,
    }
}

/// The `error` object: `{"type","message"}`.
pub fn object(fault: &StreamFault) -> Json {
    Json::written(|out| {
        out.object(|error| {
            error.text_at("type", word(fault.class));
            error.text_at("message", &fault.messages_wording());
        });
    })
}

/// The body of an error response: `{"type":"error","error":{...}}`.
pub fn body(fault: &StreamFault) -> String {
    let all = Json::written(|out| {
        out.object(|o| {
            o.text_at("type", "error");
            o.json_at("error", &object(fault));
        });
    });
    all.as_str().to_owned()
}

/// Reads the body of an error response, or the data of an error event, whose `status` is 0. Servers
/// that speak Messages beside Chat answer with OpenAI's shape at times.
pub fn read(status: u16, body: &str) -> StreamFault {
    own(status, body).unwrap_or_else(|| openai::read(status, body))
}

/// The body of an engine's error that says that the context is too small, in words by which Claude Code
/// compacts; `None`: it is another error, or is worded so already.
pub fn reworded_overflow(body: &[u8]) -> Option<Bytes> {
    let fault = read(400, std::str::from_utf8(body).ok()?);
    let overflow = matches!(fault.class, Class::ContextTooLong { .. });
    (overflow && fault.messages_wording() != fault.message).then(|| self::body(&fault).into())
}

fn own(status: u16, body: &str) -> Option<StreamFault> {
    let mut whole = Object::parse(body).ok()?;
    if whole.text("type").as_deref() != Some("error") {
        return None;
    }
    let mut error = Object::parse(whole.take("error")?.get()).ok()?;
    let kind = error.text("type").unwrap_or_default();
    let Some(class) = class(status, &kind) else {
        // vLLM's own types stand in this shape too.
        return Some(openai::read(status, body));
    };
    let mut message: String = error.read("message")?;
    let details = error.json("details").filter(|details| details.as_str() != "{}");
    let code = details.as_ref().and_then(Json::object).and_then(|d| d.text("error_code"));
    let class = said(class, &message);
    if let Some(details) = details {
        message = format!("{message} ({})", details.as_str());
    }
    let fault = StreamFault { code, ..StreamFault::new(class, message) };
    Some(match class {
        Class::InvalidRequest => fault.with_context_numbers(),
        _ => fault,
    })
}

/// By the type, and by the status where the type says little; `None`: no type of the vendor's.
fn class(status: u16, kind: &str) -> Option<Class> {
    let by_status = |class| if status >= 400 { Class::of_status(status) } else { class };
    Some(match kind {
        "invalid_request_error" => by_status(Class::InvalidRequest),
        "authentication_error" => Class::Authentication,
        "billing_error" => Class::NoCredit,
        "permission_error" => Class::Forbidden,
        "not_found_error" => Class::NotFound,
        "conflict_error" => Class::Conflict,
        "request_too_large" => Class::TooLarge,
        "rate_limit_error" => Class::RateLimit,
        "api_error" => by_status(Class::Server),
        "overloaded_error" => Class::Overloaded,
        "timeout_error" => Class::Timeout,
        _ => return None,
    })
}

/// What the vendor says by words alone.
fn said(class: Class, message: &str) -> Class {
    let says = |phrase: &str| message.to_ascii_lowercase().contains(phrase);
    match class {
        Class::InvalidRequest if says("credit balance is too low") => Class::NoCredit,
        Class::InvalidRequest if says("content filtering policy") => Class::ContentBlocked,
        class => class,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engines_overflow_is_worded_for_claude_code() {
        let error = |message: &str| {
            format!(
                r#"{{"type":"error","error":{{"type":"BadRequestError","message":"{message}"}}}}"#
            )
        };
        let long = "This model's maximum context length is 2048 tokens. However, you requested 0 output tokens and your prompt contains at least 2049 input tokens.";
        let reworded = reworded_overflow(error(long).as_bytes()).unwrap();
        assert_eq!(
            reworded,
            r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 2049 tokens > 2048 maximum"}}"#
        );
        // What is worded so is not worded again, and nothing else is.
        assert_eq!(reworded_overflow(&reworded), None);
        assert_eq!(reworded_overflow(error("temperature must be positive").as_bytes()), None);
        assert_eq!(reworded_overflow(b"<html>"), None);
    }

    #[test]
    fn errors_of_every_shape_are_read() {
        let file = |name| match name {
            "model" => {
                include_str!(
                    "../../../../tests/fixtures/translate/messages/vllm_err_model.answer.json"
                )
            }
            "json" => {
                include_str!(
                    "../../../../tests/fixtures/translate/messages/vllm_err_json.answer.json"
                )
            }
            _ => include_str!(
                "../../../../tests/fixtures/translate/messages/llamacpp_err_json.answer.json"
            ),
        };
        let context = Class::ContextTooLong { prompt: Some(210_000), limit: Some(200_000) };
        for (status, body, class) in [
            (404, file("model"), Class::NotFound),
            (0, file("model"), Class::InvalidRequest),
            (400, file("json"), Class::InvalidRequest),
            (400, file("llama"), Class::InvalidRequest),
            (
                529,
                r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
                Class::Overloaded,
            ),
            (
                0,
                r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
                Class::Overloaded,
            ),
            (500, r#"{"type":"error","error":{"type":"api_error","message":"m"}}"#, Class::Server),
            (0, r#"{"type":"error","error":{"type":"api_error","message":"m"}}"#, Class::Server),
            (
                400,
                r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 210000 tokens > 200000 maximum"}}"#,
                context,
            ),
            (
                400,
                r#"{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low to access"}}"#,
                Class::NoCredit,
            ),
            (
                400,
                r#"{"type":"error","error":{"type":"invalid_request_error","message":"Output blocked by content filtering policy"}}"#,
                Class::ContentBlocked,
            ),
            (
                413,
                r#"{"type":"error","error":{"type":"request_too_large","message":"m"}}"#,
                Class::TooLarge,
            ),
            (
                529,
                r#"{"type":"error","error":{"type":"api_error","message":"m"}}"#,
                Class::Overloaded,
            ),
            (502, "<html>", Class::Server),
        ] {
            assert_eq!(read(status, body).class, class, "{body}");
        }
    }

    #[test]
    fn details_stay_in_the_message() {
        let fault = read(
            403,
            r#"{"type":"error","error":{"type":"permission_error","message":"no","details":{"error_code":"spend_limit","x":1}},"request_id":"r"}"#,
        );
        assert_eq!(fault.code.as_deref(), Some("spend_limit"));
        assert_eq!(fault.message, r#"no ({"error_code":"spend_limit","x":1})"#);
    }

    #[test]
    fn each_class_has_its_status_and_word() {
        for (class, code, kind) in [
            (Class::InvalidRequest, 400, "invalid_request_error"),
            (Class::Authentication, 401, "authentication_error"),
            (Class::NoCredit, 402, "billing_error"),
            (Class::Forbidden, 403, "permission_error"),
            (Class::NotFound, 404, "not_found_error"),
            (Class::Conflict, 409, "conflict_error"),
            (Class::TooLarge, 413, "request_too_large"),
            (Class::RateLimit, 429, "rate_limit_error"),
            (Class::Server, 502, "api_error"),
            (Class::Timeout, 504, "timeout_error"),
            (Class::Overloaded, 529, "overloaded_error"),
        ] {
            assert_eq!(
                (status(class), body(&StreamFault::new(class, "m\n"))),
                (
                    code,
                    format!(r#"{{"type":"error","error":{{"type":"{kind}","message":"m\n"}}}}"#)
                )
            );
            assert_eq!(read(code, &body(&StreamFault::new(class, "m"))).class, class);
            assert_eq!(read(0, &body(&StreamFault::new(class, "m"))).class, class);
        }
    }

    #[test]
    fn an_overflow_is_worded_so_that_claude_code_compacts() {
        let vllm = "This model's maximum context length is 2048 tokens. However, you requested 0 output tokens and your prompt contains at least 2049 input tokens";
        let fault = StreamFault::new(Class::InvalidRequest, vllm).with_context_numbers();
        let body = body(&fault);
        assert!(body.contains("prompt is too long: 2049 tokens > 2048 maximum"), "{body}");
        assert_eq!(status(fault.class), 400);
    }
}
