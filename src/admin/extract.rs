//! Bodies and query parameters of requests, with errors in the form of this API.

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Query, Request},
    http::{StatusCode, request::Parts},
};
use serde::de::DeserializeOwned;

use super::error::ApiError;

/// The largest body of a request, in bytes.
pub const MAX_BODY: usize = 1 << 20;

/// A JSON body.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let path = request.uri().path().to_owned();
        let error = |status, code, why: String| ApiError::new(&path, status, code, why);
        let bytes = match Bytes::from_request(request, state).await {
            Ok(bytes) => bytes,
            Err(e) if e.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                let why = format!("the body is larger than {MAX_BODY} bytes");
                return Err(error(413, "body_too_large", why));
            }
            Err(e) => return Err(error(400, "invalid_body", e.body_text())),
        };
        // An empty body means the same as an empty object.
        let text = if bytes.is_empty() { b"{}" } else { bytes.as_ref() };
        serde_json::from_slice(text)
            .map(Self)
            .map_err(|e| error(400, "invalid_body", format!("the body cannot be read: {e}")))
    }
}

/// Query parameters.
pub struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Query::try_from_uri(&parts.uri)
            .map(|Query(value)| Self(value))
            .map_err(|e| ApiError::new(parts.uri.path(), 400, "invalid_query", e.body_text()))
    }
}
