//! What the file means: addresses read, files opened, names checked. A plan is valid; a request
//! never meets a configuration error.

mod auth;
mod backend;
mod base_path;
mod discovery;
mod limit;
mod routing;
mod salt;
mod script;
mod storage;
mod tier;
mod usage;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    time::Duration,
};

use http::{HeaderName, HeaderValue, Method, Uri};
use ipnet::IpNet;

pub use self::auth::{
    Answer, Answers, AuthPlan, CachePlan, KEY_HEADERS, KeyPlan, ProviderPlan, Reason, Source,
};
pub use self::backend::BackendPlan;
pub use self::base_path::BasePath;
pub use self::discovery::{DiscoveryMode, DiscoveryPlan, Listed, Place, SourcePlan, listed};
pub use self::limit::{LimitPlan, QueuePlan, SharedPlan};
pub use self::routing::*;
pub use self::script::SHIPPED;
pub use self::tier::TierPlan;
pub use self::usage::*;
use super::{
    problem::Problem,
    raw::{self, ErrorFormat, HealthCheck, Log, Raw, Ready, SecretText},
};
pub use crate::base::ModelPattern;
use crate::{
    base::{
        Secret,
        ip::{self, IpRules},
        machine,
    },
    store::{proxy::Proxies, tls},
};

/// A configuration that has been understood.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What only a restart can change.
    pub fixed: Fixed,
    /// Largest request body, in bytes.
    pub max_body_size: u64,
    /// Largest sum of header names and values, in bytes.
    pub max_header_size: usize,
    /// Bytes of request bodies that are held at the same time.
    pub max_buffered_bytes: u64,
    /// Bytes a second that a request body must come with; 0 for any.
    pub min_body_rate: u64,
    /// Connections of clients at the same time.
    pub max_connections: usize,
    /// Of those, from one address; 0 for any number.
    pub max_connections_per_ip: u32,
    /// How long streams may go on after SIGTERM.
    pub graceful_shutdown_timeout: Duration,
    /// Which backends must be healthy for `/ready` to be 200.
    pub ready: Ready,
    /// The backends of the file, in its order; at least one, or a source in `discovery`.
    pub backends: Vec<BackendPlan>,
    /// Where more backends come from.
    pub discovery: DiscoveryPlan,
    /// How requests find a backend.
    pub routing: RoutingPlan,
    /// Active probes; `None` if there are none.
    pub health_check: Option<HealthPlan>,
    /// How long to wait for what.
    pub timeouts: TimeoutPlan,
    /// Names of request headers that never reach a backend, in lower case.
    pub guard_headers: Vec<HeaderName>,
    /// Names of response headers that never reach a client.
    pub guard_response_headers: Vec<HeaderName>,
    /// Names of body fields that never reach a backend.
    pub guard_fields: Vec<String>,
    /// What becomes of usage records.
    pub usage: UsagePlan,
    /// Logging.
    pub log: Log,
    /// Who may call; `None`: everybody.
    pub auth: Option<AuthPlan>,
    /// How much one may call.
    pub limits: LimitPlan,
    /// Ranks of keys, by their names.
    pub tiers: BTreeMap<String, TierPlan>,
    /// Addresses that may call at all.
    pub ip_rules: IpRules,
    /// Proxies that are believed about their clients' addresses.
    pub trusted_proxies: Vec<IpNet>,
    /// The form of the gateway's own errors.
    pub error_format: ErrorFormat,
    /// Files that were read beside the configuration, to be watched like it.
    pub files: Vec<PathBuf>,
    /// What is no mistake but may not be meant.
    pub warnings: Vec<Problem>,
    /// The whole configuration with its defaults and without its secrets.
    pub shown: serde_json::Value,
}

