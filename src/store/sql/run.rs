//! Running statements on any of the databases: bound values in, rows as JSON objects out, errors classified
//! by what may help.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::{AssertSqlSafe, MySqlPool, PgPool, SqlitePool, mysql::MySqlDatabaseError};

use super::{
    database::{Pools, Sql},
    lookup::{Row, mark, quote},
    mysql, postgres,
    settings::Driver,
    sqlite,
    value::cause,
};
use crate::store::error::StoreError;

/// A value to bind; `None` is NULL.
#[derive(Clone, Debug, PartialEq)]
pub enum Bind {
    /// Text. NUL becomes U+FFFD, because PostgreSQL does not store it.
    Text(Option<String>),
    /// A whole number.
    Whole(Option<i64>),
    /// A floating-point number.
    Float(Option<f64>),
}

impl From<&str> for Bind {
    fn from(text: &str) -> Self {
        Self::Text(Some(text.replace('\0', "\u{fffd}")))
    }
}

impl From<i64> for Bind {
    fn from(number: i64) -> Self {
        Self::Whole(Some(number))
    }
}

/// A statement under construction.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    driver: Driver,
    sql: String,
    binds: Vec<Bind>,
}

impl Statement {
    pub fn new(driver: Driver, sql: impl Into<String>) -> Self {
        Self { driver, sql: sql.into(), binds: Vec::new() }
    }

    /// Appends SQL. It must not contain external input.
    pub fn push(&mut self, sql: &str) -> &mut Self {
        self.sql.push_str(sql);
        self
    }

    /// Appends a bound value.
    pub fn bind(&mut self, value: impl Into<Bind>) -> &mut Self {
        self.binds.push(value.into());
        self.sql.push_str(&mark(self.driver, self.binds.len()));
        self
    }

    /// Ends an INSERT: rows whose `key` exists already stay unchanged. Rows that violate another unique index
    /// are rejected.
    pub fn unless_there(&mut self, key: &str) -> &mut Self {
        let key = quote(self.driver, key).unwrap_or_default();
        let end = match self.driver {
            // INSERT IGNORE would ignore other errors too, and this clause ignores conflicts in any index:
            // these are turned into an error (`CONFLICT`) by a number that is out of range in every mode.
            Driver::Mysql => format!(
                " ON DUPLICATE KEY UPDATE {key} = IF({key} = VALUES({key}), {key}, \
                 {} + CHAR_LENGTH(VALUES({key})))",
                u64::MAX
            ),
            Driver::Sqlite | Driver::Postgres => format!(" ON CONFLICT ({key}) DO NOTHING"),
        };
        self.push(&end)
    }

    /// Turns the query into EXPLAIN.
    #[must_use]
    pub fn explained(mut self) -> Self {
        let sqlite = self.driver == Driver::Sqlite;
        self.sql.insert_str(0, if sqlite { "EXPLAIN QUERY PLAN " } else { "EXPLAIN " });
        self
    }

    pub fn sql(&self) -> &str {
        &self.sql
    }
}

/// Why a statement failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SqlError {
    /// The database is unavailable, or does not allow the statement.
    Unavailable(StoreError),
    /// The table does not exist, or has the wrong schema.
    Schema(StoreError),
    /// The database rejects these values.
    Data(StoreError),
}

impl SqlError {
    pub fn why(&self) -> &StoreError {
        match self {
            Self::Unavailable(why) | Self::Schema(why) | Self::Data(why) => why,
        }
    }

    fn classify(error: sqlx::Error) -> Self {
        let sqlx::Error::Database(e) = &error else { return Self::Unavailable(cause(error)) };
        let code = e.code().unwrap_or_default();
        let mysql = e.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number);
        let make = match mysql {
            Some(number) => mysql_error(number, &code),
            None => sqlite_or_postgres_error(&code, e.message()),
        };
        let advice = advice(mysql, &code);
        let why = cause(error);
        make(match advice {
            "" => why,
            _ => StoreError::new(format!("{why}; {advice}")),
        })
    }
}

/// A hint, if the message of the database has none.
fn advice(mysql: Option<u16>, code: &str) -> &'static str {
    match (mysql, code) {
        // No privilege for a database, a table, a column.
        (Some(1044 | 1142 | 1143), _) | (None, "42501") => {
            "grant this privilege to the database user of the gateway"
        }
        (None, "42804") => {
            "change the column to the type of the expression (ALTER TABLE ... ALTER COLUMN ... TYPE ...), or \
             configure another table"
        }
        _ => "",
    }
}

