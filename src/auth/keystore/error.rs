//! Errors of changes to keys.

use crate::store::StoreError;

/// Why a change was not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// The key does not exist.
    Unknown,
    /// The key exists already.
    Exists,
    /// The given fields are invalid.
    Invalid(String),
    /// The file cannot be used.
    Store(StoreError),
}

impl From<sqlx::Error> for KeyError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(e) if e.is_unique_violation() => Self::Exists,
            sqlx::Error::Database(e) => Self::Store(StoreError::new(e.message())),
            other => Self::Store(StoreError::new(other)),
        }
    }
}

impl From<StoreError> for KeyError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
