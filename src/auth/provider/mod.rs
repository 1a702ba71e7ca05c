//! Places where keys come from: one file each. A new one is its file, its line in [`open`], and
//! its section in the configuration.

mod builtin;
mod lua;
mod redis;
mod sql;
mod static_keys;
mod webhook;

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Map, Value};

pub use self::{lua::anyone, static_keys::KeyTable};
use super::{Resources, credential::KeyDigest};
pub use crate::base::Used;
use crate::{
    base::{
        Principal,
        terms::{self, Terms},
    },
    config::plan::{ProviderPlan, Source},
    store::StoreError,
};

/// A key that is looked for.
pub struct Wanted {
    /// The key.
    pub key: Arc<str>,
    /// Its digest.
    pub digest: KeyDigest,
}

/// What a provider knows of a key.
#[derive(Debug)]
pub struct KeyRecord {
    /// As it is told, for scripts.
    pub data: Map<String, Value>,
    /// The default rules; what cannot be understood is a reason to refuse.
    pub terms: Result<Terms, String>,
    /// What cannot be understood of its own limits, if anything.
    pub limits: Result<(), String>,
    /// Whose key it is, as the data says.
    pub principal: Arc<Principal>,
}

impl KeyRecord {
    /// Understands the data of a key. `fallback` is its identity if the data tells none.
    pub fn new(data: Map<String, Value>, fallback: impl FnOnce() -> String) -> Self {
        let terms = Terms::read(&data);
        let text = |names: &[&str]| names.iter().find_map(|n| words(data.get(*n)?));
        let metadata = match data.get("metadata") {
            Some(Value::Object(map)) => map.clone(),
            // Hashes of Redis and text columns hold JSON as text.
            Some(Value::String(text)) => serde_json::from_str(text).unwrap_or_default(),
            _ => Map::new(),
        };
        let (own, limits) = match terms::own_limits(&data) {
            Ok(own) => (own.map(Arc::new), Ok(())),
            Err(why) => (None, Err(why)),
        };
        let principal = Principal {
            key_id: text(&["key_id", "id"]).unwrap_or_else(fallback),
            user_id: text(&["user_id"]).unwrap_or_default(),
            name: text(&["name", "key_name"]).unwrap_or_default(),
            team: text(&["team", "team_id"]).unwrap_or_default(),
            tier: text(&["tier"]).unwrap_or_default(),
            metadata,
            limits: own,
            tags: Vec::new(),
            allowance: None,
        };
        Self { data, terms, limits, principal: Arc::new(principal) }
    }

    /// The same key with other amounts in its data.
    pub fn amended(&self, change: impl FnOnce(&mut Map<String, Value>)) -> Self {
        let mut data = self.data.clone();
        change(&mut data);
        Self {
            terms: Terms::read(&data),
            data,
            limits: self.limits.clone(),
            principal: Arc::clone(&self.principal),
        }
    }

    /// The same key when so much has been used.
    pub fn after(&self, used: Used, now: i64) -> Self {
        match &self.terms {
            Ok(terms) => self.amended(|data| terms.change(used, now).apply(data)),
            Err(_) => self.amended(|_| ()),
        }
    }
}

/// A name or a number as text; `None` if there is nothing of either.
pub fn words(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A place that is asked from afar.
#[async_trait]
pub trait Provider: Send + Sync {
    /// What it knows of the key; `None` if it does not know it.
    async fn find(&self, wanted: &Wanted) -> Result<Option<KeyRecord>, StoreError>;

    /// Whether quotas and balances are counted at the place itself.
    fn counts(&self) -> bool {
        false
    }

    /// Counts at the place what has been used with a key, and tells the fields of
    /// [`COUNTED`](crate::base::terms::COUNTED) as they now stand, perhaps with others. `None`: the
    /// key is not there, or this place does not count.
    async fn count(
        &self,
        _wanted: &Wanted,
        _used: Used,
    ) -> Result<Option<Map<String, Value>>, StoreError> {
        Ok(None)
    }

    /// Counts the changes that this process has made to the place itself: what was known before a
    /// change holds no longer.
    fn changes(&self) -> u64 {
        0
    }
}

/// A place, ready to be asked.
pub enum Place {
    /// Everything is at hand.
    Table(KeyTable),
    /// Every key is known; a script decides.
    Anyone,
    /// It has to be asked, and answers are remembered.
    Remote(Arc<dyn Provider>),
}

/// Opens a place.
pub fn open(plan: &ProviderPlan, with: &Resources<'_>) -> Place {
    match &plan.source {
        Source::Keys(keys) => {
            Place::Table(KeyTable::new(keys, plan.count_usage, plan.script.is_none()))
        }
        Source::Lua => Place::Anyone,
        Source::Builtin(_) => Place::Remote(Arc::new(builtin::Builtin(Arc::clone(with.keys)))),
        Source::Redis { settings, pattern } => {
            Place::Remote(Arc::new(redis::RedisKeys::new(with.stores.redis(settings), pattern)))
        }
        Source::Database { settings, lookup } => {
            Place::Remote(Arc::new(sql::SqlKeys::new(with.stores.sql(settings), lookup.clone())))
        }
        Source::Webhook { url, headers } => Place::Remote(Arc::new(webhook::Webhook::new(
            with.client.clone(),
            url.clone(),
            headers.clone(),
            plan.timeout,
        ))),
    }
}
