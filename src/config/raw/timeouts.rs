//! `timeouts`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scalar::Span;

/// How long to wait for what; `0` means for ever.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// For a connection to a backend, TLS included.
    pub connect: Span,
    /// For the first byte of an answer's body, from the moment the request was sent. Off by
    /// default: an answer that is not streamed begins only when all of it is generated.
    pub first_byte: Span,
    /// For the first content of a stream, from the moment the request was sent; then another
    /// backend is tried. Off by default.
    pub first_token: Span,
    /// For the next bytes of an answer, once it has begun.
    pub between_chunks: Span,
    /// For the whole request. Off by default.
    pub total: Span,
    /// For a TLS handshake, and for the whole head of a request or the preface of HTTP/2: on a new
    /// connection from its beginning, later from the first byte.
    pub client_head: Span,
    /// For the next bytes of a request's body.
    pub client_read: Span,
    /// For a client to take the next of the bytes that are sent to it.
    pub client_write: Span,
    /// How long a client's connection is kept between requests. Longer than load balancers keep
    /// theirs, so that it is they who close: a request that crosses with our closing is lost.
    pub client_idle: Span,
    /// How long an idle connection to a backend is kept; `0` not at all. uvicorn, which serves vLLM and SGLang,
    /// closes it after 5s; longer than that means failed requests.
    pub upstream_idle: Span,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Span(Duration::from_secs(5)),
            first_byte: Span(Duration::ZERO),
            first_token: Span(Duration::ZERO),
            between_chunks: Span(Duration::from_secs(600)),
            total: Span(Duration::ZERO),
            client_head: Span(Duration::from_secs(30)),
            client_read: Span(Duration::from_secs(60)),
            client_write: Span(Duration::from_secs(60)),
            client_idle: Span(Duration::from_secs(620)),
            upstream_idle: Span(Duration::from_secs(3)),
        }
    }
}
