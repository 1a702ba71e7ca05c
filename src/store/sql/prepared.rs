//! Statements that were prepared before a table was altered: PostgreSQL refuses them from then on,
//! and nothing else would end that but a new connection. A read that fails is made once more, with
//! statements that are prepared anew; what fails then is a failure, and never an unknown key.

use sqlx::{
    Connection, MySqlConnection, MySqlPool, PgConnection, PgPool, SqliteConnection, SqlitePool,
    mysql::MySqlDatabaseError,
};

use super::{Lookup, Row, cause, mysql, postgres, sqlite};
use crate::store::StoreError;

/// Why an attempt failed.
pub enum Failed {
    /// By the database, or on the way.
    Sql(sqlx::Error),
    /// A row came that cannot be read.
    Unreadable(String),
    /// By something that another attempt does not change.
    Final(StoreError),
}

impl From<sqlx::Error> for Failed {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<Failed> for StoreError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Sql(error) => cause(error),
            Failed::Unreadable(why) => Self::new(why),
            Failed::Final(why) => why,
        }
    }
}

impl Failed {
    /// Whether statements that are prepared anew may help. The connection must still be good, and
    /// what waited for a lock in vain does not wait for it once more.
    pub fn may_be_stale(&self) -> bool {
        match self {
            Self::Sql(sqlx::Error::Database(error)) => {
                match error.try_downcast_ref::<MySqlDatabaseError>() {
                    Some(error) => !matches!(error.number(), 1205 | 1969 | 3024),
                    // SQLite's busy and locked; of PostgreSQL a lock and a time limit.
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

/// Makes an attempt on a connection, and another one after it has forgotten its statements.
macro_rules! twice {
    ($pool:expr, |$connection:ident| $attempt:expr) => {{
        let mut held = $pool.acquire().await.map_err($crate::store::sql::cause)?;
        let first = {
            let $connection = &mut *held;
            $attempt.await
        };
        match first {
            Err(failed) if failed.may_be_stale() => {
                held.clear_cached_statements().await.map_err($crate::store::sql::cause)?;
                let $connection = &mut *held;
                $attempt.await.map_err(StoreError::from)
            }
            done => done.map_err(StoreError::from),
        }
    }};
}
pub(super) use twice;

/// One function for each database: they differ only in types.
macro_rules! find {
    ($find:ident, $attempt:ident, $pool:ty, $connection:ty, $rows:ident) => {
        /// The row with exactly this key; `None` if there is none.
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
        ) -> Result<Option<Row>, Failed> {
            let rows = find!(@rows $rows connection lookup key)?;
            let mut found = None;
            for raw in &rows {
                let row = $rows::row(raw).map_err(Failed::Unreadable)?;
                found = found.or(lookup.exact(row, key).map_err(Failed::Final)?);
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
