//! `usage` and `usage_hook`: the destinations of records, and the spool.

use std::{path::PathBuf, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderName, HeaderValue};

use super::planner::Planner;
use crate::{
    base::Secret,
    config::{
        choices::{KeyForm, ReporterKind, WhenFull},
        raw::{self, Raw},
    },
    store::{redis, sql},
};

/// Usage records.
#[derive(Clone, Debug)]
pub struct UsagePlan {
    /// How the API key is written.
    pub caller_key: KeyForm,
    /// Records that may wait in memory.
    pub queue_size: usize,
    pub spool: SpoolPlan,
    /// Empty: no records are written.
    pub reporters: Vec<ReporterPlan>,
    /// The index of the reporter whose table the admin API reads.
    pub store: Option<usize>,
    /// Comparing them with the counters of the engines; `None`: off.
    pub reconciliation: Option<ReconciliationPlan>,
}

impl UsagePlan {
    /// Whether records are written.
    pub fn is_on(&self) -> bool {
        !self.reporters.is_empty()
    }
}

/// The settings of the spool that a reload can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpoolPlan {
    /// The size at which a segment is closed, in bytes.
    pub segment_size: u64,
    /// The limit of undelivered bytes.
    pub max_size: u64,
    /// What happens at the limit.
    pub when_full: WhenFull,
    /// The longest time until a record is forced to the disk.
    pub fsync_interval: Duration,
    /// How long delivered records are kept.
    pub keep: Duration,
}

/// A destination of records.
#[derive(Clone, Debug, PartialEq)]
pub struct ReporterPlan {
    /// Its name: letters, digits, `-` and `_`.
    pub name: String,
    pub to: Destination,
    /// Older records become dead letters.
    pub max_age: Duration,
    /// The longest pause after failed attempts.
    pub max_backoff: Duration,
}

impl ReporterPlan {
    /// A reporter with the defaults.
    fn with_defaults(name: String, to: Destination) -> Self {
        let (max_age, max_backoff) = (raw::Reporter::MAX_AGE.0, raw::Reporter::MAX_BACKOFF.0);
        Self { name, to, max_age, max_backoff }
    }
}

/// Where and how records are delivered.
#[derive(Clone, Debug, PartialEq)]
pub enum Destination {
    Webhook(WebhookPlan),
    Database(TablePlan),
    /// A file with one record per line.
    File(FilePlan),
    /// A stream of Redis.
    Redis(StreamPlan),
}

impl Destination {
    /// Its `type` in the configuration.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Webhook(_) => ReporterKind::Webhook.word(),
            Self::Database(table) if table.own => ReporterKind::Builtin.word(),
            Self::Database(_) => ReporterKind::Database.word(),
            Self::File(_) => ReporterKind::File.word(),
            Self::Redis(_) => ReporterKind::Redis.word(),
        }
    }
}

/// The usage webhook.
#[derive(Clone, Debug, PartialEq)]
pub struct WebhookPlan {
    /// Its path or query may have a token.
    pub url: Secret,
    /// How long one attempt may take.
    pub timeout: Duration,
    /// Retries of a record that the receiver rejects.
    pub retry: u32,
    /// Further header fields.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The keys that sign requests.
    pub keys: Vec<SigningKey>,
    /// The most records of one request.
    pub batch_size: usize,
    /// How long an incomplete batch waits.
    pub flush_interval: Duration,
    /// Concurrent requests.
    pub concurrency: usize,
}

/// A secret that signs requests.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey(pub Vec<u8>);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

/// A table for records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablePlan {
    /// The database.
    pub settings: sql::Settings,
    /// Possibly with its schema: `billing.usage_records`.
    pub table: String,
    /// The most records of one statement.
    pub batch_size: usize,
    /// The age at which records are deleted; `None`: never.
    pub retention: Option<Duration>,
    /// Whether it is the gateway's own SQLite file.
    pub own: bool,
}

