//! What is opened once and used by many: certificates, HTTP clients, Redis and SQL connections.

pub mod dial;
pub mod dns;
pub mod file;
pub mod http;
pub mod proxy;
pub mod redis;
pub mod sql;
pub mod tls;

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use crate::base::lock;

/// Why a store did not answer: one sentence without secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreError(pub Arc<str>);

impl StoreError {
    /// An error with this text.
    pub fn new(why: impl fmt::Display) -> Self {
        Self(why.to_string().into())
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// All stores of a process. What two policies, or two generations of the configuration, name in
/// the same way is opened once; it is closed when nobody has it any more.
///
/// Stores live on a runtime of their own: a connection must not depend on the thread that happened
/// to open it, and a query that was begun ends in good order when its request is given up.
pub struct Stores {
    runtime: Option<tokio::runtime::Runtime>,
    redis: Shelf<redis::Settings, redis::Redis>,
    sql: Shelf<sql::Settings, sql::Sql>,
}

type Shelf<K, V> = Mutex<HashMap<K, Weak<V>>>;

impl Default for Stores {
    fn default() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("stores")
            .enable_all()
            .build()
            .expect("a process that serves can start one more thread");
        Self { runtime: Some(runtime), redis: Shelf::default(), sql: Shelf::default() }
    }
}

impl Drop for Stores {
    fn drop(&mut self) {
        // May happen inside of another runtime, which must not be blocked.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Stores {
    /// A Redis server. Connects when it is first asked.
    pub fn redis(&self, settings: &redis::Settings) -> Arc<redis::Redis> {
        take(&self.redis, settings, || redis::Redis::new(settings.clone()))
    }

    /// A database. Connects when it is first asked.
    pub fn sql(&self, settings: &sql::Settings) -> Arc<sql::Sql> {
        let _inside = self.handle().enter();
        take(&self.sql, settings, || sql::Sql::new(settings))
    }

    /// The runtime of the stores.
    pub fn handle(&self) -> tokio::runtime::Handle {
        self.runtime.as_ref().expect("taken only when dropped").handle().clone()
    }
}

fn take<K: Hash + Eq + Clone, V>(shelf: &Shelf<K, V>, key: &K, make: impl FnOnce() -> V) -> Arc<V> {
    let mut shelf = lock(shelf);
    if let Some(known) = shelf.get(key).and_then(Weak::upgrade) {
        return known;
    }
    shelf.retain(|_, v| v.strong_count() > 0);
    let made = Arc::new(make());
    shelf.insert(key.clone(), Arc::downgrade(&made));
    made
}

/// Waits for an answer, but not for longer than `patience`.
///
/// # Errors
/// The store's own, or that it did not answer in time.
pub async fn within<T>(
    patience: Duration,
    answer: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(patience, answer)
        .await
        .unwrap_or_else(|_| Err(StoreError::new(format!("no answer within {patience:?}"))))
}
