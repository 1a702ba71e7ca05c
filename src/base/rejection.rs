//! A refusal: the gateway said no. It is a value, not an error; its status and its words stand
//! beside the rule that refuses.

use std::borrow::Cow;

/// A refusal, ready to be written in the client's dialect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// HTTP status, 4xx or 503.
    pub status: u16,
    /// What the client is told, one sentence.
    pub message: String,
    /// The error class in OpenAI's words (`invalid_request_error`, ...).
    pub kind: &'static str,
    /// A machine-readable code (`model_not_found`, ...).
    pub code: Option<Cow<'static, str>>,
    /// The request parameter at fault, when there is one.
    pub param: Option<&'static str>,
    /// Seconds for `Retry-After`.
    pub retry_after: Option<u64>,
    /// Value for `Allow` (405 only).
    pub allow: Option<&'static str>,
    /// The connection cannot carry another request, for instance because an unread body is on it.
    pub close: bool,
}

/// What a client is told of a limit that it has reached.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "as in `Rejection`")]
pub struct OverLimit<'a> {
    /// `Rate limit reached`
    pub what: &'static str,
    pub status: u16,
    pub kind: &'static str,
    pub code: &'static str,
    /// `per_key.requests_per_minute`
    pub rule: &'a str,
    /// How much it lets pass.
    pub allows: f64,
    /// Tokens that the request is thought to come to, where that counts.
    pub estimate: Option<u64>,
    /// Seconds.
    pub retry_after: u64,
}

const INVALID: &str = "invalid_request_error";

impl Rejection {
    fn new(status: u16, kind: &'static str, message: impl Into<String>) -> Self {
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
        self.param = Some(param);
        self
    }

    /// 404: the path is not on the allow-list.
    pub fn unknown_path(method: &str, path: &str) -> Self {
        let shown: String = path.chars().take(200).collect();
        Self::new(404, INVALID, format!("Invalid URL ({method} {shown})")).code("unknown_url")
    }

    /// 405: the path exists, but not with this method.
    pub fn wrong_method(method: &str, path: &str, allow: &'static str) -> Self {
        let mut no = Self::new(
            405,
            INVALID,
            format!("Not allowed to {method} on {path} (HINT: use {allow})"),
        )
        .code("method_not_supported");
        no.allow = Some(allow);
        no
    }

    /// 400: the body is not a JSON object; `why` says where it stops being one.
    pub fn not_json(why: impl std::fmt::Display) -> Self {
        Self::new(400, INVALID, format!("We could not parse the JSON body of your request: {why}"))
            .code("invalid_json")
    }

    /// 400: a field has a value that cannot be meant.
    pub fn bad_field(param: &'static str, why: &str) -> Self {
        Self::new(400, INVALID, format!("Invalid '{param}': {why}"))
            .param(param)
            .code("invalid_value")
    }

    /// 400: no `model`, where the configuration needs one to choose a backend.
    pub fn missing_model() -> Self {
        Self::new(400, INVALID, "You must provide a model parameter")
            .param("model")
            .code("missing_model")
    }

    /// 404: no backend serves this model.
    pub fn unknown_model(model: &str) -> Self {
        let shown: String = model.chars().take(200).collect();
        Self::new(404, INVALID, format!("The model `{shown}` does not exist"))
            .param("model")
            .code("model_not_found")
    }

    /// 413: the body is larger than `limit` bytes.
    pub fn body_too_large(limit: u64) -> Self {
        let mut no = Self::new(
            413,
            INVALID,
            format!("The request body is larger than the limit of {limit} bytes"),
        )
        .code("request_too_large");
        no.close = true;
        no
    }

    /// 415: the body is compressed, and the gateway reads it.
    pub fn compressed_body(coding: &str) -> Self {
        let shown: String = coding.chars().take(50).collect();
        let message = format!(
            "The request body has the Content-Encoding `{shown}` (HINT: send it uncompressed)"
        );
        let mut no = Self::new(415, INVALID, message).code("unsupported_content_encoding");
        no.close = true;
        no
    }

    /// 431: the header fields together are larger than `limit` bytes.
    pub fn headers_too_large(limit: usize) -> Self {
        let mut no = Self::new(
            431,
            INVALID,
            format!("The request headers are larger than the limit of {limit} bytes"),
        )
        .code("headers_too_large");
        no.close = true;
        no
    }

    /// 400: `Content-Length` cannot be read, or says two things.
    pub fn bad_length() -> Self {
        let mut no = Self::new(400, INVALID, "The Content-Length of the request is not valid")
            .code("invalid_content_length");
        no.close = true;
        no
    }