type ErrorClass = fn(StoreError) -> SqlError;

/// "Value is out of range": only [`Statement::unless_there`] causes it.
const CONFLICT: u16 = 1690;

fn mysql_error(number: u16, state: &str) -> ErrorClass {
    match (number, state.get(..2)) {
        (CONFLICT, _) => |_| {
            let why = "another row has the same values in a unique index of the table";
            SqlError::Data(StoreError::new(why))
        },
        // Unknown table or column.
        (1146 | 1054, _) => SqlError::Schema,
        // 1153: more than `max_allowed_packet`; 1366: text that the charset of the column lacks.
        (1153 | 1366, _) | (_, Some("22" | "23")) => SqlError::Data,
        _ => SqlError::Unavailable,
    }
}

/// Codes of SQLite are numbers, codes of PostgreSQL have five characters.
fn sqlite_or_postgres_error(code: &str, message: &str) -> ErrorClass {
    if code.len() == 5 {
        return match (code, &code[..2]) {
            // Unknown table, column, schema or unique index; a column of another type.
            ("42P01" | "42703" | "3F000" | "42P10" | "42804", _) => SqlError::Schema,
            (_, "22" | "23") => SqlError::Data,
            _ => SqlError::Unavailable,
        };
    }
    let shape = ["no such table", "no such column", "has no column named", "ON CONFLICT clause"];
    // The low byte is the primary result code.
    match code.parse::<u32>().unwrap_or(0) & 0xff {
        1 if shape.iter().any(|text| message.contains(text)) => SqlError::Schema,
        // The file cannot be opened.
        14 => SqlError::Schema,
        // Too big, constraint, or type mismatch.
        18..=20 => SqlError::Data,
        _ => SqlError::Unavailable,
    }
}

macro_rules! bound {
    ($statement:expr) => {{
        // Not cached: each batch size is another statement.
        let mut query = sqlx::query(AssertSqlSafe($statement.sql)).persistent(false);
        for value in $statement.binds {
            query = match value {
                Bind::Text(value) => query.bind(value),
                Bind::Whole(value) => query.bind(value),
                Bind::Float(value) => query.bind(value),
            };
        }
        query
    }};
}

impl Sql {
    /// Runs a statement and returns the number of affected rows.
    ///
    /// # Errors
    /// If it fails.
    pub async fn run(&self, statement: Statement) -> Result<u64, SqlError> {
        let done = match &self.pools {
            Pools::Sqlite(pool) => bound!(statement).execute(pool).await.map(|d| d.rows_affected()),
            Pools::Mysql(pool) => bound!(statement).execute(pool).await.map(|d| d.rows_affected()),
            Pools::Postgres(pool) => {
                bound!(statement).execute(pool).await.map(|d| d.rows_affected())
            }
            Pools::Invalid(why) => return Err(SqlError::Unavailable(why.clone())),
        };
        done.map_err(SqlError::classify)
    }

    /// The rows of a SELECT, which the database cancels after `patience`.
    ///
    /// # Errors
    /// If it fails.
    pub async fn rows(
        &self,
        statement: Statement,
        patience: Duration,
    ) -> Result<Vec<Row>, SqlError> {
        match &self.pools {
            Pools::Sqlite(pool) => query_sqlite(pool, statement, patience).await,
            Pools::Mysql(pool) => query_mysql(pool, statement, patience).await,
            Pools::Postgres(pool) => query_postgres(pool, statement, patience).await,
            Pools::Invalid(why) => Err(SqlError::Unavailable(why.clone())),
        }
    }
}

fn readable<R>(rows: &[R], read: impl Fn(&R) -> Result<Row, String>) -> Result<Vec<Row>, SqlError> {
    rows.iter()
        .map(read)
        .collect::<Result<_, _>>()
        .map_err(|why| SqlError::Unavailable(StoreError::new(why)))
}

/// A time limit that ends with its query, because the connection is reused.
struct ActiveLimit(Arc<AtomicBool>);

