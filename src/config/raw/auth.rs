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

/// Who may call. With this section every request for inference and for models needs a key.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// Whether keys are asked for. On unless it is set to `false`.
    pub enabled: Switch,
    /// How several providers go together.
    pub mode: Mode,
    /// Paths that need no key, by how they begin.
    pub skip_paths: Vec<String>,
    /// Where keys are looked for, in this order. `Authorization` holds `Bearer KEY`, any other
    /// field the key itself. `Authorization`, `X-API-Key` and `api-key` without this.
    pub header_names: Vec<String>,
    /// Where keys come from, in the order in which they are asked. Without any: the top-level
    /// `api_keys`.
    pub pipeline: Vec<Provider>,
    /// How each refusal is answered.
    pub status_codes: StatusCodes,
    /// Send `X-API-Key-UserID` and `X-API-Key-Name` to the backends. What a client sends under
    /// these names never reaches them.
    pub forward_identity: bool,
    /// Where keys come from without a `pipeline`; `file` (the top-level `api_keys`) is all there
    /// is.
    pub storage: Option<FileStorage>,
    /// For entries of `api_keys` that do not say so themselves.
    pub defaults: Defaults,
}

/// The provider of a configuration without a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileStorage {
    /// The top-level `api_keys`.
    File,
}

/// For entries of `api_keys` that do not say so themselves.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Defaults {
    /// As in an entry.
    pub quota_reset_period: Option<ResetPeriod>,
    /// As in an entry.
    pub total_quota: Option<f64>,
}

/// One place where keys come from.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// Name in logs and metrics; the type without one.
    pub name: Option<String>,
    /// What kind of place it is. The section of the same name says where.
    #[serde(rename = "type")]
    pub kind: ProviderKind,
    /// Whether it is asked at all.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// For `type: static`.
    #[serde(rename = "static")]
    pub fixed: Option<StaticKeys>,
    /// For `type: redis`.
    pub redis: Option<RedisKeys>,
    /// For `type: database`.
    pub database: Option<DatabaseKeys>,
    /// For `type: webhook`.
    pub webhook: Option<WebhookKeys>,
    /// A script that decides about the keys of this provider, in place of the default rules.
    pub lua: Option<Lua>,
    /// The script itself; the same as `lua: {script}`.
    #[serde(serialize_with = "length_only")]
    pub lua_script: Option<String>,
    /// A file with the script; the same as `lua: {path}`.
    pub lua_script_file: Option<String>,
    /// How long an answer of the provider holds. `0`: it is asked for every request.
    #[serde(default = "ten_seconds")]
    pub cache_ttl: Span,
    /// How long it holds that the provider does not know a key. Not longer than `cache_ttl`.
    #[serde(default = "five_seconds")]
    pub negative_cache_ttl: Span,
    /// Keys that are remembered, known and unknown ones.
    #[serde(default = "cache_size")]
    pub cache_size: usize,
    /// What happens while the provider cannot be asked.
    #[serde(default)]
    pub on_error: OnError,
    /// With `allow_cached`: how old an answer may be that is used in place of one that cannot be had.
    #[serde(default = "one_hour")]
    pub max_stale: Span,
    /// How long the provider may take for an answer.
    #[serde(default = "five_seconds")]
    pub timeout: Span,
    /// Whether the gateway counts quotas and balances of these keys. `false`: it only compares,
    /// and somebody else counts. Without effect for `webhook` and `lua`, where it never does.
    #[serde(default = "yes")]
    pub count_usage: bool,
}

/// Kinds of providers.
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
    /// No place: every key is known, and a script decides.
    Lua,
}

/// What happens while a provider cannot be asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// The key counts as not known by this provider; if no other knows it, the answer is 503.
    #[default]
    Deny,
    /// What the provider said last still holds, for `max_stale`.
    AllowCached,
}

/// Keys in the file.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StaticKeys {
    /// The keys.
    pub keys: Vec<ApiKey>,
}

/// A key and what is known of it.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// The key.
    #[schemars(with = "Option<String>")]
    #[serde(skip_serializing)]
    pub key: Option<SecretText>,
    /// A file that holds the key.
    pub key_file: Option<String>,
    /// Its identity in records and logs; made from a hash of the key without one.
    pub id: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// Whose it is.
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
    /// When the quota begins anew.
    pub quota_reset_period: Option<ResetPeriod>,
    /// When it last began anew.
    pub last_reset_at: Option<Moment>,
    /// Money or credits; the key is refused at 0 and below.
    pub balance: Option<f64>,
    /// Addresses from which it may be used: `10.0.0.0/8`, `192.0.2.7`. None: from everywhere.
    #[serde(default)]
    pub allowed_ips: Vec<String>,
    /// Addresses from which it may not be used.
    #[serde(default)]
    pub denied_ips: Vec<String>,
    /// From when it is good.
    pub starts_at: Option<Moment>,
    /// Until when it is good.
    pub expires_at: Option<Moment>,
    /// For the operator's own use.
    pub created_at: Option<Moment>,
    /// For the operator's own use.
    pub updated_at: Option<Moment>,
    /// Anything else that scripts, records or hooks should know of it.
    #[serde(default)]
    pub metadata: BTreeMap<String, serde_json::Value>,
    /// Limits of its own, in place of those of `rate_limit`.
    pub limits: Option<serde_json::Value>,
}