/// Settings that are bound to the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// Address of the gateway.
    pub listen: SocketAddr,
    /// Address of the operator's endpoints, when they have one of their own.
    pub metrics_listen: Option<SocketAddr>,
    /// Worker threads, at least one.
    pub threads: usize,
    /// Certificate chain and private key files.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// HTTP/2 without TLS is understood.
    pub h2c: bool,
    /// The log is JSON.
    pub json_log: bool,
    /// The admin API, if it is served.
    pub admin: Option<AdminPlan>,
    /// The file with the keys of the admin API.
    pub keys_db: PathBuf,
    /// The file with what was spent.
    pub limits_db: PathBuf,
    /// The folder of the spool of usage records; `None`: they wait in memory.
    pub spool: Option<PathBuf>,
}

/// The admin API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminPlan {
    /// Its address.
    pub listen: SocketAddr,
    /// What callers must show.
    pub token: Secret,
}

impl Fixed {
    /// The keys in which two plans differ and which only a restart can change.
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        let mut keys = Vec::new();
        let mut differs = |key, same: bool| {
            if !same {
                keys.push(key);
            }
        };
        differs("listen", self.listen == other.listen);
        differs("server.metrics_listen", self.metrics_listen == other.metrics_listen);
        differs("server.threads", self.threads == other.threads);
        differs("server.tls", self.tls == other.tls);
        differs("server.h2c", self.h2c == other.h2c);
        differs("log.format", self.json_log == other.json_log);
        differs("admin", self.admin == other.admin);
        differs("admin.db_path", self.keys_db == other.keys_db);
        differs("rate_limit.db_path", self.limits_db == other.limits_db);
        differs("usage.spool", self.spool == other.spool);
        keys
    }
}

/// Active probes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthPlan {
    /// Time from one round to the next.
    pub interval: Duration,
    /// How long a probe may take.
    pub timeout: Duration,
    /// HTTP method.
    pub method: Method,
    /// Path below the prefix of the backend.
    pub path: String,
    /// The status of a healthy backend.
    pub expected_status: u16,
    /// Failures in a row until a backend is taken out.
    pub unhealthy_threshold: usize,
    /// Successes in a row until it is back.
    pub healthy_threshold: usize,
}

/// How long to wait; `None` means for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in `raw::Timeouts`")]
pub struct TimeoutPlan {
    pub connect: Option<Duration>,
    pub first_byte: Option<Duration>,
    pub first_token: Option<Duration>,
    pub between_chunks: Option<Duration>,
    pub total: Option<Duration>,
    pub client_head: Option<Duration>,
    pub client_read: Option<Duration>,
    pub client_write: Option<Duration>,
    pub client_idle: Option<Duration>,
    pub upstream_idle: Duration,
}

/// A token that can be guessed is no lock.
const SHORTEST_TOKEN: usize = 8;

