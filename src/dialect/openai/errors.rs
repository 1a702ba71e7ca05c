//! OpenAI's wording of errors.

use crate::base::RejectionKind;

/// The `type` of an error object.
pub fn error_type(kind: RejectionKind) -> &'static str {
    match kind {
        RejectionKind::InvalidRequest
        | RejectionKind::Authentication
        | RejectionKind::PermissionDenied
        | RejectionKind::NotFound
        | RejectionKind::TooLarge
        | RejectionKind::Timeout => "invalid_request_error",
        RejectionKind::QuotaExceeded => "insufficient_quota",
        RejectionKind::RequestLimit => "requests",
        RejectionKind::TokenLimit => "tokens",
        RejectionKind::ConcurrencyLimit => "concurrency",
        RejectionKind::Unavailable | RejectionKind::ServerError => "server_error",
    }
}
