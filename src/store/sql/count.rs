//! Adding to the used quota and the balance of a key, in a transaction that locks its row.

use sqlx::{
    AssertSqlSafe, Connection, MySqlConnection, MySqlPool, PgConnection, PgPool, SqliteConnection,
    SqlitePool,
};
use time::{Date, OffsetDateTime, PrimitiveDateTime};

use super::{
    lookup::{Lookup, Row, mark, quote},
    mysql, postgres,
    prepared::{self, AttemptError},
    settings::Driver,
    sqlite,
    value::{ColumnKind, cause},
};
use crate::{
    base::terms::{COUNTED, UsageChange, time_like},
    store::error::StoreError,
};

/// Returns the change for a row.
pub type Decide<'a> = &'a (dyn Fn(&Row) -> Result<UsageChange, StoreError> + Sync);

/// A value to bind, of the type of its column.
enum ColumnValue {
    Float(f64),
    Whole(i64),
    Text(String),
    Zoned(OffsetDateTime),
    Civil(PrimitiveDateTime),
    Day(Date),
}

/// An UPDATE of the row with exactly this key.
struct Update {
    driver: Driver,
    sets: Vec<String>,
    values: Vec<ColumnValue>,
}

impl Update {
    /// The UPDATE for those parts of the change for which the row has columns; it applies them to `row`, too.
    /// `None` if there is nothing to change.
    fn new(
        driver: Driver,
        change: &UsageChange,
        row: &mut Row,
        kind: impl Fn(&str) -> Option<ColumnKind>,
    ) -> Result<Option<Self>, StoreError> {
        let mut update = Self { driver, sets: Vec::new(), values: Vec::new() };
        let mut done =
            UsageChange { tokens: None, reset: change.reset, reset_at: None, credit: None };
        if let Some(tokens) = change.tokens
            && let Some(kind) = kind("used_quota")
        {
            update.amount("used_quota", kind, tokens, change.reset)?;
            done.tokens = change.tokens;
        }
        if let Some(at) = change.reset_at
            && let Some(kind) = kind("last_reset_at")
        {
            update.moment(kind, at, row)?;
            done.reset_at = change.reset_at;
        }
        if let Some(credit) = change.credit
            && let Some(kind) = kind("balance")
        {
            update.amount("balance", kind, -credit, false)?;
            done.credit = change.credit;
        }
        done.apply(row);
        Ok((!update.sets.is_empty()).then_some(update))
    }

    fn mark(&mut self, value: ColumnValue) -> String {
        self.values.push(value);
        mark(self.driver, self.values.len())
    }

    fn name(&self, column: &str) -> String {
        quote(self.driver, column).unwrap_or_default()
    }

    /// Adds to a column; `anew`: starting from 0.
    fn amount(
        &mut self,
        column: &str,
        kind: ColumnKind,
        more: f64,
        anew: bool,
    ) -> Result<(), StoreError> {
        let whole = more.fract() == 0.0 && more.abs() < 9e15;
        let value = match self.driver {
            // A SQLite column may hold any type: whole numbers stay whole.
            Driver::Sqlite if whole => ColumnValue::Whole(more as i64),
            _ => ColumnValue::Float(more),
        };
        let (name, mark) = (self.name(column), self.mark(value));
        let exact = match (self.driver, kind) {
            (Driver::Mysql, ColumnKind::Number | ColumnKind::Unsigned) => {
                format!("CAST({mark} AS DECIMAL(38, 12))")
            }
            (Driver::Postgres, ColumnKind::Number | ColumnKind::Text) => {
                format!("CAST({mark} AS NUMERIC)")
            }
            _ => mark,
        };
        let present = match (self.driver, kind) {
            _ if anew => "0".to_owned(),
            (Driver::Postgres, ColumnKind::Text) => {
                format!("COALESCE(CAST(NULLIF({name}, '') AS NUMERIC), 0)")
            }
            (_, ColumnKind::Text) => format!("COALESCE(NULLIF({name}, ''), 0)"),
            _ => format!("COALESCE({name}, 0)"),
        };
        let sum = match (self.driver, kind) {
            (_, ColumnKind::Unsigned) => format!("GREATEST({present} + {exact}, 0)"),
            (Driver::Postgres, ColumnKind::Text) => format!("CAST({present} + {exact} AS TEXT)"),
            (_, ColumnKind::Number | ColumnKind::Float | ColumnKind::Text) => {
                format!("{present} + {exact}")
            }
            _ => return Err(no_count(column)),
        };
        self.sets.push(format!("{name} = {sum}"));
        Ok(())
    }