/// Understands a raw configuration. Relative paths start at `folder`.
///
/// Returns a plan only if it added no problem.
pub fn plan(
    raw: &Raw,
    folder: &Path,
    proxies: &Proxies,
    problems: &mut Vec<Problem>,
) -> Option<Plan> {
    let before = problems.len();
    let mut make = Maker::new(folder, proxies, problems);
    make.discovers = discovery::are_on(raw);
    let fixed = make.fixed(raw);
    let (backends, unused) = make.backends(raw);
    let routing = make.routing(raw, &backends, &unused);
    let discovery = make.discovery(raw.discovery.as_ref());
    let health_check = make.health_check(raw.health_check.as_ref());
    let guard = &raw.edge_guard;
    let guard_headers = make.header_names("edge_guard.remove_headers", &guard.remove_headers);
    let guard_response_headers =
        make.header_names("edge_guard.remove_response_headers", &guard.remove_response_headers);
    let usage = make.usage(raw);
    let sizes = make.sizes(&raw.server);
    make.storage(raw);
    let auth = make.auth(raw);
    let limits = make.limits(raw, auth.as_ref());
    let tiers = make.tiers(raw);
    let ip_rules = IpRules {
        allowed: make.nets("server.allowed_ips", &raw.server.allowed_ips),
        denied: make.nets("server.denied_ips", &raw.server.denied_ips),
    };
    let trusted_proxies = make.nets("server.trusted_proxies", &raw.server.trusted_proxies);
    make.trust();
    let Maker { files, warnings, .. } = make;
    if problems.len() > before {
        return None;
    }
    Some(Plan {
        fixed: fixed?,
        max_body_size: sizes.0,
        max_header_size: sizes.1,
        max_buffered_bytes: match raw.server.max_buffered_bytes.0 {
            0 => machine::memory().map_or(1 << 30, |bytes| bytes / 4),
            bytes => bytes,
        },
        min_body_rate: raw.server.min_body_rate.0,
        max_connections: match raw.server.max_connections {
            0 => machine::open_files().div_ceil(2),
            count => count,
        },
        max_connections_per_ip: raw.server.max_connections_per_ip,
        graceful_shutdown_timeout: raw.server.graceful_shutdown_timeout.0,
        ready: raw.server.ready,
        backends,
        routing,
        discovery,
        health_check,
        timeouts: timeouts(&raw.timeouts),
        guard_headers,
        guard_response_headers,
        guard_fields: raw.edge_guard.remove_fields.clone(),
        usage: usage?,
        log: raw.log.clone(),
        auth,
        limits: limits?,
        tiers,
        ip_rules,
        trusted_proxies,
        error_format: raw.server.error_format,
        files,
        warnings,
        shown: serde_json::to_value(raw).unwrap_or_default(),
    })
}

/// The address that is written `host:port` or `:port`. The latter is written `[::]:port` in the plan,
/// and stands for all addresses of both families.
fn listening(text: &str) -> Option<SocketAddr> {
    let full = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
    // `localhost:8000` is a fair thing to write; it needs no name server.
    let named = || full.starts_with("localhost:").then(|| full.to_socket_addrs().ok()?.next());
    full.parse().ok().or_else(|| named().flatten())
}

/// Whether nobody can listen on both addresses.
fn clash(one: Option<SocketAddr>, other: Option<SocketAddr>) -> bool {
    let (Some(one), Some(other)) = (one, other) else { return false };
    let any = one.ip().is_unspecified() && other.ip().is_unspecified();
    one.port() == other.port() && (any || one.ip() == other.ip())
}

/// Where a gateway with this configuration can be asked how it is, from the same machine: the URL
/// without a path, of the operator's address if there is one. `None` if the address is not valid.
pub fn own_url(raw: &Raw) -> Option<String> {
    let operator = raw.server.metrics_listen.as_deref();
    let mut address = listening(operator.unwrap_or(&raw.listen))?;
    if address.ip().is_unspecified() {
        // The one address that such a listener has on every machine.
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let tls = operator.is_none() && raw.server.tls.is_some();
    Some(format!("{}://{address}", if tls { "https" } else { "http" }))
}

fn timeouts(raw: &raw::Timeouts) -> TimeoutPlan {
    let some = |span: raw::Span| (!span.0.is_zero()).then_some(span.0);
    TimeoutPlan {
        connect: some(raw.connect),
        first_byte: some(raw.first_byte),
        first_token: some(raw.first_token),
        between_chunks: some(raw.between_chunks),
        total: some(raw.total),
        client_head: some(raw.client_head),
        client_read: some(raw.client_read),
        client_write: some(raw.client_write),
        client_idle: some(raw.client_idle),
        upstream_idle: raw.upstream_idle.0,
    }
}

struct Maker<'a> {
    folder: &'a Path,
    problems: &'a mut Vec<Problem>,
    files: Vec<PathBuf>,
    warnings: Vec<Problem>,
    /// Other places tell of backends too.
    discovers: bool,
    /// The proxies that the environment names.
    proxies: &'a Proxies,
    /// The keys whose values are reached by TLS.
    trusting: Vec<String>,
}

