//! OpenAI's language: its paths, and its form of errors.

pub mod counts;
pub mod document;
pub mod errors;
pub mod model_name;
pub mod stream;

use std::{fmt, time::Duration};

use serde_json::json;

pub use self::{
    document::JsonTap,
    stream::{Blame, StreamMeter, Strip},
};
use super::{Headers, Kind, Route};
use crate::base::{Rejection, limits::Standings};

/// Its paths.
pub static ROUTES: [Route; 5] = [
    Route { path: "/v1/chat/completions", allow: "POST", kind: Kind::Inference { streams: true } },
    Route { path: "/v1/completions", allow: "POST", kind: Kind::Inference { streams: true } },
    Route { path: "/v1/embeddings", allow: "POST", kind: Kind::Inference { streams: false } },
    Route { path: "/v1/models", allow: "GET, HEAD", kind: Kind::Models },
    Route { path: "/v1/models/{model}", allow: "GET, HEAD", kind: Kind::Model },
];

/// The body of a refusal.
pub fn rejection(no: &Rejection) -> Vec<u8> {
    body(&no.message, errors::error_type(no.kind), no.param, no.code.as_deref())
}

/// The body of an error that is nobody's refusal; as an event of a stream, the SDKs raise it.
pub fn failure(message: &str, code: &str) -> Vec<u8> {
    body(message, "server_error", None, Some(code))
}

/// Limit, rest and reset of requests under the names that gateways use.
const COMMON: [&str; 3] = ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"];
const REQUESTS: [&str; 3] =
    ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"];
const TOKENS: [&str; 3] =
    ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"];

/// How the limits of a request stand: under the names that gateways use, where the reset is in
/// seconds, and under OpenAI's.
pub fn limit_headers(all: &Standings, headers: &mut Headers) {
    if let Some(requests) = all.requests {
        let seconds = requests.reset.as_millis().div_ceil(1000);
        headers.three(COMMON, requests, format_args!("{seconds}"));
        headers.three(REQUESTS, requests, format_args!("{}", Span(requests.reset)));
    }
    // OpenAI knows one limit of tokens.
    let both = [all.input_tokens, all.output_tokens].into_iter().flatten();
    let tightest = both.fold(all.tokens, |known, next| Some(next.tighter(known)));
    if let Some(tokens) = tightest {
        headers.three(TOKENS, tokens, format_args!("{}", Span(tokens.reset)));
    }
}

/// `120ms`, `3s`, `6m0s`, `1h0m0s`
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let seconds = millis.div_ceil(1000);
        match seconds {
            _ if millis < 1000 => write!(f, "{millis}ms"),
            0..60 => write!(f, "{seconds}s"),
            60..3600 => write!(f, "{}m{}s", seconds / 60, seconds % 60),
            _ => write!(f, "{}h{}m{}s", seconds / 3600, seconds / 60 % 60, seconds % 60),
        }
    }
}

fn body(message: &str, kind: &str, param: Option<&str>, code: Option<&str>) -> Vec<u8> {
    json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
        .to_string()
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::Standing;

    #[test]
    fn limits_have_openais_names() {
        let standing =
            |limit, left, ms| Some(Standing { limit, left, reset: Duration::from_millis(ms) });
        let all = Standings {
            requests: standing(60, 59, 1001),
            tokens: standing(1000, 900, 20),
            output_tokens: standing(100, 10, 361_000),
            ..Standings::default()
        };
        let lines = |all: &Standings| {
            let mut headers = Headers::default();
            limit_headers(all, &mut headers);
            headers.lines()
        };
        assert_eq!(
            lines(&all),
            [
                "x-ratelimit-limit: 60",
                "x-ratelimit-remaining: 59",
                "x-ratelimit-reset: 2",
                "x-ratelimit-limit-requests: 60",
                "x-ratelimit-remaining-requests: 59",
                "x-ratelimit-reset-requests: 2s",
                "x-ratelimit-limit-tokens: 100",
                "x-ratelimit-remaining-tokens: 10",
                "x-ratelimit-reset-tokens: 6m1s",
            ]
        );
        assert_eq!(Span(Duration::from_millis(20)).to_string(), "20ms");
        assert_eq!(Span(Duration::from_secs(3600)).to_string(), "1h0m0s");
        assert!(lines(&Standings::default()).is_empty());
    }

    #[test]
    fn errors_have_openais_form() {
        let body = rejection(&Rejection::unknown_model("x\"y"));
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(value["error"]["message"], "The model `x\"y` does not exist");
        assert_eq!(value["error"]["type"], "invalid_request_error");
        assert_eq!(value["error"]["param"], "model");
        assert_eq!(value["error"]["code"], "model_not_found");
    }
}
