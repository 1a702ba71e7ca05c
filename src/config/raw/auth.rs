//! `auth` and `api_keys`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use super::{
    scalar::{
        ByteSize, SecretText, Span, Switch, five_seconds, secs, ten_seconds, without_query, yes,
    },
    storage::Driver,
};
use crate::{base::ResetPeriod, config::choices::Mode};

/// Authentication. With this section every request for inference and for models needs a key.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// Whether keys are required.
    pub enabled: Switch,
    /// How several providers are combined.
    pub mode: Mode,
    /// Prefixes of paths that need no key.
    pub skip_paths: Vec<String>,
    /// Header fields that may hold the key, in order: `Authorization` as `Bearer KEY`, any other as
    /// the bare key. By default `Authorization`, `X-API-Key` and `api-key`.
    pub header_names: Vec<String>,
    /// The providers of keys, in the order in which they are asked. By default: the top-level
    /// `api_keys`.
    pub pipeline: Vec<Provider>,
    /// The response to each rejection.
    pub status_codes: StatusCodes,
    /// Whether to send `X-API-Key-UserID` and `X-API-Key-Name` to the backends. A client's own
    /// fields of these names never reach a backend.
    pub forward_identity: bool,
    /// The source of keys without a `pipeline`; only `file` (the top-level `api_keys`) is
    /// supported.
    pub storage: Option<FileStorage>,
    /// Defaults of the entries of `api_keys`.
    pub defaults: Defaults,
}

/// The source of keys without a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileStorage {
    /// The top-level `api_keys`.
    File,
}

/// Defaults of the entries of `api_keys`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Defaults {
    /// As in an entry.
    pub quota_reset_period: Option<ResetPeriod>,
    /// As in an entry.
    pub total_quota: Option<f64>,
}

/// A provider of keys.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// Name in logs and metrics; the type by default.
    pub name: Option<String>,
    /// The type of the provider. The section of the same name holds its settings.
    #[serde(rename = "type")]
    pub kind: ProviderKind,
    /// Whether it is used.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// With `type: static`.
    #[serde(rename = "static")]
    pub fixed: Option<StaticKeys>,
    /// With `type: redis`.
    pub redis: Option<RedisKeys>,
    /// With `type: database`.
    pub database: Option<DatabaseKeys>,
    /// With `type: webhook`.
    pub webhook: Option<WebhookKeys>,
    /// A script that decides about the keys of this provider, instead of the default rules.
    pub lua: Option<Lua>,
    /// The script itself; the same as `lua: {script}`.
    #[serde(serialize_with = "length_only")]
    pub lua_script: Option<String>,
    /// A file with the script; the same as `lua: {path}`.
    pub lua_script_file: Option<String>,
    /// How long a response of the provider is cached. `0`: it is asked for every request.
    #[serde(default = "ten_seconds")]
    pub cache_ttl: Span,
    /// How long an unknown key is cached, at most `cache_ttl`.
    #[serde(default = "five_seconds")]
    pub negative_cache_ttl: Span,
    /// The number of cached keys, known and unknown.
    #[serde(default = "cache_size")]
    pub cache_size: usize,
    /// What happens while the provider is unavailable.
    #[serde(default)]
    pub on_error: OnError,
    /// With `on_error: allow_cached`: the maximum age of a cached response that is used while the
    /// provider is unavailable.
    #[serde(default = "one_hour")]
    pub max_stale: Span,
    /// How long a response of the provider may take.
    #[serde(default = "five_seconds")]
    pub timeout: Span,
    /// Whether the gateway counts the quotas and balances of these keys. `false`: it only checks
    /// them, and another system counts. No effect for `webhook` and `lua`, which are never counted.
    #[serde(default = "yes")]
    pub count_usage: bool,
}

/// Types of providers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProviderKind {
    /// Keys in the section `static`.
    Static,
    /// The top-level `api_keys`.
    File,
    /// The keys that the admin API manages (`admin.db_path`).
    Builtin,
    /// A hash or a JSON string in Redis.
    Redis,
    /// A row of a table in SQLite, MySQL, MariaDB or PostgreSQL.
    Database,
    /// An HTTP service.
    Webhook,
    /// No source: every key is known, and a script decides.
    Lua,
}

/// What happens while a provider is unavailable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// The key is unknown to this provider; if no other knows it, the request is rejected with 503.
    #[default]
    Deny,
    /// The last response of the provider is used, for up to `max_stale`.
    AllowCached,
}

/// Keys in the configuration file.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StaticKeys {
    /// The keys.
    pub keys: Vec<ApiKey>,
}

/// A key and its properties.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// The key.
    #[schemars(with = "Option<String>")]
    #[serde(skip_serializing)]
    pub key: Option<SecretText>,
    /// A file that holds the key.
    pub key_file: Option<String>,
    /// Its id in records and logs; derived from a hash of the key by default.
    pub id: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// The user that it belongs to.
    pub user_id: Option<String>,
    /// The team that it belongs to.
    pub team: Option<String>,
    /// The tier that it belongs to, one of `tiers`.
    pub tier: Option<String>,
    /// `active`, `disabled`, `quota_exceeded`, `expired`, or 0 to 3.
    pub status: Option<StatusValue>,
    /// Tokens that it may use.
    pub total_quota: Option<f64>,
    /// Tokens that it has used.
    pub used_quota: Option<f64>,
    /// When the quota is reset.
    pub quota_reset_period: Option<ResetPeriod>,
    /// When the quota was last reset.
    pub last_reset_at: Option<Moment>,
    /// Money or credits; the key is rejected at 0 and below.
    pub balance: Option<f64>,
    /// Addresses from which it may be used: `10.0.0.0/8`, `192.0.2.7`. Empty: from everywhere.
    #[serde(default)]
    pub allowed_ips: Vec<String>,
    /// Addresses from which it may not be used.
    #[serde(default)]
    pub denied_ips: Vec<String>,
    /// When it becomes valid.
    pub starts_at: Option<Moment>,
    /// When it expires.
    pub expires_at: Option<Moment>,
    /// For the operator's own use.
    pub created_at: Option<Moment>,
    /// For the operator's own use.
    pub updated_at: Option<Moment>,
    /// Further properties for scripts and records.
    #[serde(default)]
    pub metadata: BTreeMap<String, serde_json::Value>,
    /// Per-key limits, which override those of `rate_limit`.
    pub limits: Option<serde_json::Value>,
}

