//! Where the requests of scripts may go.

use std::fmt;

use reqwest::Url;

/// Where requests may go: `https://host`, `http://host:8080`, or `https://*.example.com` for the hosts
/// with one more label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    text: String,
    scheme: String,
    host: String,
    port: u16,
    wildcard: bool,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Origin {
    /// `None` if the text is no origin: a scheme (`http` or `https`), a host, perhaps a port.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let (wildcard, rest) = match rest.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let url = Url::parse(&format!("{scheme}://{rest}")).ok()?;
        let host = url.host_str()?.to_owned();
        let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        let anonymous = url.username().is_empty() && url.password().is_none();
        let fits = matches!(url.scheme(), "http" | "https") && bare && anonymous;
        // `*.com` would be half the world, and an address has no labels.
        let fits = fits && !host.contains('*') && (!wildcard || is_domain(&host));
        let port = url.port_or_known_default()?;
        let scheme = url.scheme().to_owned();
        fits.then(|| Self { text: text.to_owned(), scheme, host, port, wildcard })
    }

    /// The origin as it is configured.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn is_tls(&self) -> bool {
        self.scheme == "https"
    }

    pub fn allows(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else { return false };
        let fits = match self.wildcard {
            true => host
                .split_once('.')
                .is_some_and(|(label, rest)| !label.is_empty() && rest == self.host),
            false => host == self.host,
        };
        fits && url.scheme() == self.scheme && url.port_or_known_default() == Some(self.port)
    }
}

fn is_domain(host: &str) -> bool {
    host.contains('.') && host.parse::<std::net::IpAddr>().is_err() && !host.starts_with('[')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_exact() {
        let allows = |origin: &str, url: &str| {
            Origin::parse(origin).unwrap().allows(&Url::parse(url).unwrap())
        };
        for (origin, url) in [
            ("https://a.example", "https://a.example/x?y"),
            ("https://a.example", "https://A.EXAMPLE:443/"),
            ("http://127.0.0.1:9000", "http://127.0.0.1:9000/"),
            ("http://127.0.0.1", "http://2130706433/"),
            ("https://*.example.com", "https://a.example.com/"),
        ] {
            assert!(allows(origin, url), "{origin} {url}");
        }
        for (origin, url) in [
            ("https://a.example", "http://a.example/"),
            ("https://a.example", "https://a.example:444/"),
            ("https://a.example", "https://a.example.evil/"),
            ("https://a.example", "https://b.a.example/"),
            ("https://a.example", "https://a.example@evil/"),
            ("https://a.example", "https://evil/#a.example"),
            ("https://*.example.com", "https://example.com/"),
            ("https://*.example.com", "https://a.b.example.com/"),
            ("https://*.example.com", "https://evilexample.com/"),
            ("http://127.0.0.1", "http://127.0.0.2/"),
        ] {
            assert!(!allows(origin, url), "{origin} {url}");
        }
        for wrong in [
            "a.example",
            "ftp://a.example",
            "https://",
            "https://a.example/path",
            "https://a.example?x",
            "https://u:p@a.example",
            "https://*.com",
            "https://*",
            "https://*.*.example.com",
            "https://a.*.example.com",
            "https://*.127.0.0.1",
        ] {
            assert_eq!(Origin::parse(wrong), None, "{wrong}");
        }
    }
}