    /// 400: HTTP/1.1 without one valid `Host`.
    pub fn bad_host(why: &str) -> Self {
        let message = format!("The Host of the request is not valid: {why}");
        let mut no = Self::new(400, INVALID, message).code("invalid_host");
        no.close = true;
        no
    }

    /// 400: a `Connection` field that names what is not the connection's.
    pub fn bad_connection(why: &str) -> Self {
        let message = format!("The Connection field of the request is not valid: {why}");
        let mut no = Self::new(400, INVALID, message).code("invalid_connection");
        no.close = true;
        no
    }

    /// 400: the chunks of the body are not as HTTP has them.
    pub fn bad_chunk() -> Self {
        let mut no = Self::new(400, INVALID, "The chunked body of the request is not valid")
            .code("invalid_chunk");
        no.close = true;
        no
    }

    /// 408: the client did not send the head of its request in time.
    pub fn head_timeout() -> Self {
        let mut no = Self::new(408, INVALID, "Timed out while waiting for the request headers")
            .code("request_timeout");
        no.close = true;
        no
    }

    /// 408: the client did not send its body in time.
    pub fn body_timeout() -> Self {
        let mut no = Self::new(408, INVALID, "Timed out while waiting for the request body")
            .code("request_timeout");
        no.close = true;
        no
    }

    /// The caller is not let in: status, code and sentence are the operator's.
    pub fn not_let_in(status: u16, code: impl Into<Cow<'static, str>>, message: &str) -> Self {
        let kind = match status {
            402 | 429 => "insufficient_quota",
            500.. => "server_error",
            _ => INVALID,
        };
        let mut no = Self::new(status, kind, message);
        no.code = Some(code.into());
        no
    }

    /// A limit is reached. `rule` says which, `allows` how much it lets pass; `status` is 429, or
    /// 503 where the configuration says so for a full queue.
    pub fn over_limit(over: &OverLimit<'_>) -> Self {
        let OverLimit { what, status, kind, code, rule, allows, estimate, retry_after } = *over;
        let estimate = match estimate {
            Some(n) => format!(", and this request is estimated at {n}"),
            None => String::new(),
        };
        let message =
            format!("{what}: {rule} allows {allows}{estimate}. Try again in {retry_after}s.");
        let mut no = Self::new(status, kind, message).code(code);
        no.retry_after = Some(retry_after);
        no
    }

    /// 503: limits cannot be looked at, and the configuration lets nobody pass without.
    pub fn limits_unavailable(retry_after: u64) -> Self {
        let mut no = Self::new(503, "server_error", "The limits cannot be checked at the moment")
            .code("limits_unavailable");
        no.retry_after = Some(retry_after);
        no
    }

    /// 403: the client's address is not allowed.
    pub fn address_not_allowed() -> Self {
        Self::not_let_in(403, "IP_NOT_ALLOWED", "This address may not call the gateway")
    }

    /// 503: every backend that serves the model is left alone for now, because it is busy or has failed.
    pub fn all_left_alone(retry_after: u64) -> Self {
        let mut no = Self::new(
            503,
            "server_error",
            "Every backend for this model is busy or has failed of late",
        )
        .code("no_healthy_backend");
        no.retry_after = Some(retry_after);
        no
    }

    /// 503: there would be no room for the usage record of this request.
    pub fn usage_spool_full(retry_after: u64) -> Self {
        let mut no = Self::new(
            503,
            "server_error",
            "The gateway cannot record usage at present, try again later",
        )
        .code("usage_spool_full");
        no.retry_after = Some(retry_after);
        no
    }

    /// 503: there is no room for another connection.
    pub fn too_many_connections(retry_after: u64) -> Self {
        let mut no = Self::new(503, "server_error", "The gateway has too many open connections")
            .code("too_many_connections");
        no.retry_after = Some(retry_after);
        no.close = true;
        no
    }

    /// 503: there is no memory for the body of the request.
    pub fn buffers_full(retry_after: u64) -> Self {
        let message = "The gateway has no room for the request body at present, try again later";
        let mut no = Self::new(503, "server_error", message).code("buffers_full");
        no.retry_after = Some(retry_after);
        no.close = true;
        no
    }

    /// 503: every backend that serves the model is down.
    pub fn no_healthy_backend(retry_after: u64) -> Self {
        let mut no =
            Self::new(503, "server_error", "No healthy backend is available for this model")
                .code("no_healthy_backend");
        no.retry_after = Some(retry_after);
        no
    }
}
