//! Where a database is, and how to reach it.

use std::{path::PathBuf, time::Duration};

use crate::base::Secret;

/// The kind of database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Driver {
    Sqlite,
    /// MySQL or MariaDB.
    Mysql,
    Postgres,
}

/// How to reach a database.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    pub driver: Driver,
    pub target: Target,
    /// The most connections at a time.
    pub max_connections: u32,
    /// How long getting a connection from the pool may take.
    pub connect_timeout: Duration,
    /// A connection is replaced after this time; `None`: never.
    pub max_lifetime: Option<Duration>,
    /// An idle connection is closed after this time; `None`: never.
    pub idle_timeout: Option<Duration>,
}

/// Where a database is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// A SQLite file, which must exist.
    File(PathBuf),
    /// A SQLite file of the gateway itself, which is created if it does not exist.
    Own(PathBuf),
    /// A connection string.
    Dsn(Secret),
    /// A server.
    Server {
        /// Host name or address.
        host: String,
        port: u16,
        user: String,
        password: Option<Secret>,
        database: String,
    },
}

impl Settings {
    /// A SQLite file of the gateway itself.
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
}
