//! `redis`: a hash or a JSON string under a name made from the key.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Map, Value};

use super::{KeyRecord, Provider, Wanted};
use crate::{
    auth::credential::key_id,
    store::{
        StoreError,
        redis::{Found, Redis},
    },
};

/// Keys in Redis.
pub struct RedisKeys {
    server: Arc<Redis>,
    /// The name, with `{api_key}` in it.
    pattern: String,
}

impl RedisKeys {
    /// Keys of a server, under names like `pattern`.
    pub fn new(server: Arc<Redis>, pattern: &str) -> Self {
        Self { server, pattern: pattern.to_owned() }
    }
}

#[async_trait]
impl Provider for RedisKeys {
    async fn find(&self, wanted: &Wanted) -> Result<Option<KeyRecord>, StoreError> {
        let name = self.pattern.replace("{api_key}", &wanted.key);
        let data = match self.server.hash_or_string(&name).await? {
            Found::Nothing => return Ok(None),
            Found::Hash(fields) => {
                fields.into_iter().map(|(name, value)| (name, Value::from(value))).collect()
            }
            Found::String(text) => serde_json::from_str::<Map<String, Value>>(&text)
                .map_err(|_| StoreError::new("the string at the key is not a JSON object"))?,
        };
        Ok(Some(KeyRecord::new(data, || key_id(&wanted.digest))))
    }
}
