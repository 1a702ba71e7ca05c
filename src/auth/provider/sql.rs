//! `database`: a row of a table in SQLite, MySQL, MariaDB or PostgreSQL.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Map, Value};

use super::lookup::{KeyRecord, LookupKey, Provider};
use crate::{
    auth::credential::key_id,
    base::{KeyUsage, period::now, terms::Terms},
    store::{
        StoreError,
        sql::{Lookup, Sql},
    },
};

/// Keys in a table.
pub struct SqlKeys {
    database: Arc<Sql>,
    lookup: Lookup,
}

impl SqlKeys {
    pub fn new(database: Arc<Sql>, lookup: Lookup) -> Self {
        Self { database, lookup }
    }
}

#[async_trait]
impl Provider for SqlKeys {
    async fn find(&self, key: &LookupKey) -> Result<Option<KeyRecord>, StoreError> {
        let row = self.database.row(&self.lookup, &key.key).await?;
        Ok(row.map(|row| KeyRecord::new(row, || key_id(&key.digest))))
    }

    fn counts(&self) -> bool {
        true
    }

    async fn count(
        &self,
        key: &LookupKey,
        usage: KeyUsage,
    ) -> Result<Option<Map<String, Value>>, StoreError> {
        let decide = |row: &Map<String, Value>| {
            Terms::read(row).map(|terms| terms.change(usage, now())).map_err(StoreError::new)
        };
        self.database.count(&self.lookup, &key.key, &decide).await
    }
}
