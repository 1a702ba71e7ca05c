//! Error responses of the admin API.

use axum::{
    http::{Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use crate::auth::keystore::KeyError;

/// The prefix of the endpoints of LLMProxy 0.5.
pub const LEGACY: &str = "/admin/keys/";

/// An error response, in the form of the API that was called.
pub struct ApiError {
    legacy: bool,
    status: u16,
    code: &'static str,
    message: String,
}

/// The body of an error response.
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

impl ApiError {
    /// The error of a request for `path`.
    pub fn new(path: &str, status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { legacy: path.starts_with(LEGACY), status, code, message: message.into() }
    }

    /// The error of a key operation of `/admin/v1`.
    pub fn key(error: KeyError) -> Self {
        let (status, code, message) = describe(error);
        Self { legacy: false, status, code, message }
    }
}

/// Status, code and message of the error of a key operation.
pub fn describe(error: KeyError) -> (u16, &'static str, String) {
    match error {
        KeyError::Unknown => (404, "unknown_key", "there is no such key".to_owned()),
        KeyError::Exists => (409, "key_exists", "the key exists already".to_owned()),
        KeyError::Invalid(why) => (400, "invalid_value", why),
        KeyError::Store(why) => {
            log::error!("admin: {why}");
            (500, "store_failed", "the keys cannot be read or written".to_owned())
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or_default();
        let body = match self.legacy {
            true => json!({"success": false, "message": self.message, "error": self.code}),
            false => json!({"error": {"code": self.code, "message": self.message}}),
        };
        (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
    }
}

/// The response for a path that does not exist.
pub async fn unknown_path(uri: Uri) -> ApiError {
    let message = "there is nothing at this path; `GET /admin/v1/` lists all endpoints";
    ApiError::new(uri.path(), 404, "unknown_path", message)
}

/// The response for a method that a path does not support.
pub async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("this path does not support {method}");
    ApiError::new(uri.path(), 405, "method_not_allowed", message)
}
