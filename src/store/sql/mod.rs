//! SQL databases: one row by a key, as a JSON object, from SQLite, MySQL, MariaDB or PostgreSQL; and
//! tables of the gateway's own making.

mod circuit;
mod count;
mod dsn;
mod mysql;
mod postgres;
mod prepared;
mod run;
mod sqlite;
mod table;

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde_json::{Map, Value};
use sqlx::{MySqlPool, PgPool, Pool, SqlitePool, pool::PoolOptions};

use self::circuit::{Circuit, Work};
pub use self::{
    count::Decide,
    run::{Bind, Statement, Trouble},
    table::{Found, Has, Holds, Wish},
};
use super::StoreError;
use crate::base::Secret;

/// A kind of database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Driver {
    /// A file.
    Sqlite,
    /// MySQL or MariaDB.
    Mysql,
    /// PostgreSQL.
    Postgres,
}

/// How to reach a database.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// What kind it is.
    pub driver: Driver,
    /// Where it is.
    pub target: Target,
    /// Most connections at a time.
    pub max_connections: u32,
    /// How long getting a connection may take.
    pub connect_timeout: Duration,
    /// A connection is replaced after this; `None` for never.
    pub max_lifetime: Option<Duration>,
    /// A connection that is not used is closed after this.
    pub idle_timeout: Option<Duration>,
}

/// Where a database is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// A file of SQLite.
    File(PathBuf),
    /// A file of SQLite of the gateway's own, which is made when it is not there.
    Own(PathBuf),
    /// A connection string.
    Dsn(Secret),
    /// A server.
    Server {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
        /// User.
        user: String,
        /// Password.
        password: Option<Secret>,
        /// Name of the database.
        database: String,
    },
}

impl Settings {
    /// A SQLite file of the gateway's own.
    pub fn own_file(path: PathBuf) -> Self {
        Self {
            driver: Driver::Sqlite,
            target: Target::Own(path),
            max_connections: 4,
            connect_timeout: Duration::from_secs(10),
            max_lifetime: None,
            idle_timeout: None,
        }
    }

    /// Whether the target can be understood.
    ///
    /// # Errors
    /// What is wrong with it, without the target itself.
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
    pools: Pools,
    /// Of a server: a file is there at once, or not.
    circuit: Option<Arc<Circuit>>,
}

/// The connections to it.
enum Pools {
    /// SQLite.
    Sqlite(SqlitePool),
    /// MySQL or MariaDB.
    Mysql(MySqlPool),
    /// PostgreSQL.
    Postgres(PgPool),
    /// Its settings do not say where it is.
    Nowhere(StoreError),
}

impl Sql {
    /// Connects when it is first asked. Must be called inside of a runtime.
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
        let nowhere = |why| (Pools::Nowhere(StoreError::new(why)), None);
        let (pools, circuit) = made.unwrap_or_else(nowhere);
        Self { pools, circuit }
    }

    /// Whether no connection is there: the first one shows whether there is a server.
    fn is_cold(&self) -> bool {
        match &self.pools {
            Pools::Mysql(pool) => pool.size() == 0,
            Pools::Postgres(pool) => pool.size() == 0,
            Pools::Sqlite(_) | Pools::Nowhere(_) => false,
        }
    }

    /// Waits for an answer, but not for a server that is known to be away.
    async fn guarded<T>(
        &self,
        work: Work,
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
    /// If the database cannot be asked, or a column cannot be read.
    pub async fn row(&self, lookup: &Lookup, key: &str) -> Result<Option<Row>, StoreError> {
        self.guarded(Work::Read, async {
            match &self.pools {
                Pools::Sqlite(pool) => prepared::in_sqlite(pool, lookup, key).await,
                Pools::Mysql(pool) => prepared::in_mysql(pool, lookup, key).await,
                Pools::Postgres(pool) => prepared::in_postgres(pool, lookup, key).await,
                Pools::Nowhere(why) => Err(why.clone()),
            }
        })
        .await
    }
}

impl Sql {
    /// Changes what `decide` says in the row with exactly this key, which nobody else can change
    /// meanwhile. Returns the fields that may have changed; `None` if there is no such row.
    ///
    /// # Errors
    /// If the database cannot be asked, or does not allow it.
    pub async fn count(
        &self,
        lookup: &Lookup,
        key: &str,
        decide: Decide<'_>,
    ) -> Result<Option<Row>, StoreError> {
        self.guarded(Work::Change, async {
            match &self.pools {
                Pools::Sqlite(pool) => count::in_sqlite(pool, lookup, key, decide).await,
                Pools::Mysql(pool) => count::in_mysql(pool, lookup, key, decide).await,
                Pools::Postgres(pool) => count::in_postgres(pool, lookup, key, decide).await,
                Pools::Nowhere(why) => Err(why.clone()),
            }
        })
        .await
    }
}

/// A row: names of columns to values. Dates and times are Unix seconds.
pub type Row = Map<String, Value>;

/// Under this name the key is told once more.
const KEY: &str = "llmproxy_key";

/// A prepared question for a row by its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    sql: String,
    key_column: String,
    /// Names of table and key column, quoted.
    table: String,
    key: String,
}