    /// Sets `last_reset_at`, in the type of its column.
    fn moment(&mut self, kind: ColumnKind, at: i64, row: &Row) -> Result<(), StoreError> {
        let column = "last_reset_at";
        let utc = OffsetDateTime::from_unix_timestamp(at).map_err(StoreError::new)?;
        let value = match kind {
            ColumnKind::Number | ColumnKind::Unsigned | ColumnKind::Float => ColumnValue::Whole(at),
            ColumnKind::Text => {
                let earlier = row.get(column).filter(|v| v.is_string()).cloned();
                let text = time_like(Some(&earlier.unwrap_or_else(|| "-".into())), at);
                ColumnValue::Text(text.as_str().unwrap_or_default().to_owned())
            }
            ColumnKind::Zoned => ColumnValue::Zoned(utc),
            ColumnKind::Civil => ColumnValue::Civil(PrimitiveDateTime::new(utc.date(), utc.time())),
            ColumnKind::Day => ColumnValue::Day(utc.date()),
            ColumnKind::Other => return Err(no_count(column)),
        };
        let (name, mark) = (self.name(column), self.mark(value));
        self.sets.push(format!("{name} = {mark}"));
        Ok(())
    }

    /// The key is bound twice, after the values.
    fn sql(&self, lookup: &Lookup) -> String {
        let n = self.values.len();
        let (one, two) = (mark(self.driver, n + 1), mark(self.driver, n + 2));
        let key = &lookup.key;
        // Compares byte for byte, like `Lookup::exact`.
        let exact = match self.driver {
            Driver::Sqlite => format!("CAST({key} AS BLOB) = CAST({two} AS BLOB)"),
            Driver::Mysql => format!("CAST({key} AS BINARY) = CAST({two} AS BINARY)"),
            Driver::Postgres => format!("CAST({key} AS TEXT) COLLATE \"C\" = {two}"),
        };
        let sets = self.sets.join(", ");
        format!("UPDATE {} SET {sets} WHERE {key} = {one} AND {exact}", lookup.table)
    }
}

fn no_count(column: &str) -> StoreError {
    StoreError::new(format!("column `{column}` has a type to which amounts cannot be added"))
}

/// The fields that counting changes; null if the row lacks one.
fn counted_fields(mut row: Row) -> Row {
    COUNTED.map(|n| (n.to_owned(), row.remove(n).unwrap_or_default())).into_iter().collect()
}

/// Defines the function for each database: they differ only in types.
macro_rules! count {
    ($count:ident, $attempt:ident, $pool:ty, $connection:ty, $driver:expr, $begin:expr, $rows:ident) => {
        /// `None` if there is no such row.
        pub async fn $count(
            pool: &$pool,
            lookup: &Lookup,
            key: &str,
            decide: Decide<'_>,
        ) -> Result<Option<Row>, StoreError> {
            prepared::twice!(pool, |connection| $attempt(connection, lookup, key, decide))
        }

        async fn $attempt(
            connection: &mut $connection,
            lookup: &Lookup,
            key: &str,
            decide: Decide<'_>,
        ) -> Result<Option<Row>, AttemptError> {
            let mut transaction = connection.begin_with($begin).await?;
            let rows = $rows::found(&mut transaction, lookup, key, true).await?;
            let mut found = None;
            for raw in &rows {
                let row = $rows::row(raw).map_err(AttemptError::Unreadable)?;
                if let Some(row) = lookup.exact(row, key).map_err(AttemptError::Final)? {
                    found = found.or(Some((raw, row)));
                }
            }
            let Some((raw, mut row)) = found else { return Ok(None) };
            let change = decide(&row).map_err(AttemptError::Final)?;
            let update = Update::new($driver, &change, &mut row, |name| $rows::kind(raw, name));
            if let Some(update) = update.map_err(AttemptError::Final)? {
                let sql = update.sql(lookup);
                let mut query = sqlx::query(AssertSqlSafe(sql));
                for value in update.values {
                    query = match value {
                        ColumnValue::Float(value) => query.bind(value),
                        ColumnValue::Whole(value) => query.bind(value),
                        ColumnValue::Text(value) => query.bind(value),
                        ColumnValue::Zoned(value) => query.bind(value),
                        ColumnValue::Civil(value) => query.bind(value),
                        ColumnValue::Day(value) => query.bind(value),
                    };
                }
                let done = query.bind(key).bind(key).execute(&mut *transaction).await?;
                if done.rows_affected() == 0 {
                    let why = StoreError::new("the row of the key could not be updated");
                    return Err(AttemptError::Final(why));
                }
                // A failed commit may have happened all the same: it is not repeated here.
                transaction.commit().await.map_err(|e| AttemptError::Final(cause(e)))?;
            }
            Ok(Some(counted_fields(row)))
        }
    };
}

