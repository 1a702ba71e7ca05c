//! What the file says: one struct a section, every key with its default. The JSON Schema printed
//! by `llmproxy schema` is derived from these types and their comments.

mod auth;
mod discovery;
mod limit;
mod models;
mod routing;
mod scalar;
mod tier;
mod usage;

use std::{collections::BTreeMap, fmt, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_yaml::Value;

pub use self::{
    auth::*, discovery::*, limit::*, models::*, routing::*, scalar::*, tier::*, usage::*,
};
use crate::base::{Secret, duration};

/// LLMProxy configuration. Strings may hold `${VAR}`, `${VAR:-default}`, and `$$` for a dollar
/// sign. Durations are written `500ms`, `10s`, `5m`. Relative paths start at the folder of this
/// file.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    /// Address of the gateway, `host:port`, or `:port` for all addresses, of IPv6 as well as of IPv4
    /// where the machine has both.
    #[serde(default = "default_listen")]
    pub listen: String,
    /// Process and listener settings.
    #[serde(default)]
    pub server: Server,
    /// The LLM servers behind the gateway.
    #[serde(default)]
    pub backends: Vec<Backend>,
    /// Backends that other places tell of, and name servers.
    pub discovery: Option<Discovery>,
    /// How a backend is chosen, and what happens when one fails.
    #[serde(default)]
    pub routing: Routing,
    /// Models by other names than the backends' own, exact or a prefix with `*` at the end; the
    /// closest one counts.
    #[serde(default)]
    pub models: BTreeMap<String, Model>,
    /// What becomes of requests whose backends fail, in the words of other gateways.
    #[serde(default)]
    pub fallback: Fallback,
    /// Which answers are failures of the backend.
    #[serde(default)]
    pub detection: Detection,
    /// Active probes of the backends. Without this section every backend counts as healthy.
    pub health_check: Option<HealthCheck>,
    /// How long to wait for what.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Which privileged inputs of the engines are taken out of client requests.
    #[serde(default)]
    pub edge_guard: EdgeGuard,
    /// The folder for what the gateway itself keeps: usage records on their way, its databases.
    /// Without this key, the variable `LLMPROXY_DATA_DIR`, if it is set.
    #[serde(default = "data_dir")]
    pub data_dir: String,
    /// Usage records: what becomes of them.
    #[serde(default)]
    pub usage: Usage,
    /// Where usage records are sent, in the words of the first version.
    pub usage_hook: Option<UsageHook>,
    /// What is logged, and how.
    #[serde(default)]
    pub log: Log,
    /// Who may call. Without this section everybody may.
    pub auth: Option<Auth>,
    /// Keys for the provider `file` of `auth`.
    #[serde(default)]
    pub api_keys: Vec<ApiKey>,
    /// Connections that several sections may name.
    #[serde(default)]
    pub storage: Storage,
    /// The admin API.
    #[serde(default)]
    pub admin: Admin,
    /// How much one may call. Without this section only limits of a key's own hold.
    pub rate_limit: Option<RateLimit>,
    /// Ranks of keys, by their names. A key says in `tier` to which it belongs.
    #[serde(default)]
    pub tiers: BTreeMap<String, Tier>,
}

