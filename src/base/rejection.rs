//! A rejection: the gateway refuses a request. It is a value, not an error. Each rejection has its
//! status and message here; each API language words its kind.

use std::borrow::Cow;

/// What kind of rejection it is, independent of any API language.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectionKind {
    /// The request is malformed or asks for something that is not possible.
    InvalidRequest,
    /// No API key, or one that is not valid.
    Authentication,
    /// The caller is known and may not do this.
    PermissionDenied,
    /// The path or the model does not exist.
    NotFound,
    /// The body or the headers are larger than allowed.
    TooLarge,
    /// The client took too long to send its request.
    Timeout,
    /// A quota, a balance or a budget is used up.
    QuotaExceeded,
    /// A rate limit on requests is reached.
    RequestLimit,
    /// A rate limit on tokens is reached.
    TokenLimit,
    /// A limit on concurrent requests is reached.
    ConcurrencyLimit,
    /// The gateway or its backends cannot serve the request at present.
    Unavailable,
    /// The gateway failed.
    ServerError,
}

/// What of a backend was not found, and why if that is known.
fn not_found(what: &str, id: &str, why: &str) -> String {
    let shown: String = id.chars().take(200).collect();
    let colon = if why.is_empty() { "" } else { ": " };
    format!("{what} with id '{shown}' not found{colon}{why}")
}

impl RejectionKind {
    /// The kind of a rejection whose status an operator chose.
    fn of_status(status: u16) -> Self {
        match status {
            401 => Self::Authentication,
            403 => Self::PermissionDenied,
            404 => Self::NotFound,
            402 | 429 => Self::QuotaExceeded,
            503 => Self::Unavailable,
            500.. => Self::ServerError,
            _ => Self::InvalidRequest,
        }
    }
}

/// A rejection, ready to be written in the client's dialect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// HTTP status, 4xx or 503.
    pub status: u16,
    /// One sentence for the client.
    pub message: String,
    pub kind: RejectionKind,
    /// A machine-readable code (`model_not_found`, ...).
    pub code: Option<Cow<'static, str>>,
    /// The request parameter at fault, if any.
    pub param: Option<Cow<'static, str>>,
    /// Seconds for `Retry-After`.
    pub retry_after: Option<u64>,
    /// Value for `Allow` (405 only).
    pub allow: Option<&'static str>,
    /// Whether the connection must be closed, for instance because an unread body is on it.
    pub close: bool,
}

/// A limit that a client has reached, for its error message.
#[derive(Clone, Copy, Debug)]
pub struct OverLimit<'a> {
    /// `Rate limit reached`
    pub what: &'static str,
    pub status: u16,
    pub kind: RejectionKind,
    pub code: &'static str,
    /// `per_key.requests_per_minute`
    pub rule: &'a str,
    /// The configured limit.
    pub allows: f64,
    /// Estimated tokens of the request; only for limits on tokens.
    pub estimate: Option<u64>,
    /// Seconds.
    pub retry_after: u64,
}

