//! The database sink: a row for each record. A record that exists already stays unchanged, so that
//! repeated deliveries add it once.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::delivery::{DeliveryError, Sink};
use crate::{
    config::plan::TablePlan,
    store::{
        Stores,
        sql::{Driver, SqlError, Statement},
    },
    usage::{
        spool::Entry,
        store::{
            RecordTable,
            schema::{self, AT, Insert, NewRow},
        },
    },
};

/// How long an INSERT may take, or a DELETE.
const PATIENCE: Duration = Duration::from_secs(30);

/// Rows that one DELETE removes, so that its locks are short.
const DELETE_ROWS: u64 = 1000;

/// Inserts records into a table.
pub struct TableSink {
    table: Arc<RecordTable>,
    retention: Option<Duration>,
    /// Set once the table has been prepared.
    ready: Mutex<Option<Arc<Insert>>>,
}

impl TableSink {
    pub fn new(plan: &TablePlan, stores: &Stores) -> Self {
        Self {
            table: RecordTable::new(plan, stores),
            retention: plan.retention,
            ready: Mutex::default(),
        }
    }

    async fn ready(&self) -> Result<Arc<Insert>, SqlError> {
        let mut ready = self.ready.lock().await;
        if let Some(insert) = &*ready {
            return Ok(Arc::clone(insert));
        }
        let insert = self.table.prepare().await?;
        Ok(Arc::clone(ready.insert(Arc::new(insert))))
    }

    async fn insert(&self, rows: &[NewRow]) -> Result<(), SqlError> {
        let insert = self.ready().await?;
        for rows in rows.chunks(Insert::ROWS) {
            let (table, statement) = (Arc::clone(&self.table), insert.statement(rows));
            self.table.work(PATIENCE, async move { table.sql.run(statement).await }).await?;
        }
        Ok(())
    }

    /// Deletes rows from before a time in milliseconds since 1970; at most [`DELETE_ROWS`].
    fn removal(&self, before: i64) -> Statement {
        let (table, at, record) =
            (&self.table.quoted_name, self.table.quote(AT), self.table.quote("record_id"));
        let mysql = self.table.driver() == Driver::Mysql;
        let head = match mysql {
            true => format!("DELETE FROM {table} WHERE {at} < "),
            false => format!(
                "DELETE FROM {table} WHERE {record} IN (SELECT {record} FROM {table} WHERE {at} < "
            ),
        };
        let mut removal = Statement::new(self.table.driver(), head);
        removal.bind(before).push(&format!(" ORDER BY {at} LIMIT {DELETE_ROWS}"));
        removal.push(if mysql { "" } else { ")" });
        removal
    }
}

#[async_trait]
impl Sink for TableSink {
    async fn deliver(&self, records: &[Entry]) -> Result<(), DeliveryError> {
        let rows: Result<Vec<_>, _> = records.iter().map(schema::parse).collect();
        let rows = rows.map_err(|why| DeliveryError::Refused { why })?;
        match self.insert(&rows).await {
            Ok(()) => Ok(()),
            Err(SqlError::Data(why)) => Err(DeliveryError::Refused { why: why.to_string() }),
            Err(SqlError::Unavailable(why)) => Err(DeliveryError::unavailable(why.to_string())),
            Err(SqlError::Schema(why)) => {
                // The next attempt prepares the table again.
                *self.ready.lock().await = None;
                Err(DeliveryError::unavailable(why.to_string()))
            }
        }
    }

    async fn tidy(&self) -> Result<(), String> {
        let Some(retention) = self.retention else { return Ok(()) };
        let before = SystemTime::now().checked_sub(retention).unwrap_or(SystemTime::UNIX_EPOCH);
        let before = before.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let before = i64::try_from(before.as_millis()).unwrap_or(i64::MAX);
        let text = |error: SqlError| error.why().to_string();
        self.ready().await.map_err(text)?;
        loop {
            let (table, removal) = (Arc::clone(&self.table), self.removal(before));
            let work = async move { table.sql.run(removal).await };
            if self.table.work(PATIENCE, work).await.map_err(text)? < DELETE_ROWS {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sql::{Settings, Target};

    #[test]
    fn old_rows_are_removed_a_thousand_at_a_time() {
        let removal = |driver| {
            let settings = Settings {
                driver,
                target: Target::Dsn(crate::base::Secret::new("nowhere")),
                ..Settings::own_file("x".into())
            };
            let plan = TablePlan {
                settings,
                table: "s.t".to_owned(),
                batch_size: 1,
                retention: None,
                own: false,
            };
            TableSink::new(&plan, &Stores::default()).removal(5).sql().to_owned()
        };
        assert_eq!(
            removal(Driver::Mysql),
            "DELETE FROM `s`.`t` WHERE `at_ms` < ? ORDER BY `at_ms` LIMIT 1000"
        );
        assert_eq!(
            removal(Driver::Postgres),
            "DELETE FROM \"s\".\"t\" WHERE \"record_id\" IN (SELECT \"record_id\" FROM \"s\".\"t\" \
             WHERE \"at_ms\" < $1 ORDER BY \"at_ms\" LIMIT 1000)"
        );
    }
}
