//! A database: its connections, and queries of rows by key.

use std::sync::Arc;

use sqlx::{MySqlPool, PgPool, Pool, SqlitePool, pool::PoolOptions};

use super::{
    circuit::{Circuit, Operation},
    count::{self, Decide},
    lookup::{Lookup, Row},
    mysql, postgres, prepared,
    settings::{Driver, Settings},
    sqlite,
};
use crate::store::error::StoreError;

impl Settings {
    /// Checks the target.
    ///
    /// # Errors
    /// What is wrong with it, without the target itself, which may hold a password.
    pub fn check(&self) -> Result<(), String> {
        match self.driver {
            Driver::Sqlite => sqlite::options(&self.target).map(drop),
            Driver::Mysql => mysql::options(&self.target).map(drop),
            Driver::Postgres => postgres::options(&self.target).map(drop),
        }
    }
}

/// A database.
pub struct Sql {
    pub(super) pools: Pools,
    /// Only for servers: a file is available at once or not at all.
    circuit: Option<Arc<Circuit>>,
}

/// The connections of a database.
pub(super) enum Pools {
    Sqlite(SqlitePool),
    Mysql(MySqlPool),
    Postgres(PgPool),
    /// The settings are invalid.
    Invalid(StoreError),
}

impl Sql {
    /// Connects with the first query. Must be called inside a Tokio runtime.
    pub fn new(settings: &Settings) -> Self {
        fn pool<D: sqlx::Database>(
            settings: &Settings,
            options: <D::Connection as sqlx::Connection>::Options,
        ) -> Pool<D> {
            PoolOptions::<D>::new()
                .max_connections(settings.max_connections)
                .acquire_timeout(settings.connect_timeout)
                .max_lifetime(settings.max_lifetime)
                .idle_timeout(settings.idle_timeout)
                .connect_lazy_with(options)
        }
        let target = &settings.target;
        let patience = settings.connect_timeout;
        let made = match settings.driver {
            Driver::Sqlite => {
                sqlite::options(target).map(|o| (Pools::Sqlite(pool(settings, o)), None))
            }
            Driver::Mysql => mysql::options(target).map(|o| {
                let pool = pool::<sqlx::MySql>(settings, o.clone());
                let circuit = Circuit::new(pool.clone(), o, patience);
                (Pools::Mysql(pool), Some(circuit))
            }),
            Driver::Postgres => postgres::options(target).map(|o| {
                let pool = pool::<sqlx::Postgres>(settings, o.clone());
                let circuit = Circuit::new(pool.clone(), o, patience);
                (Pools::Postgres(pool), Some(circuit))
            }),
        };
        let invalid = |why| (Pools::Invalid(StoreError::new(why)), None);
        let (pools, circuit) = made.unwrap_or_else(invalid);
        Self { pools, circuit }
    }

    /// Whether there is no connection yet, so that nothing is known about the server.
    fn is_cold(&self) -> bool {
        match &self.pools {
            Pools::Mysql(pool) => pool.size() == 0,
            Pools::Postgres(pool) => pool.size() == 0,
            Pools::Sqlite(_) | Pools::Invalid(_) => false,
        }
    }

    /// Waits for an answer, unless the server is known to be unavailable.
    async fn guarded<T>(
        &self,
        work: Operation,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        match &self.circuit {
            Some(circuit) => circuit.guard(self.is_cold(), work, answer).await,
            None => answer.await,
        }
    }

    /// The row with exactly this key, without the key itself.
    ///
    /// # Errors
    /// If the query fails, or a column cannot be read.
    pub async fn row(&self, lookup: &Lookup, key: &str) -> Result<Option<Row>, StoreError> {
        self.guarded(Operation::Read, async {
            match &self.pools {
                Pools::Sqlite(pool) => prepared::in_sqlite(pool, lookup, key).await,
                Pools::Mysql(pool) => prepared::in_mysql(pool, lookup, key).await,
                Pools::Postgres(pool) => prepared::in_postgres(pool, lookup, key).await,
                Pools::Invalid(why) => Err(why.clone()),
            }
        })
        .await
    }
}

impl Sql {
    /// Applies the change that `decide` returns to the row with exactly this key, while the row is locked.
    /// Returns the fields that may have changed; `None` if there is no such row.
    ///
    /// # Errors
    /// If a statement fails, or the database does not allow it.
    pub async fn count(
        &self,
        lookup: &Lookup,
        key: &str,
        decide: Decide<'_>,
    ) -> Result<Option<Row>, StoreError> {
        self.guarded(Operation::Change, async {
            match &self.pools {
                Pools::Sqlite(pool) => count::in_sqlite(pool, lookup, key, decide).await,
                Pools::Mysql(pool) => count::in_mysql(pool, lookup, key, decide).await,
                Pools::Postgres(pool) => count::in_postgres(pool, lookup, key, decide).await,
                Pools::Invalid(why) => Err(why.clone()),
            }
        })
        .await
    }
}
