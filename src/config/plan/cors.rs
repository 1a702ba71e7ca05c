//! `server.cors`: which pages in browsers may call the API.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, Uri};

use super::planner::Planner;
use crate::config::raw;

/// Which pages may call the API, and what they are told.
#[derive(Clone, Debug, PartialEq)]
pub struct CorsPlan {
    /// Any page may.
    any: bool,
    /// Pages of these origins may, in lower case.
    origins: Vec<Origin>,
    /// With the user's cookies and the like.
    pub credentials: bool,
    /// `Access-Control-Allow-Methods`.
    pub methods: HeaderValue,
    /// `Access-Control-Allow-Headers`; `None`: those that are asked for.
    pub headers: Option<HeaderValue>,
    /// `Access-Control-Expose-Headers`.
    pub exposed: HeaderValue,
    /// `Access-Control-Max-Age`: for how long a browser remembers it.
    pub max_age: HeaderValue,
}

#[derive(Clone, Debug, PartialEq)]
enum Origin {
    Exact(String),
    /// What stands before and after the name of a subdomain: `https://` and `.example.com:8443`.
    Below(String, String),
}

impl CorsPlan {
    /// What a page of this origin is told: itself, or `*` for every page; `None` if it may not call.
    pub fn allows(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        if self.any {
            return Some(HeaderValue::from_static("*"));
        }
        let text = origin.to_str().ok()?.to_ascii_lowercase();
        let allowed = self.origins.iter().any(|known| match known {
            Origin::Exact(known) => *known == text,
            Origin::Below(scheme, domain) => {
                let name = text.strip_prefix(scheme).and_then(|rest| rest.strip_suffix(domain));
                let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
                name.is_some_and(|name| !name.is_empty() && name.chars().all(fine))
            }
        });
        allowed.then(|| origin.clone())
    }

    /// Whether answers differ by the page that asks.
    pub fn varies(&self) -> bool {
        !self.any
    }
}

/// What pages see of an answer where `*` is not allowed: ids, limits, and what was lost in translation.
const EXPOSED: &str = "x-request-id, request-id, retry-after, x-llmproxy-dropped, \
    x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, \
    x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens, \
    anthropic-ratelimit-requests-limit, anthropic-ratelimit-requests-remaining, \
    anthropic-ratelimit-requests-reset, anthropic-ratelimit-tokens-limit, \
    anthropic-ratelimit-tokens-remaining, anthropic-ratelimit-tokens-reset";

impl Planner<'_> {
    pub(super) fn cors(&mut self, raw: Option<&raw::Cors>) -> Option<CorsPlan> {
        const AT: &str = "server.cors";
        let raw = raw.filter(|raw| raw.enabled.0)?;
        if raw.allowed_origins.is_empty() {
            let hint = "write `allowed_origins: [\"https://app.example.com\"]`";
            self.problem(format!("{AT}.allowed_origins"), "allows no page", hint);
        }
        let mut origins = Vec::new();
        for (i, text) in raw.allowed_origins.iter().enumerate().filter(|(_, text)| *text != "*") {
            match origin(text) {
                Some(origin) => origins.push(origin),
                None => {
                    let message = format!("`{text}` is not an origin");
                    let hint = "write scheme and host, and a port if it is not the usual one: `https://app.example.com`, `https://*.example.com`, `http://localhost:3000`";
                    self.problem(format!("{AT}.allowed_origins[{i}]"), message, hint);
                }
            }
        }
        let any = raw.allowed_origins.iter().any(|text| text == "*");
        if any && raw.allow_credentials {
            let message = "would let every page act with the cookies of its visitors";
            self.problem(format!("{AT}.allow_credentials"), message, "list the origins");
        }
        let methods = self.list(&format!("{AT}.allowed_methods"), &raw.allowed_methods, |text| {
            Method::from_bytes(text.as_bytes()).is_ok() && text.to_ascii_uppercase() == text
        });
        let is_name = |text: &str| text.parse::<HeaderName>().is_ok();
        // With credentials `*` would be the name of a field.
        let is_exposed = |text: &str| is_name(text) && (text != "*" || !raw.allow_credentials);
        let headers = self.list(&format!("{AT}.allowed_headers"), &raw.allowed_headers, is_name);
        let exposed = self.list(&format!("{AT}.expose_headers"), &raw.expose_headers, is_exposed);
        let usual = if raw.allow_credentials { EXPOSED } else { "*" };
        let max_age = raw.max_age.0.0.min(Duration::from_secs(86_400)).as_secs();
        Some(CorsPlan {
            any,
            origins,
            credentials: raw.allow_credentials,
            methods: methods.unwrap_or(HeaderValue::from_static("GET, POST, DELETE")),
            headers,
            exposed: exposed.unwrap_or(HeaderValue::from_static(usual)),
            max_age: max_age.into(),
        })
    }

    /// A list as one value of a header field; `None` if it is empty.
    fn list(
        &mut self,
        at: &str,
        texts: &[String],
        fine: impl Fn(&str) -> bool,
    ) -> Option<HeaderValue> {
        for (i, text) in texts.iter().enumerate().filter(|(_, text)| !fine(text)) {
            let message = format!("`{text}` cannot be used here");
            self.problem(format!("{at}[{i}]"), message, "write one name in each entry");
        }
        if texts.is_empty() {
            return None;
        }
        HeaderValue::from_str(&texts.join(", ")).ok()
    }
}

