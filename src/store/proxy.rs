//! HTTP proxies for outgoing connections: those that the environment names, and CONNECT tunnels.

use std::{fmt, net::IpAddr};

use super::dial::FirstReachable;
use async_trait::async_trait;
use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use pingora::{
    Error, ErrorType, OrErr, Result,
    connectors::L4Connect,
    protocols::l4::{socket::SocketAddr, stream::Stream},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The most bytes of the response to `CONNECT`.
const LONGEST_ANSWER: usize = 16 * 1024;

/// The proxies that the environment names: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`,
/// in upper or lower case. They may contain passwords.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Proxies {
    /// For https: the name of the variable and its value.
    https: Option<(String, String)>,
    /// For http: the same.
    http: Option<(String, String)>,
    /// `NO_PROXY`: hosts, with a port if the entry names one.
    no: Vec<(String, Option<u16>)>,
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[proxies]")
    }
}

impl Proxies {
    /// Reads the variables.
    pub fn from_env(env: &dyn Fn(&str) -> Option<String>) -> Self {
        let first = |names: &[&str]| {
            names.iter().find_map(|name| {
                let value = env(name)?.trim().to_owned();
                (!value.is_empty()).then(|| ((*name).to_owned(), value))
            })
        };
        Self {
            https: first(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]),
            http: first(&["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]),
            no: first(&["NO_PROXY", "no_proxy"])
                .map(|(_, list)| excepted(&list))
                .unwrap_or_default(),
        }
    }

    /// The variable that applies to an address, and its value. This machine needs no proxy.
    fn for_uri(&self, uri: &Uri) -> Option<&(String, String)> {
        let host = uri.host()?;
        let usual = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let port = uri.port_u16().unwrap_or(usual);
        let here = self.no.iter().filter(|(_, only)| only.is_none_or(|only| only == port));
        let no: Vec<_> = here.map(|(host, _)| host.as_str()).collect();
        if no.contains(&"*") {
            return None;
        }
        // Only shows whether the address is excluded.
        let rule = Matcher::builder().all("http://proxy").no(no.join(",")).build();
        if is_loopback(host) || rule.intercept(uri).is_none() {
            return None;
        }
        match uri.scheme_str() {
            Some("https") => self.https.as_ref(),
            Some("http") => self.http.as_ref(),
            _ => None,
        }
    }

    /// The proxy for an https address.
    ///
    /// # Errors
    /// If the value of the variable cannot be used. The value itself is left out.
    pub fn for_https(&self, uri: &Uri) -> Result<Option<Proxy>, String> {
        match self.for_uri(uri) {
            Some((name, value)) => {
                Proxy::parse(value).map(Some).map_err(|why| format!("`{name}` {why}"))
            }
            None => Ok(None),
        }
    }

    /// The same for a `reqwest` client, which supports more kinds of proxies.
    pub fn for_url(&self, url: &reqwest::Url) -> Option<reqwest::Url> {
        let (_, value) = self.for_uri(&url.as_str().parse().ok()?)?;
        let full = if value.contains("://") { value.clone() } else { format!("http://{value}") };
        full.parse().ok()
    }
}

/// The entries of `NO_PROXY`, as hosts in the form of the matcher and ports. Accepts the forms in use:
/// `host:8443`, `[::1]:8443`, `*.example.com`, `*`.
fn excepted(list: &str) -> Vec<(String, Option<u16>)> {
    let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let split = |entry: &str| {
        let (host, port) = match entry.rsplit_once(':') {
            // Several colons without brackets: an IPv6 address.
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                match port.parse() {
                    Ok(port) => (host, Some(port)),
                    Err(_) => (entry, None),
                }
            }
            _ => (entry, None),
        };
        let host = match host.strip_prefix('*') {
            Some(rest) if rest.starts_with('.') => rest,
            _ => host.trim_matches(['[', ']']),
        };
        (host.to_owned(), port)
    };
    entries.map(split).collect()
}

/// Whether a host is a loopback name or address.
fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']).trim_end_matches('.');
    match host.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback(),
        Err(_) => {
            let host = host.to_ascii_lowercase();
            host == "localhost" || host.ends_with(".localhost")
        }
    }
}

/// An HTTP proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Host name or address.
    pub host: String,
    pub port: u16,
    /// `Proxy-Authorization`, marked as sensitive.
    pub authorization: Option<HeaderValue>,
}

impl Proxy {
    /// The URL, without user and password.
    pub fn url(&self) -> String {
        match self.host.contains(':') {
            true => format!("http://[{}]:{}", self.host, self.port),
            false => format!("http://{}:{}", self.host, self.port),
        }
    }

    /// Reads `http://user:password@host:port`.
    ///
    /// # Errors
    /// What is wrong with it, without its text.
    pub fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str = "is not the URL of a proxy such as `http://host:3128`";
        let target = Uri::from_static("http://target");
        let found = Matcher::builder().all(text).build().intercept(&target);
        let found = found.ok_or_else(|| FORM.to_owned())?;
        let uri = found.uri();
        if uri.scheme_str() != Some("http") {
            let scheme = uri.scheme_str().unwrap_or_default();
            return Err(format!("names a proxy of `{scheme}`, but only `http` is possible"));
        }
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let authority = uri.authority().map_or("", |a| a.as_str());
        let named = authority.rsplit(']').next().is_some_and(|tail| tail.contains(':'));
        let port = uri.port_u16().unwrap_or(if named { 0 } else { 80 });
        if host.is_empty() || port == 0 {
            return Err(FORM.to_owned());
        }
        Ok(Self { host, port, authorization: found.basic_auth().cloned() })
    }
}

