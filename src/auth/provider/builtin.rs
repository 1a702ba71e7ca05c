//! `builtin`: the keys that the admin API manages.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Map, Value};

use super::{KeyRecord, Provider, Used, Wanted};
use crate::{
    auth::{credential::key_id, keystore::KeyStore},
    store::StoreError,
};

/// Keys of the admin API.
pub struct Builtin(pub Arc<KeyStore>);

#[async_trait]
impl Provider for Builtin {
    async fn find(&self, wanted: &Wanted) -> Result<Option<KeyRecord>, StoreError> {
        let found = self.0.by_digest(&wanted.digest).await?;
        Ok(found.map(|key| KeyRecord::new(key.data(), || key_id(&wanted.digest))))
    }

    fn counts(&self) -> bool {
        true
    }

    async fn count(
        &self,
        wanted: &Wanted,
        used: Used,
    ) -> Result<Option<Map<String, Value>>, StoreError> {
        self.0.count(&wanted.digest, used).await
    }

    fn changes(&self) -> u64 {
        self.0.changes()
    }
}
