//! OpenAI's header fields for limits.

use std::time::Duration;

use http::HeaderName;

use crate::{
    base::{limits::Standings, render},
    dialect::LimitHeaders,
};

/// Limit, remaining and reset of requests under the names that gateways use.
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
pub fn write(all: &Standings, headers: &mut LimitHeaders) {
    if let Some(requests) = all.requests {
        headers.limit(COMMON, requests, |out| render::integer(out, seconds(requests.reset)));
        headers.limit(REQUESTS, requests, |out| write_span(out, requests.reset));
    }
    // OpenAI knows one limit of tokens.
    let both = [all.input_tokens, all.output_tokens].into_iter().flatten();
    let tightest = both.fold(all.tokens, |known, next| Some(next.tighter(known)));
    if let Some(tokens) = tightest {
        headers.limit(TOKENS, tokens, |out| write_span(out, tokens.reset));
    }
}

/// Whole seconds, rounded up.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_millis() > 0)
}

/// `120ms`, `3s`, `6m0s`, `1h0m0s`
fn write_span(out: &mut Vec<u8>, time: Duration) {
    let mut part = |number, unit: &str| {
        render::integer(out, number);
        out.extend_from_slice(unit.as_bytes());
    };
    let seconds = seconds(time);
    if time < Duration::from_secs(1) {
        return part(time.subsec_millis().into(), "ms");
    }
    if seconds >= 3600 {
        part(seconds / 3600, "h");
    }
    if seconds >= 60 {
        part(seconds / 60 % 60, "m");
    }
    part(seconds % 60, "s");
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
            let mut headers = LimitHeaders::default();
            write(all, &mut headers);
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
        for (millis, text) in [
            (0, "0ms"),
            (20, "20ms"),
            (999, "999ms"),
            (1000, "1s"),
            (1001, "2s"),
            (59_001, "1m0s"),
            (3_600_000, "1h0m0s"),
            (90_061_000, "25h1m1s"),
        ] {
            let mut span = Vec::new();
            write_span(&mut span, Duration::from_millis(millis));
            assert_eq!(String::from_utf8(span).unwrap(), text);
        }
        assert!(lines(&Standings::default()).is_empty());
    }
}
