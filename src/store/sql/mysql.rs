//! MySQL and MariaDB: connection options and reading rows.

use rust_decimal::Decimal;
use serde_json::Value;
use sqlx::{
    AssertSqlSafe, Column, MySqlConnection, Row as _, TypeInfo, ValueRef,
    mysql::{MySqlConnectOptions, MySqlRow},
};
use time::{Date, PrimitiveDateTime};

use super::{
    dsn,
    lookup::{Lookup, Row},
    settings::Target,
    value::{ColumnKind, decimal},
};

pub fn options(target: &Target) -> Result<MySqlConnectOptions, String> {
    match target {
        Target::File(_) | Target::Own(_) => Err("only SQLite has a `path`".to_owned()),
        Target::Dsn(text) => dsn::mysql(text.expose()),
        Target::Server { host, port, user, password, database } => {
            let options =
                MySqlConnectOptions::new().host(host).port(*port).username(user).database(database);
            Ok(match password {
                Some(password) => options.password(password.expose()),
                None => options,
            })
        }
    }
}

/// The rows whose key the database considers equal; `locked` until the end of the transaction.
pub async fn found(
    connection: &mut MySqlConnection,
    lookup: &Lookup,
    key: &str,
    locked: bool,
) -> Result<Vec<MySqlRow>, sqlx::Error> {
    let lock = if locked { " FOR UPDATE" } else { "" };
    let sql = AssertSqlSafe(format!("{}{lock}", lookup.sql));
    sqlx::query(sql).bind(key).fetch_all(connection).await
}

pub fn row(row: &MySqlRow) -> Result<Row, String> {
    row.columns().iter().map(|c| Ok((c.name().to_owned(), value(row, c.ordinal())?))).collect()
}

/// The type of a column, if there is one of this name.
pub fn kind(row: &MySqlRow, name: &str) -> Option<ColumnKind> {
    let column = row.columns().iter().find(|c| c.name() == name)?;
    Some(match column.type_info().name() {
        kind if kind.ends_with("UNSIGNED") => ColumnKind::Unsigned,
        "TINYINT" | "SMALLINT" | "MEDIUMINT" | "INT" | "BIGINT" | "DECIMAL" => ColumnKind::Number,
        "FLOAT" | "DOUBLE" => ColumnKind::Float,
        "CHAR" | "VARCHAR" | "TINYTEXT" | "TEXT" | "MEDIUMTEXT" | "LONGTEXT" => ColumnKind::Text,
        "DATETIME" | "TIMESTAMP" => ColumnKind::Civil,
        "DATE" => ColumnKind::Day,
        _ => ColumnKind::Other,
    })
}

fn value(row: &MySqlRow, at: usize) -> Result<Value, String> {
    let raw = row.try_get_raw(at).map_err(|e| e.to_string())?;
    if raw.is_null() {
        return Ok(Value::Null);
    }
    let kind = raw.type_info().name().to_owned();
    let read = match kind.as_str() {
        kind if kind.ends_with("UNSIGNED") || kind == "YEAR" => {
            row.try_get_unchecked::<u64, _>(at).map(Value::from)
        }
        // TINYINT(1) is called BOOLEAN, but may contain a status from 0 to 3.
        "BOOLEAN" | "TINYINT" | "SMALLINT" | "MEDIUMINT" | "INT" | "BIGINT" => {
            row.try_get_unchecked::<i64, _>(at).map(Value::from)
        }
        "FLOAT" => row.try_get_unchecked::<f32, _>(at).map(Value::from),
        "DOUBLE" => row.try_get_unchecked::<f64, _>(at).map(Value::from),
        "DECIMAL" => row.try_get_unchecked::<Decimal, _>(at).map(decimal),
        "DATETIME" | "TIMESTAMP" => row
            .try_get_unchecked::<PrimitiveDateTime, _>(at)
            .map(|t| t.assume_utc().unix_timestamp().into()),
        "DATE" => row
            .try_get_unchecked::<Date, _>(at)
            .map(|d| d.midnight().assume_utc().unix_timestamp().into()),
        "JSON" => row.try_get_unchecked::<Value, _>(at),
        "TIME" | "BIT" | "GEOMETRY" => Err(sqlx::Error::RowNotFound),
        _ => row.try_get_unchecked::<String, _>(at).map(Value::from),
    };
    read.map_err(|_| format!("column `{}` of type {kind} cannot be read", row.column(at).name()))
}
