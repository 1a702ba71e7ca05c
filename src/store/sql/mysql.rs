//! MySQL and MariaDB: where they are, and their rows.

use rust_decimal::Decimal;
use serde_json::Value;
use sqlx::{
    AssertSqlSafe, Column, MySqlConnection, Row as _, TypeInfo, ValueRef,
    mysql::{MySqlConnectOptions, MySqlRow},
};
use time::{Date, PrimitiveDateTime};

use super::{Lookup, Row, Target, count::Kind, decimal, dsn};

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

/// The rows with this key, or with one that the database takes for the same; `locked` for the
/// transaction.
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

/// What kind of column this is; `None` if there is none of this name.
pub fn kind(row: &MySqlRow, name: &str) -> Option<Kind> {
    let column = row.columns().iter().find(|c| c.name() == name)?;
    Some(match column.type_info().name() {
        kind if kind.ends_with("UNSIGNED") => Kind::Unsigned,
        "TINYINT" | "SMALLINT" | "MEDIUMINT" | "INT" | "BIGINT" | "DECIMAL" => Kind::Number,
        "FLOAT" | "DOUBLE" => Kind::Float,
        "CHAR" | "VARCHAR" | "TINYTEXT" | "TEXT" | "MEDIUMTEXT" | "LONGTEXT" => Kind::Text,
        "DATETIME" | "TIMESTAMP" => Kind::Civil,
        "DATE" => Kind::Day,
        _ => Kind::Other,
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
        // TINYINT(1) is called BOOLEAN, and is where a status of 0 to 3 may well stand.
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
