//! `server`: the process and its listeners.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scalar::{ByteSize, Seconds, Span, Switch};
use crate::{
    base::TlsVersion,
    config::choices::{ErrorFormat, Ready},
};

/// Process and listener settings.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Worker threads; 0 means one for each core.
    pub threads: usize,
    /// Largest request body; a larger one is rejected with 413.
    pub max_body_size: ByteSize,
    /// Largest sum of all header fields of a request; a larger one is rejected with 431.
    pub max_header_size: ByteSize,
    /// Memory for the request bodies of all requests together; a request beyond it is rejected with
    /// 503. 0: a quarter of the memory of the machine or the container.
    pub max_buffered_bytes: ByteSize,
    /// The lowest average rate of a request body, in bytes per second, after
    /// `timeouts.client_read`; a slower one is rejected with 408. 0: no limit.
    pub min_body_rate: ByteSize,
    /// Client connections at the same time; more are refused. 0: half of the limit of open files.
    pub max_connections: usize,
    /// Connections from one address (IPv6: from one /64 network); more are refused. Trusted proxies
    /// are exempt. 0: no limit.
    pub max_connections_per_ip: u32,
    /// How long requests may continue after SIGTERM.
    pub graceful_shutdown_timeout: Span,
    /// A separate address for `/metrics`, `/health` and `/ready`. With it, the main listener no
    /// longer serves `/metrics`.
    pub metrics_listen: Option<String>,
    /// Serve HTTPS instead of HTTP.
    pub tls: Option<Tls>,
    /// Accept HTTP/2 without TLS. The first bytes of a connection distinguish it from HTTP/1.
    pub h2c: bool,
    /// Addresses or networks of proxies in front of the gateway. `X-Forwarded-For` and `X-Real-IP`
    /// are used only if they come from one of these.
    pub trusted_proxies: Vec<String>,
    /// Addresses that may send requests; empty: all.
    pub allowed_ips: Vec<String>,
    /// Addresses that may not send requests.
    pub denied_ips: Vec<String>,
    /// The format of the gateway's own errors.
    pub error_format: ErrorFormat,
    /// Which pages in browsers may call the API. Without it none may.
    pub cors: Option<Cors>,
    /// Which backends must be healthy for `/ready` to be 200.
    pub ready: Ready,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            threads: 0,
            max_body_size: ByteSize(32 << 20),
            max_header_size: ByteSize(64 << 10),
            max_buffered_bytes: ByteSize(0),
            min_body_rate: ByteSize(500),
            max_connections: 0,
            max_connections_per_ip: 0,
            graceful_shutdown_timeout: Span(Duration::from_secs(60)),
            metrics_listen: None,
            tls: None,
            h2c: true,
            trusted_proxies: Vec::new(),
            allowed_ips: Vec::new(),
            denied_ips: Vec::new(),
            error_format: ErrorFormat::default(),
            cors: None,
            ready: Ready::default(),
        }
    }
}

/// Pages in browsers that may call the API.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Cors {
    /// `false`: no page may call.
    pub enabled: Switch,
    /// Origins of pages: `https://app.example.com`, `https://*.example.com` for all below it, or `*`.
    pub allowed_origins: Vec<String>,
    /// Methods that they may use.
    pub allowed_methods: Vec<String>,
    /// Header fields that they may send; empty: any.
    pub allowed_headers: Vec<String>,
    /// Whether requests may come with cookies and the like. Keys of the API need it not.
    pub allow_credentials: bool,
    /// Header fields of answers that they see; empty: all, with `allow_credentials` ids and limits.
    pub expose_headers: Vec<String>,
    /// How long a browser remembers this, in seconds or as a duration; at most 24h.
    pub max_age: Seconds,
}

impl Default for Cors {
    fn default() -> Self {
        Self {
            enabled: Switch(true),
            allowed_origins: Vec::new(),
            allowed_methods: ["GET", "POST", "DELETE"].map(str::to_owned).to_vec(),
            allowed_headers: Vec::new(),
            allow_credentials: false,
            expose_headers: Vec::new(),
            max_age: Seconds(Span(Duration::from_secs(3600))),
        }
    }
}

/// Certificate of the listener.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// PEM file with the certificate chain, the server's own first.
    pub cert_file: String,
    /// PEM file with the private key.
    pub key_file: String,
    /// Further certificates, each for the names in it. A client that asks for another name, or for none,
    /// gets the first one.
    #[serde(default)]
    pub certificates: Vec<CertificateFiles>,
    /// The oldest version of TLS that clients may speak, `"1.2"` or `"1.3"`.
    #[serde(default)]
    pub min_version: TlsVersion,
}

/// A further certificate.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    /// PEM file with the certificate chain, the server's own first.
    pub cert_file: String,
    /// PEM file with the private key.
    pub key_file: String,
}
