//! How the admin API answers, and how it reads.

use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
    http::{self, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use utoipa::ToSchema;

use crate::auth::keystore::KeyError;

/// Where the endpoints of LLMProxy 0.5 stand.
pub const LEGACY: &str = "/admin/keys/";

/// A refusal, in the form of the API that was asked.
pub struct Refusal {
    legacy: bool,
    status: u16,
    code: &'static str,
    message: String,
}

/// The body of a refusal.
#[derive(Serialize, ToSchema)]
pub struct ErrorBody {
    /// What is wrong.
    pub error: ErrorText,
}

/// What is wrong.
#[derive(Serialize, ToSchema)]
pub struct ErrorText {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
}

impl Refusal {
    /// A refusal of a request for `path`.
    pub fn new(path: &str, status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { legacy: path.starts_with(LEGACY), status, code, message: message.into() }
    }

    /// Of what came of a change, for `/admin/v1`.
    pub fn of(error: KeyError) -> Self {
        let (status, code, message) = describe(error);
        Self { legacy: false, status, code, message }
    }
}

/// Status, code and sentence of an error.
pub fn describe(error: KeyError) -> (u16, &'static str, String) {
    match error {
        KeyError::Unknown => (404, "unknown_key", "there is no such key".to_owned()),
        KeyError::Exists => (409, "key_exists", "the key is there already".to_owned()),
        KeyError::Invalid(why) => (400, "invalid_value", why),
        KeyError::Store(why) => {
            log::error!("admin: {why}");
            (500, "store_failed", "the keys cannot be read or written".to_owned())
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or_default();
        let body = match self.legacy {
            true => json!({"success": false, "message": self.message, "error": self.code}),
            false => json!({"error": {"code": self.code, "message": self.message}}),
        };
        (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
    }
}

/// Answers for a path that is not there.
pub async fn unknown_path(uri: Uri) -> Refusal {
    Refusal::new(uri.path(), 404, "unknown_path", "there is nothing at this path")
}

/// Answers for a method that a path does not take.
pub async fn wrong_method(method: Method, uri: Uri) -> Refusal {
    let message = format!("{method} is not possible here");
    Refusal::new(uri.path(), 405, "method_not_allowed", message)
}

/// A JSON body.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let path = request.uri().path().to_owned();
        let refuse = |status, code, why: String| Refusal::new(&path, status, code, why);
        let bytes = match Bytes::from_request(request, state).await {
            Ok(bytes) => bytes,
            Err(e) if e.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                let why = format!("the body is larger than {} bytes", super::LARGEST);
                return Err(refuse(413, "body_too_large", why));
            }
            Err(e) => return Err(refuse(400, "invalid_body", e.body_text())),
        };
        // An empty body says as much as an empty object.
        let text = if bytes.is_empty() { b"{}" } else { bytes.as_ref() };
        serde_json::from_slice(text)
            .map(Self)
            .map_err(|e| refuse(400, "invalid_body", format!("the body cannot be read: {e}")))
    }
}

/// Query parameters.
pub struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> axum::extract::FromRequestParts<S> for Params<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut http::request::Parts, _: &S) -> Result<Self, Refusal> {
        axum::extract::Query::try_from_uri(&parts.uri)
            .map(|axum::extract::Query(value)| Self(value))
            .map_err(|e| Refusal::new(parts.uri.path(), 400, "invalid_query", e.body_text()))
    }
}

/// Writes a line about a change that an operator made.
pub fn audit(from: std::net::SocketAddr, what: &str, subject: &str) {
    log::info!(target: "audit", "{what} {subject:?} from={}", from.ip());
}
