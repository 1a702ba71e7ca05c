//! `usage` and `usage_hook`.

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use super::{
    scalar::{ByteSize, SecretText, Span, Switch, secs, ten, three_seconds},
    storage::Driver,
};
use crate::config::choices::{KeyForm, ReporterKind, WhenFull};

/// Usage records.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Usage {
    /// Whether records are written.
    pub enabled: Switch,
    /// How the API key is written into records; `masked` by default.
    pub caller_key: Option<KeyForm>,
    /// The number of records that may wait in memory until they are written to the spool or,
    /// without a spool, until they are delivered; 10000 by default.
    pub queue_size: Option<usize>,
    /// The spool on disk, in which records wait until all reporters have delivered them.
    pub spool: Spool,
    /// The destinations of records. Each reporter has its own position in the spool and waits for
    /// no other.
    pub reporters: Vec<Reporter>,
    /// The reporter whose table `/admin/v1/usage` reads: the name of one of type `builtin` or
    /// `database`, or `none`. By default the first of these types; if there is none and the admin
    /// API is on, a `builtin` reporter is added.
    pub store: Option<String>,
    /// Comparing the metered tokens with vLLM's own counters.
    pub reconciliation: Reconciliation,
}

/// The spool on disk.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Spool {
    /// Whether records are kept on disk until they are delivered. `false`: they wait in memory, and
    /// a crash loses them. A change needs a restart.
    pub enabled: Switch,
    /// Its folder; `usage` in `data_dir` by default. Only one gateway may use it at a time. A
    /// change needs a restart.
    pub path: Option<String>,
    /// The size at which a file of the spool is closed.
    pub segment_size: ByteSize,
    /// The largest size of undelivered records. Space of delivered records is reused when it is
    /// needed.
    pub max_size: ByteSize,
    /// What happens when `max_size` is reached, or the disk is full.
    pub when_full: WhenFull,
    /// The longest time between writing a record and fsync: what a power failure can lose. A crash
    /// of the gateway alone loses less.
    pub fsync_interval: Span,
    /// How long delivered records are kept for a replay, as long as there is space.
    pub keep: Span,
}

impl Default for Spool {
    fn default() -> Self {
        Self {
            enabled: Switch::default(),
            path: None,
            segment_size: ByteSize(16 << 20),
            max_size: ByteSize(1 << 30),
            when_full: WhenFull::default(),
            fsync_interval: Span(Duration::from_millis(100)),
            keep: Span(Duration::from_secs(24 * 3600)),
        }
    }
}

/// A destination of records.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Reporter {
    /// Its name in metrics, in the log and for `llmproxy usage`: letters, digits, `-` and `_`. The
    /// `type` by default. The position in the spool is stored under this name.
    pub name: Option<String>,
    /// The type of the destination.
    #[serde(rename = "type")]
    pub kind: ReporterKind,
    /// Whether it is used.
    #[serde(default)]
    pub enabled: Switch,
    /// With `type: webhook`.
    pub webhook: Option<WebhookReporter>,
    /// With `type: database`.
    pub database: Option<DatabaseReporter>,
    /// With `type: builtin`.
    pub builtin: Option<BuiltinReporter>,
    /// With `type: file`.
    pub file: Option<FileReporter>,
    /// With `type: redis`.
    pub redis: Option<RedisReporter>,
    /// With `type: webhook`: the key of version 0.3 for `webhook.url`.
    #[serde(default, serialize_with = "maybe_url")]
    pub url: Option<String>,
    /// The key of version 0.3 for `webhook.timeout`.
    pub timeout: Option<Span>,
    /// The key of version 0.3 for `webhook.retry`.
    pub retry: Option<u32>,
    /// A key of version 0.5 that has never had an effect.
    #[serde(default, skip_serializing)]
    #[schemars(skip)]
    pub script: Option<serde_yaml::Value>,
    /// The age at which an undelivered record becomes a dead letter: it is moved to
    /// `dead/NAME.jsonl` in the folder of the spool, from which `llmproxy usage replay --dead`
    /// delivers it.
    #[serde(default = "max_age")]
    pub max_age: Span,
    /// The longest pause after failed attempts. Pauses grow from half a second to this.
    #[serde(default = "max_backoff")]
    pub max_backoff: Span,
}

