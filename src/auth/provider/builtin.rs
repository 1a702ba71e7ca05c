//! `builtin`: the keys that the admin API manages.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Map, Value};

use super::lookup::{KeyRecord, LookupKey, Provider};
use crate::{
    auth::{credential::key_id, keystore::KeyStore},
    base::KeyUsage,
    store::StoreError,
};

/// Keys of the admin API.
pub struct Builtin(pub Arc<KeyStore>);

#[async_trait]
impl Provider for Builtin {
    async fn find(&self, key: &LookupKey) -> Result<Option<KeyRecord>, StoreError> {
        let found = self.0.by_digest(&key.digest).await?;
        Ok(found.map(|stored| KeyRecord::new(stored.data(), || key_id(&key.digest))))
    }

    fn counts(&self) -> bool {
        true
    }

    async fn count(
        &self,
        key: &LookupKey,
        usage: KeyUsage,
    ) -> Result<Option<Map<String, Value>>, StoreError> {
        self.0.count(&key.digest, usage).await
    }

    fn changes(&self) -> u64 {
        self.0.changes()
    }
}
