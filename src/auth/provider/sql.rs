//! `database`: a row of a table in SQLite, MySQL, MariaDB or PostgreSQL.

use std::sync::Arc;

use async_trait::async_trait;

use super::{KeyRecord, Provider, Wanted};
use crate::{
    auth::credential::key_id,
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
}
