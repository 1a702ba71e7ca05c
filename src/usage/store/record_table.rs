//! The table of usage records in a database: its connection, and bringing its schema up to date.

use std::{
    future::Future,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    task::{JoinError, JoinHandle},
    time::timeout,
};

use super::schema::{self, AT, DAY, Insert};
use crate::{
    base::lock,
    config::plan::TablePlan,
    store::{
        StoreError, Stores,
        sql::{Driver, Settings, Sql, SqlError, Statement, quote, table_name},
    },
};

/// Rows of earlier versions that are brought up to date at a time.
const OLD_ROWS: u64 = 5000;

/// How long the search for such rows may take.
const LOOK: Duration = Duration::from_secs(30);

/// How long preparing a table may take: it may be large.
const PREPARATION: Duration = Duration::from_secs(3600);

/// How long one caller waits for that: less than a delivery may take, so that the caller gets an error of
/// its own.
const PATIENCE: Duration = Duration::from_secs(30);

/// The tables in use: all users of a table share its preparation.
static TABLES: Mutex<Vec<Weak<RecordTable>>> = Mutex::new(Vec::new());

/// A table of records.
pub struct RecordTable {
    settings: Settings,
    /// The name as configured.
    name: String,
    /// The name as the database quotes it.
    pub quoted_name: String,
    pub sql: Arc<Sql>,
    runtime: Handle,
    /// The preparation that is running, if any.
    preparation: tokio::sync::Mutex<Option<JoinHandle<Result<Insert, SqlError>>>>,
}

impl RecordTable {
    /// The table of a plan, shared with all its users. Does not connect.
    pub fn new(plan: &TablePlan, stores: &Stores) -> Arc<Self> {
        let sql = stores.sql(&plan.settings);
        let mut tables = lock(&TABLES);
        let same = |table: &Arc<Self>| Arc::ptr_eq(&table.sql, &sql) && table.name == plan.table;
        if let Some(known) = tables.iter().filter_map(Weak::upgrade).find(same) {
            return known;
        }
        let table = table_name(plan.settings.driver, &plan.table);
        let table = Arc::new(Self {
            settings: plan.settings.clone(),
            name: plan.table.clone(),
            // The plan has been checked.
            quoted_name: table.unwrap_or_default(),
            sql,
            runtime: stores.handle(),
            preparation: tokio::sync::Mutex::default(),
        });
        tables.retain(|table| table.strong_count() > 0);
        tables.push(Arc::downgrade(&table));
        table
    }

    pub fn driver(&self) -> Driver {
        self.settings.driver
    }

    pub fn quote(&self, name: &str) -> String {
        quote(self.driver(), name).unwrap_or_default()
    }