count!(
    in_sqlite,
    once_in_sqlite,
    SqlitePool,
    SqliteConnection,
    Driver::Sqlite,
    "BEGIN IMMEDIATE",
    sqlite
);
count!(in_mysql, once_in_mysql, MySqlPool, MySqlConnection, Driver::Mysql, "BEGIN", mysql);
count!(in_postgres, once_in_postgres, PgPool, PgConnection, Driver::Postgres, "BEGIN", postgres);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ALL: UsageChange =
        UsageChange { tokens: Some(25.0), reset: false, reset_at: Some(86_400), credit: Some(0.5) };

    fn sql(driver: Driver, change: &UsageChange, kinds: &[(&str, ColumnKind)]) -> Option<String> {
        let lookup = Lookup::new(driver, "t", "k", &[]).unwrap();
        let mut row = Row::new();
        let kind = |name: &str| kinds.iter().find(|(n, _)| *n == name).map(|(_, kind)| *kind);
        let update = Update::new(driver, change, &mut row, kind).unwrap();
        update.map(|update| update.sql(&lookup))
    }

    #[test]
    fn only_columns_that_are_there_are_changed() {
        assert_eq!(sql(Driver::Sqlite, &ALL, &[]), None);
        assert_eq!(
            sql(Driver::Sqlite, &ALL, &[("balance", ColumnKind::Number)]).unwrap(),
            "UPDATE `t` SET `balance` = COALESCE(`balance`, 0) + ? \
             WHERE `k` = ? AND CAST(`k` AS BLOB) = CAST(? AS BLOB)"
        );
        let kinds = [
            ("used_quota", ColumnKind::Unsigned),
            ("last_reset_at", ColumnKind::Civil),
            ("balance", ColumnKind::Text),
        ];
        assert_eq!(
            sql(Driver::Mysql, &ALL, &kinds).unwrap(),
            "UPDATE `t` SET `used_quota` = GREATEST(COALESCE(`used_quota`, 0) + CAST(? AS DECIMAL(38, 12)), 0), \
             `last_reset_at` = ?, `balance` = COALESCE(NULLIF(`balance`, ''), 0) + ? \
             WHERE `k` = ? AND CAST(`k` AS BINARY) = CAST(? AS BINARY)"
        );
        let anew = UsageChange { reset: true, ..ALL };
        assert_eq!(
            sql(Driver::Postgres, &anew, &[("used_quota", ColumnKind::Number)]).unwrap(),
            "UPDATE \"t\" SET \"used_quota\" = 0 + CAST($1 AS NUMERIC) \
             WHERE \"k\" = $2 AND CAST(\"k\" AS TEXT) COLLATE \"C\" = $3"
        );
    }

    #[test]
    fn what_cannot_be_counted_in_is_an_error() {
        let other = |_: &str| Some(ColumnKind::Other);
        assert!(Update::new(Driver::Postgres, &ALL, &mut Row::new(), other).is_err());
        assert_eq!(
            counted_fields(json!({"balance": 5, "x": 1}).as_object().unwrap().clone()),
            *json!({"used_quota": null, "balance": 5, "last_reset_at": null}).as_object().unwrap()
        );
    }
}