impl Drop for ActiveLimit {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// SQLite has no statement timeout, but calls a progress handler that can cancel.
async fn query_sqlite(
    pool: &SqlitePool,
    statement: Statement,
    patience: Duration,
) -> Result<Vec<Row>, SqlError> {
    const STEPS: i32 = 10_000;
    let mut connection = pool.acquire().await.map_err(SqlError::classify)?;
    let active = ActiveLimit(Arc::new(AtomicBool::new(true)));
    let (limited, start) = (Arc::clone(&active.0), Instant::now());
    let goes_on = move || !limited.load(Ordering::Relaxed) || start.elapsed() < patience;
    connection
        .lock_handle()
        .await
        .map_err(SqlError::classify)?
        .set_progress_handler(STEPS, goes_on);
    let rows = bound!(statement).fetch_all(&mut *connection).await;
    drop(active);
    readable(&rows.map_err(SqlError::classify)?, sqlite::row)
}

/// MariaDB reads the first special comment, MySQL the second.
async fn query_mysql(
    pool: &MySqlPool,
    mut statement: Statement,
    patience: Duration,
) -> Result<Vec<Row>, SqlError> {
    if let Some(rest) = statement.sql.strip_prefix("SELECT ") {
        let (seconds, millis) = (patience.as_secs_f64(), patience.as_millis());
        statement.sql = format!(
            "/*M!100100 SET STATEMENT max_statement_time={seconds:.3} FOR */ \
             SELECT /*+ MAX_EXECUTION_TIME({millis}) */ {rest}"
        );
    }
    let rows = bound!(statement).fetch_all(pool).await;
    readable(&rows.map_err(SqlError::classify)?, mysql::row)
}

async fn query_postgres(
    pool: &PgPool,
    statement: Statement,
    patience: Duration,
) -> Result<Vec<Row>, SqlError> {
    let mut transaction = pool.begin().await.map_err(SqlError::classify)?;
    let limit = format!("SET LOCAL statement_timeout = {}", patience.as_millis().max(1));
    sqlx::raw_sql(AssertSqlSafe(limit))
        .execute(&mut *transaction)
        .await
        .map_err(SqlError::classify)?;
    let rows = bound!(statement).fetch_all(&mut *transaction).await;
    let rows = readable(&rows.map_err(SqlError::classify)?, postgres::row)?;
    transaction.commit().await.map_err(SqlError::classify)?;
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(make: ErrorClass) -> &'static str {
        match make(StoreError::new("")) {
            SqlError::Unavailable(_) => "away",
            SqlError::Schema(_) => "shape",
            SqlError::Data(_) => "data",
        }
    }

    #[test]
    fn errors_are_told_apart() {
        for (number, state, kind) in [
            (1146, "42S02", "shape"),
            (1054, "42S22", "shape"),
            (1406, "22001", "data"),
            (1048, "23000", "data"),
            (1153, "08S01", "data"),
            (1366, "HY000", "data"),
            (1690, "22003", "data"),
            (1142, "42000", "away"),
            (1205, "HY000", "away"),
        ] {
            assert_eq!(made(mysql_error(number, state)), kind, "{number}");
        }
        for (code, message, kind) in [
            ("42P01", "", "shape"),
            ("42703", "", "shape"),
            ("42804", "", "shape"),
            ("22021", "", "data"),
            ("23514", "", "data"),
            ("42501", "permission denied", "away"),
            ("57014", "", "away"),
            ("1", "no such table: t", "shape"),
            ("1", "table t has no column named x", "shape"),
            ("1", "near \"x\": syntax error", "away"),
            ("14", "unable to open database file", "shape"),
            ("1299", "NOT NULL constraint failed", "data"),
            ("2067", "", "data"),
            ("5", "database is locked", "away"),
            ("13", "database or disk is full", "away"),
            ("", "", "away"),
        ] {
            assert_eq!(made(sqlite_or_postgres_error(code, message)), kind, "{code} {message}");
        }
    }

    #[test]
    fn values_have_marks_in_the_text() {
        let statement = |driver| {
            let mut statement = Statement::new(driver, "SELECT ");
            statement.bind(1).push(", ").bind("a\0b");
            statement
        };
        assert_eq!(statement(Driver::Postgres).sql(), "SELECT $1, $2");
        let mysql = statement(Driver::Mysql);
        assert_eq!(mysql.sql(), "SELECT ?, ?");
        assert_eq!(mysql.binds, [Bind::Whole(Some(1)), Bind::Text(Some("a\u{fffd}b".into()))]);
    }
}
