//! `timeouts`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scalar::Span;

/// Timeouts; `0` means no limit.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// For a connection to a backend, TLS included.
    pub connect: Span,
    /// For the first byte of a response body, counted from sending the request. Off by default: a
    /// response that is not streamed begins only when all of it is generated.
    pub first_byte: Span,
    /// For the first content of a stream, counted from sending the request; after that another
    /// backend is tried. Off by default.
    pub first_token: Span,
    /// For the next bytes of a response that has begun.
    pub between_chunks: Span,
    /// For the whole request. Off by default.
    pub total: Span,
    /// For a TLS handshake, and for the whole head of a request or the preface of HTTP/2. It starts
    /// with a new connection, and on a kept one with the first byte.
    pub client_head: Span,
    /// For the next bytes of a request's body.
    pub client_read: Span,
    /// For a client to accept the next bytes of a response.
    pub client_write: Span,
    /// How long an idle client connection is kept. It should be longer than the idle timeout of
    /// load balancers, so that they close first: a request that is sent while the gateway closes is
    /// lost.
    pub client_idle: Span,
    /// How long an idle connection to a backend is kept; `0`: not at all. It must be shorter than
    /// the server's own timeout, or requests fail: uvicorn, which serves vLLM and SGLang, closes
    /// after 5s.
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
