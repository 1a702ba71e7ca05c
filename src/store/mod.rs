//! Shared connections to the outside: TLS, DNS, HTTP clients, Redis and SQL.

pub mod backend_tls;
pub mod certificates;
pub mod dial;
pub mod dns;
mod error;
pub mod file;
pub mod http;
pub mod proxy;
pub mod redis;
pub mod sql;
pub mod tls;

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, Weak},
};

pub use self::error::{StoreError, within};
use crate::base::lock;

/// All stores of a process. A store with the same settings is opened once, whatever policy or generation of
/// the configuration uses it, and closed when its last user is gone.
///
/// Stores have a runtime of their own: a connection must not depend on the thread that opened it, and a query
/// ends in good order when its request is cancelled.
pub struct Stores {
    runtime: Option<tokio::runtime::Runtime>,
    redis: SharedStores<redis::Settings, redis::Redis>,
    sql: SharedStores<sql::Settings, sql::Sql>,
}

type SharedStores<K, V> = Mutex<HashMap<K, Weak<V>>>;

impl Default for Stores {
    fn default() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("stores")
            .enable_all()
            .build()
            .expect("a process that serves can start one more thread");
        Self {
            runtime: Some(runtime),
            redis: SharedStores::default(),
            sql: SharedStores::default(),
        }
    }
}

impl Drop for Stores {
    fn drop(&mut self) {
        // This may run inside another runtime, which must not block.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Stores {
    /// A Redis server. Connects with the first command.
    pub fn redis(&self, settings: &redis::Settings) -> Arc<redis::Redis> {
        open_shared(&self.redis, settings, || redis::Redis::new(settings.clone()))
    }

    /// A database. Connects with the first query.
    pub fn sql(&self, settings: &sql::Settings) -> Arc<sql::Sql> {
        let _guard = self.handle().enter();
        open_shared(&self.sql, settings, || sql::Sql::new(settings))
    }

    pub fn handle(&self) -> tokio::runtime::Handle {
        self.runtime.as_ref().expect("taken only when dropped").handle().clone()
    }
}

fn open_shared<K: Hash + Eq + Clone, V>(
    stores: &SharedStores<K, V>,
    key: &K,
    make: impl FnOnce() -> V,
) -> Arc<V> {
    let mut stores = lock(stores);
    if let Some(known) = stores.get(key).and_then(Weak::upgrade) {
        return known;
    }
    stores.retain(|_, v| v.strong_count() > 0);
    let made = Arc::new(make());
    stores.insert(key.clone(), Arc::downgrade(&made));
    made
}
