//! A table of records in a database: where it is, and making it what it should be.

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
        sql::{Driver, Settings, Sql, Statement, Trouble, quote, table_name},
    },
};

/// Rows of earlier versions that are brought up to date at a time.
const OLD_ROWS: u64 = 5000;

/// How long it may take to look for them.
const LOOK: Duration = Duration::from_secs(30);

/// How long it may take to make a table what it should be: it may be large.
const PREPARATION: Duration = Duration::from_secs(3600);

/// How long one caller waits for that: less than a delivery may take, so that it is told.
const PATIENCE: Duration = Duration::from_secs(30);

/// The places that someone has: what has to be done to a table is done once, whoever wants it.
static PLACES: Mutex<Vec<Weak<Place>>> = Mutex::new(Vec::new());

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
    /// While the table is being made what it should be.
    preparation: tokio::sync::Mutex<Option<JoinHandle<Result<Insert, Trouble>>>>,
}

impl Place {
    /// The table of a plan; the same place as long as someone has it. Nothing is connected.
    pub fn new(plan: &TablePlan, stores: &Stores) -> Arc<Self> {
        let sql = stores.sql(&plan.settings);
        let mut places = lock(&PLACES);
        let same = |place: &Arc<Self>| Arc::ptr_eq(&place.sql, &sql) && place.name == plan.table;
        if let Some(known) = places.iter().filter_map(Weak::upgrade).find(same) {
            return known;
        }
        let table = table_name(plan.settings.driver, &plan.table);
        let place = Arc::new(Self {
            settings: plan.settings.clone(),
            name: plan.table.clone(),
            // The plan has been checked.
            table: table.unwrap_or_default(),
            sql,
            runtime: stores.handle(),
            preparation: tokio::sync::Mutex::default(),
        });
        places.retain(|place| place.strong_count() > 0);
        places.push(Arc::downgrade(&place));
        place
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
        ended(self.begin(patience, work).await)
    }

    fn begin<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, Trouble>> + Send + 'static,
    ) -> JoinHandle<Result<T, Trouble>> {
        let _inside = self.runtime.enter();
        let work = timeout(limit, work);
        self.runtime.spawn(async move {
            work.await.unwrap_or_else(|_| Err(away(format!("no answer within {limit:?}"))))
        })
    }

    /// Makes the table what it should be, and says how rows are put into it. What was begun goes on
    /// when its caller has given up, and the next one waits for the same.
    ///
    /// # Errors
    /// What making the table ready came to, or that it takes long.
    pub async fn prepare(self: &Arc<Self>) -> Result<Insert, Trouble> {
        let done = timeout(PATIENCE, async {
            let mut preparation = self.preparation.lock().await;
            let place = Arc::clone(self);
            let work = preparation.get_or_insert_with(|| {
                self.begin(PREPARATION, async move { place.ensure().await })
            });
            let done = work.await;
            *preparation = None;
            ended(done)
        });
        done.await.unwrap_or_else(|_| {
            Err(away(format!(
                "the table `{}` is still being prepared: indexes are made, or rows of an earlier version \
                 brought up to date",
                self.name
            )))
        })
    }

    /// Makes file, table, columns and indexes as far as they are not there, and brings rows of
    /// earlier versions up to date.
    ///
    /// # Errors
    /// If the database is away, does not allow it, or has a table that records do not fit into.
    async fn ensure(&self) -> Result<Insert, Trouble> {
        self.sql.make_file(&self.settings).await?;
        let found = self.sql.ensure(self.driver(), &schema::wish(&self.name)).await?;
        for index in found.unique_without(&["id", "record_id"]) {
            log::warn!(
                "the table `{}` has the unique index `{index}`: a record with the same values there as \
                 an earlier one is refused and becomes a dead letter; drop the index unless that is meant",
                self.name
            );
        }
        if found.column("id").is_some() {
            self.renew(found.column("created_at").is_some()).await?;
        }
        Insert::new(self.driver(), &self.table, &found).map_err(away)
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

fn away(why: String) -> Trouble {
    Trouble::Away(StoreError::new(why))
}

fn ended<T>(done: Result<Result<T, Trouble>, JoinError>) -> Result<T, Trouble> {
    done.unwrap_or_else(|e| Err(away(format!("the work has ended: {e}"))))
}
