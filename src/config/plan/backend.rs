//! `backends`: the URL of each, its credentials and its proxy.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use http::{HeaderName, HeaderValue, Uri, header};

use super::{
    base_path::{self, BasePath},
    planner::Planner,
    vendor,
};
use crate::{
    base::{ModelPattern, Secret},
    config::{
        choices::{Addresses, Engine, StreamUsage},
        raw::{self, Raw, SecretText},
    },
    dialect::{self, Dialect, Languages, Protocol, hub::target::Quirks},
    store::{
        backend_tls::{BackendTls, Files, Part},
        proxy::Proxy,
    },
    wire::headers::is_hop_by_hop,
};

/// One backend.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendPlan {
    /// Name in metrics, logs and records.
    pub name: String,
    /// The URL as configured, without user information and query.
    pub url: Arc<str>,
    /// `https`.
    pub tls: bool,
    /// How its TLS differs from the usual.
    pub trust: Option<Arc<BackendTls>>,
    /// Host name or address.
    pub host: String,
    pub port: u16,
    /// Value for `Host`.
    pub authority: HeaderValue,
    /// The paths that follow from its URL.
    pub base: BasePath,
    /// Share of the requests.
    pub weight: u32,
    /// Models that it serves; empty: every model.
    pub models: Vec<ModelPattern>,
    /// The header field with its key.
    pub key: Option<(HeaderName, HeaderValue)>,
    /// Further header fields that it receives.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The HTTP proxy in front of it.
    pub proxy: Option<Proxy>,
    pub stream_usage: StreamUsage,
    pub engine: Engine,
    /// The languages of its API.
    pub languages: Languages,
    /// How translated requests are written for it.
    pub quirks: Arc<Quirks>,
    /// Whose state of reasoning it can read.
    pub state_domain: Arc<str>,
    /// It is a hosted service, whose models show summaries of their reasoning rather than its text.
    pub hosted: bool,
    /// How several addresses are treated.
    pub addresses: Addresses,
    /// Whether `health_check` applies to it.
    pub probed: bool,
}

impl BackendPlan {
    /// Host and port of connections: those of the proxy, if there is one.
    pub fn dialled(&self) -> (&str, u16) {
        match &self.proxy {
            Some(proxy) => (&proxy.host, proxy.port),
            None => (&self.host, self.port),
        }
    }

    /// The address of connections, unless it is a name.
    pub fn literal(&self) -> Option<SocketAddr> {
        let (host, port) = self.dialled();
        host.parse().ok().map(|ip| SocketAddr::new(ip, port))
    }

    /// The header fields that every request to it has.
    pub fn identity(&self) -> impl Iterator<Item = &(HeaderName, HeaderValue)> {
        self.headers.iter().chain(&self.key)
    }

    /// Scheme, host and port, as in a URL.
    pub fn origin(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.authority.to_str().unwrap_or_default())
    }

    /// The URL of a request in its first language and how the key is sent, without secrets.
    pub fn called(&self) -> String {
        let usual = self.languages.first().usual_path();
        let endpoint = usual.strip_prefix("/v1").unwrap_or(usual);
        let mut line = format!("POST {}{}{endpoint}", self.origin(), self.base.api);
        if let Some(query) = &self.base.query {
            line.push('?');
            line.push_str(&base_path::shown_query(query));
        }
        if let Some((name, _)) = &self.key {
            line.push_str(&format!(", key in `{name}`"));
        }
        if let Some(proxy) = &self.proxy {
            line.push_str(&format!(", proxy {}:{}", proxy.host, proxy.port));
        }
        if self.trust.as_ref().is_some_and(|own| !own.verifies()) {
            line.push_str(", certificate not verified");
        }
        line
    }
}

/// Whether it can be a name in a certificate.
fn is_host(name: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    !name.is_empty() && name.len() < 254 && name.chars().all(fine)
}

/// How requests are written for a backend, its engine, and which usage its streams are asked for: what is
/// known of its vendor, unless the file says something else.
fn peculiarities(raw: &raw::Backend) -> (Quirks, Engine, StreamUsage) {
    let mut quirks = raw
        .vendor
        .map_or_else(|| vendor::of_engine(raw.engine.unwrap_or_default()), vendor::of_vendor);
    quirks.completions = raw.completions.unwrap_or(quirks.completions);
    quirks.refuses.extend(raw.drop_fields.iter().cloned());
    // What only engines understand is not sent to a hosted service, unless the file says so.
    let (usual_engine, usual_usage) = match raw.vendor {
        Some(_) if !quirks.stream_options => (Engine::Other, StreamUsage::Off),
        Some(_) => (Engine::Other, StreamUsage::Final),
        None => (Engine::default(), StreamUsage::default()),
    };
    let engine = raw.engine.unwrap_or(usual_engine);
    let stream_usage = raw.stream_usage.unwrap_or(usual_usage);
    if raw.stream_usage.is_some_and(|usage| usage != StreamUsage::Off) {
        quirks.stream_options = true;
    }
    (quirks, engine, stream_usage)
}

