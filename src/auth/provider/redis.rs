//! `redis`: a hash or a JSON string, under a name that contains the key.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Map, Value};

use super::lookup::{KeyRecord, LookupKey, Provider};
use crate::{
    auth::credential::key_id,
    base::{
        KeyUsage,
        period::now,
        terms::{COUNTED, Terms},
    },
    store::{
        StoreError,
        redis::{Redis, StoredValue},
    },
};

/// Keys in Redis.
pub struct RedisKeys {
    server: Arc<Redis>,
    /// The name, with `{api_key}` in it.
    pattern: String,
}

impl RedisKeys {
    pub fn new(server: Arc<Redis>, pattern: &str) -> Self {
        Self { server, pattern: pattern.to_owned() }
    }
}

/// Attempts of one count while other clients change the same key.
const ATTEMPTS: usize = 20;

impl RedisKeys {
    fn name(&self, key: &str) -> String {
        self.pattern.replace("{api_key}", key)
    }
}

/// The data in a hash or in a JSON object as text.
fn data(found: &StoredValue) -> Result<Option<Map<String, Value>>, StoreError> {
    match found {
        StoredValue::Missing => Ok(None),
        StoredValue::Hash(fields) => {
            let field = |(name, value): &(String, String)| (name.clone(), value.as_str().into());
            Ok(Some(fields.iter().map(field).collect()))
        }
        StoredValue::String(text) => serde_json::from_str(text)
            .map(Some)
            .map_err(|_| StoreError::new("the string at the key is not a JSON object")),
    }
}

#[async_trait]
impl Provider for RedisKeys {
    async fn find(&self, key: &LookupKey) -> Result<Option<KeyRecord>, StoreError> {
        let found = self.server.hash_or_string(&self.name(&key.key)).await?;
        Ok(data(&found)?.map(|data| KeyRecord::new(data, || key_id(&key.digest))))
    }

    fn counts(&self) -> bool {
        true
    }

    async fn count(
        &self,
        key: &LookupKey,
        usage: KeyUsage,
    ) -> Result<Option<Map<String, Value>>, StoreError> {
        let name = self.name(&key.key);
        for _ in 0..ATTEMPTS {
            let found = self.server.hash_or_string(&name).await?;
            let Some(mut data) = data(&found)? else { return Ok(None) };
            let change = Terms::read(&data).map_err(StoreError::new)?.change(usage, now());
            match found {
                StoredValue::Missing => return Ok(None),
                StoredValue::Hash(_) => {
                    let last = data.get("last_reset_at").and_then(Value::as_str);
                    if let Some(values) = self.server.count(&name, last, &change).await? {
                        let fields = COUNTED.into_iter().zip(values);
                        let fields =
                            fields.map(|(name, text)| (name.to_owned(), Value::from(text)));
                        return Ok(Some(fields.collect()));
                    }
                }
                StoredValue::String(old) => {
                    change.apply(&mut data);
                    let new = serde_json::to_string(&data).map_err(StoreError::new)?;
                    if self.server.replace(&name, &old, &new).await? {
                        return Ok(Some(data));
                    }
                }
            }
        }
        Err(StoreError::new("other clients change the key all the time"))
    }
}
