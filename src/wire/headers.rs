//! Header fields: hop-by-hop fields, credentials, `Connection`, `Content-Encoding` and `Retry-After`.

use std::{borrow::Cow, time::Duration};

use http::{HeaderMap, header};
use jiff::{Timestamp, civil::DateTime, fmt::rfc2822, tz::TimeZone};

/// Whether a field is never forwarded (RFC 9110, section 7.6.1, and the older
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

/// Whether clients, or proxies in front of the gateway, authenticate with this field: backends must not get
/// it. The name is in lower case, and [`folded`].
pub fn is_credential(name: &str) -> bool {
    matches!(
        name,
        "authorization"
            | "cookie"
            | "x-api-key"
            | "api-key"
            | "apikey"
            | "x-goog-api-key"
            | "x-admin-token"
            | "x-auth-token"
            | "x-access-token"
            | "x-id-token"
            | "x-forwarded-access-token"
            | "x-forwarded-authorization"
            | "x-forwarded-id-token"
            | "x-original-authorization"
            | "x-auth-request-access-token"
            | "x-amz-security-token"
            | "x-serverless-authorization"
            | "cookie2"
            | "x-amzn-oidc-accesstoken"
            | "x-amzn-oidc-data"
            | "x-goog-iap-jwt-assertion"
            | "cf-access-jwt-assertion"
            | "cf-access-client-secret"
            | "ocp-apim-subscription-key"
            | "x-vault-token"
            | "x-csrf-token"
            | "x-xsrf-token"
            | "proxy-authorization"
    ) || ["x-ms-token-", "x-ms-client-principal"].iter().any(|start| name.starts_with(start))
}

/// The name with `-` for `_`: WSGI and CGI map both to the same variable.
pub fn folded(name: &str) -> Cow<'_, str> {
    match name.contains('_') {
        true => name.replace('_', "-").into(),
        false => name.into(),
    }
}

/// Whether a server that folds `_` and `-` treats two names as one field. Both are in lower case.
pub fn same_field(one: &str, other: &str) -> bool {
    let fold = |byte: u8| if byte == b'_' { b'-' } else { byte };
    one.len() == other.len() && one.bytes().zip(other.bytes()).all(|(a, b)| fold(a) == fold(b))
}

/// The fields that a `Connection` field lists as hop-by-hop.
pub fn nominated(connection: &[u8]) -> impl Iterator<Item = String> + '_ {
    connection
        .split(|b| *b == b',')
        .map(|name| String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase())
        .filter(|name| !name.is_empty() && name != "close" && name != "keep-alive")
}

/// The first coding in `Content-Encoding` other than `identity`.
pub fn content_coding(headers: &HeaderMap) -> Option<&str> {
    let values = headers.get_all(header::CONTENT_ENCODING).iter();
    let codings = values.flat_map(|value| value.to_str().unwrap_or("unreadable").split(','));
    codings.map(str::trim).find(|c| !c.is_empty() && !c.eq_ignore_ascii_case("identity"))
}

/// Whether a request asks to change to WebSocket (RFC 6455, section 4.1).
pub fn wants_websocket(headers: &HeaderMap) -> bool {
    let mut values = headers
        .get_all(header::UPGRADE)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii));
    values.any(|protocol| protocol.eq_ignore_ascii_case(b"websocket"))
}

/// The longest accepted pause: the header may contain any number.
const LONGEST_PAUSE: f64 = 365.0 * 24.0 * 3600.0;

/// Fields that `Connection` must not list. If it does, it is a mistake or an attack on a proxy before the
/// gateway or a server behind it.
const NOT_NOMINATED: [&str; 14] = [
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
    "x-goog-api-key",
    "x-request-id",
];

/// The most names in all `Connection` fields; fewer than Pingora accepts.
const MOST_NOMINATED: usize = 8;

/// Checks that `Connection` lists only fields that may be hop-by-hop.
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
                return Err("it contains an invalid name".to_owned());
            }
            let protected = |other: &&&str| name.eq_ignore_ascii_case(other.as_bytes());
            if let Some(name) = NOT_NOMINATED.iter().find(protected) {
                return Err(format!("`{name}` is not a hop-by-hop field"));
            }
        }
    }
    Ok(())
}

/// Whether a byte may be part of a name (RFC 9110, section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The pause in `Retry-After`: seconds, with or without decimals, or a date in any of the three formats of
/// HTTP (RFC 9110, section 5.6.7).
pub fn retry_after(headers: &HeaderMap, now: impl FnOnce() -> Timestamp) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if text.bytes().all(|b| b.is_ascii_digit() || b == b'.')
        && let Ok(seconds) = text.parse::<f64>()
    {
        return Duration::try_from_secs_f64(seconds.min(LONGEST_PAUSE)).ok();
    }
    let now = now();
    let at = date(text, now)?;
    Some(Duration::from_secs(at.as_second().saturating_sub(now.as_second()).max(0) as u64))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, `Sunday, 06-Nov-94 08:49:37 GMT` or `Sun Nov  6 08:49:37 1994`.
