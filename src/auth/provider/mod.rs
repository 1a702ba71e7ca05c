//! Places where keys come from: one file each. A new one is its file, its line in [`open`], and
//! its section in the configuration.

mod builtin;
mod lua;
mod redis;
mod sql;
mod static_keys;
mod webhook;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use serde_json::{Map, Value};

pub use self::{lua::anyone, static_keys::KeyTable};
use super::{Resources, credential::KeyDigest};
use crate::{
    base::{
        Principal,
        terms::{self, Terms},
    },
    config::plan::Source,
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
            metadata,
            limits: own,
            tags: Vec::new(),
            allowance: None,
        };
        Self { data, terms, limits, principal: Arc::new(principal) }
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
pub fn open(source: &Source, timeout: Duration, with: &Resources<'_>) -> Place {
    match source {
        Source::Keys(keys) => Place::Table(KeyTable::new(keys)),
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
            timeout,
        ))),
    }
}
