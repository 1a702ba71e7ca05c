//! Which backend has stored which response or conversation: a request that refers to one has to go there.
//!
//! It is known in the memory of this process. With `routing.stored_responses` it is also written to Redis,
//! where other replicas find it, and this one after a restart.

use std::{
    net::Ipv6Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use crate::{
    config::plan::StoredPlan,
    store::{StoreError, Stores, redis::Redis},
};

/// The most objects that are remembered in memory; the least used are forgotten.
const MOST: usize = 100_000;

/// The longest id that is remembered, in bytes. Those of conversations are the client's words.
const LONGEST: usize = 256;

/// Where a response or a conversation is, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// [`crate::balance::Endpoint::stable_tag`] of the backend.
    pub backend: Ipv6Addr,
    /// The model that was asked for.
    pub model: Option<Box<str>>,
    /// The backend knows that model by another name.
    pub renamed: bool,
    /// The user or the key that asked; empty where no key is needed. No other caller gets it.
    pub caller: Box<str>,
}

/// The owners of responses and conversations.
pub struct Owners(Cache<Box<str>, Owner>);

impl Default for Owners {
    fn default() -> Self {
        Self(Cache::new(MOST))
    }
}

impl Owners {
    /// A backend has this object, which it has stored for this caller.
    pub fn remember(&self, id: &str, owner: Owner, shared: Option<&Arc<SharedOwners>>) {
        if id.len() > LONGEST {
            return;
        }
        if let Some(shared) = shared {
            shared.write(id, Some(&owner));
        }
        self.0.insert(id.into(), owner);
    }

    /// The owner of an object, whoever asks.
    pub async fn find(&self, id: &str, shared: Option<&Arc<SharedOwners>>) -> Option<Owner> {
        if let Some(owner) = self.0.get(id) {
            return Some(owner);
        }
        let owner = shared.filter(|_| id.len() <= LONGEST)?.read(id).await?;
        self.0.insert(id.into(), owner.clone());
        Some(owner)
    }

    /// It was deleted.
    pub fn forget(&self, id: &str, shared: Option<&Arc<SharedOwners>>) {
        self.0.remove(id);
        if let Some(shared) = shared {
            shared.write(id, None);
        }
    }
}

/// The owners in Redis, for all replicas.
pub struct SharedOwners {
    redis: Arc<Redis>,
    plan: StoredPlan,
    runtime: Handle,
    /// Redis was away the last time, which was logged.
    away: AtomicBool,
}

impl SharedOwners {
    /// By the configuration.
    pub fn new(plan: StoredPlan, stores: &Stores) -> Self {
        let redis = stores.redis(&plan.server);
        Self { redis, plan, runtime: stores.handle(), away: AtomicBool::new(false) }
    }

    /// Ids are the client's words at times: as digests they are short, and of one form.
    fn key(&self, id: &str) -> String {
        let digest = Sha256::digest(id.as_bytes());
        let hex: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}{hex}", self.plan.prefix)
    }

    /// Writes an owner, or removes it. Nothing waits for that.
    fn write(self: &Arc<Self>, id: &str, owner: Option<&Owner>) {
        let (shared, key) = (Arc::clone(self), self.key(id));
        let text = owner.and_then(|owner| serde_json::to_string(owner).ok());
        self.runtime.spawn(async move {
            let done = match text {
                Some(text) => shared.redis.set(&key, &text, shared.plan.ttl).await,
                None => shared.redis.remove(&key).await,
            };
            shared.note(done);
        });
    }

    async fn read(&self, id: &str) -> Option<Owner> {
        let text = self.note(self.redis.get(&self.key(id)).await).flatten()?;
        serde_json::from_str(&text).ok()
    }

    /// Logs once that Redis is away, and once that it is back.
    fn note<T>(&self, result: Result<T, StoreError>) -> Option<T> {
        let away = result.is_err();
        if self.away.swap(away, Ordering::Relaxed) != away {
            match &result {
                Err(why) => log::warn!(
                    "routing.stored_responses: {why}: this process knows only the responses that it has \
                     seen itself"
                ),
                Ok(_) => log::info!("routing.stored_responses: Redis answers again"),
            }
        }
        result.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_remembered_is_found_until_it_is_deleted() {
        let owners = Owners::default();
        let owner = Owner {
            backend: Ipv6Addr::LOCALHOST,
            model: Some("m".into()),
            renamed: true,
            caller: "a".into(),
        };
        owners.remember("resp_1", owner.clone(), None);
        assert_eq!(owners.find("resp_1", None).await, Some(owner.clone()));
        owners.forget("resp_1", None);
        assert_eq!(owners.find("resp_1", None).await, None);
        let long = "x".repeat(LONGEST + 1);
        owners.remember(&long, owner.clone(), None);
        assert_eq!(owners.find(&long, None).await, None);
        let text = serde_json::to_string(&owner).unwrap();
        assert_eq!(serde_json::from_str::<Owner>(&text).unwrap(), owner);
    }
}