const URL_HINT: &str = "write `http://host:8000` or `https://host/v1`";

/// The header field of a key.
pub(super) struct KeyHeader<'r> {
    /// The first language of the backend's API, which has a usual form.
    pub language: &'static dyn Dialect,
    /// `auth_header`
    pub name: Option<&'r str>,
    /// `auth_scheme`
    pub scheme: Option<&'r str>,
}

impl Planner<'_> {
    /// The enabled backends, and the disabled ones.
    pub(super) fn backends(&mut self, raw: &Raw) -> (Vec<BackendPlan>, Vec<BackendPlan>) {
        if !raw.backends.iter().any(|b| b.enabled.0) && !self.discovers {
            let message = match raw.backends[..] {
                [] => "there is no backend",
                [..] => "every backend is disabled",
            };
            self.problem("backends", message, "add one: `- url: \"http://vllm:8000\"`");
        }
        let mut names = BTreeMap::new();
        let (mut used, mut unused) = (Vec::new(), Vec::new());
        for (i, backend) in raw.backends.iter().enumerate() {
            let at = format!("backends[{i}]");
            let Some(plan) = self.backend(&at, backend) else {
                continue;
            };
            if let Some(first) = names.insert(plan.name.clone(), i) {
                let message = format!("has the same name as backends[{first}]: `{}`", plan.name);
                self.problem(&at, message, "give each backend its own `name`");
            }
            if backend.enabled.0 { &mut used } else { &mut unused }.push(plan);
        }
        (used, unused)
    }

    pub(super) fn backend(&mut self, at: &str, raw: &raw::Backend) -> Option<BackendPlan> {
        if !(1..=1000).contains(&raw.weight) {
            self.problem(format!("{at}.weight"), "is not between 1 and 1000", "the default is 1");
        }
        let mut models = Vec::new();
        for (i, text) in raw.models.iter().enumerate() {
            match ModelPattern::parse(text) {
                Ok(pattern) => models.push(pattern),
                Err(why) => self.problem(format!("{at}.models[{i}]"), why, ""),
            }
        }
        let languages = self.languages(at, raw);
        let form = KeyHeader {
            language: languages.first(),
            name: raw.auth_header.as_deref(),
            scheme: raw.auth_scheme.as_deref(),
        };
        let key = self.backend_key(at, raw.api_key.as_ref(), raw.api_key_file.as_deref(), &form);
        let headers = self.backend_headers(at, raw, key.as_ref());
        let uri = self.backend_uri(at, &raw.url)?;
        let base = match BasePath::read(uri.path(), uri.query(), raw.append_v1) {
            Ok(base) => base,
            Err(why) => {
                let hint = "write the base of the endpoints: `https://host/v1`";
                self.problem(format!("{at}.url"), why, hint);
                return None;
            }
        };
        let host = uri.host()?.trim_matches(['[', ']']).to_owned();
        let tls = uri.scheme_str() == Some("https");
        if tls && raw.enabled.0 && raw.tls.as_ref().is_none_or(|own| own.ca.is_none()) {
            self.needs_trust(format!("{at}.url"));
        }
        let proxy = self.backend_proxy(at, raw, &uri);
        let trust =
            raw.tls.as_ref().and_then(|own| self.backend_tls(at, own, tls, proxy.is_some()));
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let authority = HeaderValue::from_str(uri.authority()?.as_str()).ok()?;
        let url = raw.url.split('?').next().unwrap_or_default().trim_end_matches('/').to_owned();
        let usual = if tls || proxy.is_some() { Addresses::One } else { Addresses::Each };
        let addresses = raw.addresses.unwrap_or(usual);
        if proxy.is_some() && addresses == Addresses::Each {
            let hint = "write `one`, or `proxy: none` for direct connections";
            let message = "addresses cannot be distinguished behind a proxy";
            self.problem(format!("{at}.addresses"), message, hint);
        }
        let name = raw.name.clone().unwrap_or_else(|| url.clone());
        let (quirks, engine, stream_usage) = peculiarities(raw);
        Some(BackendPlan {
            state_domain: raw.state_domain.as_deref().unwrap_or(&name).into(),
            hosted: raw.vendor.is_some(),
            quirks: Arc::new(quirks),
            name,
            url: url.into(),
            tls,
            trust: trust.map(Arc::new),
            host,
            port,
            authority,
            base,
            weight: raw.weight,
            models,
            key,
            headers,
            proxy,
            stream_usage,
            engine,
            languages,
            addresses,
            probed: raw.health_check.0,
        })
    }

    /// How TLS to a backend differs from the usual.
    fn backend_tls(
        &mut self,
        at: &str,
        raw: &raw::BackendTls,
        https: bool,
        proxied: bool,
    ) -> Option<BackendTls> {
        let at = format!("{at}.tls");
        if !https {
            self.problem(at, "has no effect without https", "write `https://` in `url`");
            return None;
        }
        if raw.cert.is_some() != raw.key.is_some() {
            self.problem(at, "needs `cert` and `key` together", "write both, or neither");
            return None;
        }
        if proxied && raw.server_name.is_some() {
            let message = "cannot be used behind a proxy";
            let hint = "write the name as the host of `url`, or `proxy: none`";
            self.problem(format!("{at}.server_name"), message, hint);
            return None;
        }
        if let Some(name) = raw.server_name.as_ref().filter(|name| !is_host(name)) {
            let message = format!("`{name}` is not a host name");
            self.problem(format!("{at}.server_name"), message, "write it without scheme and port");
            return None;
        }
        if !raw.verify.0 {
            let message = "whoever answers is taken for the backend, and reads every request";
            self.warn(format!("{at}.verify"), message);
        }
        let mut read = |name: &str, file: &Option<String>| match file {
            None => Some(None),
            Some(file) => {
                let path = self.path(file);
                self.text_of(format!("{at}.{name}"), &path).map(Some)
            }
        };
        // All of them, so that every problem is reported at once.
        let (ca, cert, key) = (read("ca", &raw.ca), read("cert", &raw.cert), read("key", &raw.key));
        let (ca, cert, key) = (ca?, cert?, key?);
        let files = Files {
            ca: ca.as_deref(),
            client: cert.as_deref().zip(key.as_deref()),
            server_name: raw.server_name.as_deref(),
            verify: raw.verify.0,
        };
        BackendTls::read(&files)
            .map_err(|(part, why)| {
                let (name, file) = match part {
                    Part::Ca => ("ca", &raw.ca),
                    Part::Cert => ("cert", &raw.cert),
                    Part::Key => ("key", &raw.key),
                };
                let message = format!("{}: {why}", file.as_deref().unwrap_or_default());
                self.problem(format!("{at}.{name}"), message, "the file must be PEM");
            })
            .ok()
    }

    /// The languages of a backend's API.
    fn languages(&mut self, at: &str, raw: &raw::Backend) -> Languages {
        if raw.protocol.is_some() && !raw.languages.is_empty() {
            let hint = "remove `protocol`";
            self.problem(format!("{at}.protocol"), "stands beside `languages`", hint);
        }
        let mut languages = Vec::new();
        for (i, name) in raw.languages.iter().enumerate() {
            match Protocol::named(name) {
                Some(language) => languages.push(language),
                None => {
                    let names: Vec<String> = dialect::names().map(|n| format!("`{n}`")).collect();
                    let hint = format!("known are {}", names.join(", "));
                    let message = format!("there is no language `{name}`");
                    self.problem(format!("{at}.languages[{i}]"), message, &hint);
                }
            }
        }
        if let Some(name) = &raw.protocol {
            languages.push(self.protocol(at, Some(name)));
        } else if raw.languages.is_empty() {
            let usual = raw.vendor.map_or(&[][..], vendor::languages);
            languages.extend(usual.iter().filter_map(|name| Protocol::named(name)));
        }
        Languages::new(languages)
    }

    /// The language that one word stands for.
    pub(super) fn protocol(&mut self, at: &str, name: Option<&str>) -> Protocol {
        let Some(name) = name else { return Protocol::default() };
        Protocol::named(name).unwrap_or_else(|| {
            let message = format!("`{name}` is not available in this version");
            let names: Vec<String> = dialect::names().map(|name| format!("`{name}`")).collect();
            let hint = format!("remove it, or write one of {}", names.join(", "));
            self.problem(format!("{at}.protocol"), message, &hint);
            Protocol::default()
        })
    }

    fn backend_uri(&mut self, at: &str, url: &str) -> Option<Uri> {
        let path = format!("{at}.url");
        let uri = match url.parse::<Uri>() {
            Ok(uri) if url.contains("://") && uri.host().is_some_and(|h| !h.is_empty()) => uri,
            _ => {
                // The text before an `@`, and the query, may be secret.
                let shown = url.rsplit('@').next().unwrap_or_default();
                let shown = shown.split('?').next().unwrap_or_default();
                self.problem(path, format!("`{shown}` is not a URL"), URL_HINT);
                return None;
            }
        };
        let fine = match () {
            () if !matches!(uri.scheme_str(), Some("http" | "https")) => {
                self.problem(path, "the scheme must be http or https", URL_HINT);
                false
            }
            () if uri.authority().is_some_and(|a| a.as_str().contains('@')) => {
                self.problem(path, "contains a user name", "write the key in `api_key`");
                false
            }
            () if names_port(&uri) && uri.port_u16().is_none_or(|p| p == 0) => {
                self.problem(path, "the port is not between 1 and 65535", URL_HINT);
                false
            }
            () if url.contains('#') => {
                self.problem(path, "contains a fragment", "only a path and a query are allowed");
                false
            }
            () => true,
        };
        fine.then_some(uri)
    }

    /// The field with the key: a bearer token in `Authorization`, or the bare key in another field.
    pub(super) fn backend_key(
        &mut self,
        at: &str,
        key: Option<&SecretText>,
        file: Option<&str>,
        form: &KeyHeader<'_>,
    ) -> Option<(HeaderName, HeaderValue)> {
        let before = self.problems.len();
        let key = self.secret(at, "api_key", key, file);
        let (path, hint) = (format!("{at}.auth_header"), "write `api-key` or `Authorization`");
        let name = match form.name.map(str::parse::<HeaderName>) {
            None => form.language.backend_credential().0,
            Some(Ok(name)) if !is_managed(&name) => name,
            Some(_) => {
                self.problem(path, "is not the name of a header field for a key", hint);
                return None;
            }
        };
        let Some(key) = key else {
            for (word, given) in [("auth_header", form.name), ("auth_scheme", form.scheme)] {
                if given.is_some() && self.problems.len() == before {
                    let hint = "add `api_key` or `api_key_file`";
                    self.problem(format!("{at}.{word}"), "there is no key to send", hint);
                }
            }
            return None;
        };
        let usual = match form.language.backend_credential() {
            (field, scheme) if field == name => scheme,
            _ if name == header::AUTHORIZATION => "Bearer",
            _ => "",
        };
        let scheme = form.scheme.unwrap_or(usual).trim();
        if scheme.contains(|c: char| !c.is_ascii_graphic()) {
            let hint = "write `Bearer`, or `\"\"` for the bare key";
            self.problem(format!("{at}.auth_scheme"), "is not one word", hint);
            return None;
        }
        let value = self.sendable(&format!("{at}.api_key"), &key)?;
        let value = match scheme {
            "" => value,
            _ => HeaderValue::from_str(&format!("{scheme} {}", key.expose())).ok()?,
        };
        Some((name, sensitive(value)))
    }

    /// A secret as the value of a header field.
    pub(super) fn sendable(&mut self, at: &str, secret: &Secret) -> Option<HeaderValue> {
        match secret.unsendable() {
            None => HeaderValue::from_str(secret.expose()).ok().map(sensitive),
            Some(why) => {
                let message = format!("cannot be sent in a header field: {why}");
                self.problem(at, message, "a key is a single word of visible ASCII characters");
                None
            }
        }
    }

    fn backend_headers(
        &mut self,
        at: &str,
        raw: &raw::Backend,
        key: Option<&(HeaderName, HeaderValue)>,
    ) -> Vec<(HeaderName, HeaderValue)> {
        let headers = self.header_fields(at, &raw.headers, &raw.headers_file);
        for (name, _) in &headers {
            let path = format!("{at}.headers.{name}");
            if is_managed(name) {
                self.problem(path, "is set by the gateway itself", "remove it");
            } else if key.is_some_and(|(own, _)| own == name) {
                let hint = "remove one of them";
                self.problem(path, "is also the `auth_header` of the key", hint);
            }
        }
        headers
    }

    /// The proxy of a backend, or of the environment for https. The environment is ignored for a
    /// disabled backend, so that it cannot cause a problem.
    fn backend_proxy(&mut self, at: &str, raw: &raw::Backend, uri: &Uri) -> Option<Proxy> {
        let found = match raw.proxy.as_ref().map(|text| text.0.expose()) {
            Some("none") => return None,
            Some(text) => Proxy::parse(text).map(Some),
            None if raw.enabled.0 && uri.scheme_str() == Some("https") => {
                self.proxies.for_https(uri)
            }
            None => return None,
        };
        match found {
            Ok(proxy) => proxy,
            Err(why) => {
                let hint = "write `http://host:3128`, or `none` for a direct connection";
                self.problem(format!("{at}.proxy"), why, hint);
                None
            }
        }
    }
}

/// Fields that the gateway or the connection sets.
fn is_managed(name: &HeaderName) -> bool {
    is_hop_by_hop(name.as_str())
        || matches!(
            *name,
            header::HOST | header::CONTENT_LENGTH | header::ACCEPT_ENCODING | header::EXPECT
        )
}

fn sensitive(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

/// Whether there is a port, valid or not.
fn names_port(uri: &Uri) -> bool {
    let authority = uri.authority().map_or("", |a| a.as_str());
    authority.rsplit(']').next().is_some_and(|tail| tail.contains(':'))
}
