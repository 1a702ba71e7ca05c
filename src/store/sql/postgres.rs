//! PostgreSQL: connection options and reading rows.

use rust_decimal::Decimal;
use serde_json::Value;
use sqlx::{
    AssertSqlSafe, Column, PgConnection, Row as _, TypeInfo, ValueRef,
    postgres::{PgConnectOptions, PgRow, PgTypeKind, PgValueRef},
};
use time::{Date, OffsetDateTime, PrimitiveDateTime};

use super::{
    dsn,
    lookup::{Lookup, Row},
    settings::Target,
    value::{ColumnKind, decimal},
};

pub fn options(target: &Target) -> Result<PgConnectOptions, String> {
    match target {
        Target::File(_) | Target::Own(_) => Err("only SQLite has a `path`".to_owned()),
        Target::Dsn(text) => dsn::postgres(text.expose()),
        Target::Server { host, port, user, password, database } => {
            let options = PgConnectOptions::new_without_pgpass()
                .host(host)
                .port(*port)
                .username(user)
                .database(database);
            Ok(match password {
                Some(password) => options.password(password.expose()),
                None => options,
            })
        }
    }
}

/// The rows whose key the database considers equal; `locked` until the end of the transaction.
pub async fn found(
    connection: &mut PgConnection,
    lookup: &Lookup,
    key: &str,
    locked: bool,
) -> Result<Vec<PgRow>, sqlx::Error> {
    let lock = if locked { " FOR UPDATE" } else { "" };
    let sql = AssertSqlSafe(format!("{}{lock}", lookup.sql));
    sqlx::query(sql).bind(key).fetch_all(connection).await
}

pub fn row(row: &PgRow) -> Result<Row, String> {
    row.columns().iter().map(|c| Ok((c.name().to_owned(), value(row, c.ordinal())?))).collect()
}

/// The type of a column, if there is one of this name.
pub fn kind(row: &PgRow, name: &str) -> Option<ColumnKind> {
    let column = row.columns().iter().find(|c| c.name() == name)?;
    Some(match column.type_info().name() {
        "INT2" | "INT4" | "INT8" | "NUMERIC" => ColumnKind::Number,
        "FLOAT4" | "FLOAT8" => ColumnKind::Float,
        "TEXT" | "VARCHAR" | "BPCHAR" | "CHAR" | "CITEXT" | "citext" => ColumnKind::Text,
        "TIMESTAMPTZ" => ColumnKind::Zoned,
        "TIMESTAMP" => ColumnKind::Civil,
        "DATE" => ColumnKind::Day,
        _ => ColumnKind::Other,
    })
}

/// `infinity` is read as null, for "never"; `-infinity` as long ago.
fn infinity(raw: &PgValueRef<'_>) -> Option<Value> {
    let bytes = raw.as_bytes().ok()?;
    let extreme = match bytes.len() {
        8 => i64::from_be_bytes(bytes.try_into().ok()?),
        4 => match i32::from_be_bytes(bytes.try_into().ok()?) {
            i32::MAX => i64::MAX,
            i32::MIN => i64::MIN,
            _ => 0,
        },
        _ => 0,
    };
    match extreme {
        i64::MAX => Some(Value::Null),
        i64::MIN => Some(1.into()),
        _ => None,
    }
}

fn value(row: &PgRow, at: usize) -> Result<Value, String> {
    let raw = row.try_get_raw(at).map_err(|e| e.to_string())?;
    if raw.is_null() {
        return Ok(Value::Null);
    }
    let info = raw.type_info().into_owned();
    let read = match info.name() {
        "BOOL" => row.try_get::<bool, _>(at).map(Value::from),
        "INT2" => row.try_get::<i16, _>(at).map(Value::from),
        "INT4" => row.try_get::<i32, _>(at).map(Value::from),
        "INT8" => row.try_get::<i64, _>(at).map(Value::from),
        "FLOAT4" => row.try_get::<f32, _>(at).map(Value::from),
        "FLOAT8" => row.try_get::<f64, _>(at).map(Value::from),
        "NUMERIC" => row.try_get::<Decimal, _>(at).map(decimal),
        "TIMESTAMPTZ" | "TIMESTAMP" | "DATE" if infinity(&raw).is_some() => {
            return Ok(infinity(&raw).unwrap_or_default());
        }
        "TIMESTAMPTZ" => row.try_get::<OffsetDateTime, _>(at).map(|t| t.unix_timestamp().into()),
        "TIMESTAMP" => {
            row.try_get::<PrimitiveDateTime, _>(at).map(|t| t.assume_utc().unix_timestamp().into())
        }
        "DATE" => {
            row.try_get::<Date, _>(at).map(|d| d.midnight().assume_utc().unix_timestamp().into())
        }
        "JSON" | "JSONB" => row.try_get::<Value, _>(at),
        "TEXT[]" | "VARCHAR[]" => row.try_get::<Vec<Option<String>>, _>(at).map(Value::from),
        "TEXT" | "VARCHAR" | "BPCHAR" | "CHAR" | "NAME" | "CITEXT" | "citext" => {
            row.try_get_unchecked::<String, _>(at).map(Value::from)
        }
        // On the wire an enum value is its name.
        _ if matches!(info.kind(), PgTypeKind::Enum(_)) => {
            row.try_get_unchecked::<String, _>(at).map(Value::from)
        }
        other => {
            let name = row.column(at).name();
            return Err(format!(
                "column `{name}` has the type {other}: list only the columns that you need in `fields`, or cast it to text in a view"
            ));
        }
    };
    read.map_err(|_| {
        format!("column `{}` of type {} cannot be read", row.column(at).name(), info.name())
    })
}