impl Lookup {
    /// Asks `table` for the row whose `key_column` is the key; `fields` are the columns wanted,
    /// all if there are none.
    ///
    /// # Errors
    /// The name that is none.
    pub fn new(
        driver: Driver,
        table: &str,
        key_column: &str,
        fields: &[String],
    ) -> Result<Self, String> {
        let quote = |name: &str| quote(driver, name);
        let table = table_name(driver, table)?;
        let key = quote(key_column)?;
        let wanted = match fields {
            [] => "*".to_owned(),
            some => some.iter().map(|f| quote(f)).collect::<Result<Vec<_>, _>>()?.join(", "),
        };
        let mark = if driver == Driver::Postgres { "$1" } else { "?" };
        // MySQL compares without regard to case, so that there can be several.
        let sql =
            format!("SELECT {wanted}, {key} AS {KEY} FROM {table} WHERE {key} = {mark} LIMIT 8");
        Ok(Self { sql, key_column: key_column.to_owned(), table, key })
    }

    /// Whether both find the same rows, perhaps with other columns.
    pub fn same_rows(&self, other: &Self) -> bool {
        (&self.table, &self.key) == (&other.table, &other.key)
    }

    /// The row without its key, if the key is exactly this one.
    ///
    /// # Errors
    /// If the key cannot be compared: a row that was found is no sign that the key is unknown.
    fn exact(&self, mut row: Row, key: &str) -> Result<Option<Row>, StoreError> {
        use subtle::ConstantTimeEq;
        let Some(Value::String(told)) = row.shift_remove(KEY) else {
            let column = &self.key_column;
            return Err(StoreError::new(format!("the key column `{column}` does not hold text")));
        };
        // MySQL and SQLite find a column by its name in any case.
        row.retain(|name, _| !name.eq_ignore_ascii_case(&self.key_column));
        let same = bool::from(told.as_bytes().ct_eq(key.as_bytes()));
        Ok(same.then_some(row))
    }
}

/// The name of a table, perhaps with its schema, as the database quotes names.
///
/// # Errors
/// If it is none.
pub fn table_name(driver: Driver, table: &str) -> Result<String, String> {
    let parts = table.split('.').map(|part| quote(driver, part));
    parts.collect::<Result<Vec<_>, _>>().map(|parts| parts.join("."))
}

/// A name as the database quotes names. Only names of letters, digits and `_` are accepted.
///
/// # Errors
/// If it is none.
pub fn quote(driver: Driver, name: &str) -> Result<String, String> {
    let legal = |c: char| c.is_alphanumeric() || c == '_';
    if name.is_empty()
        || name.len() > 64
        || !name.chars().all(legal)
        || name.starts_with(|c: char| c.is_ascii_digit())
    {
        return Err(format!("`{name}` is not a name of a table or column"));
    }
    Ok(match driver {
        // SQLite takes a name in double quotes that it does not know for a text.
        Driver::Mysql | Driver::Sqlite => format!("`{name}`"),
        Driver::Postgres => format!("\"{name}\""),
    })
}

/// Where the `n`th bound value stands in a statement.
fn mark(driver: Driver, n: usize) -> String {
    if driver == Driver::Postgres { format!("${n}") } else { "?".to_owned() }
}

/// The error in one sentence; what was bound is never in it.
fn cause(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::PoolTimedOut => StoreError::new("the database gave no connection in time"),
        sqlx::Error::Database(e) => {
            StoreError::new(format!("the database refused: {}", e.message()))
        }
        sqlx::Error::Io(e) => StoreError::new(format!("the database cannot be reached: {e}")),
        other => StoreError::new(format!("the database failed: {other}")),
    }
}

/// Text, or a number if it cannot be told as one.
fn decimal(value: rust_decimal::Decimal) -> Value {
    use rust_decimal::prelude::ToPrimitive;
    match value.to_i64().filter(|_| value.is_integer()) {
        Some(whole) => whole.into(),
        None => value.to_f64().map_or_else(|| value.to_string().into(), Value::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_and_quoted() {
        let lookup = |table, key, fields: &[&str]| {
            let fields: Vec<_> = fields.iter().map(|f| (*f).to_owned()).collect();
            Lookup::new(Driver::Mysql, table, key, &fields)
        };
        assert_eq!(
            lookup("shop.api_keys", "key", &["status", "余额"]).unwrap().sql,
            "SELECT `status`, `余额`, `key` AS llmproxy_key FROM `shop`.`api_keys` WHERE `key` = ? LIMIT 8"
        );
        for bad in ["", "a b", "a;drop table x", "a`", "1a", "a--", "a'", "a..b", "*"] {
            assert!(lookup(bad, "key", &[]).is_err(), "{bad}");
            assert!(lookup("t", bad, &[]).is_err(), "{bad}");
            assert!(lookup("t", "key", &[bad]).is_err(), "{bad}");
        }
        let postgres = Lookup::new(Driver::Postgres, "t", "k", &[]).unwrap();
        assert_eq!(
            postgres.sql,
            "SELECT *, \"k\" AS llmproxy_key FROM \"t\" WHERE \"k\" = $1 LIMIT 8"
        );
    }

    #[test]
    fn only_the_exact_key_is_found() {
        let lookup = Lookup::new(Driver::Mysql, "t", "k", &[]).unwrap();
        let row = |key: &str| {
            let row = serde_json::json!({"k": key, KEY: key, "status": 0});
            row.as_object().unwrap().clone()
        };
        assert_eq!(lookup.exact(row("SK-A"), "sk-a"), Ok(None));
        assert_eq!(lookup.exact(row("sk-a "), "sk-a"), Ok(None));
        let found = lookup.exact(row("sk-a"), "sk-a").unwrap().unwrap();
        assert_eq!(Value::from(found), serde_json::json!({"status": 0}));
        for odd in [
            serde_json::json!({"k": "sk-a"}),
            serde_json::json!({KEY: 7}),
            serde_json::json!({KEY: null}),
        ] {
            let odd = odd.as_object().unwrap().clone();
            assert!(lookup.exact(odd, "sk-a").is_err(), "not a key that is unknown");
        }
    }
}
