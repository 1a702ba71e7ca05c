//! The check of the admin token, before anything else.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::Response,
};
use subtle::ConstantTimeEq;

use super::error::ApiError;
use crate::{
    auth::credential::{KeyDigest, digest},
    base::Secret,
};

/// The digest of the configured token.
#[derive(Clone)]
pub struct AdminToken(Arc<KeyDigest>);

impl AdminToken {
    pub fn new(token: &Secret) -> Self {
        Self(Arc::new(digest(token.expose())))
    }

    /// Compares digests: the time it takes reveals neither content nor length of the token.
    fn matches(&self, given: &[u8]) -> bool {
        bool::from(self.0.ct_eq(&digest(given)))
    }
}

/// Passes a request on if it has the token.
///
/// # Errors
/// 401 without a token, 403 with a wrong one.
pub async fn check(
    State(expected): State<AdminToken>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let path = request.uri().path().to_owned();
    let Some(given) = token(request.headers()) else {
        return Err(ApiError::new(&path, 401, "missing_token", "X-Admin-Token is missing"));
    };
    if !expected.matches(given) {
        log::warn!(target: "audit", "wrong token from={}", from.ip());
        return Err(ApiError::new(&path, 403, "wrong_token", "the token is wrong"));
    }
    Ok(next.run(request).await)
}

/// `X-Admin-Token`, or a bearer token.
fn token(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(token) = headers.get("x-admin-token") {
        return Some(token.as_bytes());
    }
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}
