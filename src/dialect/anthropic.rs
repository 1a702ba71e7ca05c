//! Anthropic's language: its names for limits.

use http::{HeaderName, HeaderValue};
use jiff::{SignedDuration, Timestamp};

use crate::base::limits::{Standing, Standings};

/// How the limits of a request stand, in Anthropic's names; moments are RFC 3339.
pub fn limit_headers(all: &Standings, now: Timestamp) -> Vec<(HeaderName, HeaderValue)> {
    let names = |kind: &str| {
        ["limit", "remaining", "reset"].map(|what| format!("anthropic-ratelimit-{kind}-{what}"))
    };
    let mut headers = Vec::new();
    for (kind, standing) in [
        ("requests", all.requests),
        ("tokens", all.tokens),
        ("input-tokens", all.input_tokens),
        ("output-tokens", all.output_tokens),
    ] {
        let Some(Standing { limit, left, reset }) = standing else { continue };
        let full = SignedDuration::try_from(reset).unwrap_or_default();
        let full = now.checked_add(full).unwrap_or(now);
        let values = [limit.to_string(), left.to_string(), format!("{full:.0}")];
        for (name, value) in names(kind).into_iter().zip(values) {
            if let (Ok(name), Ok(value)) = (name.parse(), value.parse()) {
                headers.push((name, value));
            }
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn limits_have_anthropics_names() {
        let standing =
            |limit, left, secs| Some(Standing { limit, left, reset: Duration::from_secs(secs) });
        let all = Standings {
            requests: standing(60, 59, 1),
            output_tokens: standing(1000, 0, 60),
            ..Standings::default()
        };
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let headers = limit_headers(&all, now);
        let lines: Vec<_> =
            headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        assert_eq!(
            lines,
            [
                "anthropic-ratelimit-requests-limit: 60",
                "anthropic-ratelimit-requests-remaining: 59",
                "anthropic-ratelimit-requests-reset: 2026-01-01T00:00:01Z",
                "anthropic-ratelimit-output-tokens-limit: 1000",
                "anthropic-ratelimit-output-tokens-remaining: 0",
                "anthropic-ratelimit-output-tokens-reset: 2026-01-01T00:01:00Z",
            ]
        );
    }
}
