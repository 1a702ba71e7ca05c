//! Header fields: which of them belong to one connection only.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_nominations() {
        let found: Vec<_> = nominated(b"close, X-Secret ,keep-alive,, foo").collect();
        assert_eq!(found, ["x-secret", "foo"]);
    }
}
