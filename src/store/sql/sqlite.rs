//! SQLite: where it is, and its rows.

use serde_json::Value;
use sqlx::{
    AssertSqlSafe, Column, Row as _, SqliteConnection, TypeInfo, ValueRef,
    sqlite::{SqliteConnectOptions, SqliteRow},
};

use super::{Lookup, Row, Target, count::Kind};
use crate::store::file;

/// A file that is not there is not made, and one that may not be written to is read.
pub fn options(target: &Target) -> Result<SqliteConnectOptions, String> {
    match target {
        Target::File(path) => Ok(SqliteConnectOptions::new().filename(path)),
        Target::Own(path) => Ok(file::options(path)),
        _ => Err("SQLite wants a `path`".to_owned()),
    }
}

/// The rows with this key, within a transaction: sqlx takes the names of columns when it prepares
/// a statement, and SQLite prepares it anew by itself when the table was altered, so that values
/// stand under the names of others. What is prepared here, after a look at the schema that holds
/// until the transaction ends, cannot be altered in between.
pub async fn found(
    connection: &mut SqliteConnection,
    lookup: &Lookup,
    key: &str,
    _locked: bool,
) -> Result<Vec<SqliteRow>, sqlx::Error> {
    sqlx::query("SELECT 1 FROM sqlite_schema LIMIT 1").execute(&mut *connection).await?;
    let sql = AssertSqlSafe(lookup.sql.clone());
    sqlx::query(sql).bind(key).persistent(false).fetch_all(connection).await
}

pub fn row(row: &SqliteRow) -> Result<Row, String> {
    row.columns().iter().map(|c| Ok((c.name().to_owned(), value(row, c.ordinal())?))).collect()
}

/// What kind of column this is; `None` if there is none of this name.
pub fn kind(row: &SqliteRow, name: &str) -> Option<Kind> {
    let column = row.columns().iter().find(|c| c.name() == name)?;
    let raw = row.try_get_raw(column.ordinal()).ok()?;
    // What stands there says it, and for nothing the type that the column was declared with.
    Some(match raw.type_info().name() {
        "TEXT" | "DATETIME" | "DATE" | "TIME" => Kind::Text,
        "BLOB" => Kind::Other,
        _ => Kind::Number,
    })
}

fn value(row: &SqliteRow, at: usize) -> Result<Value, String> {
    let raw = row.try_get_raw(at).map_err(|e| e.to_string())?;
    if raw.is_null() {
        return Ok(Value::Null);
    }
    // A column may hold anything; the value itself says what it is.
    let text = |e: sqlx::Error| e.to_string();
    match raw.type_info().name() {
        "INTEGER" | "BOOLEAN" => row.try_get_unchecked::<i64, _>(at).map(Value::from).map_err(text),
        "REAL" => row.try_get_unchecked::<f64, _>(at).map(Value::from).map_err(text),
        "BLOB" => {
            let bytes = row.try_get_unchecked::<Vec<u8>, _>(at).map_err(text)?;
            String::from_utf8(bytes)
                .map(Value::from)
                .map_err(|_| format!("column `{}` is not text", row.column(at).name()))
        }
        _ => row.try_get_unchecked::<String, _>(at).map(Value::from).map_err(text),
    }
}
