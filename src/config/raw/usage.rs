//! `usage` and `usage_hook`.

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use super::{
    scalar::{ByteSize, SecretText, Span, Switch, secs, ten, three_seconds},
    storage::Driver,
};
use crate::config::choices::{KeyForm, ReporterKind, WhenFull};

/// What becomes of usage records.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Usage {
    /// Whether records are made at all. On unless it is set to `false`.
    pub enabled: Switch,
    /// How the caller's key is written into records; `masked` without this.
    pub caller_key: Option<KeyForm>,
    /// Records that may wait in memory, until they are in the spool; 10000 without this. Without
    /// a spool on disk: until they are delivered.
    pub queue_size: Option<usize>,
    /// The log on disk in which records wait until all reporters have delivered them.
    pub spool: Spool,
    /// Where records go; each reporter has its own place in the spool and waits for no other.
    pub reporters: Vec<Reporter>,
    /// Which reporter `/admin/v1/usage` asks: the name of one of type `builtin` or `database`, or
    /// `none`. Without this: the first one there is. If there is none and the admin API is served, a
    /// `builtin` one is added.
    pub store: Option<String>,
    /// Comparing what was metered with what vLLM itself has counted.
    pub reconciliation: Reconciliation,
}

/// The log on disk.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Spool {
    /// Whether records are kept on disk until they are delivered. On unless it is set to `false`:
    /// then they wait in memory, and a crash loses them. A change needs a restart.
    pub enabled: Switch,
    /// Its folder; `usage` in `data_dir` without this. One gateway at a time. A change needs a
    /// restart.
    pub path: Option<String>,
    /// A file of the log is ended at this size.
    pub segment_size: ByteSize,
    /// How much may wait. Room that holds only what has been delivered is taken when needed.
    pub max_size: ByteSize,
    /// What happens when more than `max_size` would wait, or the disk is full.
    pub when_full: WhenFull,
    /// How long a record may be in the hands of the operating system before it is forced to the
    /// disk: what a power failure can cost. A crash of the gateway alone costs less.
    pub fsync_interval: Span,
    /// How long records are kept after they have been delivered, to be replayed; at most as long as
    /// there is room.
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

/// Where records go.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Reporter {
    /// Its name in metrics, in the log and for `llmproxy usage`: letters, digits, `-` and `_`. The
    /// `type` without this. Under its name the gateway knows what it has delivered.
    pub name: Option<String>,
    /// What kind of place.
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
    /// With `type: webhook`, in the words of version 0.3: `webhook.url`.
    #[serde(default, serialize_with = "maybe_url")]
    pub url: Option<String>,
    /// In the words of version 0.3: `webhook.timeout`.
    pub timeout: Option<Span>,
    /// In the words of version 0.3: `webhook.retry`.
    pub retry: Option<u32>,
    /// Of version 0.5: it has no effect, and never had one.
    #[serde(default, skip_serializing)]
    #[schemars(skip)]
    pub script: Option<serde_yaml::Value>,
    /// Records that could not be delivered for so long are put into a file, `dead/NAME.jsonl` in
    /// the folder of the spool, from which `llmproxy usage replay --dead` delivers them.
    #[serde(default = "max_age")]
    pub max_age: Span,
    /// The longest pause after attempts that failed. Pauses grow from half a second to this.
    #[serde(default = "max_backoff")]
    pub max_backoff: Span,
}

impl Reporter {
    /// `max_age` where nothing is said: a week.
    pub const MAX_AGE: Span = Span(Duration::from_secs(7 * 24 * 3600));
    /// `max_backoff` where nothing is said: ten minutes.
    pub const MAX_BACKOFF: Span = Span(Duration::from_secs(600));
}

/// Records by POST.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookReporter {
    /// Records are sent here, as JSON by POST; any 2xx answer accepts them.
    #[serde(serialize_with = "host_only")]
    pub url: String,
    /// `POST` is all there is.
    pub method: Option<String>,
    /// How long one attempt may take.
    #[serde(default = "three_seconds")]
    pub timeout: Span,
    /// Further attempts for a record that the receiver refuses as such (400, 413, 415, 422); then it
    /// is put aside with the dead letters, so that it does not hold the others up. Without a spool on
    /// disk: further attempts for whatever reason, before a record is given up.
    #[serde(default = "ten")]
    pub retry: u32,
    /// Header fields to send along, for instance `Authorization`.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub headers: BTreeMap<String, SecretText>,
    /// Header fields whose values stand in files of their own.
    #[serde(default)]
    pub headers_file: BTreeMap<String, String>,
    /// Signs each request as Standard Webhooks says: `whsec_` and base64, or any text. Several with
    /// spaces between them sign each, so that one can be replaced.
    #[schemars(with = "Option<String>")]
    pub secret: Option<SecretText>,
    /// A file that holds the secret.
    pub secret_file: Option<String>,
    /// Most records in one request. With 1 the body is the record itself, else an array of them.
    #[serde(default = "one_record")]
    pub batch_size: usize,
    /// How long a batch that is not full waits for more records.
    #[serde(default = "one_second")]
    pub flush_interval: Span,
    /// Requests under way at a time. With more than 1 records may arrive out of their order.
    #[serde(default = "one_record")]
    pub concurrency: usize,
}

