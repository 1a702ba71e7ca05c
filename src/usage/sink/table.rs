//! The database sink: a row for each record. A record that is there already stays as it is, so that
//! it is there once, however often it is delivered.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::{Failure, Sink};
use crate::{
    config::plan::TablePlan,
    store::{
        Stores,
        sql::{Driver, Statement, Trouble},
    },
    usage::{
        Entry,
        store::{
            Place,
            schema::{self, AT, Fresh, Insert},
        },
    },
};

/// How long an INSERT may take, or a DELETE.
const PATIENCE: Duration = Duration::from_secs(30);

/// Rows that are removed at a time, so that nobody waits long for a lock.
const OLD: u64 = 1000;

/// A table for records.
pub struct Table {
    place: Arc<Place>,
    retention: Option<Duration>,
    /// Once the table is known to be as it should be.
    ready: Mutex<Option<Arc<Insert>>>,
}

impl Table {
    /// The table of a plan.
    pub fn new(plan: &TablePlan, stores: &Stores) -> Self {
        Self { place: Place::new(plan, stores), retention: plan.retention, ready: Mutex::default() }
    }

    async fn ready(&self) -> Result<Arc<Insert>, Trouble> {
        let mut ready = self.ready.lock().await;
        if let Some(insert) = &*ready {
            return Ok(Arc::clone(insert));
        }
        let insert = self.place.prepare().await?;
        Ok(Arc::clone(ready.insert(Arc::new(insert))))
    }

    async fn insert(&self, rows: &[Fresh]) -> Result<(), Trouble> {
        let insert = self.ready().await?;
        for rows in rows.chunks(Insert::ROWS) {
            let (place, statement) = (Arc::clone(&self.place), insert.of(rows));
            self.place.work(PATIENCE, async move { place.sql.run(statement).await }).await?;
        }
        Ok(())
    }

    /// Removes rows from before a moment in milliseconds since 1970; at most [`OLD`].
    fn removal(&self, before: i64) -> Statement {
        let (table, at, record) =
            (&self.place.table, self.place.quote(AT), self.place.quote("record_id"));
        let mysql = self.place.driver() == Driver::Mysql;
        let head = match mysql {
            true => format!("DELETE FROM {table} WHERE {at} < "),
            false => format!(
                "DELETE FROM {table} WHERE {record} IN (SELECT {record} FROM {table} WHERE {at} < "
            ),
        };
        let mut removal = Statement::new(self.place.driver(), head);
        removal.bind(before).push(&format!(" ORDER BY {at} LIMIT {OLD}"));
        removal.push(if mysql { "" } else { ")" });
        removal
    }
}

#[async_trait]
impl Sink for Table {
    async fn deliver(&self, records: &[Entry]) -> Result<(), Failure> {
        let rows: Result<Vec<_>, _> = records.iter().map(schema::read).collect();
        let rows = rows.map_err(|why| Failure::Refused { why })?;
        match self.insert(&rows).await {
            Ok(()) => Ok(()),
            Err(Trouble::Data(why)) => Err(Failure::Refused { why: why.to_string() }),
            Err(Trouble::Away(why)) => Err(Failure::away(why.to_string())),
            Err(Trouble::Shape(why)) => {
                // It is looked at once more before the next attempt.
                *self.ready.lock().await = None;
                Err(Failure::away(why.to_string()))
            }
        }
    }

    async fn tidy(&self) -> Result<(), String> {
        let Some(retention) = self.retention else { return Ok(()) };
        let before = SystemTime::now().checked_sub(retention).unwrap_or(SystemTime::UNIX_EPOCH);
        let before = before.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let before = i64::try_from(before.as_millis()).unwrap_or(i64::MAX);
        let text = |trouble: Trouble| trouble.why().to_string();
        self.ready().await.map_err(text)?;
        loop {
            let (place, removal) = (Arc::clone(&self.place), self.removal(before));
            let work = async move { place.sql.run(removal).await };
            if self.place.work(PATIENCE, work).await.map_err(text)? < OLD {
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
            Table::new(&plan, &Stores::default()).removal(5).sql().to_owned()
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
