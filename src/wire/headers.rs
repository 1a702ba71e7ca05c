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

/// Fields that a client cannot take back from those who read its request. If `Connection` names one
/// of them, it is a mistake or an attack on what stands before or behind the gateway.
const NOT_NOMINATED: [&str; 13] = [
    "accept",
    "api-key",
    "authorization",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "host",
    "x-api-key",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-request-id",
];

/// How many names `Connection` fields may have together, less than Pingora takes.
const MOST_NOMINATED: usize = 8;

/// Whether `Connection` names only what may belong to a connection.
///
/// # Errors
/// What is wrong, as a part of a sentence.
pub fn check_nominated(headers: &HeaderMap) -> Result<(), String> {
    let mut count = 0;
    for value in headers.get_all(header::CONNECTION) {
        let names = value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii);
        for name in names.filter(|name| !name.is_empty()) {
            count += 1;
            if count > MOST_NOMINATED {
                return Err(format!("it has more than {MOST_NOMINATED} names"));
            }
            if !name.iter().all(|b| is_token(*b)) {
                return Err("it has what is no name".to_owned());
            }
            let protected = |other: &&&str| name.eq_ignore_ascii_case(other.as_bytes());
            if let Some(name) = NOT_NOMINATED.iter().find(protected) {
                return Err(format!("`{name}` does not belong to a connection"));
            }
        }
    }
    Ok(())
}

/// A character of a name (RFC 9110, section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
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
    fn connection_names_only_what_is_its_own() {
        let check = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::CONNECTION, value.parse().unwrap());
            }
            check_nominated(&headers)
        };
        for fine in [
            &[][..],
            &["close"],
            &["keep-alive", "X-Secret"],
            &["Upgrade, HTTP2-Settings"],
            &["TE,, Trailer , "],
        ] {
            assert_eq!(check(fine), Ok(()), "{fine:?}");
        }
        for wrong in [
            &["Host"][..],
            &["close, HOST"],
            &["close", "authorization"],
            &["Content-Length"],
            &["X-Forwarded-For"],
            &["\"Host\""],
            &[":authority"],
            &["a b"],
            &["a,b,c,d,e", "f,g,h,i"],
        ] {
            assert!(check(wrong).is_err(), "{wrong:?}");
        }
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