impl Reporter {
    /// The default of `max_age`: a week.
    pub const MAX_AGE: Span = Span(Duration::from_secs(7 * 24 * 3600));
    /// The default of `max_backoff`: ten minutes.
    pub const MAX_BACKOFF: Span = Span(Duration::from_secs(600));
}

/// A webhook: records are sent with POST.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookReporter {
    /// Records are sent to this URL as JSON, with POST; any 2xx response accepts them.
    #[serde(serialize_with = "host_only")]
    pub url: String,
    /// Only `POST` is supported.
    pub method: Option<String>,
    /// How long one attempt may take.
    #[serde(default = "three_seconds")]
    pub timeout: Span,
    /// Retries of a record that the receiver rejects (400, 413, 415, 422), before it becomes a dead
    /// letter and no longer delays the others. Without a spool: retries after any failure, before
    /// the record is dropped.
    #[serde(default = "ten")]
    pub retry: u32,
    /// Further header fields to send, for instance `Authorization`.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub headers: BTreeMap<String, SecretText>,
    /// Header fields whose values are read from files.
    #[serde(default)]
    pub headers_file: BTreeMap<String, String>,
    /// Signs each request as Standard Webhooks specifies: `whsec_` and base64, or any text. Several
    /// secrets, separated by spaces, produce one signature each, so that one can be replaced.
    #[schemars(with = "Option<String>")]
    pub secret: Option<SecretText>,
    /// A file that holds the secret.
    pub secret_file: Option<String>,
    /// The most records of one request. With 1 the body is the record itself, otherwise an array.
    #[serde(default = "one_record")]
    pub batch_size: usize,
    /// How long an incomplete batch waits for more records.
    #[serde(default = "one_second")]
    pub flush_interval: Span,
    /// Concurrent requests. With more than 1, records may arrive out of order.
    #[serde(default = "one_record")]
    pub concurrency: usize,
}

impl WebhookReporter {
    /// A webhook with the defaults for everything except its URL.
    pub fn at(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            method: None,
            timeout: three_seconds(),
            retry: ten(),
            headers: BTreeMap::new(),
            headers_file: BTreeMap::new(),
            secret: None,
            secret_file: None,
            batch_size: one_record(),
            flush_interval: one_second(),
            concurrency: one_record(),
        }
    }
}

/// A table, which is created if it does not exist.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DatabaseReporter {
    /// The name of one of `storage.databases`.
    pub storage: Option<String>,
    /// The table. Missing columns are added to it.
    #[serde(default = "usage_records")]
    pub table: String,
    /// The key of version 0.3 for the kind of database.
    pub driver: Option<Driver>,
    /// The key of version 0.3 for the connection string.
    #[schemars(with = "Option<String>")]
    pub dsn: Option<SecretText>,
    /// The most records of one statement.
    #[serde(default = "hundred")]
    pub batch_size: usize,
    /// The age in days after which records are deleted; 0: never.
    #[serde(default)]
    pub retention_days: u32,
}

/// The gateway's own SQLite file.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BuiltinReporter {
    /// The file; `usage.db` in `data_dir` by default.
    pub path: Option<String>,
    /// The age in days after which records are deleted; 0, the default: never. The reporter that is
    /// added for the admin API keeps records for 90 days.
    pub retention_days: u32,
}