/// A file for records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePlan {
    pub path: PathBuf,
    /// The size at which it is rotated, in bytes.
    pub max_size: u64,
    /// The number of earlier files that are kept.
    pub max_files: usize,
}

/// A stream of Redis for records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamPlan {
    /// The server.
    pub settings: redis::Settings,
    /// The key.
    pub stream: String,
    /// The approximate number of entries that are kept; `None`: all.
    pub max_len: Option<u64>,
    /// The most records of one command.
    pub batch_size: usize,
}

/// Comparing the metered tokens with the counters of the engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReconciliationPlan {
    /// Time between two readings of the engines' metrics.
    pub interval: Duration,
    /// The period that is compared.
    pub window: Duration,
}

/// How long the reporter that is added for the admin API keeps records, in days.
const ADDED_REPORTER_DAYS: u32 = 90;

/// The name of the reporter of `usage_hook`.
const HOOK: &str = "usage_hook";

impl Planner<'_> {
    pub(super) fn usage(&mut self, whole: &Raw) -> Option<UsagePlan> {
        let raw = &whole.usage;
        let hook = whole.usage_hook.as_ref().filter(|hook| hook.enabled.0);
        let queue_size = raw.queue_size.or(hook.and_then(|h| h.queue_size)).unwrap_or(10_000);
        if !(1..=10_000_000).contains(&queue_size) {
            let at =
                if raw.queue_size.is_some() { "usage.queue_size" } else { "usage_hook.queue_size" };
            self.problem(at, "is not between 1 and 10000000", "");
        }
        let mut reporters = Vec::new();
        let trusting = self.trusting.len();
        if let Some(hook) = hook {
            reporters.extend(self.hook(hook));
            self.reporters("usage_hook.reporters", &hook.reporters, whole, &mut reporters);
        }
        self.reporters("usage.reporters", &raw.reporters, whole, &mut reporters);
        let spool = self.spool(&raw.spool);
        let reconciliation = self.reconciliation(&raw.reconciliation);
        let mut store = self.store(raw, &reporters);
        if raw.store.is_none() && store.is_none() && whole.admin.enabled {
            store = Some(reporters.len());
            // The operator has not configured it, and may not watch its size.
            let bounded = raw::BuiltinReporter { path: None, retention_days: ADDED_REPORTER_DAYS };
            let built_in = self.builtin(&bounded, whole);
            let name = free_name(&reporters);
            reporters.push(ReporterPlan::with_defaults(name, Destination::Database(built_in)));
        }
        if !raw.enabled.0 {
            (reporters, store) = (Vec::new(), None);
            self.trusting.truncate(trusting);
        }
        Some(UsagePlan {
            caller_key: raw.caller_key.or(hook.and_then(|h| h.caller_key)).unwrap_or_default(),
            queue_size,
            spool: spool?,
            reporters,
            store,
            reconciliation,
        })
    }

    fn hook(&mut self, raw: &raw::UsageHook) -> Option<ReporterPlan> {
        let Some(url) = &raw.url else {
            if raw.reporters.is_empty() {
                self.problem("usage_hook.url", "is missing", "write `https://host/path`");
            }
            return None;
        };
        let webhook = raw::WebhookReporter {
            timeout: raw.timeout,
            retry: raw.retry,
            headers: raw.headers.clone(),
            headers_file: raw.headers_file.clone(),
            secret: raw.secret.clone(),
            secret_file: raw.secret_file.clone(),
            batch_size: raw.batch_size,
            flush_interval: raw.flush_interval,
            concurrency: raw.concurrency,
            ..raw::WebhookReporter::at(url)
        };
        let to = Destination::Webhook(self.webhook(HOOK, &webhook)?);
        Some(ReporterPlan::with_defaults(HOOK.to_owned(), to))
    }

    fn reporters(
        &mut self,
        at: &str,
        raw: &[raw::Reporter],
        whole: &Raw,
        plans: &mut Vec<ReporterPlan>,
    ) {
        for (i, raw) in raw.iter().enumerate() {
            let at = format!("{at}[{i}]");
            let name = raw.name.as_deref().unwrap_or(raw.kind.word());
            let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
            if name.is_empty() || name.len() > 64 || !name.chars().all(legal) {
                let hint = "a name has letters, digits, `-` and `_`, at most 64";
                self.problem(format!("{at}.name"), format!("`{name}` is not a name"), hint);
            }
            if plans.iter().any(|plan| plan.name == name) {
                let message = format!("another reporter has the same name: `{name}`");
                self.problem(&at, message, "give each reporter its own `name`");
            }
            if raw.script.is_some() {
                self.warn(format!("{at}.script"), "has no effect, as in version 0.5: remove it");
            }
            let trusting = self.trusting.len();
            let to = self.destination(&at, raw, whole);
            if !raw.enabled.0 {
                // A disabled reporter needs no trust store.
                self.trusting.truncate(trusting);
            } else if let Some(to) = to {
                plans.push(ReporterPlan {
                    name: name.to_owned(),
                    to,
                    max_age: self.not_zero(&at, "max_age", raw.max_age),
                    max_backoff: self.not_zero(&at, "max_backoff", raw.max_backoff),
                });
            }
        }
    }

    fn not_zero(&mut self, at: &str, key: &str, span: raw::Span) -> Duration {
        if span.0.is_zero() {
            self.problem(format!("{at}.{key}"), "is zero", "");
        }
        span.0
    }

    fn destination(&mut self, at: &str, raw: &raw::Reporter, whole: &Raw) -> Option<Destination> {
        let kind = raw.kind;
        let own = [
            (ReporterKind::Webhook, raw.webhook.is_some(), "webhook"),
            (ReporterKind::Webhook, raw.url.is_some(), "url"),
            (ReporterKind::Webhook, raw.timeout.is_some(), "timeout"),
            (ReporterKind::Webhook, raw.retry.is_some(), "retry"),
            (ReporterKind::Database, raw.database.is_some(), "database"),
            (ReporterKind::Builtin, raw.builtin.is_some(), "builtin"),
            (ReporterKind::File, raw.file.is_some(), "file"),
            (ReporterKind::Redis, raw.redis.is_some(), "redis"),
        ];
        for (of, given, key) in own {
            if given && of != kind {
                let message = format!("does not belong to a reporter of type `{}`", kind.word());
                self.problem(format!("{at}.{key}"), message, "");
            }
        }
        let (what, word) = ("reporter", kind.word());
        let inside = format!("{at}.{word}");
        Some(match kind {
            ReporterKind::Webhook => Destination::Webhook(match (&raw.webhook, &raw.url) {
                (Some(_), Some(_)) => {
                    self.problem(format!("{at}.url"), "is also set in `webhook`", "keep one");
                    return None;
                }
                (None, Some(url)) => {
                    let mut webhook = raw::WebhookReporter::at(url);
                    webhook.timeout = raw.timeout.unwrap_or(webhook.timeout);
                    webhook.retry = raw.retry.unwrap_or(webhook.retry);
                    self.webhook(at, &webhook)?
                }
                (webhook, None) => {
                    let webhook = self.section(at, what, word, webhook.as_ref())?;
                    self.webhook(&inside, webhook)?
                }
            }),
            ReporterKind::Database => {
                let table = self.section(at, what, word, raw.database.as_ref())?;
                Destination::Database(self.table(&inside, table, whole)?)
            }
            ReporterKind::Builtin => {
                let raw = raw.builtin.clone().unwrap_or_default();
                Destination::Database(self.builtin(&raw, whole))
            }
            ReporterKind::File => {
                let file = self.section(at, what, word, raw.file.as_ref())?;
                Destination::File(self.record_file(&inside, file))
            }
            ReporterKind::Redis => {
                let redis = self.section(at, what, word, raw.redis.as_ref())?;
                Destination::Redis(self.stream(&inside, redis, whole)?)
            }
        })
    }

    fn webhook(&mut self, at: &str, raw: &raw::WebhookReporter) -> Option<WebhookPlan> {
        let key = |name: &str| format!("{at}.{name}");
        let fine = self.http_url(&key("url"), &raw.url);
        if raw.method.as_deref().is_some_and(|m| !m.eq_ignore_ascii_case("POST")) {
            self.problem(key("method"), "only POST is supported", "remove it");
        }
        if raw.timeout.0.is_zero() {
            self.problem(key("timeout"), "is zero", "the default is 3s");
        }
        self.batch_size(at, raw.batch_size);
        if !(1..=1000).contains(&raw.concurrency) {
            self.problem(key("concurrency"), "is not between 1 and 1000", "the default is 1");
        }
        let headers = self.header_fields(at, &raw.headers, &raw.headers_file);
        let secret = self.secret(at, "secret", raw.secret.as_ref(), raw.secret_file.as_deref());
        let keys = match secret.as_ref().map(signing_keys) {
            None => Vec::new(),
            Some(Ok(keys)) => keys,
            Some(Err(why)) => {
                self.problem(key("secret"), why, "write `whsec_` and base64, or any text");
                return None;
            }
        };
        fine.then(|| WebhookPlan {
            url: Secret::new(&raw.url),
            timeout: raw.timeout.0,
            retry: raw.retry,
            headers,
            keys,
            batch_size: raw.batch_size,
            flush_interval: raw.flush_interval.0,
            concurrency: raw.concurrency,
        })
    }

    fn batch_size(&mut self, at: &str, size: usize) {
        if !(1..=10_000).contains(&size) {
            self.problem(format!("{at}.batch_size"), "is not between 1 and 10000", "");
        }
    }

    fn table(&mut self, at: &str, raw: &raw::DatabaseReporter, whole: &Raw) -> Option<TablePlan> {
        let own = (raw.driver, raw.dsn.as_ref());
        let settings = self.named_or_own(at, raw.storage.as_deref(), own, whole)?;
        if let Err(why) = sql::table_name(settings.driver, &raw.table) {
            self.problem(format!("{at}.table"), why, "a name consists of letters, digits and `_`");
        }
        self.batch_size(at, raw.batch_size);
        Some(TablePlan {
            settings,
            table: raw.table.clone(),
            batch_size: raw.batch_size,
            retention: days(raw.retention_days),
            own: false,
        })
    }

    fn builtin(&mut self, raw: &raw::BuiltinReporter, whole: &Raw) -> TablePlan {
        TablePlan {
            settings: sql::Settings::own_file(self.data(whole, raw.path.as_deref(), "usage.db")),
            table: "usage_records".to_owned(),
            batch_size: 100,
            retention: days(raw.retention_days),
            own: true,
        }
    }

    fn record_file(&mut self, at: &str, raw: &raw::FileReporter) -> FilePlan {
        if raw.max_size.0 < 1024 {
            self.problem(format!("{at}.max_size"), "is less than 1KiB", "the default is 100MiB");
        }
        FilePlan { path: self.path(&raw.path), max_size: raw.max_size.0, max_files: raw.max_files }
    }

    fn stream(&mut self, at: &str, raw: &raw::RedisReporter, whole: &Raw) -> Option<StreamPlan> {
        self.batch_size(at, raw.batch_size);
        if raw.stream.is_empty() {
            self.problem(format!("{at}.stream"), "is empty", "the default is `llmproxy:usage`");
        }
        Some(StreamPlan {
            settings: self.named_cache(&format!("{at}.storage"), &raw.storage, whole)?,
            stream: raw.stream.clone(),
            max_len: (raw.max_len > 0).then_some(raw.max_len),
            batch_size: raw.batch_size,
        })
    }

    fn spool(&mut self, raw: &raw::Spool) -> Option<SpoolPlan> {
        let at = |key: &str| format!("usage.spool.{key}");
        let before = self.problems.len();
        if !(64 << 10..=1 << 30).contains(&raw.segment_size.0) {
            let hint = "the default is 16MiB";
            self.problem(at("segment_size"), "is not between 64KiB and 1GiB", hint);
        }
        if raw.max_size.0 < raw.segment_size.0.saturating_mul(4) {
            let hint = "space is freed in whole segments";
            self.problem(at("max_size"), "is less than four times `segment_size`", hint);
        }
        if raw.fsync_interval.0 > Duration::from_secs(60) {
            self.problem(at("fsync_interval"), "is longer than a minute", "the default is 100ms");
        }
        (self.problems.len() == before).then_some(SpoolPlan {
            segment_size: raw.segment_size.0,
            max_size: raw.max_size.0,
            when_full: raw.when_full,
            fsync_interval: raw.fsync_interval.0,
            keep: raw.keep.0,
        })
    }

    fn reconciliation(&mut self, raw: &raw::Reconciliation) -> Option<ReconciliationPlan> {
        if !raw.enabled {
            return None;
        }
        let at = |key: &str| format!("usage.reconciliation.{key}");
        if raw.interval.0 < Duration::from_millis(100) {
            self.problem(at("interval"), "is shorter than 100ms", "the default is 15s");
        }
        if raw.window.0 < raw.interval.0 {
            self.problem(at("window"), "is shorter than `interval`", "the default is 10m");
        }
        Some(ReconciliationPlan { interval: raw.interval.0, window: raw.window.0 })
    }

    /// The reporter whose table the admin API reads.
    fn store(&mut self, raw: &raw::Usage, reporters: &[ReporterPlan]) -> Option<usize> {
        let table = |plan: &ReporterPlan| matches!(plan.to, Destination::Database(_));
        match raw.store.as_deref() {
            Some("none") => None,
            None => reporters.iter().position(table),
            Some(name) => {
                let found = reporters.iter().position(|plan| plan.name == name && table(plan));
                if found.is_none() {
                    let known = reporters.iter().filter(|plan| table(plan));
                    let known: Vec<_> = known.map(|plan| plan.name.as_str()).collect();
                    let hint = match known[..] {
                        [] => "there is no reporter of type `builtin` or `database`".to_owned(),
                        _ => format!("there are: {}", known.join(", ")),
                    };
                    let message =
                        format!("there is no reporter `{name}` of type `builtin` or `database`");
                    self.problem("usage.store", message, &hint);
                }
                found
            }
        }
    }
}

fn days(n: u32) -> Option<Duration> {
    (n > 0).then(|| Duration::from_secs(u64::from(n) * 24 * 3600))
}

/// A name for the reporter that is added for the admin API.
fn free_name(reporters: &[ReporterPlan]) -> String {
    let taken = |name: &str| reporters.iter().any(|plan| plan.name == name);
    let mut name = ReporterKind::Builtin.word().to_owned();
    while taken(&name) {
        name.push('_');
    }
    name
}

/// The keys of a secret, which are separated by spaces.
fn signing_keys(secret: &Secret) -> Result<Vec<SigningKey>, &'static str> {
    let keys = secret.expose().split_whitespace().map(|word| match word.strip_prefix("whsec_") {
        None => Ok(SigningKey(word.as_bytes().to_vec())),
        Some(coded) => BASE64_STANDARD
            .decode(coded)
            .map(SigningKey)
            .map_err(|_| "what follows `whsec_` is not base64"),
    });
    let keys: Vec<_> = keys.collect::<Result<_, _>>()?;
    match keys.iter().all(|key| !key.0.is_empty()) && !keys.is_empty() {
        true => Ok(keys),
        false => Err("is empty"),
    }
}
