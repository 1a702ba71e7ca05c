//! Retrying with fresh statements: PostgreSQL rejects statements that were prepared before a table was
//! altered, on every connection that has them. A failed read is repeated once with newly prepared
//! statements; a second failure is an error, never an unknown key.

use sqlx::{
    Connection, MySqlConnection, MySqlPool, PgConnection, PgPool, SqliteConnection, SqlitePool,
    mysql::MySqlDatabaseError,
};

use super::{
    lookup::{Lookup, Row},
    mysql, postgres, sqlite,
    value::cause,
};
use crate::store::error::StoreError;

/// Why an attempt failed.
pub enum AttemptError {
    /// An error of the database or the connection.
    Sql(sqlx::Error),
    /// A row that cannot be read.
    Unreadable(String),
    /// An error that another attempt does not change.
    Final(StoreError),
}

impl From<sqlx::Error> for AttemptError {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<AttemptError> for StoreError {
    fn from(failed: AttemptError) -> Self {
        match failed {
            AttemptError::Sql(error) => cause(error),
            AttemptError::Unreadable(why) => Self::new(why),
            AttemptError::Final(why) => why,
        }
    }
}

impl AttemptError {
    /// Whether newly prepared statements may help: the connection must still work, and a lock timeout must
    /// not be waited for twice.
    pub fn may_be_stale(&self) -> bool {
        match self {
            Self::Sql(sqlx::Error::Database(error)) => {
                match error.try_downcast_ref::<MySqlDatabaseError>() {
                    Some(error) => !matches!(error.number(), 1205 | 1969 | 3024),
                    // SQLite: busy, locked. PostgreSQL: lock timeout, statement timeout.
                    None => error.code().is_none_or(|code| {
                        !["5", "6", "261", "517", "55P03", "57014"].contains(&&*code)
                    }),
                }
            }
            Self::Sql(
                sqlx::Error::Decode(_)
                | sqlx::Error::ColumnDecode { .. }
                | sqlx::Error::ColumnNotFound(_)
                | sqlx::Error::ColumnIndexOutOfBounds { .. }
                | sqlx::Error::TypeNotFound { .. },
            )
            | Self::Unreadable(_) => true,
            Self::Sql(_) | Self::Final(_) => false,
        }
    }
}

/// Makes an attempt on a connection, and a second one after clearing its cached statements.
macro_rules! twice {
    ($pool:expr, |$connection:ident| $attempt:expr) => {{
        let mut pooled = $pool.acquire().await.map_err($crate::store::sql::value::cause)?;
        let first = {
            let $connection = &mut *pooled;
            $attempt.await
        };
        match first {
            Err(failed) if failed.may_be_stale() => {
                pooled.clear_cached_statements().await.map_err($crate::store::sql::value::cause)?;
                let $connection = &mut *pooled;
                $attempt.await.map_err(StoreError::from)
            }
            done => done.map_err(StoreError::from),
        }
    }};
}
pub(super) use twice;

/// Defines the function for each database: they differ only in types.
macro_rules! find {
    ($find:ident, $attempt:ident, $pool:ty, $connection:ty, $rows:ident) => {
        /// The row with exactly this key, if there is one.
        pub async fn $find(
            pool: &$pool,
            lookup: &Lookup,
            key: &str,
        ) -> Result<Option<Row>, StoreError> {
            twice!(pool, |connection| $attempt(connection, lookup, key))
        }

        async fn $attempt(
            connection: &mut $connection,
            lookup: &Lookup,
            key: &str,
        ) -> Result<Option<Row>, AttemptError> {
            let rows = find!(@rows $rows connection lookup key)?;
            let mut found = None;
            for raw in &rows {
                let row = $rows::row(raw).map_err(AttemptError::Unreadable)?;
                found = found.or(lookup.exact(row, key).map_err(AttemptError::Final)?);
            }
            Ok(found)
        }
    };
    (@rows sqlite $connection:ident $lookup:ident $key:ident) => {{
        let mut transaction = $connection.begin().await?;
        let rows = sqlite::found(&mut transaction, $lookup, $key, false).await;
        transaction.rollback().await?;
        rows
    }};
    (@rows $rows:ident $connection:ident $lookup:ident $key:ident) => {
        $rows::found($connection, $lookup, $key, false).await
    };
}

find!(in_sqlite, once_in_sqlite, SqlitePool, SqliteConnection, sqlite);
find!(in_mysql, once_in_mysql, MySqlPool, MySqlConnection, mysql);
find!(in_postgres, once_in_postgres, PgPool, PgConnection, postgres);
