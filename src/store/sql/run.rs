//! Statements in any of the databases: bound values in, rows as JSON objects out, and errors told
//! apart by what may help.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::{AssertSqlSafe, MySqlPool, PgPool, SqlitePool, mysql::MySqlDatabaseError};

use super::{Driver, Pools, Row, Sql, cause, mark, mysql, postgres, quote, sqlite};
use crate::store::StoreError;

/// A value to bind; `None` is NULL.
#[derive(Clone, Debug, PartialEq)]
pub enum Bind {
    /// Text. NUL bytes become U+FFFD: PostgreSQL has none in its texts.
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

/// A statement, written piece by piece.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    driver: Driver,
    sql: String,
    binds: Vec<Bind>,
}

impl Statement {
    /// Begins with this text.
    pub fn new(driver: Driver, sql: impl Into<String>) -> Self {
        Self { driver, sql: sql.into(), binds: Vec::new() }
    }

    /// Adds text. It must not hold anything from outside.
    pub fn push(&mut self, sql: &str) -> &mut Self {
        self.sql.push_str(sql);
        self
    }

    /// Adds a value.
    pub fn bind(&mut self, value: impl Into<Bind>) -> &mut Self {
        self.binds.push(value.into());
        self.sql.push_str(&mark(self.driver, self.binds.len()));
        self
    }

    /// Ends an INSERT: rows whose `key` is there already stay as they are. Rows that clash with others
    /// in another unique index are refused.
    pub fn unless_there(&mut self, key: &str) -> &mut Self {
        let key = quote(self.driver, key).unwrap_or_default();
        let end = match self.driver {
            // IGNORE passes over other errors as well, and this over clashes in any index: they become
            // an error (`CLASH`) by a number that is too large in every mode.
            Driver::Mysql => format!(
                " ON DUPLICATE KEY UPDATE {key} = IF({key} = VALUES({key}), {key}, \
                 {} + CHAR_LENGTH(VALUES({key})))",
                u64::MAX
            ),
            Driver::Sqlite | Driver::Postgres => format!(" ON CONFLICT ({key}) DO NOTHING"),
        };
        self.push(&end)
    }

    /// Asks how the database would go about it.
    #[must_use]
    pub fn explained(mut self) -> Self {
        let sqlite = self.driver == Driver::Sqlite;
        self.sql.insert_str(0, if sqlite { "EXPLAIN QUERY PLAN " } else { "EXPLAIN " });
        self
    }

    /// The text.
    pub fn sql(&self) -> &str {
        &self.sql
    }
}

/// Why a statement failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The database is away, or does not allow it.
    Away(StoreError),
    /// The table is not there, or not as it should be.
    Shape(StoreError),
    /// It does not take these values.
    Data(StoreError),
}

impl Trouble {
    /// Why.
    pub fn why(&self) -> &StoreError {
        match self {
            Self::Away(why) | Self::Shape(why) | Self::Data(why) => why,
        }
    }

    fn of(error: sqlx::Error) -> Self {
        let sqlx::Error::Database(e) = &error else { return Self::Away(cause(error)) };
        let code = e.code().unwrap_or_default();
        let mysql = e.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number);
        let make = match mysql {
            Some(number) => in_mysql(number, &code),
            None => elsewhere(&code, e.message()),
        };
        let advice = advice(mysql, &code);
        let why = cause(error);
        make(match advice {
            "" => why,
            _ => StoreError::new(format!("{why}; {advice}")),
        })
    }
}

/// What helps, where the database does not say it.
fn advice(mysql: Option<u16>, code: &str) -> &'static str {
    match (mysql, code) {
        // A database, a table, a column.
        (Some(1044 | 1142 | 1143), _) | (None, "42501") => {
            "grant the user that the gateway logs in as the right to do this"
        }
        (None, "42804") => {
            "change that column of the table to the type of the expression (ALTER TABLE ... ALTER COLUMN \
             ... TYPE ...), or configure another table"
        }
        _ => "",
    }
}

type Make = fn(StoreError) -> Trouble;

/// "Value is out of range": nothing else than [`Statement::unless_there`] leads to it.
const CLASH: u16 = 1690;

fn in_mysql(number: u16, state: &str) -> Make {
    match (number, state.get(..2)) {
        (CLASH, _) => |_| {
            let why = "another row has the same values in a unique index of the table";
            Trouble::Data(StoreError::new(why))
        },
        // No such table or column.
        (1146 | 1054, _) => Trouble::Shape,
        // 1153: more than `max_allowed_packet`; 1366: a text that the column's charset has not.
        (1153 | 1366, _) | (_, Some("22" | "23")) => Trouble::Data,
        _ => Trouble::Away,
    }
}

