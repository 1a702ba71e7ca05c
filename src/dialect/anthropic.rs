//! Anthropic's language: its names for limits.

use jiff::{SignedDuration, Timestamp};

use super::Headers;
use crate::base::limits::Standings;

const REQUESTS: [&str; 3] = [
    "anthropic-ratelimit-requests-limit",
    "anthropic-ratelimit-requests-remaining",
    "anthropic-ratelimit-requests-reset",
];
const TOKENS: [&str; 3] = [
    "anthropic-ratelimit-tokens-limit",
    "anthropic-ratelimit-tokens-remaining",
    "anthropic-ratelimit-tokens-reset",
];
const INPUT: [&str; 3] = [
    "anthropic-ratelimit-input-tokens-limit",
    "anthropic-ratelimit-input-tokens-remaining",
    "anthropic-ratelimit-input-tokens-reset",
];
const OUTPUT: [&str; 3] = [
    "anthropic-ratelimit-output-tokens-limit",
    "anthropic-ratelimit-output-tokens-remaining",
    "anthropic-ratelimit-output-tokens-reset",
];

/// How the limits of a request stand, in Anthropic's names; moments are RFC 3339.
pub fn limit_headers(all: &Standings, now: Timestamp, headers: &mut Headers) {
    for (names, standing) in [
        (REQUESTS, all.requests),
        (TOKENS, all.tokens),
        (INPUT, all.input_tokens),
        (OUTPUT, all.output_tokens),
    ] {
        let Some(standing) = standing else { continue };
        let full = SignedDuration::try_from(standing.reset).unwrap_or_default();
        let full = now.checked_add(full).unwrap_or(now);
        headers.three(names, standing, format_args!("{full:.0}"));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::base::limits::Standing;

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
        let mut headers = Headers::default();
        limit_headers(&all, now, &mut headers);
        assert_eq!(
            headers.lines(),
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