/// A file with one record per line.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileReporter {
    /// The file.
    pub path: String,
    /// The size at which it is rotated; earlier files are called `PATH.1`, `PATH.2` and so on.
    #[serde(default = "hundred_mebibytes")]
    pub max_size: ByteSize,
    /// The number of earlier files that are kept.
    #[serde(default = "ten_files")]
    pub max_files: usize,
}

/// A Redis stream; each entry has the record as JSON in the field `record`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RedisReporter {
    /// The name of one of `storage.caches`.
    pub storage: String,
    /// The key of the stream.
    #[serde(default = "usage_stream")]
    pub stream: String,
    /// The approximate number of entries that Redis keeps; 0: all.
    #[serde(default)]
    pub max_len: u64,
    /// The most records of one command.
    #[serde(default = "hundred")]
    pub batch_size: usize,
}

/// Comparing the metered tokens with the counters of the engines.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Reconciliation {
    /// Whether to read the metrics of backends with `engine: vllm` for this.
    pub enabled: bool,
    /// How often they are read.
    pub interval: Span,
    /// The period that is compared.
    pub window: Span,
}

impl Default for Reconciliation {
    fn default() -> Self {
        Self { enabled: false, interval: secs(15), window: secs(600) }
    }
}

/// Where usage records are sent, with the keys of version 0.3; `usage.reporters` offers more.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UsageHook {
    /// Whether to send records.
    #[serde(default)]
    pub enabled: Switch,
    /// Records are sent to this URL as JSON, with POST; any 2xx response accepts them.
    #[serde(default, serialize_with = "maybe_url")]
    pub url: Option<String>,
    /// Like `webhook.timeout` of a reporter.
    #[serde(default = "three_seconds")]
    pub timeout: Span,
    /// Like `webhook.retry` of a reporter.
    #[serde(default = "ten")]
    pub retry: u32,
    /// Like `webhook.headers` of a reporter.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub headers: BTreeMap<String, SecretText>,
    /// Like `webhook.headers_file` of a reporter.
    #[serde(default)]
    pub headers_file: BTreeMap<String, String>,
    /// Like `webhook.secret` of a reporter.
    #[schemars(with = "Option<String>")]
    pub secret: Option<SecretText>,
    /// Like `webhook.secret_file` of a reporter.
    pub secret_file: Option<String>,
    /// Like `webhook.batch_size` of a reporter.
    #[serde(default = "one_record")]
    pub batch_size: usize,
    /// Like `webhook.flush_interval` of a reporter.
    #[serde(default = "one_second")]
    pub flush_interval: Span,
    /// Like `webhook.concurrency` of a reporter.
    #[serde(default = "one_record")]
    pub concurrency: usize,
    /// Like `usage.queue_size`.
    pub queue_size: Option<usize>,
    /// Like `usage.caller_key`.
    pub caller_key: Option<KeyForm>,
    /// The key of version 0.3 for `usage.reporters`.
    #[serde(default)]
    pub reporters: Vec<Reporter>,
}

/// Writes a URL up to its host: the path is the secret of many services.
fn host_only<S: Serializer>(url: &str, serializer: S) -> Result<S::Ok, S::Error> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    let path = if matches!(path, "" | "/") { path } else { "/[…]" };
    serializer.serialize_str(&format!("{scheme}://{host}{path}"))
}

fn maybe_url<S: Serializer>(url: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    match url {
        Some(url) => host_only(url, serializer),
        None => serializer.serialize_none(),
    }
}

fn one_second() -> Span {
    secs(1)
}

fn max_age() -> Span {
    Reporter::MAX_AGE
}

fn max_backoff() -> Span {
    Reporter::MAX_BACKOFF
}

fn one_record() -> usize {
    1
}

fn hundred() -> usize {
    100
}

fn ten_files() -> usize {
    10
}

fn hundred_mebibytes() -> ByteSize {
    ByteSize(100 << 20)
}

fn usage_records() -> String {
    "usage_records".to_owned()
}

fn usage_stream() -> String {
    "llmproxy:usage".to_owned()
}