/// Process and listener settings.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Worker threads; 0 means one for each core.
    pub threads: usize,
    /// Largest request body; a larger one is answered 413.
    pub max_body_size: ByteSize,
    /// Largest sum of all header fields of a request; more is answered 431.
    pub max_header_size: ByteSize,
    /// Bytes of request bodies that are held at the same time, of all requests together; a request
    /// beyond that is answered 503. 0: a quarter of the memory of the machine or the container.
    pub max_buffered_bytes: ByteSize,
    /// Bytes a second that a request body must come with on average, after `timeouts.client_read`;
    /// a slower one is answered 408. 0: as slowly as it likes.
    pub min_body_rate: ByteSize,
    /// Connections of clients at the same time; more are refused. 0: as many as half of the limit of
    /// open files.
    pub max_connections: usize,
    /// Connections from one address (of IPv6: from one /64 network); more are refused. Trusted proxies
    /// have no such limit. 0: any number.
    pub max_connections_per_ip: u32,
    /// How long streams may go on after SIGTERM.
    pub graceful_shutdown_timeout: Span,
    /// An address of its own for `/metrics`, `/health` and `/ready`. With it, the main listener
    /// no longer answers `/metrics`.
    pub metrics_listen: Option<String>,
    /// Serve HTTPS instead of HTTP.
    pub tls: Option<Tls>,
    /// Understand HTTP/2 without TLS. It is told from HTTP/1 by the first bytes of a connection.
    pub h2c: bool,
    /// Proxies in front of the gateway, addresses or networks. Only from these is
    /// `X-Forwarded-For` (or `X-Real-IP`) believed.
    pub trusted_proxies: Vec<String>,
    /// Addresses that may call at all; none: every address.
    pub allowed_ips: Vec<String>,
    /// Addresses that may not call.
    pub denied_ips: Vec<String>,
    /// The form of the gateway's own errors.
    pub error_format: ErrorFormat,
    /// Which backends must be healthy for `/ready` to be 200.
    pub ready: Ready,
}

/// Which backends must be healthy for `/ready` to be 200.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ready {
    /// One for every model.
    #[default]
    EveryModel,
    /// One at all, so that a model without any does not take the others out of service.
    AnyBackend,
}

/// The form of the gateway's own errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorFormat {
    /// As the API of the path has them, so that its SDKs raise their own errors.
    #[default]
    Openai,
    /// `{"error": "...", "code": 403}`, as version 0.3 had it; `code` is the HTTP status.
    Simple,
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
            ready: Ready::default(),
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
}

/// One LLM server.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// `http://host:port` or `https://host`, with the path and query that the server wants. A path
    /// with a version in it (`/v1`, `/api/paas/v4`), or `/openai/deployments/NAME`, is the base that
    /// endpoints follow; any other is a prefix before `/v1`. A query is sent with every request.
    #[serde(serialize_with = "without_query")]
    pub url: String,
    /// Whether `/v1` follows the path of the URL, in place of the rule for paths.
    pub append_v1: Option<bool>,
    /// Name in metrics and logs; the URL without one.
    pub name: Option<String>,
    /// Share of the requests in relation to the others, 1 to 1000.
    #[serde(default = "one")]
    pub weight: u32,
    /// Models it serves, exact names or a prefix with `*` at the end. Empty: every model.
    #[serde(default)]
    pub models: Vec<String>,
    /// Sent to the backend as `Authorization: Bearer`. The client's own key never is.
    #[schemars(with = "Option<String>")]
    pub api_key: Option<SecretText>,
    /// A file that holds the key.
    pub api_key_file: Option<String>,
    /// The header field for the key, `api-key` for instance; `Authorization` without it.
    pub auth_header: Option<String>,
    /// The word before the key; without this key `Bearer` in `Authorization`, and none in any other
    /// field.
    pub auth_scheme: Option<String>,
    /// Further header fields to send with every request, in place of the client's.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub headers: BTreeMap<String, SecretText>,
    /// Header fields whose values stand in files of their own.
    #[serde(default)]
    pub headers_file: BTreeMap<String, String>,
    /// The proxy that leads to it, `http://user:password@host:port`; `none`: a direct connection,
    /// whatever the environment says. Without this key `HTTPS_PROXY` and `NO_PROXY` hold, for https.
    #[schemars(with = "Option<String>")]
    pub proxy: Option<SecretText>,
    /// How to ask for token counts in streams where the client did not.
    #[serde(default)]
    pub stream_usage: StreamUsage,
    /// What it is: engines have words of their own for the priority of a request and for the salt
    /// of their caches.
    #[serde(default)]
    pub engine: Engine,
    /// Whether it is used. `false` leaves it out, with every route to it.
    #[serde(default)]
    pub enabled: Switch,
    /// Whether it is probed as the section `health_check` says. `false`: it counts as healthy.
    #[serde(default)]
    pub health_check: Switch,
    /// Language of its API; `openai` is all there is.
    pub protocol: Option<String>,
    /// What becomes of a name that leads to several addresses. `each` without this for http, and
    /// `one` for https: hosted services stand behind addresses that change.
    pub addresses: Option<Addresses>,
}