impl WebhookReporter {
    /// A webhook that is only known by its URL.
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

/// Records in a table, which is made if it is not there.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DatabaseReporter {
    /// The name of one of `storage.databases`.
    pub storage: Option<String>,
    /// The table. What it lacks is added to it.
    #[serde(default = "usage_records")]
    pub table: String,
    /// In the words of version 0.3: what kind of database.
    pub driver: Option<Driver>,
    /// In the words of version 0.3: the connection string.
    #[schemars(with = "Option<String>")]
    pub dsn: Option<SecretText>,
    /// Most records in one statement.
    #[serde(default = "hundred")]
    pub batch_size: usize,
    /// Records older than so many days are removed; 0 means never.
    #[serde(default)]
    pub retention_days: u32,
}

/// Records in a SQLite file of the gateway's own.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BuiltinReporter {
    /// The file; `usage.db` in `data_dir` without this.
    pub path: Option<String>,
    /// Records older than so many days are removed; 0, and nothing here, means never. The reporter
    /// that is added because the admin API is served keeps them for 90 days.
    pub retention_days: u32,
}

/// Records in a file, one a line.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileReporter {
    /// The file.
    pub path: String,
    /// It is begun anew at this size; the earlier ones are called `PATH.1`, `PATH.2` and so on.
    #[serde(default = "hundred_mebibytes")]
    pub max_size: ByteSize,
    /// How many earlier files are kept.
    #[serde(default = "ten_files")]
    pub max_files: usize,
}

/// Records in a stream of Redis, each with its JSON in the field `record`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RedisReporter {
    /// The name of one of `storage.caches`.
    pub storage: String,
    /// The key of the stream.
    #[serde(default = "usage_stream")]
    pub stream: String,
    /// About how many entries Redis keeps; 0 means all.
    #[serde(default)]
    pub max_len: u64,
    /// Most records in one go.
    #[serde(default = "hundred")]
    pub batch_size: usize,
}

/// Comparing what was metered with the engines' own counters.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Reconciliation {
    /// Whether the metrics of backends with `engine: vllm` are read for this.
    pub enabled: bool,
    /// How often they are read.
    pub interval: Span,
    /// The time that is looked back on.
    pub window: Span,
}

impl Default for Reconciliation {
    fn default() -> Self {
        Self { enabled: false, interval: secs(15), window: secs(600) }
    }
}

/// Where usage records are sent, in the words of the first version; `usage.reporters` can do more.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UsageHook {
    /// Whether to send records at all.
    #[serde(default)]
    pub enabled: Switch,
    /// Records are sent here, as JSON by POST; any 2xx answer accepts them.
    #[serde(default, serialize_with = "maybe_url")]
    pub url: Option<String>,
    /// As `webhook.timeout` of a reporter.
    #[serde(default = "three_seconds")]
    pub timeout: Span,
    /// As `webhook.retry` of a reporter.
    #[serde(default = "ten")]
    pub retry: u32,
    /// As `webhook.headers` of a reporter.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub headers: BTreeMap<String, SecretText>,
    /// As `webhook.headers_file` of a reporter.
    #[serde(default)]
    pub headers_file: BTreeMap<String, String>,
    /// As `webhook.secret` of a reporter.
    #[schemars(with = "Option<String>")]
    pub secret: Option<SecretText>,
    /// As `webhook.secret_file` of a reporter.
    pub secret_file: Option<String>,
    /// As `webhook.batch_size` of a reporter.
    #[serde(default = "one_record")]
    pub batch_size: usize,
    /// As `webhook.flush_interval` of a reporter.
    #[serde(default = "one_second")]
    pub flush_interval: Span,
    /// As `webhook.concurrency` of a reporter.
    #[serde(default = "one_record")]
    pub concurrency: usize,
    /// As `usage.queue_size`.
    pub queue_size: Option<usize>,
    /// As `usage.caller_key`.
    pub caller_key: Option<KeyForm>,
    /// In the words of version 0.3: as `usage.reporters`.
    #[serde(default)]
    pub reporters: Vec<Reporter>,
}

/// Writes a URL as far as its host: the receivers of many services are told apart by a secret in
/// their path.
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
