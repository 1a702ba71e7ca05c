//! OpenAI's language: its paths, and its form of errors.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use serde_json::json;

use super::{Kind, Route};
use crate::base::{
    Rejection,
    limits::{Standing, Standings},
};

/// Its paths.
pub static ROUTES: [Route; 4] = [
    Route { path: "/v1/chat/completions", allow: "POST", kind: Kind::Inference { streams: true } },
    Route { path: "/v1/completions", allow: "POST", kind: Kind::Inference { streams: true } },
    Route { path: "/v1/embeddings", allow: "POST", kind: Kind::Inference { streams: false } },
    Route { path: "/v1/models", allow: "GET, HEAD", kind: Kind::Models },
];

/// The body of a refusal.
pub fn rejection(no: &Rejection) -> Vec<u8> {
    body(&no.message, no.kind, no.param, no.code.as_deref())
}

/// The body of an error that is nobody's refusal; as an event of a stream, the SDKs raise it.
pub fn failure(message: &str, code: &str) -> Vec<u8> {
    body(message, "server_error", None, Some(code))
}

/// Limit, rest and reset of requests under the names that gateways use.
const COMMON: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit"),
    HeaderName::from_static("x-ratelimit-remaining"),
    HeaderName::from_static("x-ratelimit-reset"),
];
const REQUESTS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const TOKENS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

/// How the limits of a request stand: under the names that gateways use, where the reset is in
/// seconds, and under OpenAI's.
pub fn limit_headers(all: &Standings) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = Vec::with_capacity(9);
    let mut add = |names: [HeaderName; 3], standing: Standing, reset: HeaderValue| {
        let values = [standing.limit.into(), standing.left.into(), reset];
        headers.extend(names.into_iter().zip(values));
    };
    if let Some(requests) = all.requests {
        let seconds = requests.reset.as_millis().div_ceil(1000) as u64;
        add(COMMON, requests, seconds.into());
        add(REQUESTS, requests, span(requests.reset));
    }
    // OpenAI knows one limit of tokens.
    let both = [all.input_tokens, all.output_tokens].into_iter().flatten();
    let tightest = both.fold(all.tokens, |known, next| Some(next.tighter(known)));
    if let Some(tokens) = tightest {
        add(TOKENS, tokens, span(tokens.reset));
    }
    headers
}

/// `120ms`, `3s`, `6m0s`, `1h0m0s`
fn span(reset: Duration) -> HeaderValue {
    let millis = reset.as_millis();
    let seconds = millis.div_ceil(1000);
    let text = match seconds {
        _ if millis < 1000 => format!("{millis}ms"),
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        _ => format!("{}h{}m{}s", seconds / 3600, seconds / 60 % 60, seconds % 60),
    };
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("0s"))
}

fn body(message: &str, kind: &str, param: Option<&str>, code: Option<&str>) -> Vec<u8> {
    json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
        .to_string()
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let lines: Vec<_> = limit_headers(&all)
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        assert_eq!(
            lines,
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
        assert_eq!(span(Duration::from_millis(20)), "20ms");
        assert_eq!(span(Duration::from_secs(3600)), "1h0m0s");
        assert_eq!(limit_headers(&Standings::default()), []);
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
