//! OpenAI's errors, of Chat and of Responses, to the hub and back.

use crate::dialect::hub::{Class, Json, Object, StreamFault, Writer};

/// The `type` and the `code` of an error.
pub fn words(fault: &StreamFault) -> (&'static str, Option<String>) {
    let own = fault.code.clone();
    let code = |code: &str| Some(own.clone().unwrap_or_else(|| code.to_owned()));
    match fault.class {
        Class::InvalidRequest => ("invalid_request_error", own),
        Class::ContextTooLong { .. } => {
            ("invalid_request_error", Some("context_length_exceeded".to_owned()))
        }
        Class::ContentBlocked => ("invalid_request_error", code("content_filter")),
        Class::Authentication => ("invalid_request_error", code("invalid_api_key")),
        Class::NoCredit => ("insufficient_quota", code("insufficient_quota")),
        Class::Forbidden => ("permission_error", own),
        Class::NotFound => ("invalid_request_error", code("model_not_found")),
        Class::Conflict => ("conflict_error", own),
        Class::TooLarge => ("invalid_request_error", code("request_too_large")),
        Class::RateLimit => ("rate_limit_error", code("rate_limit_exceeded")),
        Class::Server => ("server_error", code("backend_failed")),
        Class::Overloaded => ("server_error", code("overloaded")),
        Class::Timeout => ("server_error", code("timeout")),
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
        Class::Overloaded => 503,
        Class::Timeout => 504,
    }
}

/// The `error` object: `{"message","type","param","code"}`.
pub fn object(fault: &StreamFault) -> Json {
    let (kind, code) = words(fault);
    Json::written(|out| {
        out.object(|error| {
            error.text_at("message", &fault.message);
            error.text_at("type", kind);
            nullable(error, "param", fault.param.as_deref());
            nullable(error, "code", code.as_deref());
        });
    })
}

fn nullable(out: &mut Writer, name: &str, text: Option<&str>) {
    match text {
        Some(text) => out.text_at(name, text),
        None => out.raw_at(name, "null"),
    }
}

/// The body of an error response: `{"error":{...}}`.
pub fn body(fault: &StreamFault) -> String {
    Json::written(|out| out.object(|o| o.json_at("error", &object(fault)))).as_str().to_owned()
}

/// Reads the body of an error response, or the data of an error event: OpenAI's `{"error":{...}}`,
/// `{"error":"text"}`, vLLM's older `{"object":"error","message",...}`, FastAPI's `{"detail":...}`,
/// `{"message":...}`.
pub fn read(status: u16, body: &str) -> StreamFault {
    let fallback = || StreamFault::new(class(status, None, None), plain(status, body));
    let Ok(mut whole) = Object::parse(body) else {
        // Google's endpoint with OpenAI's language sends a list with one error.
        let inner = body.trim().strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        return match inner.filter(|inner| Object::parse(inner).is_ok()) {
            Some(inner) => read(status, inner),
            None => fallback(),
        };
    };
    let Some(error) = whole.take("error") else {
        return match whole.has("message") || whole.has("detail") {
            true => of_object(status, &whole),
            false => fallback(),
        };
    };
    match Object::parse(error.get()) {
        Ok(error) => of_object(status, &error),
        Err(_) => {
            let text = serde_json::from_str(error.get()).unwrap_or_else(|_| error.get().to_owned());
            StreamFault::new(class(status, None, None), text).with_context_numbers()
        }
    }
}

fn of_object(status: u16, error: &Object<'_>) -> StreamFault {
    let text = |name: &str| error.text(name).filter(|text| !text.is_empty());
    // vLLM's and Google's codes are numbers: statuses.
    let number =
        error.get("code").and_then(|code| code.get().trim_matches('"').parse::<u16>().ok());
    let code = text("code").filter(|code| code.parse::<u16>().is_err());
    let status =
        number.filter(|number| (400..600).contains(number) && status < 400).unwrap_or(status);
    let detail = || error.get("detail").map(|detail| detail.get().to_owned());
    let message = text("message").or_else(|| text("detail")).or_else(detail);
    let mut fault = StreamFault::new(
        class(status, code.as_deref(), text("type").as_deref()),
        message.unwrap_or_else(|| plain(status, "")),
    );
    fault.param = text("param");
    fault.code = code;
    if let (Class::ContextTooLong { .. }, None) =
        (fault.class, crate::dialect::hub::fault::context_overflow(&fault.message))
    {
        // llama.cpp says the numbers beside the message.
        let count = |name: &str| error.get(name).and_then(|n| n.get().parse().ok());
        fault.class =
            Class::ContextTooLong { prompt: count("n_prompt_tokens"), limit: count("n_ctx") };
        return fault;
    }
    fault.with_context_numbers()
}

