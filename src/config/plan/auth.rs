//! Who may call: providers with their connections and scripts, and how refusals are answered.

use std::{path::PathBuf, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, Uri, header};
use serde_json::{Map, Value};

use super::Maker;
use crate::{
    base::{
        Secret,
        terms::{self, Terms},
    },
    config::raw::{self, Mode, OnError, ProviderKind, Raw},
    lua::{Limits, Script},
    store::{redis, sql},
};

/// Who may call.
#[derive(Clone, Debug)]
pub struct AuthPlan {
    /// How the providers go together.
    pub mode: Mode,
    /// Beginnings of paths that need no key.
    pub skip_paths: Vec<String>,
    /// Where keys are looked for.
    pub header_names: Vec<HeaderName>,
    /// The providers that are asked; at least one.
    pub pipeline: Vec<ProviderPlan>,
    /// How refusals are answered.
    pub answers: Answers,
    /// Tell the backends who is calling.
    pub forward_identity: bool,
}

/// One provider.
#[derive(Clone, Debug)]
pub struct ProviderPlan {
    /// Its name.
    pub name: String,
    /// Where its keys are.
    pub source: Source,
    /// What decides about them; the default rules without it.
    pub script: Option<Arc<Script>>,
    /// How long its answers hold.
    pub cache: CachePlan,
    /// How long it may take for an answer.
    pub timeout: Duration,
}

/// Where keys are.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// In the configuration itself.
    Keys(Vec<KeyPlan>),
    /// In the admin API's file.
    Builtin(PathBuf),
    /// In Redis.
    Redis {
        /// The server.
        settings: redis::Settings,
        /// The name under which a key stands, with `{api_key}` in it.
        pattern: String,
    },
    /// In a table.
    Database {
        /// The database.
        settings: sql::Settings,
        /// How it is asked.
        lookup: sql::Lookup,
    },
    /// At an HTTP service.
    Webhook {
        /// Its address.
        url: String,
        /// Header fields to send along.
        headers: Vec<(HeaderName, HeaderValue)>,
    },
    /// Nowhere: the script decides about every key.
    Lua,
}

/// A key of the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyPlan {
    /// The key.
    pub key: Secret,
    /// What is known of it.
    pub data: Map<String, Value>,
}

/// How long answers of a provider hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachePlan {
    /// What it knows of a key.
    pub ttl: Duration,
    /// That it does not know a key.
    pub negative_ttl: Duration,
    /// Keys that are remembered.
    pub size: usize,
    /// How old an answer may be while the provider cannot be asked; `None`: none is used then.
    pub stale: Option<Duration>,
}

/// Why a caller is not let in, or that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in `raw::StatusCodes`")]
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

/// How each reason is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers(Vec<Answer>);

/// How one reason is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The caller is let in.
    pub allow: bool,
    /// HTTP status.
    pub status: u16,
    /// `code` in the body.
    pub code: String,
    /// The sentence in the body.
    pub message: String,
}

impl Answers {
    /// The answer for a reason.
    pub fn of(&self, reason: Reason) -> &Answer {
        &self.0[reason as usize]
    }
}

/// The defaults, in the order of [`Reason`].
const ANSWERS: [(&str, u16, &str, &str); 11] = [
    ("active", 403, "CLOSED", "The gateway is closed"),
    ("disabled", 403, "DISABLED", "The API key is disabled"),
    ("expired", 403, "EXPIRED", "The API key has expired"),
    ("not_yet_valid", 403, "NOT_YET_VALID", "The API key is not valid yet"),
    ("ip_denied", 403, "IP_NOT_ALLOWED", "The API key may not be used from this address"),
    ("quota_exceeded", 429, "QUOTA_EXCEEDED", "The quota of the API key is used up"),
    ("not_found", 401, "NOT_FOUND", "The API key is not valid"),
    ("missing_key", 401, "MISSING_KEY", "You did not provide an API key"),
    ("denied", 403, "DENIED", "Access denied"),
    ("script_error", 403, "SCRIPT_ERROR", "Access cannot be decided"),
    ("unavailable", 503, "AUTH_UNAVAILABLE", "API keys cannot be checked at the moment"),
];

