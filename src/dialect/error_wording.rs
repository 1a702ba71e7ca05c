//! The bodies of errors: in the client's language, or in the flat form that LLMProxy 0.3 had,
//! `{"error": "...", "code": 403}`, where the configuration says so.

use bytes::Bytes;
use serde_json::json;

use super::language::Dialect;
use crate::base::Rejection;

/// How error bodies are worded.
#[derive(Clone, Copy)]
pub struct ErrorWording {
    language: &'static dyn Dialect,
    flat: bool,
}

impl ErrorWording {
    /// In this language, or in the flat form.
    pub fn new(language: &'static dyn Dialect, flat: bool) -> Self {
        Self { language, flat }
    }

    /// The body of a rejection.
    pub fn rejection(&self, rejection: &Rejection) -> Bytes {
        if self.flat {
            return flat(rejection.status, &rejection.message);
        }
        self.language.rejection(rejection)
    }

    /// The body of an answer to a failure.
    pub fn failure(&self, status: u16, message: &str, code: &str) -> Bytes {
        if self.flat {
            return flat(status, message);
        }
        self.language.failure(message, code)
    }

    /// A backend's error response as an event of a stream: its own words, if they are such that
    /// readers of streams take them for an error.
    pub fn error_event(&self, status: u16, body: &[u8]) -> Bytes {
        self.language.error_event(body).unwrap_or_else(|| {
            let message = format!("The backend answered with status {status}");
            self.language.event(&self.failure(status, &message, "backend_failed"))
        })
    }
}

/// `code` is the HTTP status.
fn flat(status: u16, message: &str) -> Bytes {
    json!({"error": message, "code": status}).to_string().into()
}