/// Connects through a proxy with `CONNECT`. Pingora passes it the address of the proxy.
#[derive(Debug)]
pub struct Tunnel {
    pub proxy: FirstReachable,
    /// The target, `host:port`.
    pub target: String,
    pub authorization: Option<HeaderValue>,
}

#[async_trait]
impl L4Connect for Tunnel {
    async fn connect(&self, proxy: &SocketAddr) -> Result<Stream> {
        let mut stream = self.proxy.dial(proxy).await?;
        let response = self.ask(&mut stream).await;
        let status =
            response.or_err(ErrorType::ConnectProxyFailure, "the proxy did not answer CONNECT")?;
        if !(200..300).contains(&status) {
            let why = format!("the proxy answered {status} to CONNECT {}", self.target);
            return Error::e_explain(ErrorType::ConnectProxyFailure, why);
        }
        Ok(stream.into())
    }
}

impl Tunnel {
    /// Sends CONNECT and returns the status of the response.
    async fn ask(&self, stream: &mut TcpStream) -> std::io::Result<u16> {
        let mut head = format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n", self.target).into_bytes();
        if let Some(key) = &self.authorization {
            head.extend_from_slice(b"Proxy-Authorization: ");
            head.extend_from_slice(key.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        stream.write_all(&head).await?;
        let broken = |why: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, why);
        let mut response = Vec::with_capacity(256);
        // Byte by byte: what follows the head belongs to the tunnel.
        while !response.ends_with(b"\r\n\r\n") {
            if response.len() >= LONGEST_ANSWER {
                return Err(broken("its response is too long"));
            }
            response.push(stream.read_u8().await?);
        }
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Response::new(&mut fields);
        head.parse(&response).map_err(|_| broken("its response is not HTTP"))?;
        head.code.ok_or_else(|| broken("its response has no status"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        Proxies::from_env(&|name| {
            let found = variables.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn variables_apply_as_everywhere_and_never_to_this_machine() {
        let all = proxies(&[
            ("HTTPS_PROXY", "http://secure:3128"),
            ("http_proxy", "plain:8080"),
            ("NO_PROXY", "intern.example.com,10.0.0.0/8, .svc"),
        ]);
        let host = |uri: &str| {
            let proxy = all.for_https(&uri.parse().unwrap()).unwrap();
            proxy.map(|p| format!("{}:{}", p.host, p.port))
        };
        for (uri, expected) in [
            ("https://api.example.com/v1", Some("secure:3128")),
            ("https://intern.example.com", None),
            ("https://a.intern.example.com", None),
            ("https://10.1.2.3", None),
            ("https://vllm.ns.svc", None),
            ("https://localhost:1", None),
            ("https://a.localhost", None),
            ("https://127.0.0.9", None),
            ("https://[::1]:1", None),
            ("http://api.example.com", Some("plain:8080")),
        ] {
            assert_eq!(host(uri).as_deref(), expected, "{uri}");
        }
        let url = |text: &str| all.for_url(&text.parse().unwrap()).map(|u| u.to_string());
        assert_eq!(url("http://hook.example.com/x").as_deref(), Some("http://plain:8080/"));
        assert_eq!(url("http://127.0.0.1:9/x"), None);
        assert_eq!(proxies(&[("ALL_PROXY", "")]), Proxies::default());
    }

    #[test]
    fn exceptions_hold_in_every_form_in_use() {
        let direct = |no: &str, uri: &str| {
            let all = proxies(&[("HTTPS_PROXY", "http://p:1"), ("no_proxy", no)]);
            all.for_https(&uri.parse().unwrap()).unwrap().is_none()
        };
        for uri in ["https://api.example.com", "https://10.1.2.3:8443", "https://[2001:db8::1]/v1"]
        {
            for no in ["*", "a.test, *", " * ,b.test"] {
                assert!(direct(no, uri), "{no} {uri}");
            }
            for no in ["", ",", "*.test", "api.example.com:1", "2001:db8::2,10.1.2.4"] {
                assert!(!direct(no, uri), "{no} {uri}");
            }
        }
        for (no, uri) in [
            ("api.example.com:8443", "https://api.example.com:8443/v1"),
            ("api.example.com:443", "https://api.example.com/v1"),
            ("*.example.com", "https://api.example.com"),
            ("x.test,*.Example.com:8443", "https://a.b.example.com:8443"),
            ("10.1.2.3:8443", "https://10.1.2.3:8443"),
            ("[2001:db8::1]:8443", "https://[2001:db8::1]:8443"),
            ("[2001:db8::1]", "https://[2001:db8::1]"),
            ("2001:db8::1", "https://[2001:db8::1]:8443"),
            ("2001:db8::/32", "https://[2001:db8::1]:8443"),
            ("*:8443", "https://10.1.2.3:8443"),
        ] {
            assert!(direct(no, uri), "{no} {uri}");
        }
        for (no, uri) in [
            ("api.example.com:8443", "https://api.example.com"),
            ("*.example.com", "https://example.org"),
            ("*.example.com", "https://notexample.com"),
            ("*:8443", "https://10.1.2.3"),
        ] {
            assert!(!direct(no, uri), "{no} {uri}");
        }
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_told_without_its_password() {
        let uri = "https://api.example.com".parse().unwrap();
        for value in ["socks5://me:secret@p:1", "://secret", "ftp://secret@p"] {
            let why = proxies(&[("https_proxy", value)]).for_https(&uri).unwrap_err();
            assert!(why.contains("https_proxy") && !why.contains("secret"), "{why}");
        }
        let proxy = Proxy::parse("http://me:pass%40word@p.example.com:3128").unwrap();
        assert_eq!(proxy.authorization.as_ref().unwrap(), "Basic bWU6cGFzc0B3b3Jk");
        assert!(!format!("{proxy:?} {:?}", proxies(&[("HTTPS_PROXY", "u:pw@p")])).contains("bWU6"));
    }
}