impl<'a> Maker<'a> {
    fn new(folder: &'a Path, proxies: &'a Proxies, problems: &'a mut Vec<Problem>) -> Self {
        Self {
            folder,
            problems,
            files: Vec::new(),
            warnings: Vec::new(),
            discovers: false,
            proxies,
            trusting: Vec::new(),
        }
    }

    /// What this key names is reached by TLS.
    fn needs_trust(&mut self, at: impl Into<String>) {
        self.trusting.push(at.into());
    }

    /// Whether there are certificates to check those of others with, where any are needed.
    fn trust(&mut self) {
        let Err(why) = tls::trusted() else {
            return;
        };
        let hint = "the certificates are read when the process starts";
        match self.trusting.first().cloned() {
            Some(at) => {
                let message = format!("needs the trust store of the machine, and {why}");
                self.problem(at, message, hint);
            }
            None => self.warn("", format!("{why}: nothing can be reached by TLS")),
        }
    }
}

impl Maker<'_> {
    fn problem(&mut self, path: impl Into<String>, message: impl Into<String>, hint: &str) {
        let problem = Problem::new(path, message);
        self.problems.push(if hint.is_empty() { problem } else { problem.hint(hint) });
    }

    fn warn(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.warnings.push(Problem::new(path, message));
    }

    /// The section with what belongs to one type, which that type has to have. `what` is what has the
    /// type: a provider, for instance.
    fn section<'r, T>(
        &mut self,
        at: &str,
        what: &str,
        key: &str,
        given: Option<&'r T>,
    ) -> Option<&'r T> {
        if given.is_none() {
            let message = format!("a {what} of type `{key}` needs a section `{key}`");
            self.problem(at, message, "");
        }
        given
    }

    fn nets(&mut self, at: &str, texts: &[String]) -> Vec<IpNet> {
        let mut nets = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            match ip::parse(text) {
                Some(net) => nets.push(net),
                None => self.problem(
                    format!("{at}[{i}]"),
                    format!("`{text}` is not an address or a network"),
                    "write `10.0.0.0/8` or `192.0.2.7`",
                ),
            }
        }
        nets
    }

    /// The admin API's part; `None` also if it is switched off.
    fn admin(&mut self, raw: &raw::Admin) -> Option<AdminPlan> {
        if !raw.enabled {
            return None;
        }
        let listen = self.address("admin.listen", &raw.listen);
        let token = self.secret("admin", "token", raw.token.as_ref(), raw.token_file.as_deref());
        if token.as_ref().is_none_or(|t| t.expose().len() < SHORTEST_TOKEN) {
            self.problem(
                "admin.token",
                format!("the admin API needs a token of at least {SHORTEST_TOKEN} characters"),
                "write `token: \"${ADMIN_TOKEN}\"` or `token_file`",
            );
        }
        if let Some(why) =
            token.as_ref().filter(|t| !t.expose().is_empty()).and_then(Secret::unsendable)
        {
            let message = format!("cannot be sent in a header field: {why}");
            self.problem("admin.token", message, "a token is one word of visible ASCII characters");
        }
        Some(AdminPlan { listen: listen?, token: token? })
    }

    fn fixed(&mut self, raw: &Raw) -> Option<Fixed> {
        let listen = self.address("listen", &raw.listen);
        let metrics = raw.server.metrics_listen.as_deref();
        let metrics_listen = metrics.and_then(|m| self.address("server.metrics_listen", m));
        if clash(metrics_listen, listen) {
            self.problem(
                "server.metrics_listen",
                "is the same address as `listen`",
                "remove it to serve /metrics on the main listener",
            );
        }
        let tls = raw.server.tls.as_ref().and_then(|tls| self.tls(tls));
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if raw.server.threads == 0 { cores() } else { raw.server.threads };
        if threads > 1024 {
            self.problem("server.threads", "is more than 1024", "0 means one for each core");
        }
        let json_log = raw.log.format == raw::LogFormat::Json;
        let admin = self.admin(&raw.admin);
        for (other, name) in [(listen, "listen"), (metrics_listen, "server.metrics_listen")] {
            if clash(other, admin.as_ref().map(|a| a.listen)) {
                let message = format!("is the same address as `{name}`");
                self.problem("admin.listen", message, "give it a port of its own");
            }
        }
        let limits_db = raw.rate_limit.as_ref().and_then(|limits| limits.db_path.as_deref());
        let spool = &raw.usage.spool;
        Some(Fixed {
            listen: listen?,
            metrics_listen,
            threads,
            tls,
            h2c: raw.server.h2c,
            json_log,
            admin,
            keys_db: self.keys_db(raw),
            limits_db: self.data(raw, limits_db, "limits.db"),
            spool: spool.enabled.0.then(|| self.data(raw, spool.path.as_deref(), "usage")),
        })
    }

    /// The file with the keys of the admin API.
    fn keys_db(&self, raw: &Raw) -> PathBuf {
        self.data(raw, raw.admin.db_path.as_deref(), "keys.db")
    }

    /// What is configured, or this in the folder for data.
    fn data(&self, raw: &Raw, given: Option<&str>, name: &str) -> PathBuf {
        given.map_or_else(|| self.path(&raw.data_dir).join(name), |given| self.path(given))
    }

    fn sizes(&mut self, raw: &raw::Server) -> (u64, usize) {
        let body = raw.max_body_size.0;
        if body == 0 || body > 1 << 32 {
            self.problem(
                "server.max_body_size",
                "is not between 1 byte and 4GiB",
                "the default is 32MiB",
            );
        }
        let header = raw.max_header_size.0;
        if !(1 << 10..=1 << 20).contains(&header) {
            self.problem(
                "server.max_header_size",
                "is not between 1KiB and 1MiB",
                "the default is 64KiB",
            );
        }
        (body, usize::try_from(header).unwrap_or(usize::MAX))
    }

    fn address(&mut self, path: &str, text: &str) -> Option<SocketAddr> {
        let address = listening(text);
        if address.is_none() {
            let message = format!("`{text}` is not an address to listen on");
            self.problem(path, message, "write `:8000`, `127.0.0.1:8000` or `[::]:8000`");
        }
        address
    }

    fn path(&self, text: &str) -> PathBuf {
        self.folder.join(text)
    }

    fn tls(&mut self, tls: &raw::Tls) -> Option<(PathBuf, PathBuf)> {
        let files = (self.path(&tls.cert_file), self.path(&tls.key_file));
        let mut readable = true;
        for (key, file) in [("cert_file", &files.0), ("key_file", &files.1)] {
            if let Err(e) = std::fs::read(file) {
                let message = format!("cannot read {}: {e}", file.display());
                self.problem(
                    format!("server.tls.{key}"),
                    message,
                    "the path starts at the folder of the configuration",
                );
                readable = false;
            }
        }
        if !readable {
            return None;
        }
        match tls::listener(&files.0, &files.1) {
            Ok(_) => Some(files),
            Err(e) => {
                self.problem(
                    "server.tls",
                    e,
                    "both files are PEM, and the key fits the certificate",
                );
                None
            }
        }
    }

    /// Reads a secret that may stand in the file or in a file of its own.
    fn secret(
        &mut self,
        at: &str,
        key: &str,
        text: Option<&SecretText>,
        file: Option<&str>,
    ) -> Option<Secret> {
        match (text, file) {
            (Some(_), Some(_)) => {
                self.problem(
                    format!("{at}.{key}"),
                    format!("both `{key}` and `{key}_file` are given"),
                    "keep one",
                );
                None
            }
            (Some(text), None) => Some(text.0.clone()),
            (None, Some(file)) => self.secret_file(format!("{at}.{key}_file"), file),
            (None, None) => None,
        }
    }

    fn secret_file(&mut self, at: String, file: &str) -> Option<Secret> {
        let path = self.path(file);
        match std::fs::read_to_string(&path) {
            Ok(text) => Some(Secret::new(text)),
            Err(e) => {
                let message = format!("cannot read {}: {e}", path.display());
                self.problem(at, message, "the path starts at the folder of the configuration");
                None
            }
        }
    }

    fn health_check(&mut self, raw: Option<&HealthCheck>) -> Option<HealthPlan> {
        let raw = raw.filter(|h| h.enabled)?;
        let at = |key: &str| format!("health_check.{key}");
        if raw.interval.0 < Duration::from_millis(10) {
            self.problem(at("interval"), "is shorter than 10ms", "the default is 30s");
        }
        if raw.timeout.0.is_zero() {
            self.problem(at("timeout"), "is zero", "the default is 5s");
        }
        for (key, n) in [
            ("unhealthy_threshold", raw.unhealthy_threshold),
            ("healthy_threshold", raw.healthy_threshold),
        ] {
            if n == 0 {
                self.problem(at(key), "is zero", "1 means at the first probe");
            }
        }
        if !(100..=599).contains(&raw.expected_status) {
            self.problem(at("expected_status"), "is not an HTTP status", "the default is 200");
        }
        if !raw.path.starts_with('/') || raw.path.parse::<Uri>().is_err() {
            self.problem(at("path"), "is not a path", "write `/health`");
        }
        let method = match raw.method.parse::<Method>() {
            Ok(method) if raw.method == raw.method.to_uppercase() => method,
            _ => {
                self.problem(
                    at("method"),
                    format!("`{}` is not an HTTP method", raw.method),
                    "write `GET`",
                );
                return None;
            }
        };
        Some(HealthPlan {
            interval: raw.interval.0,
            timeout: raw.timeout.0,
            method,
            path: raw.path.clone(),
            expected_status: raw.expected_status,
            unhealthy_threshold: raw.unhealthy_threshold,
            healthy_threshold: raw.healthy_threshold,
        })
    }

    /// Names of header fields; `at`: where the list stands.
    fn header_names(&mut self, at: &str, texts: &[String]) -> Vec<HeaderName> {
        let mut names = Vec::with_capacity(texts.len());
        for (i, text) in texts.iter().enumerate() {
            match text.parse() {
                Ok(name) => names.push(name),
                Err(_) => {
                    self.problem(
                        format!("{at}[{i}]"),
                        format!("`{text}` is not a header name"),
                        "",
                    );
                }
            }
        }
        names
    }

    /// Whether a text is an address of HTTP.
    fn http_url(&mut self, at: &str, text: &str) -> bool {
        let uri = text.parse::<Uri>().ok().filter(|uri| uri.host().is_some());
        let scheme = uri.as_ref().and_then(Uri::scheme_str);
        let fine = matches!(scheme, Some("http" | "https"));
        if !fine {
            self.problem(at, "is not an http or https URL", "write `https://host/path`");
        } else if scheme == Some("https") {
            self.needs_trust(at);
        }
        fine
    }

    /// Header fields with secret values, which may stand in files of their own.
    fn header_fields(
        &mut self,
        at: &str,
        texts: &BTreeMap<String, SecretText>,
        files: &BTreeMap<String, String>,
    ) -> Vec<(HeaderName, HeaderValue)> {
        let mut values: Vec<(&String, Secret)> =
            texts.iter().map(|(name, value)| (name, value.0.clone())).collect();
        for (name, file) in files {
            let at = format!("{at}.headers_file.{name}");
            if texts.contains_key(name) {
                self.problem(at, "stands in `headers` as well", "keep one");
                continue;
            }
            values.extend(self.secret_file(at, file).map(|value| (name, value)));
        }
        let mut headers = Vec::new();
        for (name, value) in values {
            match (name.parse::<HeaderName>(), HeaderValue::from_str(value.expose())) {
                (Ok(name), Ok(mut value)) => {
                    value.set_sensitive(true);
                    headers.push((name, value));
                }
                _ => {
                    let at = format!("{at}.headers.{name}");
                    self.problem(at, "is not a header field", "a value is one line of text");
                }
            }
        }
        headers
    }
}
