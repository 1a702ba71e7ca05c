//! A table of records in a database: where it is, and making it what it should be.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::runtime::Handle;

use super::schema::{self, AT, DAY, Insert};
use crate::{
    config::plan::TablePlan,
    store::{
        StoreError, Stores,
        sql::{Driver, Settings, Sql, Statement, Trouble, quote, table_name},
    },
};

/// Rows of earlier versions that are brought up to date at a time.
const OLD_ROWS: u64 = 5000;

/// How long it may take to look for them.
const LOOK: Duration = Duration::from_secs(30);

/// A table of records.
pub struct Place {
    settings: Settings,
    /// Its name as configured.
    name: String,
    /// Its name as the database quotes it.
    pub table: String,
    /// The database.
    pub sql: Arc<Sql>,
    runtime: Handle,
}

impl Place {
    /// The table of a plan. Nothing is connected.
    pub fn new(plan: &TablePlan, stores: &Stores) -> Arc<Self> {
        let table = table_name(plan.settings.driver, &plan.table);
        Arc::new(Self {
            settings: plan.settings.clone(),
            name: plan.table.clone(),
            // The plan has been checked.
            table: table.unwrap_or_default(),
            sql: stores.sql(&plan.settings),
            runtime: stores.handle(),
        })
    }

    /// The kind of database.
    pub fn driver(&self) -> Driver {
        self.settings.driver
    }

    /// A name as the database quotes names.
    pub fn quote(&self, name: &str) -> String {
        quote(self.driver(), name).unwrap_or_default()
    }

    /// Does work on the runtime of the stores, where connections live, for at most so long.
    ///
    /// # Errors
    /// The work's own, or that it took too long.
    pub async fn work<T: Send + 'static>(
        &self,
        patience: Duration,
        work: impl Future<Output = Result<T, Trouble>> + Send + 'static,
    ) -> Result<T, Trouble> {
        let away = |why: String| Trouble::Away(StoreError::new(why));
        match self.runtime.spawn(tokio::time::timeout(patience, work)).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err(away(format!("no answer within {patience:?}"))),
            Err(e) => Err(away(format!("the work has ended: {e}"))),
        }
    }

    /// Makes file, table, columns and indexes as far as they are not there, and brings rows of
    /// earlier versions up to date.
    ///
    /// # Errors
    /// If the database is away, does not allow it, or has a table that records do not fit into.
    pub async fn ensure(&self) -> Result<Insert, Trouble> {
        self.sql.make_file(&self.settings).await?;
        let found = self.sql.ensure(self.driver(), &schema::wish(&self.name)).await?;
        if found.column("id").is_some() {
            self.renew(found.column("created_at").is_some()).await?;
        }
        Insert::new(self.driver(), &self.table, &found)
            .map_err(|why| Trouble::Away(StoreError::new(why)))
    }

    /// Gives rows of LLMProxy 0.5, which have no identity of a record, what queries go by.
    async fn renew(&self, made: bool) -> Result<(), Trouble> {
        let (table, record) = (&self.table, self.quote("record_id"));
        let old = format!("SELECT 1 AS old FROM {table} WHERE {record} IS NULL LIMIT 1");
        let statement = |sql: &str| Statement::new(self.driver(), sql);
        // Looked first: the right to change rows is not needed where there are none.
        if !self.sql.rows(statement(&old), LOOK).await?.is_empty() {
            let renewal = self.renewal(made);
            while self.sql.run(statement(&renewal)).await? >= OLD_ROWS {}
        }
        Ok(())
    }

    /// The statement that does it for some rows.
    fn renewal(&self, made: bool) -> String {
        let q = |name: &str| self.quote(name);
        let (id, timestamp) = (q("id"), q("timestamp"));
        let made = made.then(|| q("created_at"));
        let times = || [Some(&timestamp), made.as_ref()].into_iter().flatten();
        let each = |of: &dyn Fn(&String) -> String| times().map(of).collect::<Vec<_>>().join(", ");
        let (text, at, day) = match self.driver() {
            Driver::Sqlite => {
                // A time as Go writes it may have a zone's name at its end.
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
            // A TIMESTAMP may be declared so that each UPDATE sets it anew.
            sets.extend(times().map(|column| format!("{column} = {column}")));
        }
        let (table, sets, record) = (&self.table, sets.join(", "), q("record_id"));
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
