//! OpenAI's header fields for limits.

use std::{fmt, time::Duration};

use crate::{base::limits::Standings, dialect::LimitHeaders};

/// Limit, rest and reset of requests under the names that gateways use.
const COMMON: [&str; 3] = ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"];
const REQUESTS: [&str; 3] =
    ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"];
const TOKENS: [&str; 3] =
    ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"];

/// How the limits of a request stand: under the names that gateways use, where the reset is in
/// seconds, and under OpenAI's.
pub fn write(all: &Standings, headers: &mut LimitHeaders) {
    if let Some(requests) = all.requests {
        let seconds = requests.reset.as_millis().div_ceil(1000);
        headers.limit(COMMON, requests, format_args!("{seconds}"));
        headers.limit(REQUESTS, requests, format_args!("{}", Span(requests.reset)));
    }
    // OpenAI knows one limit of tokens.
    let both = [all.input_tokens, all.output_tokens].into_iter().flatten();
    let tightest = both.fold(all.tokens, |known, next| Some(next.tighter(known)));
    if let Some(tokens) = tightest {
        headers.limit(TOKENS, tokens, format_args!("{}", Span(tokens.reset)));
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
        assert_eq!(Span(Duration::from_millis(20)).to_string(), "20ms");
        assert_eq!(Span(Duration::from_secs(3600)).to_string(), "1h0m0s");
        assert!(lines(&Standings::default()).is_empty());
    }
}