    /// Runs work on the runtime of the stores, where connections live, for at most `patience`.
    ///
    /// # Errors
    /// The error of the work, or that it took too long.
    pub async fn work<T: Send + 'static>(
        &self,
        patience: Duration,
        work: impl Future<Output = Result<T, SqlError>> + Send + 'static,
    ) -> Result<T, SqlError> {
        flatten(self.begin(patience, work).await)
    }

    fn begin<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, SqlError>> + Send + 'static,
    ) -> JoinHandle<Result<T, SqlError>> {
        let _inside = self.runtime.enter();
        let work = timeout(limit, work);
        self.runtime.spawn(async move {
            work.await.unwrap_or_else(|_| Err(unavailable(format!("no answer within {limit:?}"))))
        })
    }

    /// Brings the table up to date and returns its INSERT. The preparation continues after its caller
    /// has given up; the next caller waits for the same one.
    ///
    /// # Errors
    /// Why the preparation failed, or that it has not ended yet.
    pub async fn prepare(self: &Arc<Self>) -> Result<Insert, SqlError> {
        let done = timeout(PATIENCE, async {
            let mut preparation = self.preparation.lock().await;
            let table = Arc::clone(self);
            let work = preparation.get_or_insert_with(|| {
                self.begin(PREPARATION, async move { table.ensure().await })
            });
            let done = work.await;
            *preparation = None;
            flatten(done)
        });
        done.await.unwrap_or_else(|_| {
            Err(unavailable(format!(
                "the table `{}` is still being prepared: indexes are being created, or rows of an earlier \
                 version are being converted",
                self.name
            )))
        })
    }

    /// Creates the file, table, columns and indexes that do not exist, and converts rows of earlier
    /// versions.
    ///
    /// # Errors
    /// If the database is unavailable, does not allow it, or has a table that cannot hold records.
    async fn ensure(&self) -> Result<Insert, SqlError> {
        self.sql.make_file(&self.settings).await?;
        let found = self.sql.ensure(self.driver(), &schema::definition(&self.name)).await?;
        for index in found.unique_without(&["id", "record_id"]) {
            log::warn!(
                "the table `{}` has the unique index `{index}`: a record with the same values in it as an \
                 earlier record is rejected and becomes a dead letter; drop the index unless you want that",
                self.name
            );
        }
        if found.column("id").is_some() {
            self.convert_old_rows(found.column("created_at").is_some()).await?;
        }
        Insert::new(self.driver(), &self.quoted_name, &found).map_err(unavailable)
    }

    /// Fills in the columns that queries use in rows of LLMProxy 0.5, which have no `record_id`.
    async fn convert_old_rows(&self, has_created_at: bool) -> Result<(), SqlError> {
        let (table, record) = (&self.quoted_name, self.quote("record_id"));
        let old = format!("SELECT 1 AS old FROM {table} WHERE {record} IS NULL LIMIT 1");
        let statement = |sql: &str| Statement::new(self.driver(), sql);
        // A look first: without such rows the right to UPDATE is not needed.
        if !self.sql.rows(statement(&old), LOOK).await?.is_empty() {
            let conversion = self.conversion(has_created_at);
            while self.sql.run(statement(&conversion)).await? >= OLD_ROWS {}
        }
        Ok(())
    }

    /// The statement that converts up to [`OLD_ROWS`] rows.
    fn conversion(&self, has_created_at: bool) -> String {
        let q = |name: &str| self.quote(name);
        let (id, timestamp) = (q("id"), q("timestamp"));
        let has_created_at = has_created_at.then(|| q("created_at"));
        let times = || [Some(&timestamp), has_created_at.as_ref()].into_iter().flatten();
        let each = |of: &dyn Fn(&String) -> String| times().map(of).collect::<Vec<_>>().join(", ");
        let (text, at, day) = match self.driver() {
            Driver::Sqlite => {
                // A time written by Go may end with the name of its zone.
                let time =
                    each(&|c| format!("strftime('%s', {c}), strftime('%s', substr({c}, 1, 19))"));
                let time = format!("COALESCE({time}, 0)");
                let day = format!("strftime('%Y-%m-%d', {time}, 'unixepoch')");
                (format!("'old_' || {id}"), format!("1000 * {time}"), day)
            }
            Driver::Mysql => {
                let time = each(&|c| format!("LEFT({c}, 19)"));
                let time = format!("COALESCE({time}, '1970-01-01 00:00:00')");
                let at = format!("1000 * TIMESTAMPDIFF(SECOND, '1970-01-01 00:00:00', {time})");
                (format!("CONCAT('old_', {id})"), at, format!("LEFT({time}, 10)"))
            }
            Driver::Postgres => {
                let time = each(&|c| format!("CAST({c} AS TIMESTAMPTZ)"));
                let time = format!("COALESCE({time}, to_timestamp(0))");
                let at = format!("CAST(1000 * EXTRACT(EPOCH FROM {time}) AS BIGINT)");
                let day = format!("to_char({time} AT TIME ZONE 'UTC', 'YYYY-MM-DD')");
                (format!("'old_' || {id}"), at, day)
            }
        };
        let sets = [
            ("record_id", text),
            (AT, at),
            (DAY, day),
            ("endpoint", q("path")),
            (
                "outcome",
                format!(
                    "CASE WHEN {0} >= 500 THEN 'upstream_error' WHEN {0} >= 400 THEN 'rejected' \
                     ELSE 'complete' END",
                    q("status_code")
                ),
            ),
            (
                "usage_source",
                format!("CASE WHEN {} > 0 THEN 'final' ELSE 'none' END", q("total_tokens")),
            ),
        ];
        let sets = sets.iter().map(|(name, value)| format!("{} = {value}", q(name)));
        let mut sets: Vec<_> = sets.collect();
        if self.driver() == Driver::Mysql {
            // A TIMESTAMP may be declared ON UPDATE CURRENT_TIMESTAMP.
            sets.extend(times().map(|column| format!("{column} = {column}")));
        }
        let (table, sets, record) = (&self.quoted_name, sets.join(", "), q("record_id"));
        match self.driver() {
            Driver::Mysql => {
                format!("UPDATE {table} SET {sets} WHERE {record} IS NULL LIMIT {OLD_ROWS}")
            }
            _ => format!(
                "UPDATE {table} SET {sets} WHERE {id} IN \
                 (SELECT {id} FROM {table} WHERE {record} IS NULL LIMIT {OLD_ROWS})"
            ),
        }
    }
}

fn unavailable(why: String) -> SqlError {
    SqlError::Unavailable(StoreError::new(why))
}

fn flatten<T>(done: Result<Result<T, SqlError>, JoinError>) -> Result<T, SqlError> {
    done.unwrap_or_else(|e| Err(unavailable(format!("the task of the query has ended: {e}"))))
}
