//! Looking up a key: the interface of providers, and what they know of a key.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use serde_json::{Map, Value};

use crate::{
    auth::credential::KeyDigest,
    base::{
        KeyUsage, Principal,
        terms::{self, Terms},
    },
    lua::Script,
    store::StoreError,
};

/// A key to look up.
pub struct LookupKey {
    pub key: Arc<str>,
    pub digest: KeyDigest,
}

/// What a provider knows of a key.
#[derive(Debug)]
pub struct KeyRecord {
    /// The data as the provider returned it, for scripts.
    pub data: Map<String, Value>,
    /// For the default rules. An error is a reason to reject the key.
    pub terms: Result<Terms, String>,
    /// Why the per-key limits are malformed, if they are.
    pub limits: Result<(), String>,
    /// The caller according to the data.
    pub principal: Arc<Principal>,
    /// The caller after the last decision of a script that changed it: most scripts decide the same
    /// every time.
    pub decided: ArcSwapOption<Principal>,
    /// The last decision that follows from the data alone.
    pub remembered: ArcSwapOption<RememberedDecision>,
}

/// What a script that depends on a key's data alone has decided: it need not run again for the same
/// data. Rejections are not remembered.
#[derive(Debug)]
pub struct RememberedDecision {
    /// The script's id.
    pub script: u64,
    /// For later scripts.
    pub metadata: Map<String, Value>,
    pub principal: Arc<Principal>,
}

impl KeyRecord {
    /// Parses the data of a key. `fallback` is its id if the data has none.
    pub fn new(data: Map<String, Value>, fallback: impl FnOnce() -> String) -> Self {
        let terms = Terms::read(&data);
        let text = |names: &[&str]| names.iter().find_map(|n| as_text(data.get(*n)?));
        let metadata = match data.get("metadata") {
            Some(Value::Object(map)) => map.clone(),
            // Redis hashes and text columns hold JSON as text.
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
        let principal = Arc::new(principal);
        Self {
            data,
            terms,
            limits,
            principal,
            decided: ArcSwapOption::empty(),
            remembered: ArcSwapOption::empty(),
        }
    }

    /// What this script has decided before, if it depends on the data alone.
    pub fn decision_of(&self, script: &Script) -> Option<Arc<RememberedDecision>> {
        if !script.depends_on_data_alone() {
            return None;
        }
        let known = self.remembered.load();
        known.as_ref().filter(|known| known.script == script.id()).map(Arc::clone)
    }

    /// Remembers what a script that depends on the data alone has decided.
    pub fn remember(&self, script: &Script, metadata: Map<String, Value>, to: &Arc<Principal>) {
        let principal = Arc::clone(to);
        let new = RememberedDecision { script: script.id(), metadata, principal };
        self.remembered.store(Some(Arc::new(new)));
    }

    /// The same key with changed amounts in its data.
    pub fn with_data(&self, change: impl FnOnce(&mut Map<String, Value>)) -> Self {
        let mut data = self.data.clone();
        change(&mut data);
        Self {
            terms: Terms::read(&data),
            data,
            limits: self.limits.clone(),
            principal: Arc::clone(&self.principal),
            decided: ArcSwapOption::new(self.decided.load_full()),
            // The data is other data now.
            remembered: ArcSwapOption::empty(),
        }
    }

    /// The same key after this usage.
    pub fn after_usage(&self, usage: KeyUsage, now: i64) -> Self {
        match &self.terms {
            Ok(terms) => self.with_data(|data| terms.change(usage, now).apply(data)),
            Err(_) => self.with_data(|_| ()),
        }
    }
}

/// A non-empty text or a number, as text.
pub fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A store of keys that must be asked for each key.
#[async_trait]
pub trait Provider: Send + Sync {
    /// Looks up a key; `None` if it is unknown.
    async fn find(&self, key: &LookupKey) -> Result<Option<KeyRecord>, StoreError>;

    /// Whether the store itself counts quotas and balances.
    fn counts(&self) -> bool {
        false
    }

    /// Counts usage of a key in the store, and returns the fields of
    /// [`COUNTED`](crate::base::terms::COUNTED) with their new values, perhaps with others. `None`:
    /// the key is unknown, or this store does not count.
    async fn count(
        &self,
        _key: &LookupKey,
        _usage: KeyUsage,
    ) -> Result<Option<Map<String, Value>>, StoreError> {
        Ok(None)
    }

    /// Number of changes that this process has made in the store: cached answers from before a change
    /// are invalid.
    fn changes(&self) -> u64 {
        0
    }
}
