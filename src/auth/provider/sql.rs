//! `database`: a row of a table in SQLite, MySQL, MariaDB or PostgreSQL.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Map, Value};

use super::{KeyRecord, Provider, Used, Wanted};
use crate::{
    auth::credential::key_id,
    base::{period::now, terms::Terms},
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
    /// Keys of a database, looked up in this way.
    pub fn new(database: Arc<Sql>, lookup: Lookup) -> Self {
        Self { database, lookup }
    }
}

#[async_trait]
impl Provider for SqlKeys {
    async fn find(&self, wanted: &Wanted) -> Result<Option<KeyRecord>, StoreError> {
        let row = self.database.row(&self.lookup, &wanted.key).await?;
        Ok(row.map(|row| KeyRecord::new(row, || key_id(&wanted.digest))))
    }

    fn counts(&self) -> bool {
        true
    }

    async fn count(
        &self,
        wanted: &Wanted,
        used: Used,
    ) -> Result<Option<Map<String, Value>>, StoreError> {
        let decide = |row: &Map<String, Value>| {
            Terms::read(row).map(|terms| terms.change(used, now())).map_err(StoreError::new)
        };
        self.database.count(&self.lookup, &wanted.key, &decide).await
    }
}
