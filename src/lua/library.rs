//! What scripts reach beyond their own values: names of the environment, modules, the store, HTTP. One
//! for each configuration.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use tokio::{runtime::Handle, sync::Semaphore};

use super::{
    journal::{HttpCall, Outcome, StoreCall},
    memory::ScriptStore,
    modules::Modules,
    outside::{self, HttpObserver},
    permits::block_on,
    settings::{HttpSettings, StoreSettings},
};
use crate::store::{StoreError, Stores, redis::Redis, within};

/// See above.
pub struct Library {
    env: BTreeMap<String, String>,
    modules: Modules,
    store: StoreSettings,
    http: HttpSettings,
    concurrent: Arc<Semaphore>,
    connected: OnceLock<Connected>,
    /// The store of a library that is not connected.
    own: OnceLock<Arc<ScriptStore>>,
}

/// What a library is connected with.
struct Connected {
    memory: Arc<ScriptStore>,
    redis: Option<Arc<Redis>>,
    stores: Handle,
    observer: Option<Arc<dyn HttpObserver>>,
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The values of the environment may be secret.
        f.debug_struct("Library").field("env", &self.env.keys()).finish_non_exhaustive()
    }
}

impl Default for Library {
    /// Nothing is configured: an empty environment, no modules, a store of its own, no hosts.
    fn default() -> Self {
        Self::new(
            BTreeMap::new(),
            Modules::default(),
            StoreSettings::default(),
            HttpSettings::default(),
        )
    }
}

impl Library {
    /// `env`: names and values that scripts may read.
    pub fn new(
        env: BTreeMap<String, String>,
        modules: Modules,
        store: StoreSettings,
        http: HttpSettings,
    ) -> Self {
        let concurrent = Arc::new(Semaphore::new(http.max_concurrent));
        let (connected, own) = (OnceLock::new(), OnceLock::new());
        Self { env, modules, store, http, concurrent, connected, own }
    }

    /// The same with a store of its own in this process.
    pub fn in_memory(mut self) -> Self {
        self.store.redis = None;
        self
    }

    /// Connects it with what outlives a configuration. Until then the store is one of its own in this
    /// process, and Redis is not available. Only the first call has an effect.
    pub fn connect(
        &self,
        stores: &Stores,
        memory: &Arc<ScriptStore>,
        observer: Option<Arc<dyn HttpObserver>>,
    ) {
        memory.set_max_entries(self.store.max_entries);
        self.connected.get_or_init(|| Connected {
            memory: Arc::clone(memory),
            redis: self.store.redis.as_ref().map(|(_, settings)| stores.redis(settings)),
            stores: stores.handle(),
            observer,
        });
    }

    pub(super) fn env(&self, name: &str) -> Option<&str> {
        self.env.get(name).map(String::as_str)
    }

    pub(super) fn modules(&self) -> &Modules {
        &self.modules
    }

    /// Largest value of `store`, in bytes.
    pub(super) fn max_value(&self) -> usize {
        self.store.max_value
    }

    /// Whether a call of `store` waits.
    pub(super) fn store_waits(&self) -> bool {
        self.store.redis.is_some()
    }

    /// Does what a script asks of the store. May block the thread.
    pub(super) fn store(&self, call: &StoreCall) -> Outcome {
        let (settings, connected) = (&self.store, self.connected.get());
        let Some((name, _)) = &settings.redis else {
            let memory = match connected {
                Some(connected) => &connected.memory,
                None => self.own.get_or_init(|| Arc::new(ScriptStore::new(settings.max_entries))),
            };
            return memory.call(call, settings.default_ttl, Instant::now());
        };
        let failed =
            |why: &dyn fmt::Display| Outcome::Failed(format!("the storage `{name}`: {why}").into());
        let Some((redis, stores)) =
            connected.and_then(|all| Some((Arc::clone(all.redis.as_ref()?), &all.stores)))
        else {
            return failed(&"it is not connected here");
        };
        let (call, timeout) = (call.clone(), settings.timeout);
        let key = format!("{}{}", settings.prefix, call.key());
        let (ttl, most) = (settings.default_ttl, settings.max_value);
        let answer = stores
            .spawn(async move { within(timeout, in_redis(&redis, &key, &call, ttl, most)).await });
        // The answer comes in time; this is for a runtime that has ended.
        match block_on(answer, timeout + Duration::from_secs(5)) {
            Some(Ok(Ok(outcome))) => outcome,
            Some(Ok(Err(why))) => failed(&why),
            Some(Err(_)) | None => failed(&"no answer"),
        }
    }

    /// Sends a request. Blocks the thread.
    pub(super) fn http(&self, call: &HttpCall) -> Outcome {
        let observer = self.connected.get().and_then(|connected| connected.observer.as_deref());
        outside::request(&self.http, &self.concurrent, observer, call)
    }
}

async fn in_redis(
    redis: &Redis,
    key: &str,
    call: &StoreCall,
    default_ttl: Duration,
    largest: usize,
) -> Result<Outcome, StoreError> {
    let ttl = |ttl: &Option<u64>| ttl.map_or(default_ttl, Duration::from_millis);
    Ok(match call {
        StoreCall::Get { .. } => match redis.get_value(key, largest).await? {
            Some(value) => Outcome::Text(value.into()),
            None => Outcome::Nothing,
        },
        StoreCall::Set { value, ttl: given, .. } => {
            redis.set_value(key, value, ttl(given)).await?;
            Outcome::Nothing
        }
        StoreCall::Incr { by, ttl: given, .. } => {
            Outcome::Integer(redis.increment(key, *by, ttl(given)).await?)
        }
        StoreCall::Expire { ttl, .. } => {
            Outcome::Done(redis.expire(key, Duration::from_millis(*ttl)).await?)
        }
        StoreCall::Delete { .. } => Outcome::Done(redis.delete(key).await?),
    })
}