/// An origin as browsers write it, or the domain below which they are.
fn origin(text: &str) -> Option<Origin> {
    let text = text.to_ascii_lowercase();
    if text == "null" {
        return Some(Origin::Exact(text));
    }
    let (scheme, host) = text.split_once("://")?;
    let below = host.strip_prefix("*.");
    let uri: Uri = format!("{scheme}://{}", below.unwrap_or(host)).parse().ok()?;
    let whole = uri.authority().is_some_and(|a| a.as_str() == below.unwrap_or(host));
    if !whole || below.unwrap_or(host).contains(['@', '*']) || uri.host().is_none_or(str::is_empty)
    {
        return None;
    }
    Some(match below {
        Some(domain) => Origin::Below(format!("{scheme}://"), format!(".{domain}")),
        None => Origin::Exact(text),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_compared_as_browsers_write_them() {
        for (known, fine, wrong) in [
            (
                "https://app.example.com",
                vec!["https://app.example.com", "https://APP.example.com"],
                vec![
                    "http://app.example.com",
                    "https://app.example.com:8443",
                    "https://app.example.com.evil.org",
                    "null",
                    "",
                ],
            ),
            (
                "https://*.example.com",
                vec!["https://a.example.com", "https://a.b.example.com"],
                vec![
                    "https://example.com",
                    "https://.example.com",
                    "https://evil.org/.example.com",
                    "https://a.example.com:1",
                    "https://evilexample.com",
                    "https://u@a.example.com",
                ],
            ),
            (
                "http://localhost:3000",
                vec!["http://localhost:3000"],
                vec!["http://localhost", "http://localhost:30000"],
            ),
            ("null", vec!["null"], vec!["https://null"]),
        ] {
            let plan = CorsPlan {
                any: false,
                origins: vec![origin(known).unwrap()],
                credentials: false,
                methods: HeaderValue::from_static("GET"),
                headers: None,
                exposed: HeaderValue::from_static("*"),
                max_age: 1.into(),
            };
            let allows = |text: &str| plan.allows(&HeaderValue::from_str(text).unwrap());
            for text in fine {
                assert_eq!(allows(text).unwrap(), text, "{known}");
            }
            for text in wrong {
                assert_eq!(allows(text), None, "{known}: {text}");
            }
        }
        for wrong in [
            "example.com",
            "https://",
            "https://a/b",
            "https://a?b",
            "https://u@a",
            "*.a",
            "https://*",
            "",
        ] {
            assert_eq!(origin(wrong), None, "{wrong}");
        }
    }
}