impl Rejection {
    fn new(status: u16, kind: RejectionKind, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            kind,
            code: None,
            param: None,
            retry_after: None,
            allow: None,
            close: false,
        }
    }

    fn code(mut self, code: &'static str) -> Self {
        self.code = Some(Cow::Borrowed(code));
        self
    }

    fn param(mut self, param: &'static str) -> Self {
        self.param = Some(Cow::Borrowed(param));
        self
    }

    /// 400: a member of the body that is not as its language has it. `path` is empty where none is
    /// at fault.
    pub fn invalid_member(path: &str, why: &str) -> Self {
        let message = match path {
            "" => format!("Invalid request: {why}"),
            _ => format!("Invalid '{path}': {why}"),
        };
        let param = (!path.is_empty()).then(|| Cow::Owned(path.to_owned()));
        Self { param, ..Self::new(400, RejectionKind::InvalidRequest, message) }
    }

    /// 400: what the languages of the model's backends cannot say.
    pub fn untranslatable(path: &str, why: &str) -> Self {
        let message = match path {
            "" => format!("The request cannot be translated for the model's backends: {why}"),
            _ => format!("'{path}' cannot be translated for the model's backends: {why}"),
        };
        Self { message, ..Self::invalid_member(path, why) }.code("translation_unsupported")
    }

    /// 400: no backend of the model has this operation, and it has no counterpart in their languages.
    pub fn no_such_operation(path: &str) -> Self {
        let message = format!("No backend of this model serves {path}");
        Self::new(400, RejectionKind::InvalidRequest, message).code("translation_unsupported")
    }

    /// Whether there is no room for the request now: a queue, the connections or the memory are full. A
    /// backend that is down is something else.
    pub fn is_overload(&self) -> bool {
        let limited = matches!(
            self.kind,
            RejectionKind::RequestLimit
                | RejectionKind::TokenLimit
                | RejectionKind::ConcurrencyLimit
        );
        let full = matches!(self.code.as_deref(), Some("too_many_connections" | "buffers_full"));
        self.status == 503 && (limited || full)
    }

    /// A script of the operator's refuses the request: `status` is 4xx or 5xx, `retry_after` in seconds.
    pub fn by_script(
        status: u16,
        message: impl Into<String>,
        code: Option<String>,
        retry_after: Option<u64>,
    ) -> Self {
        let kind = match status {
            429 => RejectionKind::RequestLimit,
            status => RejectionKind::of_status(status),
        };
        let code = code.map_or(Cow::Borrowed("refused_by_hook"), Cow::Owned);
        Self { code: Some(code), retry_after, ..Self::new(status, kind, message) }
    }

    /// 500: a script that must not fail has failed. The log says how.
    pub fn hook_failed(stage: &str) -> Self {
        let message = format!("A script of the gateway failed ({stage})");
        Self::new(500, RejectionKind::ServerError, message).code("hook_failed")
    }

    /// 502: an answer that guards must see as a whole is longer than they can.
    pub fn answer_too_long() -> Self {
        let message = "The answer is too long to be looked at as a whole";
        Self::new(502, RejectionKind::ServerError, message).code("answer_too_long")
    }

    /// 403: a browser asks for a page that may not call.
    pub fn origin_not_allowed() -> Self {
        let message = "Pages of this origin may not call this API";
        Self::new(403, RejectionKind::PermissionDenied, message).code("origin_not_allowed")
    }

    /// 403: the caller may not use this model.
    pub fn model_not_allowed(model: &str) -> Self {
        let shown: String = model.chars().take(200).collect();
        let message = format!("You may not use the model `{shown}`");
        Self::new(403, RejectionKind::PermissionDenied, message)
            .param("model")
            .code("model_not_allowed")
    }

    /// 404: the path is not on the allow-list.
    pub fn unknown_path(method: &str, path: &str) -> Self {
        let shown: String = path.chars().take(200).collect();
        Self::new(404, RejectionKind::NotFound, format!("Invalid URL ({method} {shown})"))
            .code("unknown_url")
    }

    /// 405: the path exists, but not with this method.
    pub fn wrong_method(method: &str, path: &str, allow: &'static str) -> Self {
        let mut rejection = Self::new(
            405,
            RejectionKind::InvalidRequest,
            format!("Not allowed to {method} on {path} (HINT: use {allow})"),
        )
        .code("method_not_supported");
        rejection.allow = Some(allow);
        rejection
    }

    /// 426: the client wants to speak by WebSocket. Clients that can also ask by HTTP do so then.
    pub fn no_websocket(path: &str) -> Self {
        let message = format!("{path} does not speak WebSocket (HINT: send the request by HTTP)");
        Self::new(426, RejectionKind::InvalidRequest, message).code("websocket_not_supported")
    }

    /// 400: the body is not a JSON object; `why` gives the position of the problem.
    pub fn not_json(why: impl std::fmt::Display) -> Self {
        Self::new(
            400,
            RejectionKind::InvalidRequest,
            format!("We could not parse the JSON body of your request: {why}"),
        )
        .code("invalid_json")
    }

    /// 400: a field has an invalid value.
    pub fn bad_field(param: &'static str, why: &str) -> Self {
        Self::new(400, RejectionKind::InvalidRequest, format!("Invalid '{param}': {why}"))
            .param(param)
            .code("invalid_value")
    }

    /// 400: no `model`, where the configuration needs one to choose a backend.
    pub fn missing_model() -> Self {
        Self::new(400, RejectionKind::InvalidRequest, "You must provide a model parameter")
            .param("model")
            .code("missing_model")
    }

    /// 404: no backend serves this model.
    pub fn unknown_model(model: &str) -> Self {
        let shown: String = model.chars().take(200).collect();
        Self::new(404, RejectionKind::NotFound, format!("The model `{shown}` does not exist"))
            .param("model")
            .code("model_not_found")
    }

    /// 404: no backend is known to have stored this response.
    pub fn unknown_response(id: &str, why: &str) -> Self {
        let message = not_found("Response", id, why);
        Self::new(404, RejectionKind::NotFound, message).param("id").code("response_not_found")
    }

    /// 400: no backend of the model is known to have stored the response that a new one continues.
    pub fn unknown_previous_response(id: &str, why: &str) -> Self {
        let usual = "no backend of this model is known to have stored it for you";
        let why = if why.is_empty() { usual } else { why };
        let message = not_found("Previous response", id, why);
        Self::new(400, RejectionKind::InvalidRequest, message)
            .param("previous_response_id")
            .code("previous_response_not_found")
    }

    /// 404: the conversation that a new response belongs to cannot be gone on with.
    pub fn unknown_conversation(id: &str, why: &str) -> Self {
        let message = not_found("Conversation", id, why);
        Self::new(404, RejectionKind::NotFound, message)
            .param("conversation")
            .code("conversation_not_found")
    }

    /// 503: the only backend that has what the request refers to gets no requests at present.
    pub fn owner_drained(id: &str, retry_after: u64) -> Self {
        let shown: String = id.chars().take(200).collect();
        let message = format!("The backend that has stored '{shown}' is being drained");
        let mut rejection =
            Self::new(503, RejectionKind::Unavailable, message).code("backend_drained");
        rejection.retry_after = Some(retry_after);
        rejection
    }

    /// 413: the body is larger than `limit` bytes.
    pub fn body_too_large(limit: u64) -> Self {
        let mut rejection = Self::new(
            413,
            RejectionKind::TooLarge,
            format!("The request body is larger than the limit of {limit} bytes"),
        )
        .code("request_too_large");
        rejection.close = true;
        rejection
    }

    /// 415: the body is compressed, and the gateway has to read it.
    pub fn compressed_body(coding: &str) -> Self {
        let shown: String = coding.chars().take(50).collect();
        let message = format!(
            "The request body has the Content-Encoding `{shown}` (HINT: send it uncompressed)"
        );
        let mut rejection = Self::new(415, RejectionKind::InvalidRequest, message)
            .code("unsupported_content_encoding");
        rejection.close = true;
        rejection
    }

    /// 431: the header fields together are larger than `limit` bytes.
    pub fn headers_too_large(limit: usize) -> Self {
        let mut rejection = Self::new(
            431,
            RejectionKind::TooLarge,
            format!("The request headers are larger than the limit of {limit} bytes"),
        )
        .code("headers_too_large");
        rejection.close = true;
        rejection
    }

    /// 400: `Content-Length` is invalid, or there are two different ones.
    pub fn bad_length() -> Self {
        let mut rejection = Self::new(
            400,
            RejectionKind::InvalidRequest,
            "The Content-Length of the request is not valid",
        )
        .code("invalid_content_length");
        rejection.close = true;
        rejection
    }

    /// 400: HTTP/1.1 without one valid `Host`.
    pub fn bad_host(why: &str) -> Self {
        let message = format!("The Host of the request is not valid: {why}");
        let mut rejection =
            Self::new(400, RejectionKind::InvalidRequest, message).code("invalid_host");
        rejection.close = true;
        rejection
    }

    /// 400: a `Connection` field names an end-to-end field.
    pub fn bad_connection(why: &str) -> Self {
        let message = format!("The Connection field of the request is not valid: {why}");
        let mut rejection =
            Self::new(400, RejectionKind::InvalidRequest, message).code("invalid_connection");
        rejection.close = true;
        rejection
    }

    /// 400: the chunked encoding of the body is invalid.
    pub fn bad_chunk() -> Self {
        let mut rejection = Self::new(
            400,
            RejectionKind::InvalidRequest,
            "The chunked body of the request is not valid",
        )
        .code("invalid_chunk");
        rejection.close = true;
        rejection
    }

    /// 408: the client did not send the head of its request in time.
    pub fn head_timeout() -> Self {
        let mut rejection = Self::new(
            408,
            RejectionKind::Timeout,
            "Timed out while waiting for the request headers",
        )
        .code("request_timeout");
        rejection.close = true;
        rejection
    }

    /// 408: the client did not send its body in time.
    pub fn body_timeout() -> Self {
        let mut rejection =
            Self::new(408, RejectionKind::Timeout, "Timed out while waiting for the request body")
                .code("request_timeout");
        rejection.close = true;
        rejection
    }

    /// The caller is denied access: the operator chooses status, code and message.
    pub fn denied(status: u16, code: impl Into<Cow<'static, str>>, message: &str) -> Self {
        let mut rejection = Self::new(status, RejectionKind::of_status(status), message);
        rejection.code = Some(code.into());
        rejection
    }

    /// A limit is reached. `status` is 429, or what the configuration sets for a full queue.
    pub fn over_limit(over: &OverLimit<'_>) -> Self {
        let OverLimit { what, status, kind, code, rule, allows, estimate, retry_after } = *over;
        let estimate = match estimate {
            Some(n) => format!(", and this request is estimated at {n}"),
            None => String::new(),
        };
        let message =
            format!("{what}: {rule} allows {allows}{estimate}. Try again in {retry_after}s.");
        let mut rejection = Self::new(status, kind, message).code(code);
        rejection.retry_after = Some(retry_after);
        rejection
    }

    /// 400 or 403: the content of a request or an answer is denied; `message` is the operator's, or a
    /// service's.
    pub fn content_blocked(status: u16, message: &str) -> Self {
        Self::denied(status, "content_blocked", message)
    }

    /// 400 or 403: a request has personal data of these kinds.
    pub fn personal_data(status: u16, kinds: &str) -> Self {
        let message =
            format!("The request has personal data or secrets ({kinds}), which must not be sent");
        Self::denied(status, "personal_data", &message)
    }

    /// 400: a request asks for more of `param` than it may.
    pub fn cap_exceeded(param: &'static str, message: &str) -> Self {
        Self::new(400, RejectionKind::InvalidRequest, message).param(param).code("cap_exceeded")
    }

    /// 503: the service that judges requests fails, and the configuration rejects requests in that case.
    pub fn moderation_unavailable() -> Self {
        let message = "The request cannot be checked at the moment";
        Self::new(503, RejectionKind::Unavailable, message).code("moderation_unavailable")
    }

    /// 503: the limits cannot be checked, and the configuration rejects requests in that case.
    pub fn limits_unavailable(retry_after: u64) -> Self {
        let mut rejection = Self::new(
            503,
            RejectionKind::Unavailable,
            "The limits cannot be checked at the moment",
        )
        .code("limits_unavailable");
        rejection.retry_after = Some(retry_after);
        rejection
    }

    /// 403: the client's address is not allowed.
    pub fn address_not_allowed() -> Self {
        Self::denied(403, "IP_NOT_ALLOWED", "This address may not call the gateway")
    }

    /// 503: every backend that serves the model is ejected: it is overloaded or has failed recently.
    pub fn all_ejected(retry_after: u64) -> Self {
        let mut rejection = Self::new(
            503,
            RejectionKind::Unavailable,
            "Every backend for this model is busy or has failed recently",
        )
        .code("no_healthy_backend");
        rejection.retry_after = Some(retry_after);
        rejection
    }

    /// 503: the spool has no room for the usage record of this request.
    pub fn usage_spool_full(retry_after: u64) -> Self {
        let mut rejection = Self::new(
            503,
            RejectionKind::Unavailable,
            "The gateway cannot record usage at present, try again later",
        )
        .code("usage_spool_full");
        rejection.retry_after = Some(retry_after);
        rejection
    }

    /// 503: the limit of open connections is reached.
    pub fn too_many_connections(retry_after: u64) -> Self {
        let mut rejection =
            Self::new(503, RejectionKind::Unavailable, "The gateway has too many open connections")
                .code("too_many_connections");
        rejection.retry_after = Some(retry_after);
        rejection.close = true;
        rejection
    }

    /// 503: there is no memory for the body of the request.
    pub fn buffers_full(retry_after: u64) -> Self {
        let message = "The gateway has no room for the request body at present, try again later";
        let mut rejection =
            Self::new(503, RejectionKind::Unavailable, message).code("buffers_full");
        rejection.retry_after = Some(retry_after);
        rejection.close = true;
        rejection
    }

    /// 503: every backend that serves the model is down.
    pub fn no_healthy_backend(retry_after: u64) -> Self {
        let mut rejection = Self::new(
            503,
            RejectionKind::Unavailable,
            "No healthy backend is available for this model",
        )
        .code("no_healthy_backend");
        rejection.retry_after = Some(retry_after);
        rejection
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_room_is_an_overload_and_a_missing_backend_is_none() {
        let limit = |status, kind| {
            let over = OverLimit {
                what: "x",
                status,
                kind,
                code: "x",
                rule: "x",
                allows: 1.0,
                estimate: None,
                retry_after: 1,
            };
            Rejection::over_limit(&over)
        };
        for (rejection, overload) in [
            (Rejection::buffers_full(1), true),
            (Rejection::too_many_connections(1), true),
            (limit(503, RejectionKind::ConcurrencyLimit), true),
            (limit(429, RejectionKind::ConcurrencyLimit), false),
            (Rejection::no_healthy_backend(1), false),
            (Rejection::all_ejected(1), false),
            (Rejection::limits_unavailable(1), false),
            (Rejection::usage_spool_full(1), false),
        ] {
            assert_eq!(rejection.is_overload(), overload, "{rejection:?}");
        }
    }
}
