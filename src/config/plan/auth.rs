//! `auth` and `api_keys`: providers with their connections and scripts, and the responses to
//! rejections.

use std::{path::PathBuf, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue};
use serde_json::{Map, Value};

use super::planner::Planner;
use crate::{
    base::{
        Secret,
        terms::{self, Terms},
    },
    config::{
        choices::Mode,
        raw::{self, OnError, ProviderKind, Raw},
    },
    dialect,
    lua::Script,
    store::{redis, sql},
};

/// Authentication.
#[derive(Clone, Debug)]
pub struct AuthPlan {
    /// How the providers are combined.
    pub mode: Mode,
    /// Prefixes of paths that need no key.
    pub skip_paths: Vec<String>,
    /// Header fields that may hold the key, in order.
    pub header_names: Vec<HeaderName>,
    /// The providers, at least one.
    pub pipeline: Vec<ProviderPlan>,
    /// The responses to rejections.
    pub answers: RejectionResponses,
    /// Whether backends receive the user and the name of the key.
    pub forward_identity: bool,
}

#[derive(Clone, Debug)]
pub struct ProviderPlan {
    pub name: String,
    pub source: Source,
    /// The script that decides about its keys; `None`: the default rules.
    pub script: Option<Arc<Script>>,
    pub cache: CachePlan,
    /// How long its response may take.
    pub timeout: Duration,
    /// Whether the gateway counts quotas and balances of its keys.
    pub count_usage: bool,
}

/// Where the keys of a provider are.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// In the configuration.
    Keys(Vec<KeyPlan>),
    /// In the admin API's file.
    Builtin(PathBuf),
    /// In Redis.
    Redis {
        /// The server.
        settings: redis::Settings,
        /// The name of a key's entry, with `{api_key}` in it.
        pattern: String,
    },
    /// In a table.
    Database {
        /// The database.
        settings: sql::Settings,
        /// The query.
        lookup: sql::Lookup,
    },
    /// At an HTTP service.
    Webhook {
        /// Its address.
        url: String,
        /// Further header fields.
        headers: Vec<(HeaderName, HeaderValue)>,
    },
    /// No source: the script decides about every key.
    Lua,
}

impl Source {
    /// Whether both read the same keys, perhaps with other columns: a change of the one is a change
    /// of the other.
    pub fn same_place(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Database { settings, lookup },
                Self::Database { settings: others, lookup: other },
            ) => settings == others && lookup.same_rows(other),
            _ => self == other,
        }
    }
}

/// A key of the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyPlan {
    pub key: Secret,
    /// Its properties.
    pub data: Map<String, Value>,
}

/// How long responses of a provider are cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachePlan {
    /// For a known key.
    pub ttl: Duration,
    /// For an unknown key.
    pub negative_ttl: Duration,
    /// The number of cached keys.
    pub size: usize,
    /// The maximum age of a response that is used while the provider is unavailable; `None`: none
    /// is used.
    pub stale: Option<Duration>,
}

/// The decision about a key, with the reason of a rejection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Active,
    Disabled,
    Expired,
    NotYetValid,
    IpDenied,
    QuotaExceeded,
    NotFound,
    MissingKey,
    Denied,
    ScriptError,
    Unavailable,
}

/// The response for each reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectionResponses(Vec<(Reason, RejectionResponse)>);

/// The response for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectionResponse {
    /// Whether the request is allowed.
    pub allow: bool,
    pub status: u16,
    /// `code` in the body.
    pub code: String,
    /// `message` in the body.
    pub message: String,
}

impl RejectionResponses {
    pub fn of(&self, reason: Reason) -> &RejectionResponse {
        let found = self.0.iter().find(|(known, _)| *known == reason);
        &found.expect("`DEFAULT_RESPONSES` has every reason").1
    }
}

