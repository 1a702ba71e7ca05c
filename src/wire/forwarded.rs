//! The address of the client, with or without proxies before the gateway.

use std::net::IpAddr;

use http::HeaderMap;
use ipnet::IpNet;

use crate::base::ip::within;

/// The client's address. `peer` is the other end of the connection. `X-Forwarded-For` and `X-Real-IP` are used
/// only if `peer` is a trusted proxy. `X-Forwarded-For` is read from its end: the last address that is not a
/// trusted proxy is the one that a trusted proxy has seen.
pub fn client(headers: &HeaderMap, peer: IpAddr, trusted: &[IpNet]) -> IpAddr {
    let peer = peer.to_canonical();
    if trusted.is_empty() || !within(trusted, peer) {
        return peer;
    }
    let mut seen = peer;
    let mut listed = false;
    for field in headers.get_all("x-forwarded-for").into_iter().rev() {
        for text in field.to_str().unwrap_or_default().rsplit(',') {
            listed = true;
            // What precedes an unreadable entry does not come from a trusted proxy.
            let Some(address) = address(text) else {
                return seen;
            };
            seen = address;
            if !within(trusted, address) {
                return address;
            }
        }
    }
    let real = headers.get("x-real-ip").and_then(|v| address(v.to_str().ok()?));
    if listed { seen } else { real.unwrap_or(seen) }
}

/// An address, with or without a port.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.parse::<IpAddr>().ok();
    let with_port = || text.parse::<std::net::SocketAddr>().ok().map(|a| a.ip());
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    bare.or_else(with_port).or_else(in_brackets).map(|ip: IpAddr| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ip;

    #[test]
    fn only_trusted_proxies_are_believed() {
        let trusted: Vec<_> =
            ["10.0.0.0/8", "2001:db8::/32"].iter().map(|t| ip::parse(t).unwrap()).collect();
        for (peer, fields, expected) in [
            ("192.0.2.1", &[("x-forwarded-for", "198.51.100.1")][..], "192.0.2.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &[("x-forwarded-for", "198.51.100.1")], "198.51.100.1"),
            ("::ffff:10.0.0.1", &[("x-forwarded-for", "198.51.100.1")], "198.51.100.1"),
            // The client's own claim stands first and is not believed.
            ("10.0.0.1", &[("x-forwarded-for", "1.1.1.1, 198.51.100.1, 10.0.0.2")], "198.51.100.1"),
            (
                "10.0.0.1",
                &[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "198.51.100.1")],
                "198.51.100.1",
            ),
            ("10.0.0.1", &[("x-forwarded-for", "10.0.0.3, 10.0.0.2")], "10.0.0.3"),
            ("10.0.0.1", &[("x-forwarded-for", "1.1.1.1, unknown, 10.0.0.2")], "10.0.0.2"),
            ("10.0.0.1", &[("x-forwarded-for", "[2001:db9::1]:443")], "2001:db9::1"),
            ("10.0.0.1", &[("x-forwarded-for", "198.51.100.1:1234")], "198.51.100.1"),
            ("10.0.0.1", &[("x-real-ip", "198.51.100.1")], "198.51.100.1"),
            ("10.0.0.1", &[("x-real-ip", "nobody")], "10.0.0.1"),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, value.parse().unwrap());
            }
            let found = client(&headers, peer.parse().unwrap(), &trusted);
            assert_eq!(found.to_string(), expected, "{peer} {fields:?}");
        }
    }
}