/// The scripts that come with the gateway.
pub const SHIPPED: [(&str, &str); 6] = [
    ("balance", include_str!("../../../lua/balance.lua")),
    ("business_hours", include_str!("../../../lua/business_hours.lua")),
    ("ip_allow_list", include_str!("../../../lua/ip_allow_list.lua")),
    ("model_permission", include_str!("../../../lua/model_permission.lua")),
    ("vip_tier", include_str!("../../../lua/vip_tier.lua")),
    ("webhook_result", include_str!("../../../lua/webhook_result.lua")),
];

const PATTERN: &str = "llmproxy:key:{api_key}";

/// What only the provider's place in the file tells.
struct Place<'a> {
    at: String,
    raw: &'a raw::Provider,
    whole: &'a Raw,
}

impl Maker<'_> {
    /// Understands `auth`; `None` also if it is switched off.
    pub(super) fn auth(&mut self, whole: &Raw) -> Option<AuthPlan> {
        let Some(raw) = whole.auth.as_ref().filter(|auth| auth.enabled.0) else {
            self.unused_keys(whole, "auth is not enabled");
            return None;
        };
        for (i, path) in raw.skip_paths.iter().enumerate() {
            if !path.starts_with('/') || path == "/" {
                self.problem(
                    format!("auth.skip_paths[{i}]"),
                    format!("`{path}` is not the beginning of some paths"),
                    "write `/v1/models`; to ask nobody for a key set `enabled: false`",
                );
            }
        }
        let mut pipeline: Vec<ProviderPlan> = Vec::new();
        for (i, provider) in raw.pipeline.iter().enumerate().filter(|(_, p)| p.enabled) {
            let place = Place { at: format!("auth.pipeline[{i}]"), raw: provider, whole };
            let Some(plan) = self.provider(&place) else { continue };
            if pipeline.iter().any(|p| p.name == plan.name) {
                let message = format!("has the same name as an earlier one: `{}`", plan.name);
                self.problem(&place.at, message, "give each provider a `name` of its own");
            }
            pipeline.push(plan);
        }
        if raw.pipeline.is_empty() {
            pipeline.push(self.file_provider(whole, raw));
        } else if !raw.pipeline.iter().any(|p| p.kind == ProviderKind::File && p.enabled) {
            self.unused_keys(whole, "no provider of `auth.pipeline` has the type `file`");
        }
        let nobody = |p: &ProviderPlan| matches!(&p.source, Source::Keys(keys) if keys.is_empty());
        if pipeline.iter().all(nobody) && self.problems.is_empty() {
            self.problem(
                "auth",
                "there is no key: every request would be refused",
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

    /// The provider of a configuration that names none.
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
        }
    }

    fn key_headers(&mut self, names: &[String]) -> Vec<HeaderName> {
        if names.is_empty() {
            return vec![header::AUTHORIZATION, HeaderName::from_static("x-api-key")];
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

    fn provider(&mut self, place: &Place<'_>) -> Option<ProviderPlan> {
        let Place { at, raw, .. } = place;
        let before = self.problems.len();
        self.other_sections(place);
        let script = self.script(at, raw);
        if raw.kind == ProviderKind::Lua && script.is_none() && self.problems.len() == before {
            self.problem(at, "a provider of type `lua` needs a script", "add `lua_script`");
        }
        let source = self.source(place);
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
        })
    }

    /// A section that belongs to another type is a mistake that must not be passed over.
    fn other_sections(&mut self, place: &Place<'_>) {
        let Place { at, raw, .. } = place;
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

    fn source(&mut self, place: &Place<'_>) -> Option<Source> {
        let Place { at, raw, whole } = place;
        let missing = |make: &mut Self, key: &str| {
            let message = format!("a provider of type `{key}` needs a section `{key}`");
            make.problem(at.as_str(), message, "");
        };
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
            ProviderKind::Builtin => Some(Source::Builtin(self.path(&whole.admin.db_path))),
            ProviderKind::Lua => Some(Source::Lua),
            ProviderKind::Redis => match &raw.redis {
                Some(redis) => self.redis_source(&format!("{at}.redis"), redis, whole),
                None => {
                    missing(self, "redis");
                    None
                }
            },
            ProviderKind::Database => match &raw.database {
                Some(database) => self.sql_source(&format!("{at}.database"), database, whole),
                None => {
                    missing(self, "database");
                    None
                }
            },
            ProviderKind::Webhook => match &raw.webhook {
                Some(webhook) => self.webhook_source(&format!("{at}.webhook"), webhook),
                None => {
                    missing(self, "webhook");
                    None
                }
            },
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
                    name: String::new(),
                    enabled: true,
                    driver: raw::CacheDriver::Redis,
                    addr: addr.clone(),
                    username: raw.username.clone(),
                    password: raw.password.clone(),
                    password_file: raw.password_file.clone(),
                    db: raw.db,
                    pool_size: 1,
                    dial_timeout: raw::Span(Duration::from_secs(5)),
                    read_timeout: raw::Span(Duration::from_secs(3)),
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
        let settings = match (&raw.storage, raw.driver, &raw.dsn) {
            (Some(name), None, None) => self.named_database(&format!("{at}.storage"), name, whole),
            (None, Some(driver), Some(dsn)) => self.dsn(at, driver, dsn.0.clone()),
            _ => {
                self.problem(
                    at,
                    "needs either `driver` and `dsn`, or `storage`",
                    "write `storage: NAME` for one of `storage.databases`",
                );
                None
            }
        }?;
        let table = raw.table.as_deref().unwrap_or("api_keys");
        let column = raw.key_column.as_deref().unwrap_or("api_key");
        match sql::Lookup::new(settings.driver, table, column, &raw.fields) {
            Ok(lookup) => Some(Source::Database { settings, lookup }),
            Err(why) => {
                self.problem(at, why, "names consist of letters, digits and `_`");
                None
            }
        }
    }

    fn webhook_source(&mut self, at: &str, raw: &raw::WebhookKeys) -> Option<Source> {
        let fine = raw.url.parse::<Uri>().is_ok_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()
        });
        if !fine {
            self.problem(
                format!("{at}.url"),
                "is not an http or https URL",
                "write `https://host/path`",
            );
        }
        if raw.timeout.is_some_and(|t| t.0.is_zero()) {
            self.problem(format!("{at}.timeout"), "is zero", "the default is 5s");
        }
        let headers = self.header_fields(at, &raw.headers, &raw.headers_file);
        fine.then(|| Source::Webhook { url: raw.url.clone(), headers })
    }

    fn keys(&mut self, at: &str, raw: &[raw::ApiKey], defaults: &raw::Defaults) -> Vec<KeyPlan> {
        let mut keys: Vec<KeyPlan> = Vec::new();
        if raw.iter().any(|e| e.quota_reset_period.is_some())
            || defaults.quota_reset_period.is_some()
        {
            self.warn(at, "`quota_reset_period` has no effect in this version: quotas are compared, and not counted or reset");
        }
        for (i, entry) in raw.iter().enumerate() {
            let at = format!("{at}[{i}]");
            let key = self.secret(&at, "key", entry.key.as_ref(), entry.key_file.as_deref());
            let Some(key) = key.filter(|k| !k.expose().is_empty()) else {
                self.problem(&at, "has no key", "give it a `key` or a `key_file`");
                continue;
            };
            if keys.iter().any(|k| k.key == key) {
                self.problem(&at, "has the same key as an earlier entry", "remove one of them");
                continue;
            }
            let data = data(entry, defaults);
            if data.get("status").is_some_and(|s| terms::status_number(s).is_none()) {
                self.problem(
                    format!("{at}.status"),
                    "is no status",
                    "write `active`, `disabled`, `quota_exceeded` or `expired`",
                );
            } else if let Err(why) = Terms::read(&data) {
                self.problem(&at, why, "");
            }
            keys.push(KeyPlan { key, data });
        }
        keys
    }

    fn answers(&mut self, raw: &raw::StatusCodes) -> Answers {
        let given = [
            &raw.active,
            &raw.disabled,
            &raw.expired,
            &raw.not_yet_valid,
            &raw.ip_denied,
            &raw.quota_exceeded,
            &raw.not_found,
            &raw.missing_key,
            &raw.denied,
            &raw.script_error,
            &raw.unavailable,
        ];
        let both = ANSWERS.iter().zip(given);
        let answers = both.map(|((key, status, code, message), given)| {
            let at = format!("auth.status_codes.{key}");
            let status = given.http_code.unwrap_or(*status);
            if !(400..600).contains(&status) {
                self.problem(format!("{at}.http_code"), "is not between 400 and 599", "");
            }
            let decided = matches!(*key, "denied" | "script_error" | "unavailable");
            if decided && given.allow == Some(true) {
                self.problem(
                    format!("{at}.allow"),
                    "cannot be `true`: it would let in whom nobody has looked at",
                    "let the script say `allow = true`, or use `on_error: allow_cached`",
                );
            }
            Answer {
                allow: given.allow.unwrap_or(*key == "active"),
                status,
                code: given.code.clone().unwrap_or_else(|| (*code).to_owned()),
                message: given.message.clone().unwrap_or_else(|| (*message).to_owned()),
            }
        });
        Answers(answers.collect())
    }

    fn script(&mut self, at: &str, raw: &raw::Provider) -> Option<Arc<Script>> {
        let lua = raw.lua.clone().unwrap_or_default();
        let given = [
            ("lua_script", &raw.lua_script),
            ("lua_script_file", &raw.lua_script_file),
            ("lua.script", &lua.script),
            ("lua.path", &lua.path),
            ("lua.name", &lua.name),
        ];
        let given: Vec<_> =
            given.iter().filter_map(|(key, text)| Some((*key, text.as_deref()?))).collect();
        let (key, text) = match given[..] {
            [] if raw.lua.is_some() => {
                self.problem(
                    format!("{at}.lua"),
                    "holds no script",
                    "add `script`, `path` or `name`",
                );
                return None;
            }
            [] => return None,
            [one] => one,
            [..] => {
                let keys: Vec<_> = given.iter().map(|(key, _)| *key).collect();
                self.problem(at, format!("several scripts: {}", keys.join(", ")), "keep one");
                return None;
            }
        };
        let at = format!("{at}.{key}");
        let (name, text) = match key {
            "lua_script" | "lua.script" => ("script".to_owned(), text.to_owned()),
            "lua.name" => self.script_by_name(&at, text)?,
            _ => (text.to_owned(), self.script_file(&at, text)?),
        };
        let standard = Limits::default();
        let limits = Limits::new(
            lua.timeout.map_or(standard.time, |t| t.0),
            lua.max_memory.map_or(standard.memory, |m| m.0 as usize),
        );
        if !(Duration::from_millis(1)..=Duration::from_secs(10)).contains(&limits.time) {
            self.problem(
                format!("{at}.timeout"),
                "is not between 1ms and 10s",
                "the default is 100ms",
            );
        }
        if !((1 << 16)..=(1 << 30)).contains(&limits.memory) {
            self.problem(
                format!("{at}.max_memory"),
                "is not between 64KiB and 1GiB",
                "the default is 10MiB",
            );
        }
        match Script::compile(&name, &text, limits) {
            Ok(script) => Some(Arc::new(script)),
            Err(why) => {
                self.problem(at, format!("is not a Lua script: {why}"), "");
                None
            }
        }
    }

    fn script_file(&mut self, at: &str, file: &str) -> Option<String> {
        let path = self.path(file);
        self.files.push(path.clone());
        match std::fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(e) => {
                let message = format!("cannot read {}: {e}", path.display());
                self.problem(at, message, "the path starts at the folder of the configuration");
                None
            }
        }
    }

    /// A script of the operator goes before one of ours with the same name.
    fn script_by_name(&mut self, at: &str, name: &str) -> Option<(String, String)> {
        let legal = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
        let file = format!("lua/{name}.lua");
        if !name.is_empty() && name.chars().all(legal) && self.path(&file).exists() {
            let text = self.script_file(at, &file)?;
            return Some((file, text));
        }
        match SHIPPED.iter().find(|(shipped, _)| *shipped == name) {
            Some((_, text)) => Some((file, (*text).to_owned())),
            None => {
                let known: Vec<_> = SHIPPED.iter().map(|(name, _)| *name).collect();
                let hint = format!("there are {}", known.join(", "));
                self.problem(at, format!("there is no script `{name}`"), &hint);
                None
            }
        }
    }
}

/// What is known of a key, as other sources tell it.
fn data(entry: &raw::ApiKey, defaults: &raw::Defaults) -> Map<String, Value> {
    let mut entry = entry.clone();
    entry.total_quota = entry.total_quota.or(defaults.total_quota);
    entry.quota_reset_period = entry.quota_reset_period.or(defaults.quota_reset_period);
    entry.key_file = None;
    let Ok(Value::Object(mut data)) = serde_json::to_value(&entry) else {
        return Map::new();
    };
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    data.retain(|_, value| !empty(value));
    data
}

/// The word for a type in the file.
fn word(kind: ProviderKind) -> String {
    let value = serde_json::to_value(kind).ok();
    value.and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}
