//! Where keys come from: one file for each type of provider. A new one is its file, its line in
//! [`open`], and its section in the configuration.

mod builtin;
mod lookup;
mod lua;
mod redis;
mod sql;
mod static_keys;
mod webhook;

use std::sync::Arc;

pub use self::{
    lookup::{KeyRecord, LookupKey, Provider, as_text},
    lua::unchecked_record,
    static_keys::KeyTable,
};
use super::resources::Resources;
use crate::config::plan::{ProviderPlan, Source};

/// A source of keys, ready for use.
pub enum KeySource {
    /// All keys are in memory.
    Table(KeyTable),
    /// Every key is accepted; a script decides.
    Script,
    /// A store is asked, and its answers are cached.
    Remote(Arc<dyn Provider>),
}

/// Opens the source of a provider.
pub fn open(plan: &ProviderPlan, with: &Resources<'_>) -> KeySource {
    let provider: Arc<dyn Provider> = match &plan.source {
        Source::Keys(keys) => {
            let table = KeyTable::new(keys, plan.count_usage, plan.script.is_none());
            return KeySource::Table(table);
        }
        Source::Lua => return KeySource::Script,
        Source::Builtin(_) => Arc::new(builtin::Builtin(Arc::clone(with.keys))),
        Source::Redis { settings, pattern } => {
            Arc::new(redis::RedisKeys::new(with.stores.redis(settings), pattern))
        }
        Source::Database { settings, lookup } => {
            Arc::new(sql::SqlKeys::new(with.stores.sql(settings), lookup.clone()))
        }
        Source::Webhook { url, headers } => Arc::new(webhook::Webhook::new(
            with.client.clone(),
            url.clone(),
            headers.clone(),
            plan.timeout,
        )),
    };
    KeySource::Remote(provider)
}
