//! SQLite: connection options and reading rows.

use serde_json::Value;
use sqlx::{
    AssertSqlSafe, Column, Row as _, SqliteConnection, TypeInfo, ValueRef,
    sqlite::{SqliteConnectOptions, SqliteRow},
};

use super::{
    lookup::{Lookup, Row},
    settings::Target,
    value::ColumnKind,
};
use crate::store::file;

/// Does not create a missing file, and can read a read-only file.
pub fn options(target: &Target) -> Result<SqliteConnectOptions, String> {
    match target {
        Target::File(path) => Ok(SqliteConnectOptions::new().filename(path)),
        Target::Own(path) => Ok(file::options(path)),
        _ => Err("SQLite needs a `path`".to_owned()),
    }
}

/// The rows with this key, within a transaction. sqlx reads column names when it prepares a statement, but
/// SQLite prepares the statement again by itself after ALTER TABLE, and values would appear under wrong names.
/// The query of the schema below locks the schema until the end of the transaction.
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

/// The type of a column, if there is one of this name.
pub fn kind(row: &SqliteRow, name: &str) -> Option<ColumnKind> {
    let column = row.columns().iter().find(|c| c.name() == name)?;
    let raw = row.try_get_raw(column.ordinal()).ok()?;
    // The type of the value; the declared type of the column does not matter.
    Some(match raw.type_info().name() {
        "TEXT" | "DATETIME" | "DATE" | "TIME" => ColumnKind::Text,
        "BLOB" => ColumnKind::Other,
        _ => ColumnKind::Number,
    })
}

fn value(row: &SqliteRow, at: usize) -> Result<Value, String> {
    let raw = row.try_get_raw(at).map_err(|e| e.to_string())?;
    if raw.is_null() {
        return Ok(Value::Null);
    }
    // In SQLite the type belongs to the value, not to the column.
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