/// A status: a word or a number.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum StatusValue {
    Number(i64),
    Word(String),
}

/// A moment: Unix seconds, or a date and time like `2026-12-31T23:59:59Z`; without a zone in UTC.
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
    /// Name of one of `storage.caches`, in place of the address.
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
    /// What stands in Redis for a key: a hash, or a string with a JSON object.
    /// `llmproxy:key:{api_key}` without one.
    pub key_pattern: Option<String>,
}

/// Keys in a table.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DatabaseKeys {
    /// Name of one of `storage.databases`, in place of `driver` and `dsn`.
    pub storage: Option<String>,
    /// The kind of database, with `dsn`.
    pub driver: Option<Driver>,
    /// The connection string; for SQLite the path of the file.
    #[schemars(with = "Option<String>")]
    pub dsn: Option<SecretText>,
    /// The table; `api_keys` without one.
    pub table: Option<String>,
    /// The column with the key; `api_key` without one.
    pub key_column: Option<String>,
    /// The columns wanted; all without any.
    pub fields: Vec<String>,
}

/// An HTTP service that knows keys.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookKeys {
    /// Asked by POST with `{"api_key", "timestamp"}`. It answers 2xx with a JSON object if it
    /// knows the key, and 401, 403 or 404 if not; anything else is a failure.
    #[serde(serialize_with = "without_query")]
    pub url: String,
    /// `POST` is all there is.
    #[serde(default)]
    pub method: WebhookMethod,
    /// How long an answer may take; the `timeout` of the provider without this.
    pub timeout: Option<Span>,
    /// Header fields to send along.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub headers: BTreeMap<String, SecretText>,
    /// Header fields whose values stand in files of their own.
    #[serde(default)]
    pub headers_file: BTreeMap<String, String>,
}

/// How a webhook is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum WebhookMethod {
    /// The only way.
    #[default]
    Post,
}

/// A script. One of `script`, `path`, `name`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Lua {
    /// The script itself.
    #[serde(serialize_with = "length_only")]
    pub script: Option<String>,
    /// A file with the script; read at each load of the configuration.
    pub path: Option<String>,
    /// One of the scripts that come with the gateway, like `balance`; or `NAME.lua` in a folder
    /// `lua` beside this file.
    pub name: Option<String>,
    /// How long a call may take; 100ms without this.
    pub timeout: Option<Span>,
    /// How much memory a call may take; 10MiB without this.
    pub max_memory: Option<ByteSize>,
}

/// How refusals are answered.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StatusCodes {
    /// The key is good. `allow: false` closes the gateway for everyone.
    pub active: StatusCode,
    /// The key is disabled, or has a status that nobody knows. 403.
    pub disabled: StatusCode,
    /// It is too late for the key. 403.
    pub expired: StatusCode,
    /// It is too early for the key. 403.
    pub not_yet_valid: StatusCode,
    /// The key may not be used from this address. 403.
    pub ip_denied: StatusCode,
    /// The quota is used up, or the balance. 429.
    pub quota_exceeded: StatusCode,
    /// No provider knows the key. 401.
    pub not_found: StatusCode,
    /// There is no key in the request. 401.
    pub missing_key: StatusCode,
    /// A script said no and nothing else. 403.
    pub denied: StatusCode,
    /// A script failed. 403.
    pub script_error: StatusCode,
    /// No provider knows the key, and one could not be asked. 503.
    pub unavailable: StatusCode,
}

/// How one refusal is answered.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StatusCode {
    /// `true` makes it no refusal.
    pub allow: Option<bool>,
    /// HTTP status.
    pub http_code: Option<u16>,
    /// The `code` in the body.
    pub code: Option<String>,
    /// The sentence in the body.
    pub message: Option<String>,
}

/// A script may well hold keys: it is not shown.
fn length_only<S: Serializer>(script: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    let shown = script.as_ref().map(|text| format!("[{} bytes]", text.len()));
    shown.serialize(serializer)
}

fn one_hour() -> Span {
    secs(3600)
}

fn cache_size() -> usize {
    100_000
}
