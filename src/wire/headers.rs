//! Header fields: which of them belong to one connection only, and what one asks for.

use std::time::Duration;

use http::{HeaderMap, header};
use jiff::{Timestamp, fmt::rfc2822};

/// Whether a gateway never passes a field on (RFC 9110, section 7.6.1, and the older
/// `Proxy-Connection` and `Keep-Alive`). The name is in lower case.
pub fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "proxy-connection"
            | "keep-alive"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "proxy-authenticate"
            | "proxy-authorization"
    )
}

/// The names listed in a `Connection` field: they too belong to this connection only.
pub fn nominated(connection: &[u8]) -> impl Iterator<Item = String> + '_ {
    connection
        .split(|b| *b == b',')
        .map(|name| String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase())
        .filter(|name| !name.is_empty() && name != "close" && name != "keep-alive")
}

/// The pause that `Retry-After` asks for, in seconds or by a date.
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::from_secs(at.as_second().saturating_sub(now.as_second()).max(0) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_nominations() {
        let found: Vec<_> = nominated(b"close, X-Secret ,keep-alive,, foo").collect();
        assert_eq!(found, ["x-secret", "foo"]);
    }

    #[test]
    fn retry_after_in_both_forms() {
        let mut headers = HeaderMap::new();
        let now: Timestamp = "1994-11-06T08:49:30Z".parse().unwrap();
        assert_eq!(retry_after(&headers, now), None);
        for (text, seconds) in
            [("7", 7), ("Sun, 06 Nov 1994 08:49:37 GMT", 7), ("Sun, 06 Nov 1994 08:49:07 GMT", 0)]
        {
            headers.insert(header::RETRY_AFTER, text.parse().unwrap());
            assert_eq!(retry_after(&headers, now), Some(Duration::from_secs(seconds)), "{text}");
        }
    }
}