/// LLM servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// vLLM.
    #[default]
    Vllm,
    /// SGLang.
    Sglang,
    /// Text Generation Inference.
    Tgi,
    /// llama.cpp.
    #[serde(alias = "llama.cpp")]
    Llamacpp,
    /// Any other: nothing is added to its requests.
    Other,
}

/// How to ask an engine for the token counts of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StreamUsage {
    /// In every chunk (`include_usage` and vLLM's `continuous_usage_stats`), so that a stream
    /// that is broken off is counted to the token.
    #[default]
    Continuous,
    /// At the end (`include_usage` only): for servers that refuse unknown options, like OpenAI's.
    Final,
    /// Never: requests pass unchanged, and a stream is counted only if its client asked.
    Off,
}

/// Active probes.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HealthCheck {
    /// Whether to probe at all.
    pub enabled: bool,
    /// Time from one round of probes to the next.
    pub interval: Span,
    /// How long a probe may take.
    pub timeout: Span,
    /// HTTP method.
    pub method: String,
    /// Path, below the path prefix of the backend but outside of a `/v1` at its end.
    pub path: String,
    /// The status of a healthy backend.
    pub expected_status: u16,
    /// Failures in a row until a backend is taken out.
    pub unhealthy_threshold: usize,
    /// Successes in a row until it is back.
    pub healthy_threshold: usize,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            enabled: true,
            interval: Span(Duration::from_secs(30)),
            timeout: Span(Duration::from_secs(5)),
            method: "GET".to_owned(),
            path: "/health".to_owned(),
            expected_status: 200,
            unhealthy_threshold: 3,
            healthy_threshold: 2,
        }
    }
}

/// How long to wait for what; `0` means for ever.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// For a connection to a backend, TLS included.
    pub connect: Span,
    /// For the first byte of an answer's body, from the moment the request was sent. Off by
    /// default: an answer that is not streamed begins only when all of it is generated.
    pub first_byte: Span,
    /// For the first content of a stream, from the moment the request was sent; then another
    /// backend is tried. Off by default.
    pub first_token: Span,
    /// For the next bytes of an answer, once it has begun.
    pub between_chunks: Span,
    /// For the whole request. Off by default.
    pub total: Span,
    /// For a TLS handshake, and for the whole head of a request or the preface of HTTP/2: on a new
    /// connection from its beginning, later from the first byte.
    pub client_head: Span,
    /// For the next bytes of a request's body.
    pub client_read: Span,
    /// For a client to take the next of the bytes that are sent to it.
    pub client_write: Span,
    /// How long a client's connection is kept between requests. Longer than load balancers keep
    /// theirs, so that it is they who close: a request that crosses with our closing is lost.
    pub client_idle: Span,
    /// How long an idle connection to a backend is kept; `0` not at all. uvicorn, which serves vLLM and SGLang,
    /// closes it after 5s; longer than that means failed requests.
    pub upstream_idle: Span,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Span(Duration::from_secs(5)),
            first_byte: Span(Duration::ZERO),
            first_token: Span(Duration::ZERO),
            between_chunks: Span(Duration::from_secs(600)),
            total: Span(Duration::ZERO),
            client_head: Span(Duration::from_secs(30)),
            client_read: Span(Duration::from_secs(60)),
            client_write: Span(Duration::from_secs(60)),
            client_idle: Span(Duration::from_secs(620)),
            upstream_idle: Span(Duration::from_secs(3)),
        }
    }
}

/// Privileged inputs of the engines. vLLM acts on these whoever sends them; its own security
/// guide says to remove them at a reverse proxy. A list given here replaces the default list; an
/// empty one lets everything pass.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EdgeGuard {
    /// Request headers that never reach a backend.
    pub remove_headers: Vec<String>,
    /// Top-level fields of a JSON body that never reach a backend.
    pub remove_fields: Vec<String>,
    /// Response headers of backends that never reach a client.
    pub remove_response_headers: Vec<String>,
}