fn date(text: &str, now: Timestamp) -> Option<Timestamp> {
    if let Ok(at) = rfc2822::parse(text) {
        return Some(at.timestamp());
    }
    let civil = match text.split_once(", ") {
        Some((_, rest)) => {
            let at = DateTime::strptime("%d-%b-%y %H:%M:%S", rest.strip_suffix(" GMT")?).ok()?;
            // A year of two digits that is more than 50 years ahead is in the past.
            let latest = now.to_zoned(TimeZone::UTC).year().saturating_add(50);
            let century = |years: i16| at.with().year(at.year() % 100 + years).build().ok();
            let this = latest - latest % 100;
            [this, this - 100].into_iter().filter_map(century).find(|at| at.year() <= latest)?
        }
        None => {
            let words: Vec<&str> = text.split_ascii_whitespace().skip(1).collect();
            DateTime::strptime("%b %d %H:%M:%S %Y", words.join(" ")).ok()?
        }
    };
    civil.to_zoned(TimeZone::UTC).ok().map(|at| at.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn websockets_are_asked_for_by_name() {
        for (value, asked) in
            [("websocket", true), ("h2c, WebSocket", true), ("websockets", false), ("", false)]
        {
            let mut headers = HeaderMap::new();
            headers.insert(header::UPGRADE, value.parse().unwrap());
            assert_eq!(wants_websocket(&headers), asked, "{value}");
        }
        assert!(!wants_websocket(&HeaderMap::new()));
    }

    #[test]
    fn what_clients_show_of_themselves_is_a_credential() {
        for name in [
            "authorization",
            "x-api-key",
            "api-key",
            "x-goog-api-key",
            "x_goog_api_key",
            "cookie",
            "cookie2",
            "x-serverless-authorization",
            "x-forwarded-access-token",
            "x-forwarded-id-token",
        ] {
            assert!(is_credential(&folded(name)), "{name}");
        }
        for name in ["anthropic-version", "anthropic-beta", "openai-beta", "session-id", "x-app"] {
            assert!(!is_credential(name), "{name}");
        }
    }

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
        assert_eq!(retry_after(&headers, || now), None);
        for (text, millis) in [
            ("7", 7000),
            ("0", 0),
            ("007", 7000),
            ("1.5", 1500),
            ("0.25", 250),
            (".5", 500),
            ("99999999999999999999999", 365 * 24 * 3_600_000),
            ("Sun, 06 Nov 1994 08:49:37 GMT", 7000),
            ("Sun, 06 Nov 1994 08:49:07 GMT", 0),
            ("Sunday, 06-Nov-94 08:49:37 GMT", 7000),
            ("Tuesday, 06-Nov-29 08:49:37 GMT", 1_104_537_607_000),
            ("Sun Nov  6 08:49:37 1994", 7000),
            ("Wed Nov 16 08:49:30 1994", 10 * 24 * 3_600_000),
        ] {
            headers.insert(header::RETRY_AFTER, text.parse().unwrap());
            let expected = Some(Duration::from_millis(millis));
            assert_eq!(retry_after(&headers, || now), expected, "{text}");
        }
        for text in
            ["", "-1", "soon", "1e3", "inf", "NaN", "1.2.3", "06-Nov-94", "Sunday, 06-Nov-94"]
        {
            headers.insert(header::RETRY_AFTER, text.parse().unwrap());
            assert_eq!(retry_after(&headers, || now), None, "{text}");
        }
    }

    #[test]
    fn two_digits_of_a_year_are_never_far_ahead() {
        let now: Timestamp = "2026-11-30T00:00:00Z".parse().unwrap();
        for (text, year) in [("26", 2026), ("76", 2076), ("77", 1977), ("94", 1994), ("00", 2000)] {
            let at = date(&format!("Sunday, 06-Nov-{text} 08:49:37 GMT"), now).unwrap();
            assert_eq!(at.to_zoned(TimeZone::UTC).year(), year, "{text}");
        }
    }

    #[test]
    fn a_coding_that_changes_nothing_is_none() {
        for (values, coding) in [
            (&["gzip"][..], Some("gzip")),
            (&["identity, zstd"], Some("zstd")),
            (&["identity", " br "], Some("br")),
            (&["Identity"], None),
            (&[""], None),
            (&[" , "], None),
            (&[], None),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::CONTENT_ENCODING, value.parse().unwrap());
            }
            assert_eq!(content_coding(&headers), coding, "{values:?}");
        }
    }

    #[test]
    fn both_spellings_of_a_field_are_one() {
        assert!(same_field("x-vllm-priority", "x_vllm-priority"));
        assert!(!same_field("x-vllm-priority", "x-vllm-priorit"));
        assert_eq!(folded("x_vllm_priority"), "x-vllm-priority");
        assert!(is_credential(&folded("x_goog_api_key")));
    }

    #[test]
    fn what_proxies_in_front_tell_of_the_caller_is_a_credential() {
        for name in [
            "x-ms-token-aad-access-token",
            "x-ms-token-aad-id-token",
            "x-ms-token-aad-refresh-token",
            "x-ms-token-google-access-token",
            "x-ms-client-principal",
            "x-ms-client-principal-id",
            "x_ms_client_principal_name",
            "x-forwarded-authorization",
            "x-original-authorization",
            "x-original_authorization",
        ] {
            assert!(is_credential(&folded(name)), "{name}");
        }
        for name in ["x-ms-request-id", "x-ms-tokens", "x-forwarded-for", "x-original-url"] {
            assert!(!is_credential(name), "{name}");
        }
    }
}
