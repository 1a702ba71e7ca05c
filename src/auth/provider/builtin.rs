//! `builtin`: the keys that the admin API manages.

use std::sync::Arc;

use async_trait::async_trait;

use super::{KeyRecord, Provider, Wanted};
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

    fn changes(&self) -> u64 {
        self.0.changes()
    }
}
