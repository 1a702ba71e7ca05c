//! The usage store: queries for the usage records of a table.

mod query;
mod record_table;
pub mod schema;

use std::{sync::Arc, time::Duration};

use serde_json::{Map, Value};
use tokio::sync::Semaphore;

pub use self::{
    query::{Column, Filter, PageCursor, Sums, moment},
    record_table::RecordTable,
};
use crate::{
    config::plan::TablePlan,
    store::{
        StoreError, Stores,
        sql::{Row, SqlError, Statement},
    },
};

/// How long the database may work on one query.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a query may take, waiting and preparing the table included.
const IN_ALL: Duration = Duration::from_secs(45);

/// Queries at a time: they share the connections with the INSERTs.
static QUERIES: Semaphore = Semaphore::const_new(2);

/// Answers queries for the records of one table.
#[derive(Clone)]
pub struct Store {
    table: Arc<RecordTable>,
    patience: Duration,
}

/// A page of a result.
pub struct Page<T> {
    pub items: Vec<T>,
    /// Where the next page begins; `None` after the last one.
    pub next: Option<PageCursor>,
}

impl Store {
    /// Does not connect.
    pub fn new(plan: &TablePlan, stores: &Stores) -> Self {
        Self { table: RecordTable::new(plan, stores), patience: PATIENCE }
    }

    /// Changes how long the database may work on one query.
    #[must_use]
    pub fn patient(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Records, the newest first, as they were delivered.
    ///
    /// # Errors
    /// If the query fails.
    pub async fn records(
        &self,
        filter: &Filter,
        after: Option<&PageCursor>,
        limit: usize,
    ) -> Result<Page<Map<String, Value>>, StoreError> {
        let mut rows = self.run(query::records(&self.table, filter, after, limit + 1)).await?;
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).map(query::after_record);
        Ok(Page { items: rows.into_iter().map(schema::record).collect(), next })
    }

    /// Sums of records, grouped by `by`.
    ///
    /// # Errors
    /// If the query fails.
    pub async fn sums(
        &self,
        filter: &Filter,
        by: &[Column],
        after: Option<&PageCursor>,
        limit: usize,
    ) -> Result<Page<Sums>, StoreError> {
        let rows = self.run(query::sums(&self.table, filter, by, after, limit + 1)).await?;
        let mut items: Vec<_> = rows.iter().map(|row| query::sums_of_row(row, by)).collect();
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| more).map(|sums| query::after_sums(&sums.group));
        Ok(Page { items, next })
    }

    /// The query plan of [`Self::records`], or of [`Self::sums`] if `by` names columns, as the database
    /// prints it: it shows whether an index is used.
    ///
    /// # Errors
    /// If the query fails.
    pub async fn explain(
        &self,
        filter: &Filter,
        by: &[Column],
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        let query = match by {
            [] => query::records(&self.table, filter, None, limit),
            by => query::sums(&self.table, filter, by, None, limit),
        };
        self.run(query.explained()).await
    }

    async fn run(&self, query: Statement) -> Result<Vec<Row>, StoreError> {
        let (table, patience) = (Arc::clone(&self.table), self.patience);
        let work = async move {
            let run = async || {
                let _permit = QUERIES.acquire().await;
                table.sql.rows(query.clone(), patience).await
            };
            match run().await {
                // The table does not exist yet, or is of an earlier version.
                Err(SqlError::Schema(_)) => {
                    table.prepare().await?;
                    run().await
                }
                rows => rows,
            }
        };
        self.table.work(IN_ALL, work).await.map_err(|error| error.why().clone())
    }
}