/// The defaults: reason, key in the configuration, status, code and message.
const DEFAULT_RESPONSES: [(Reason, &str, u16, &str, &str); 11] = [
    (Reason::Active, "active", 403, "CLOSED", "The gateway is closed"),
    (Reason::Disabled, "disabled", 403, "DISABLED", "The API key is disabled"),
    (Reason::Expired, "expired", 403, "EXPIRED", "The API key has expired"),
    (Reason::NotYetValid, "not_yet_valid", 403, "NOT_YET_VALID", "The API key is not valid yet"),
    (
        Reason::IpDenied,
        "ip_denied",
        403,
        "IP_NOT_ALLOWED",
        "The API key may not be used from this address",
    ),
    (
        Reason::QuotaExceeded,
        "quota_exceeded",
        429,
        "QUOTA_EXCEEDED",
        "The quota of the API key is used up",
    ),
    (Reason::NotFound, "not_found", 401, "NOT_FOUND", "The API key is not valid"),
    (Reason::MissingKey, "missing_key", 401, "MISSING_KEY", "You did not provide an API key"),
    (Reason::Denied, "denied", 403, "DENIED", "Access denied"),
    (Reason::ScriptError, "script_error", 403, "SCRIPT_ERROR", "Access cannot be decided"),
    (
        Reason::Unavailable,
        "unavailable",
        503,
        "AUTH_UNAVAILABLE",
        "API keys cannot be checked at the moment",
    ),
];

impl Reason {
    /// What the configuration has for it.
    fn given(self, raw: &raw::StatusCodes) -> &raw::StatusCode {
        match self {
            Self::Active => &raw.active,
            Self::Disabled => &raw.disabled,
            Self::Expired => &raw.expired,
            Self::NotYetValid => &raw.not_yet_valid,
            Self::IpDenied => &raw.ip_denied,
            Self::QuotaExceeded => &raw.quota_exceeded,
            Self::NotFound => &raw.not_found,
            Self::MissingKey => &raw.missing_key,
            Self::Denied => &raw.denied,
            Self::ScriptError => &raw.script_error,
            Self::Unavailable => &raw.unavailable,
        }
    }

    /// Whether `allow` cannot override it: the key was not checked, or a script has rejected it.
    fn cannot_be_allowed(self) -> bool {
        matches!(self, Self::Denied | Self::ScriptError | Self::Unavailable)
    }
}

const PATTERN: &str = "llmproxy:key:{api_key}";

/// A provider of the file.
struct ProviderEntry<'a> {
    at: String,
    raw: &'a raw::Provider,
    whole: &'a Raw,
}