/// A status: a name or a number.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum StatusValue {
    Number(i64),
    Word(String),
}

/// A time: Unix seconds, or a date and time like `2026-12-31T23:59:59Z`; UTC without a zone.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Moment {
    Unix(i64),
    Text(String),
}

/// Keys in Redis.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RedisKeys {
    /// Name of one of `storage.caches`, instead of an address.
    pub storage: Option<String>,
    /// `host:port`, or `redis://`, `rediss://` (with TLS).
    pub addr: Option<String>,
    /// User name, since Redis 6.
    pub username: Option<String>,
    /// Password.
    #[schemars(with = "Option<String>")]
    pub password: Option<SecretText>,
    /// A file that holds the password.
    pub password_file: Option<String>,
    /// Number of the database.
    pub db: i64,
    /// The name in Redis of a key's entry, which is a hash, or a string with a JSON object.
    /// `llmproxy:key:{api_key}` by default.
    pub key_pattern: Option<String>,
}

/// Keys in a table.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DatabaseKeys {
    /// Name of one of `storage.databases`, instead of `driver` and `dsn`.
    pub storage: Option<String>,
    /// The kind of database, with `dsn`.
    pub driver: Option<Driver>,
    /// The connection string; for SQLite the path of the file.
    #[schemars(with = "Option<String>")]
    pub dsn: Option<SecretText>,
    /// The table; `api_keys` by default.
    pub table: Option<String>,
    /// The column with the key; `api_key` by default.
    pub key_column: Option<String>,
    /// The columns to read; all by default.
    pub fields: Vec<String>,
}

/// An HTTP service that knows keys.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookKeys {
    /// It receives a POST with `{"api_key", "timestamp"}`. It answers 2xx with a JSON object if it
    /// knows the key, and 401, 403 or 404 if not; anything else is a failure.
    #[serde(serialize_with = "without_query")]
    pub url: String,
    /// Only `POST` is supported.
    #[serde(default)]
    pub method: WebhookMethod,
    /// How long a response may take; the provider's `timeout` by default.
    pub timeout: Option<Span>,
    /// Further header fields to send.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub headers: BTreeMap<String, SecretText>,
    /// Header fields whose values are read from files.
    #[serde(default)]
    pub headers_file: BTreeMap<String, String>,
}

/// The HTTP method of a webhook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum WebhookMethod {
    /// The only supported one.
    #[default]
    Post,
}

/// A script, by one of `script`, `path`, `name`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Lua {
    /// The script itself.
    #[serde(serialize_with = "length_only")]
    pub script: Option<String>,
    /// A file with the script; it is read at each load of the configuration.
    pub path: Option<String>,
    /// The name of a built-in script, like `balance`, or of `NAME.lua` in a folder `lua` beside
    /// this file.
    pub name: Option<String>,
    /// How long a call may take; 100ms by default.
    pub timeout: Option<Span>,
    /// How much memory a call may use; 10MiB by default.
    pub max_memory: Option<ByteSize>,
}

/// The responses to rejections.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StatusCodes {
    /// The key is valid. `allow: false` rejects every request.
    pub active: StatusCode,
    /// The key is disabled, or has an unknown status. 403.
    pub disabled: StatusCode,
    /// The key has expired. 403.
    pub expired: StatusCode,
    /// The key is not valid yet. 403.
    pub not_yet_valid: StatusCode,
    /// The key may not be used from this address. 403.
    pub ip_denied: StatusCode,
    /// The quota is used up, or the balance. 429.
    pub quota_exceeded: StatusCode,
    /// No provider knows the key. 401.
    pub not_found: StatusCode,
    /// The request has no key. 401.
    pub missing_key: StatusCode,
    /// A script rejected the request without a status. 403.
    pub denied: StatusCode,
    /// A script failed. 403.
    pub script_error: StatusCode,
    /// No provider knows the key, and at least one is unavailable. 503.
    pub unavailable: StatusCode,
}

/// The response to one rejection.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StatusCode {
    /// `true` allows the request instead.
    pub allow: Option<bool>,
    /// HTTP status.
    pub http_code: Option<u16>,
    /// The `code` in the body.
    pub code: Option<String>,
    /// The `message` in the body.
    pub message: Option<String>,
}

/// A script may hold secrets: only its length is shown.
pub(super) fn length_only<S: Serializer>(
    script: &Option<String>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let shown = script.as_ref().map(|text| format!("[{} bytes]", text.len()));
    shown.serialize(serializer)
}

fn one_hour() -> Span {
    secs(3600)
}

fn cache_size() -> usize {
    100_000
}
