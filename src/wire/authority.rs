//! The host of an HTTP/1.1 request, in its `Host` field and in its target.

/// Whether a `Host` field is valid: a host name, an IPv4 address, or an IPv6 address in brackets, with or
/// without a port. Names may contain underscores, as container names do.
pub fn is_valid(host: &[u8]) -> bool {
    let (name, port) = match host.iter().rposition(|b| *b == b':') {
        // A colon inside brackets belongs to the address.
        Some(at) if !host.ends_with(b"]") => (&host[..at], &host[at + 1..]),
        _ => (host, &b""[..]),
    };
    is_name(name) && is_port(port)
}

fn is_name(name: &[u8]) -> bool {
    if let Some(address) = name.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]")) {
        let address = std::str::from_utf8(address).unwrap_or_default();
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let known = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
    !name.is_empty() && name.iter().all(known) && !name.windows(2).any(|pair| pair == b"..")
}

/// An empty port is allowed (RFC 3986, section 3.2.3).
fn is_port(port: &[u8]) -> bool {
    let digits = std::str::from_utf8(port).unwrap_or("-");
    digits.is_empty() || (port[0].is_ascii_digit() && digits.parse::<u16>().is_ok())
}

/// Splits an absolute target (`http://host/path?query`) into host, and path and query. `None` for any
/// other target.
pub fn split(target: &[u8]) -> Option<(&[u8], Vec<u8>)> {
    let colon = target.iter().take("https:".len()).position(|b| *b == b':')?;
    let (scheme, rest) = target.split_at(colon);
    if !scheme.eq_ignore_ascii_case(b"http") && !scheme.eq_ignore_ascii_case(b"https") {
        return None;
    }
    let rest = rest.strip_prefix(b"://")?;
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    let (host, path) = rest.split_at(end);
    let path = path.split(|b| *b == b'#').next().unwrap_or_default();
    let slash: &[u8] = if path.starts_with(b"/") { b"" } else { b"/" };
    Some((host, [slash, path].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for host in [
            "a",
            "example.com",
            "example.com.",
            "my_gateway",
            "xn--bcher-kva.example",
            "127.0.0.1",
            "a:80",
            "a:",
            "[::1]",
            "[2001:db8::1]:8000",
            "gateway:65535",
        ] {
            assert!(is_valid(host.as_bytes()), "{host}");
        }
        for host in [
            "", ":80", "a b", "a/b", "a:b", "a:80:80", "a:65536", "a:+80", "a@b", "a,b", "::1",
            "[::1", "[a]", "[::1]80", "[]", "a..b", "http://a", "a?b", "a#b", "a\\b", "bücher",
            "a\u{1}",
        ] {
            assert!(!is_valid(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn absolute_targets() {
        for (target, host, path) in [
            ("http://a/v1/models", "a", "/v1/models"),
            ("HTTPS://a:8000/v1?x=http://b/", "a:8000", "/v1?x=http://b/"),
            ("http://a", "a", "/"),
            ("http://a?x", "a", "/?x"),
            ("http://[::1]:80/p#f", "[::1]:80", "/p"),
            ("http:///p", "", "/p"),
        ] {
            let expected = (host.as_bytes(), path.as_bytes().to_vec());
            assert_eq!(split(target.as_bytes()), Some(expected), "{target}");
        }
        for target in ["/v1/models", "*", "ftp://a/b", "http:/a", "a:80", "/x?u=http://a/", "://a"]
        {
            assert_eq!(split(target.as_bytes()), None, "{target}");
        }
    }
}
