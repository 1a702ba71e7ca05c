//! `listen`, `server`, `admin` and `log.format`: what belongs to the process.

use std::{
    net::{Ipv4Addr, SocketAddr, ToSocketAddrs},
    path::PathBuf,
};

use super::planner::Planner;
use crate::{
    base::{Secret, TlsVersion, ip::IpRules, machine},
    config::raw::{self, Raw},
    store::certificates::{Certificate, Certificates},
};

/// Settings that only a restart can change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// Address of the gateway.
    pub listen: SocketAddr,
    /// The separate address of the operator's endpoints.
    pub metrics_listen: Option<SocketAddr>,
    /// Worker threads, at least one.
    pub threads: usize,
    /// The oldest version of TLS of clients; `None`: there is no TLS.
    pub tls: Option<TlsVersion>,
    /// HTTP/2 without TLS is accepted.
    pub h2c: bool,
    /// The log is JSON.
    pub json_log: bool,
    /// `None`: the admin API is off.
    pub admin: Option<AdminPlan>,
    /// The file with the keys of the admin API.
    pub keys_db: PathBuf,
    /// The file with spent budgets and used quotas.
    pub limits_db: PathBuf,
    /// The folder of the spool; `None`: usage records wait in memory.
    pub spool: Option<PathBuf>,
}

/// The admin API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminPlan {
    pub listen: SocketAddr,
    pub token: Secret,
}

impl Fixed {
    /// The keys that differ from another plan.
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

/// A shorter token can be guessed.
const SHORTEST_TOKEN: usize = 8;

/// Parses `host:port` or `:port`. The latter becomes `[::]:port`, which means all addresses of both
/// families.
fn listening(text: &str) -> Option<SocketAddr> {
    let full = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
    // `localhost` is resolved without a name server.
    let named = || full.starts_with("localhost:").then(|| full.to_socket_addrs().ok()?.next());
    full.parse().ok().or_else(|| named().flatten())
}

/// Whether one process cannot listen on both addresses.
fn clash(one: Option<SocketAddr>, other: Option<SocketAddr>) -> bool {
    let (Some(one), Some(other)) = (one, other) else { return false };
    let any = one.ip().is_unspecified() && other.ip().is_unspecified();
    one.port() == other.port() && (any || one.ip() == other.ip())
}

/// The URL, without a path, at which a gateway with this configuration answers health checks from
/// the same machine: the operator's address if there is one. `None` if the address is not valid.
pub(in crate::config) fn own_url(raw: &Raw) -> Option<String> {
    let operator = raw.server.metrics_listen.as_deref();
    let mut address = listening(operator.unwrap_or(&raw.listen))?;
    if address.ip().is_unspecified() {
        // A listener on all addresses has this one on every machine.
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let tls = operator.is_none() && raw.server.tls.is_some();
    Some(format!("{}://{address}", if tls { "https" } else { "http" }))
}

pub(super) fn max_buffered_bytes(raw: &raw::Server) -> u64 {
    match raw.max_buffered_bytes.0 {
        0 => machine::memory().map_or(1 << 30, |bytes| bytes / 4),
        bytes => bytes,
    }
}

pub(super) fn max_connections(raw: &raw::Server) -> usize {
    match raw.max_connections {
        0 => machine::open_files().div_ceil(2),
        count => count,
    }
}

impl Planner<'_> {
    pub(super) fn ip_rules(&mut self, raw: &raw::Server) -> IpRules {
        IpRules {
            allowed: self.nets("server.allowed_ips", &raw.allowed_ips),
            denied: self.nets("server.denied_ips", &raw.denied_ips),
        }
    }

    /// The section `admin`; `None` also if it is switched off.
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

    pub(super) fn fixed(&mut self, raw: &Raw) -> Option<Fixed> {
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
        let tls = raw.server.tls.as_ref().map(|tls| tls.min_version);
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
                self.problem("admin.listen", message, "give it another port");
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
    pub(super) fn keys_db(&self, raw: &Raw) -> PathBuf {
        self.data(raw, raw.admin.db_path.as_deref(), "keys.db")
    }

    pub(super) fn sizes(&mut self, raw: &raw::Server) -> (u64, usize) {
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

    /// The certificates of the listener; their files are watched.
    pub(super) fn certificates(&mut self, raw: Option<&raw::Tls>) -> Option<Certificates> {
        const AT: &str = "server.tls";
        let tls = raw?;
        let first = self.certificate(AT, &tls.cert_file, &tls.key_file);
        let mut all: Vec<Certificate> = first.into_iter().collect();
        for (i, files) in tls.certificates.iter().enumerate() {
            let at = format!("{AT}.certificates[{i}]");
            all.extend(self.certificate(&at, &files.cert_file, &files.key_file));
        }
        Certificates::new(all)
    }

    fn certificate(&mut self, at: &str, cert: &str, key: &str) -> Option<Certificate> {
        let mut read = |name: &str, file: &str| {
            let path = self.path(file);
            let bytes = std::fs::read(&path).map_err(|e| {
                let message = format!("cannot read {}: {e}", path.display());
                let hint = "a relative path starts at the folder of the configuration file";
                self.problem(format!("{at}.{name}"), message, hint);
            });
            self.files.push(path);
            bytes.ok()
        };
        let (chain, private) = (read("cert_file", cert), read("key_file", key));
        Certificate::read(cert, &chain?, &private?)
            .map_err(|why| {
                let hint = "both files must be PEM, and the key must belong to the certificate";
                self.problem(at, why, hint);
            })
            .ok()
    }
}