impl Planner<'_> {
    /// The section `auth`; `None` also if it is switched off.
    pub(super) fn auth(&mut self, whole: &Raw) -> Option<AuthPlan> {
        let Some(raw) = whole.auth.as_ref().filter(|auth| auth.enabled.0) else {
            self.unused_keys(whole, "auth is not enabled");
            return None;
        };
        for (i, path) in raw.skip_paths.iter().enumerate() {
            if !path.starts_with('/') || path == "/" {
                self.problem(
                    format!("auth.skip_paths[{i}]"),
                    format!("`{path}` is not a path prefix"),
                    "write `/v1/models`; to require no keys at all set `enabled: false`",
                );
            }
        }
        let mut pipeline: Vec<ProviderPlan> = Vec::new();
        for (i, provider) in raw.pipeline.iter().enumerate().filter(|(_, p)| p.enabled) {
            let entry = ProviderEntry { at: format!("auth.pipeline[{i}]"), raw: provider, whole };
            let Some(plan) = self.provider(&entry) else { continue };
            if pipeline.iter().any(|p| p.name == plan.name) {
                let message = format!("has the same name as an earlier provider: `{}`", plan.name);
                self.problem(&entry.at, message, "give each provider its own `name`");
            }
            pipeline.push(plan);
        }
        if raw.pipeline.is_empty() {
            pipeline.push(self.file_provider(whole, raw));
        } else if !raw.pipeline.iter().any(|p| p.kind == ProviderKind::File && p.enabled) {
            self.unused_keys(whole, "no provider of `auth.pipeline` has the type `file`");
        }
        let is_empty =
            |p: &ProviderPlan| matches!(&p.source, Source::Keys(keys) if keys.is_empty());
        if pipeline.iter().all(is_empty) && self.problems.is_empty() {
            self.problem(
                "auth",
                "there is no key: every request would be rejected",
                "add `api_keys`, or a provider to `auth.pipeline`",
            );
        }
        Some(AuthPlan {
            mode: raw.mode,
            skip_paths: raw.skip_paths.clone(),
            header_names: self.key_headers(&raw.header_names),
            pipeline,
            answers: self.answers(&raw.status_codes),
            forward_identity: raw.forward_identity,
        })
    }

    fn unused_keys(&mut self, whole: &Raw, why: &str) {
        if !whole.api_keys.is_empty() {
            self.warn("api_keys", format!("these keys are not used: {why}"));
        }
    }

    /// The provider of a configuration without a pipeline.
    fn file_provider(&mut self, whole: &Raw, raw: &raw::Auth) -> ProviderPlan {
        ProviderPlan {
            name: "file".to_owned(),
            source: Source::Keys(self.keys("api_keys", &whole.api_keys, &raw.defaults)),
            script: None,
            cache: CachePlan {
                ttl: Duration::ZERO,
                negative_ttl: Duration::ZERO,
                size: 1,
                stale: None,
            },
            timeout: Duration::from_secs(5),
            count_usage: true,
        }
    }

    fn key_headers(&mut self, names: &[String]) -> Vec<HeaderName> {
        if names.is_empty() {
            return dialect::credential_fields().to_vec();
        }
        let mut headers = Vec::new();
        for (i, name) in names.iter().enumerate() {
            match name.parse() {
                Ok(name) => headers.push(name),
                Err(_) => self.problem(
                    format!("auth.header_names[{i}]"),
                    format!("`{name}` is not a header name"),
                    "write `Authorization` or `X-API-Key`",
                ),
            }
        }
        headers
    }

    fn provider(&mut self, entry: &ProviderEntry<'_>) -> Option<ProviderPlan> {
        let ProviderEntry { at, raw, .. } = entry;
        let before = self.problems.len();
        self.other_sections(entry);
        let script = self.script(at, raw);
        if raw.kind == ProviderKind::Lua && script.is_none() && self.problems.len() == before {
            self.problem(at, "a provider of type `lua` needs a script", "add `lua_script`");
        }
        let source = self.source(entry);
        if !(1..=10_000_000).contains(&raw.cache_size) {
            self.problem(format!("{at}.cache_size"), "is not between 1 and 10000000", "");
        }
        if raw.timeout.0.is_zero() {
            self.problem(format!("{at}.timeout"), "is zero", "the default is 5s");
        }
        let hook = raw.webhook.as_ref().and_then(|w| w.timeout);
        let named = raw.kind;
        Some(ProviderPlan {
            name: raw.name.clone().unwrap_or_else(|| word(named)),
            source: source?,
            script,
            cache: CachePlan {
                ttl: raw.cache_ttl.0,
                negative_ttl: raw.negative_cache_ttl.0.min(raw.cache_ttl.0),
                size: raw.cache_size,
                stale: (raw.on_error == OnError::AllowCached).then_some(raw.max_stale.0),
            },
            timeout: hook.unwrap_or(raw.timeout).0,
            count_usage: raw.count_usage,
        })
    }

    /// Reports a section that belongs to another type.
    fn other_sections(&mut self, entry: &ProviderEntry<'_>) {
        let ProviderEntry { at, raw, .. } = entry;
        for (kind, given, key) in [
            (ProviderKind::Static, raw.fixed.is_some(), "static"),
            (ProviderKind::Redis, raw.redis.is_some(), "redis"),
            (ProviderKind::Database, raw.database.is_some(), "database"),
            (ProviderKind::Webhook, raw.webhook.is_some(), "webhook"),
        ] {
            if given && raw.kind != kind {
                let message = format!("does not belong to a provider of type `{}`", word(raw.kind));
                self.problem(format!("{at}.{key}"), message, "remove it, or change `type`");
            }
        }
    }

    fn source(&mut self, entry: &ProviderEntry<'_>) -> Option<Source> {
        let ProviderEntry { at, raw, whole } = entry;
        match raw.kind {
            ProviderKind::Static => {
                let empty = raw::StaticKeys::default();
                let keys = &raw.fixed.as_ref().unwrap_or(&empty).keys;
                let at = format!("{at}.static.keys");
                Some(Source::Keys(self.keys(&at, keys, &raw::Defaults::default())))
            }
            ProviderKind::File => {
                let defaults = whole.auth.as_ref().map(|a| a.defaults.clone()).unwrap_or_default();
                Some(Source::Keys(self.keys("api_keys", &whole.api_keys, &defaults)))
            }
            ProviderKind::Builtin => Some(Source::Builtin(self.keys_db(whole))),
            ProviderKind::Lua => Some(Source::Lua),
            ProviderKind::Redis => {
                let redis = self.section(at, "provider", "redis", raw.redis.as_ref())?;
                self.redis_source(&format!("{at}.redis"), redis, whole)
            }
            ProviderKind::Database => {
                let database = self.section(at, "provider", "database", raw.database.as_ref())?;
                self.sql_source(&format!("{at}.database"), database, whole)
            }
            ProviderKind::Webhook => {
                let webhook = self.section(at, "provider", "webhook", raw.webhook.as_ref())?;
                self.webhook_source(&format!("{at}.webhook"), webhook)
            }
        }
    }

    fn redis_source(&mut self, at: &str, raw: &raw::RedisKeys, whole: &Raw) -> Option<Source> {
        let pattern = raw.key_pattern.clone().unwrap_or_else(|| PATTERN.to_owned());
        if !pattern.contains("{api_key}") {
            self.problem(
                format!("{at}.key_pattern"),
                "does not contain `{api_key}`: every key would be the same",
                "write `llmproxy:key:{api_key}`",
            );
        }
        let settings = match (&raw.storage, &raw.addr) {
            (Some(name), None) => self.named_cache(&format!("{at}.storage"), name, whole),
            (None, Some(addr)) => {
                let cache = raw::Cache {
                    username: raw.username.clone(),
                    password: raw.password.clone(),
                    password_file: raw.password_file.clone(),
                    db: raw.db,
                    ..raw::Cache::at(addr)
                };
                self.cache(at, &cache)
            }
            _ => {
                self.problem(
                    at,
                    "needs either `addr` or `storage`",
                    "write `addr: \"localhost:6379\"`",
                );
                None
            }
        };
        Some(Source::Redis { settings: settings?, pattern })
    }

    fn sql_source(&mut self, at: &str, raw: &raw::DatabaseKeys, whole: &Raw) -> Option<Source> {
        let own = (raw.driver, raw.dsn.as_ref());
        let settings = self.named_or_own(at, raw.storage.as_deref(), own, whole)?;
        let table = raw.table.as_deref().unwrap_or("api_keys");
        let column = raw.key_column.as_deref().unwrap_or("api_key");
        match sql::Lookup::new(settings.driver, table, column, &raw.fields) {
            Ok(lookup) => Some(Source::Database { settings, lookup }),
            Err(why) => {
                self.problem(at, why, "a name consists of letters, digits and `_`");
                None
            }
        }
    }

    fn webhook_source(&mut self, at: &str, raw: &raw::WebhookKeys) -> Option<Source> {
        let fine = self.http_url(&format!("{at}.url"), &raw.url);
        if raw.timeout.is_some_and(|t| t.0.is_zero()) {
            self.problem(format!("{at}.timeout"), "is zero", "the default is 5s");
        }
        let headers = self.header_fields(at, &raw.headers, &raw.headers_file);
        fine.then(|| Source::Webhook { url: raw.url.clone(), headers })
    }

    fn keys(&mut self, at: &str, raw: &[raw::ApiKey], defaults: &raw::Defaults) -> Vec<KeyPlan> {
        if defaults.total_quota.is_some_and(|n| !n.is_finite() || n < 0.0) {
            let at = "auth.defaults.total_quota";
            self.problem(at, "is not a number of 0 or more", "0, or no value, means no limit");
        }
        let mut keys: Vec<KeyPlan> = Vec::new();
        for (i, entry) in raw.iter().enumerate() {
            let at = format!("{at}[{i}]");
            let key = self.secret(&at, "key", entry.key.as_ref(), entry.key_file.as_deref());
            let Some(key) = key.filter(|k| !k.expose().is_empty()) else {
                self.problem(&at, "has no key", "give it a `key` or a `key_file`");
                continue;
            };
            if let Some(why) = key.unsendable() {
                let message = format!("cannot be sent in a header field: {why}");
                let hint = "a key is one word of visible ASCII characters";
                self.problem(format!("{at}.key"), message, hint);
                continue;
            }
            if keys.iter().any(|k| k.key == key) {
                self.problem(&at, "has the same key as an earlier entry", "remove one of them");
                continue;
            }
            let data = data(entry, defaults);
            if data.get("status").is_some_and(|s| terms::status_number(s).is_none()) {
                self.problem(
                    format!("{at}.status"),
                    "is not a status",
                    "write `active`, `disabled`, `quota_exceeded` or `expired`",
                );
            } else if let Err(why) = Terms::read(&data) {
                self.problem(&at, why, "");
            }
            // In JSON they would become `null`, which means no limit.
            let amounts = [
                ("total_quota", entry.total_quota),
                ("used_quota", entry.used_quota),
                ("balance", entry.balance),
            ];
            for (name, _) in amounts.iter().filter(|(_, n)| n.is_some_and(|n| !n.is_finite())) {
                self.problem(format!("{at}.{name}"), "is not a finite number", "0 means no limit");
            }
            keys.push(KeyPlan { key, data });
        }
        keys
    }

    fn answers(&mut self, raw: &raw::StatusCodes) -> RejectionResponses {
        let mut answers = Vec::new();
        for (reason, key, status, code, message) in DEFAULT_RESPONSES {
            let given = reason.given(raw);
            let at = format!("auth.status_codes.{key}");
            let status = given.http_code.unwrap_or(status);
            if !(400..600).contains(&status) {
                self.problem(format!("{at}.http_code"), "is not between 400 and 599", "");
            }
            if reason.cannot_be_allowed() && given.allow == Some(true) {
                self.problem(
                    format!("{at}.allow"),
                    "cannot be `true`: it would allow requests whose key was not checked",
                    "let the script set `allow = true`, or use `on_error: allow_cached`",
                );
            }
            let answer = RejectionResponse {
                allow: given.allow.unwrap_or(reason == Reason::Active),
                status,
                code: given.code.clone().unwrap_or_else(|| code.to_owned()),
                message: given.message.clone().unwrap_or_else(|| message.to_owned()),
            };
            answers.push((reason, answer));
        }
        RejectionResponses(answers)
    }
}

/// The properties of a key, in the form that other providers return.
fn data(entry: &raw::ApiKey, defaults: &raw::Defaults) -> Map<String, Value> {
    let mut entry = entry.clone();
    entry.total_quota = entry.total_quota.or(defaults.total_quota);
    entry.quota_reset_period = entry.quota_reset_period.or(defaults.quota_reset_period);
    entry.key_file = None;
    let Ok(Value::Object(mut data)) = serde_json::to_value(&entry) else {
        return Map::new();
    };
    terms::drop_empty(&mut data);
    data
}

/// The name of a type in the file.
fn word(kind: ProviderKind) -> String {
    let value = serde_json::to_value(kind).ok();
    value.and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}
