//! The token, asked for before anything else.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::Response,
};
use subtle::ConstantTimeEq;

use super::answer::Refusal;
use crate::{
    auth::credential::{KeyDigest, digest},
    base::Secret,
};

/// The token that callers must show.
#[derive(Clone)]
pub struct Lock(Arc<KeyDigest>);

impl Lock {
    /// For this token.
    pub fn new(token: &Secret) -> Self {
        Self(Arc::new(digest(token.expose())))
    }

    /// Compares digests: neither content nor length of the token show in the time it takes.
    fn opens(&self, shown: &[u8]) -> bool {
        bool::from(self.0.ct_eq(&digest(shown)))
    }
}

/// Lets a request through that shows the token.
///
/// # Errors
/// 401 without a token, 403 with a wrong one.
pub async fn check(
    State(lock): State<Lock>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let path = request.uri().path().to_owned();
    let Some(shown) = token(request.headers()) else {
        return Err(Refusal::new(&path, 401, "missing_token", "X-Admin-Token is missing"));
    };
    if !lock.opens(shown) {
        log::warn!(target: "audit", "a wrong token from={}", from.ip());
        return Err(Refusal::new(&path, 403, "wrong_token", "the token is not the right one"));
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
