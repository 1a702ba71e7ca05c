//! Column types and errors, in the form that all databases share.

use rust_decimal::{Decimal, prelude::ToPrimitive};
use serde_json::Value;

use crate::store::error::StoreError;

/// The type of a column that holds an amount or a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnKind {
    /// Whole or decimal numbers.
    Number,
    /// Whole numbers that cannot be negative.
    Unsigned,
    /// Floating point.
    Float,
    /// Text.
    Text,
    /// Date and time with a zone.
    Zoned,
    /// Date and time without a zone, in UTC.
    Civil,
    /// A date.
    Day,
    /// Anything else: amounts cannot be added.
    Other,
}

/// The error in one sentence, without bound values.
pub(super) fn cause(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::PoolTimedOut => StoreError::new("no database connection became free in time"),
        sqlx::Error::Database(e) => {
            StoreError::new(format!("the database refused: {}", e.message()))
        }
        sqlx::Error::Io(e) => StoreError::new(format!("the database cannot be reached: {e}")),
        other => StoreError::new(format!("the database failed: {other}")),
    }
}

/// A number; a string if JSON has no such number.
pub(super) fn decimal(value: Decimal) -> Value {
    match value.to_i64().filter(|_| value.is_integer()) {
        Some(whole) => whole.into(),
        None => value.to_f64().map_or_else(|| value.to_string().into(), Value::from),
    }
}
