//! `storage`: named connections.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scalar::{SecretText, Span, five_seconds, secs, three_seconds, yes};

/// Kinds of databases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    Sqlite,
    /// MySQL and MariaDB.
    Mysql,
    #[serde(alias = "postgresql")]
    Postgres,
}

/// Connections that other sections refer to by name.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Storage {
    /// Databases.
    pub databases: Vec<Database>,
    /// Redis servers.
    pub caches: Vec<Cache>,
}

/// A database.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// The name that other sections refer to.
    pub name: String,
    /// Whether it may be used.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// The kind of database.
    pub driver: Driver,
    /// The connection string, instead of `host` and the other keys: a URL, or the format of Go's
    /// drivers.
    #[schemars(with = "Option<String>")]
    pub dsn: Option<SecretText>,
    /// Host name or address.
    pub host: Option<String>,
    /// Port; 3306 or 5432 by default.
    pub port: Option<u16>,
    /// User.
    pub user: Option<String>,
    /// Password.
    #[schemars(with = "Option<String>")]
    pub password: Option<SecretText>,
    /// A file that holds the password.
    pub password_file: Option<String>,
    /// Name of the database.
    pub database: Option<String>,
    /// The file of a SQLite database; it must exist.
    pub path: Option<String>,
    /// The maximum number of connections.
    #[serde(default = "ten_connections")]
    pub max_open_conns: u32,
    /// The age at which a connection is replaced; `0`: never.
    #[serde(default = "half_an_hour")]
    pub conn_max_lifetime: Span,
    /// The idle time after which a connection is closed; `0`: never.
    #[serde(default = "ten_minutes")]
    pub conn_max_idle_time: Span,
    /// How long it may take to get a connection.
    #[serde(default = "five_seconds")]
    pub connect_timeout: Span,
}

/// A Redis server.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// The name that other sections refer to.
    pub name: String,
    /// Whether it may be used.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Only `redis` is supported.
    #[serde(default)]
    pub driver: CacheDriver,
    /// `host:port`, or `redis://`, `rediss://` (with TLS).
    pub addr: String,
    /// User name, since Redis 6.
    pub username: Option<String>,
    /// Password.
    #[schemars(with = "Option<String>")]
    pub password: Option<SecretText>,
    /// A file that holds the password.
    pub password_file: Option<String>,
    /// Number of the database.
    #[serde(default)]
    pub db: i64,
    /// The number of connections. Each carries many requests at a time, so that few are enough.
    #[serde(default = "one_connection")]
    pub pool_size: usize,
    /// How long connecting may take.
    #[serde(default = "five_seconds")]
    pub dial_timeout: Span,
    /// How long a response may take.
    #[serde(default = "three_seconds")]
    pub read_timeout: Span,
}

/// Kinds of caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CacheDriver {
    /// Redis, or a server with its protocol.
    #[default]
    Redis,
}

impl Database {
    /// A database that a section states itself, with the defaults of `storage`.
    pub fn at(driver: Driver, dsn: SecretText) -> Self {
        Self {
            name: String::new(),
            enabled: true,
            driver,
            dsn: Some(dsn),
            host: None,
            port: None,
            user: None,
            password: None,
            password_file: None,
            database: None,
            path: None,
            max_open_conns: ten_connections(),
            conn_max_lifetime: half_an_hour(),
            conn_max_idle_time: ten_minutes(),
            connect_timeout: five_seconds(),
        }
    }
}

impl Cache {
    /// A server that a section states itself, with the defaults of `storage`.
    pub fn at(addr: &str) -> Self {
        Self {
            name: String::new(),
            enabled: true,
            driver: CacheDriver::Redis,
            addr: addr.to_owned(),
            username: None,
            password: None,
            password_file: None,
            db: 0,
            pool_size: one_connection(),
            dial_timeout: five_seconds(),
            read_timeout: three_seconds(),
        }
    }
}

fn half_an_hour() -> Span {
    secs(1800)
}

fn ten_minutes() -> Span {
    secs(600)
}

fn ten_connections() -> u32 {
    10
}

fn one_connection() -> usize {
    1
}