/// By the code and the type where they say more than the status.
fn class(status: u16, code: Option<&str>, kind: Option<&str>) -> Class {
    let said = [code, kind];
    let says =
        |word: &str| said.iter().flatten().any(|said| said.to_ascii_lowercase().contains(word));
    if says("context_length_exceeded") || says("exceed_context_size") {
        return Class::ContextTooLong { prompt: None, limit: None };
    }
    if says("content_filter") {
        return Class::ContentBlocked;
    }
    if says("insufficient_quota") {
        return Class::NoCredit;
    }
    if status >= 400 {
        return Class::of_status(status);
    }
    // In a stream there is no status.
    match () {
        () if says("overloaded") || says("unavailable") => Class::Overloaded,
        () if says("rate_limit") => Class::RateLimit,
        () if says("timeout") => Class::Timeout,
        () if says("invalid") || says("badrequest") || says("notfound") => Class::InvalidRequest,
        () => Class::Server,
    }
}

/// What is said of a body that has no message.
fn plain(status: u16, body: &str) -> String {
    let body = body.trim();
    if body.is_empty() || body.starts_with('<') {
        return format!("The backend answered with status {status}");
    }
    body.chars().take(1000).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_every_shape_are_read() {
        let context = Class::ContextTooLong { prompt: Some(9), limit: Some(4) };
        for (status, body, class, message, code) in [
            (
                400,
                r#"{"error":{"message":"bad","type":"BadRequestError","param":null,"code":400}}"#,
                Class::InvalidRequest,
                "bad",
                None,
            ),
            (
                404,
                r#"{"object":"error","message":"no model","type":"NotFoundError","code":404}"#,
                Class::NotFound,
                "no model",
                None,
            ),
            (
                400,
                r#"{"error":{"code":400,"message":"too long","type":"exceed_context_size_error","n_prompt_tokens":9,"n_ctx":4}}"#,
                context,
                "too long",
                None,
            ),
            (
                429,
                r#"{"error":{"message":"m","code":"insufficient_quota"}}"#,
                Class::NoCredit,
                "m",
                Some("insufficient_quota"),
            ),
            (500, r#"{"error":"down"}"#, Class::Server, "down", None),
            (422, r#"{"detail":[{"msg":"x"}]}"#, Class::InvalidRequest, r#"[{"msg":"x"}]"#, None),
            (
                400,
                r#"[{"error":{"code":400,"message":"g","status":"INVALID_ARGUMENT"}}]"#,
                Class::InvalidRequest,
                "g",
                None,
            ),
            (502, "<html>", Class::Server, "The backend answered with status 502", None),
            (503, "", Class::Overloaded, "The backend answered with status 503", None),
            (
                0,
                r#"{"error":{"message":"m","type":"InternalServerError","code":500}}"#,
                Class::Server,
                "m",
                None,
            ),
            (
                0,
                r#"{"error":{"message":"m","code":"rate_limit_exceeded"}}"#,
                Class::RateLimit,
                "m",
                Some("rate_limit_exceeded"),
            ),
        ] {
            let fault = read(status, body);
            assert_eq!(
                (fault.class, fault.message.as_str(), fault.code.as_deref()),
                (class, message, code),
                "{body}"
            );
        }
    }

    #[test]
    fn errors_are_written_with_all_four_members() {
        let fault = StreamFault::new(Class::Overloaded, "full");
        assert_eq!(
            body(&fault),
            r#"{"error":{"message":"full","type":"server_error","param":null,"code":"overloaded"}}"#
        );
    }
}
