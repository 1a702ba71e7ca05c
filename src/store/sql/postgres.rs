//! PostgreSQL: where it is, and its rows.

use rust_decimal::Decimal;
use serde_json::Value;
use sqlx::{
    Column, Row as _, TypeInfo, ValueRef,
    postgres::{PgConnectOptions, PgRow, PgTypeKind},
};
use time::{Date, OffsetDateTime, PrimitiveDateTime};

use super::{Row, Target, decimal, dsn};

pub fn options(target: &Target) -> Result<PgConnectOptions, String> {
    match target {
        Target::File(_) => Err("only SQLite has a `path`".to_owned()),
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

pub fn row(row: &PgRow) -> Result<Row, String> {
    row.columns().iter().map(|c| Ok((c.name().to_owned(), value(row, c.ordinal())?))).collect()
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
        "TIMESTAMPTZ" => row.try_get::<OffsetDateTime, _>(at).map(|t| t.unix_timestamp().into()),
        "TIMESTAMP" => {
            row.try_get::<PrimitiveDateTime, _>(at).map(|t| t.assume_utc().unix_timestamp().into())
        }
        "DATE" => {
            row.try_get::<Date, _>(at).map(|d| d.midnight().assume_utc().unix_timestamp().into())
        }
        "JSON" | "JSONB" => row.try_get::<Value, _>(at),
        "TEXT[]" | "VARCHAR[]" => row.try_get::<Vec<String>, _>(at).map(Value::from),
        "TEXT" | "VARCHAR" | "BPCHAR" | "CHAR" | "NAME" | "CITEXT" | "citext" => {
            row.try_get_unchecked::<String, _>(at).map(Value::from)
        }
        // On the wire a value of an enumeration is its name.
        _ if matches!(info.kind(), PgTypeKind::Enum(_)) => {
            row.try_get_unchecked::<String, _>(at).map(Value::from)
        }
        other => {
            let name = row.column(at).name();
            return Err(format!(
                "column `{name}` has the type {other}: list the `fields` that are wanted, or cast it to text in a view"
            ));
        }
    };
    read.map_err(|_| {
        format!("column `{}` of type {} cannot be read", row.column(at).name(), info.name())
    })
}