/// SQLite's codes are numbers, PostgreSQL's have five characters.
fn elsewhere(code: &str, message: &str) -> Make {
    if code.len() == 5 {
        return match (code, &code[..2]) {
            // No such table, column, schema, or unique index; a column of another type.
            ("42P01" | "42703" | "3F000" | "42P10" | "42804", _) => Trouble::Shape,
            (_, "22" | "23") => Trouble::Data,
            _ => Trouble::Away,
        };
    }
    let shape = ["no such table", "no such column", "has no column named", "ON CONFLICT clause"];
    // The low byte is the error itself, the others say more about it.
    match code.parse::<u32>().unwrap_or(0) & 0xff {
        1 if shape.iter().any(|text| message.contains(text)) => Trouble::Shape,
        // The file cannot be opened.
        14 => Trouble::Shape,
        // Too big, a constraint, or a type that does not fit.
        18..=20 => Trouble::Data,
        _ => Trouble::Away,
    }
}

macro_rules! bound {
    ($statement:expr) => {{
        // Each size of a batch is a statement of its own: they are not worth remembering.
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
    /// Runs a statement and returns how many rows it has touched.
    ///
    /// # Errors
    /// Why it failed.
    pub async fn run(&self, statement: Statement) -> Result<u64, Trouble> {
        let done = match &self.pools {
            Pools::Sqlite(pool) => bound!(statement).execute(pool).await.map(|d| d.rows_affected()),
            Pools::Mysql(pool) => bound!(statement).execute(pool).await.map(|d| d.rows_affected()),
            Pools::Postgres(pool) => {
                bound!(statement).execute(pool).await.map(|d| d.rows_affected())
            }
            Pools::Nowhere(why) => return Err(Trouble::Away(why.clone())),
        };
        done.map_err(Trouble::of)
    }

    /// The rows of a SELECT, which the database gives up after `patience`.
    ///
    /// # Errors
    /// Why it failed.
    pub async fn rows(
        &self,
        statement: Statement,
        patience: Duration,
    ) -> Result<Vec<Row>, Trouble> {
        match &self.pools {
            Pools::Sqlite(pool) => of_sqlite(pool, statement, patience).await,
            Pools::Mysql(pool) => of_mysql(pool, statement, patience).await,
            Pools::Postgres(pool) => of_postgres(pool, statement, patience).await,
            Pools::Nowhere(why) => Err(Trouble::Away(why.clone())),
        }
    }
}

fn readable<R>(rows: &[R], read: impl Fn(&R) -> Result<Row, String>) -> Result<Vec<Row>, Trouble> {
    rows.iter()
        .map(read)
        .collect::<Result<_, _>>()
        .map_err(|why| Trouble::Away(StoreError::new(why)))
}

/// A time limit is over when its query is: the connection is used again.
struct Armed(Arc<AtomicBool>);

impl Drop for Armed {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// SQLite has no time limit of its own, but asks now and then whether to go on.
async fn of_sqlite(
    pool: &SqlitePool,
    statement: Statement,
    patience: Duration,
) -> Result<Vec<Row>, Trouble> {
    const STEPS: i32 = 10_000;
    let mut connection = pool.acquire().await.map_err(Trouble::of)?;
    let armed = Armed(Arc::new(AtomicBool::new(true)));
    let (limited, start) = (Arc::clone(&armed.0), Instant::now());
    let goes_on = move || !limited.load(Ordering::Relaxed) || start.elapsed() < patience;
    connection.lock_handle().await.map_err(Trouble::of)?.set_progress_handler(STEPS, goes_on);
    let rows = bound!(statement).fetch_all(&mut *connection).await;
    drop(armed);
    readable(&rows.map_err(Trouble::of)?, sqlite::row)
}

/// MariaDB reads the first of the special comments, MySQL the second.
async fn of_mysql(
    pool: &MySqlPool,
    mut statement: Statement,
    patience: Duration,
) -> Result<Vec<Row>, Trouble> {
    if let Some(rest) = statement.sql.strip_prefix("SELECT ") {
        let (seconds, millis) = (patience.as_secs_f64(), patience.as_millis());
        statement.sql = format!(
            "/*M!100100 SET STATEMENT max_statement_time={seconds:.3} FOR */ \
             SELECT /*+ MAX_EXECUTION_TIME({millis}) */ {rest}"
        );
    }
    let rows = bound!(statement).fetch_all(pool).await;
    readable(&rows.map_err(Trouble::of)?, mysql::row)
}

async fn of_postgres(
    pool: &PgPool,
    statement: Statement,
    patience: Duration,
) -> Result<Vec<Row>, Trouble> {
    let mut transaction = pool.begin().await.map_err(Trouble::of)?;
    let limit = format!("SET LOCAL statement_timeout = {}", patience.as_millis().max(1));
    sqlx::raw_sql(AssertSqlSafe(limit)).execute(&mut *transaction).await.map_err(Trouble::of)?;
    let rows = bound!(statement).fetch_all(&mut *transaction).await;
    let rows = readable(&rows.map_err(Trouble::of)?, postgres::row)?;
    transaction.commit().await.map_err(Trouble::of)?;
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(make: Make) -> &'static str {
        match make(StoreError::new("")) {
            Trouble::Away(_) => "away",
            Trouble::Shape(_) => "shape",
            Trouble::Data(_) => "data",
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
            assert_eq!(made(in_mysql(number, state)), kind, "{number}");
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
            assert_eq!(made(elsewhere(code, message)), kind, "{code} {message}");
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