impl Default for EdgeGuard {
    fn default() -> Self {
        let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        Self {
            remove_headers: list(&["X-Vllm-Priority", "X-data-parallel-rank"]),
            remove_fields: list(&["priority", "kv_transfer_params", "cache_salt", "vllm_xargs"]),
            remove_response_headers: list(&[
                "Set-Cookie",
                "Server",
                "X-Powered-By",
                "X-Served-By",
                "X-Envoy-Upstream-Service-Time",
                "Alt-Svc",
                "Strict-Transport-Security",
            ]),
        }
    }
}

/// Logging.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// What is written: `error`, `warn`, `info`, `debug` or `trace`.
    pub level: Level,
    /// `text` for people, `json` for machines.
    pub format: LogFormat,
    /// Whether to write a line for each request.
    pub access: Switch,
}

/// Log levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Level {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// Log formats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

fn default_listen() -> String {
    ":8000".to_owned()
}

fn one() -> u32 {
    1
}

fn ten() -> u32 {
    10
}

fn yes() -> bool {
    true
}

fn three_seconds() -> Span {
    secs(3)
}

fn secs(n: u64) -> Span {
    Span(Duration::from_secs(n))
}

/// Writes a URL without what may be secret in it.
fn without_query<S: Serializer>(url: &str, serializer: S) -> Result<S::Ok, S::Error> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = host.rsplit('@').next().unwrap_or_default();
    serializer.serialize_str(&format!("{scheme}://{host}{path}"))
}

fn data_dir() -> String {
    "data".to_owned()
}

/// A duration in the file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = scalar(deserializer, "a duration like `10s`")?;
        duration::parse(&text).map(Self).map_err(de::Error::custom)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Duration::ZERO => serializer.serialize_str("0"),
            some => serializer.serialize_str(&format!("{some:?}")),
        }
    }
}

impl JsonSchema for Span {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A duration: `500ms`, `10s`, `1m30s`, `0` for none.",
            "type": ["string", "integer"],
            "examples": ["500ms", "10s", "5m"],
        })
    }
}

/// A number of bytes in the file: `1048576`, `64KiB`, `32MiB`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(pub u64);

impl fmt::Debug for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = scalar(deserializer, "a size like `32MiB`")?;
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let factor: Option<u64> = match text[digits..].trim().to_ascii_lowercase().as_str() {
            "" | "b" => Some(1),
            "k" | "kb" => Some(1000),
            "m" | "mb" => Some(1000 * 1000),
            "g" | "gb" => Some(1000 * 1000 * 1000),
            "kib" => Some(1 << 10),
            "mib" => Some(1 << 20),
            "gib" => Some(1 << 30),
            _ => None,
        };
        let number = text[..digits].parse::<u64>().ok();
        match number.zip(factor).and_then(|(n, f)| n.checked_mul(f)) {
            Some(bytes) => Ok(Self(bytes)),
            None => {
                Err(de::Error::custom(format!("`{text}` is not a size; write `64KiB` or `32MiB`")))
            }
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number of bytes: `1048576`, `64KiB`, `32MiB`.",
            "type": ["string", "integer"],
        })
    }
}

/// What is wrong with a secret that YAML reads as something else.
pub const UNQUOTED: &str = "is not read as text by YAML, which may change it";

/// A secret in the file. It must be a text: YAML reads `1e5`, `0x1F` and `1.10` as numbers.
#[derive(Clone, Debug)]
pub struct SecretText(pub Secret);

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Self(Secret::new(text))),
            // `0x1F` is 31 by now, and `1.10` is 1.1: what was written is not known any more.
            _ => Err(de::Error::custom(UNQUOTED)),
        }
    }
}

impl Serialize for SecretText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("[secret]")
    }
}

fn scalar<'de, D: Deserializer<'de>>(deserializer: D, expected: &str) -> Result<String, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(de::Error::custom(format!("expected {expected}"))),
    }
}
