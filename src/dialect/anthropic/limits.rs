//! Anthropic's header fields for limits.

use std::io::Write;

use http::HeaderName;
use jiff::{SignedDuration, Timestamp};

use crate::{base::limits::Standings, dialect::LimitHeaders};

const REQUESTS: [HeaderName; 3] = [
    HeaderName::from_static("anthropic-ratelimit-requests-limit"),
    HeaderName::from_static("anthropic-ratelimit-requests-remaining"),
    HeaderName::from_static("anthropic-ratelimit-requests-reset"),
];
const TOKENS: [HeaderName; 3] = [
    HeaderName::from_static("anthropic-ratelimit-tokens-limit"),
    HeaderName::from_static("anthropic-ratelimit-tokens-remaining"),
    HeaderName::from_static("anthropic-ratelimit-tokens-reset"),
];
const INPUT: [HeaderName; 3] = [
    HeaderName::from_static("anthropic-ratelimit-input-tokens-limit"),
    HeaderName::from_static("anthropic-ratelimit-input-tokens-remaining"),
    HeaderName::from_static("anthropic-ratelimit-input-tokens-reset"),
];
const OUTPUT: [HeaderName; 3] = [
    HeaderName::from_static("anthropic-ratelimit-output-tokens-limit"),
    HeaderName::from_static("anthropic-ratelimit-output-tokens-remaining"),
    HeaderName::from_static("anthropic-ratelimit-output-tokens-reset"),
];

/// How the limits of a request stand; a reset is a moment by RFC 3339, in whole seconds, rounded up.
pub fn write(all: &Standings, now: Timestamp, headers: &mut LimitHeaders) {
    for (names, standing) in [
        (REQUESTS, all.requests),
        (TOKENS, all.tokens),
        (INPUT, all.input_tokens),
        (OUTPUT, all.output_tokens),
    ] {
        let Some(standing) = standing else { continue };
        let full = SignedDuration::try_from(standing.reset).unwrap_or_default();
        let full = now.checked_add(full).unwrap_or(now);
        let seconds = full.as_second() + i64::from(full.subsec_nanosecond() > 0);
        let full = Timestamp::from_second(seconds).unwrap_or(full);
        headers.limit(names, standing, |out| _ = write!(out, "{full:.0}"));
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
            |limit, left, ms| Some(Standing { limit, left, reset: Duration::from_millis(ms) });
        let all = Standings {
            requests: standing(60, 59, 900),
            tokens: standing(5, 4, 0),
            input_tokens: standing(3, 2, 59_999),
            output_tokens: standing(1000, 0, 60_000),
        };
        let now = "2026-01-01T00:00:00.05Z".parse().unwrap();
        let lines = |all: &Standings| {
            let mut headers = LimitHeaders::default();
            write(all, now, &mut headers);
            headers.lines()
        };
        assert_eq!(
            lines(&all),
            [
                "anthropic-ratelimit-requests-limit: 60",
                "anthropic-ratelimit-requests-remaining: 59",
                "anthropic-ratelimit-requests-reset: 2026-01-01T00:00:01Z",
                "anthropic-ratelimit-tokens-limit: 5",
                "anthropic-ratelimit-tokens-remaining: 4",
                "anthropic-ratelimit-tokens-reset: 2026-01-01T00:00:01Z",
                "anthropic-ratelimit-input-tokens-limit: 3",
                "anthropic-ratelimit-input-tokens-remaining: 2",
                "anthropic-ratelimit-input-tokens-reset: 2026-01-01T00:01:01Z",
                "anthropic-ratelimit-output-tokens-limit: 1000",
                "anthropic-ratelimit-output-tokens-remaining: 0",
                "anthropic-ratelimit-output-tokens-reset: 2026-01-01T00:01:01Z",
            ]
        );
        assert!(lines(&Standings::default()).is_empty());
    }
}
