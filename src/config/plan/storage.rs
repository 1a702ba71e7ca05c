//! `storage`, and connections that a section states itself.

use std::time::Duration;

use super::planner::Planner;
use crate::{
    config::raw::{self, Driver, Raw},
    store::{redis, sql},
};

impl Planner<'_> {
    /// Checks every named connection, including unused ones.
    pub(super) fn storage(&mut self, whole: &Raw) {
        for (i, database) in whole.storage.databases.iter().enumerate() {
            self.database(&format!("storage.databases[{i}]"), database);
        }
        for (i, cache) in whole.storage.caches.iter().enumerate() {
            self.cache(&format!("storage.caches[{i}]"), cache);
        }
        self.unique("storage.databases", whole.storage.databases.iter().map(|d| &d.name));
        self.unique("storage.caches", whole.storage.caches.iter().map(|c| &c.name));
    }

    fn unique<'a>(&mut self, at: &str, names: impl Iterator<Item = &'a String>) {
        let mut seen = Vec::new();
        for (i, name) in names.enumerate() {
            if seen.contains(&name) {
                let message = format!("has the same name as an earlier one: `{name}`");
                self.problem(format!("{at}[{i}]"), message, "");
            }
            seen.push(name);
        }
    }

    pub(super) fn named_cache(
        &mut self,
        at: &str,
        name: &str,
        whole: &Raw,
    ) -> Option<redis::Settings> {
        let caches = &whole.storage.caches;
        match caches.iter().find(|c| c.name == name && c.enabled) {
            // Its problems are reported at its own path.
            Some(cache) => self.without_problems(|planner| planner.cache("", cache)),
            None => {
                self.unknown(at, "storage.caches", name, caches.iter().map(|c| &c.name));
                None
            }
        }
    }

    fn named_database(&mut self, at: &str, name: &str, whole: &Raw) -> Option<sql::Settings> {
        let databases = &whole.storage.databases;
        match databases.iter().find(|d| d.name == name && d.enabled) {
            Some(database) => self.without_problems(|planner| planner.database("", database)),
            None => {
                self.unknown(at, "storage.databases", name, databases.iter().map(|d| &d.name));
                None
            }
        }
    }

    /// The database that a section refers to by name, or states itself.
    pub(super) fn named_or_own(
        &mut self,
        at: &str,
        name: Option<&str>,
        own: (Option<Driver>, Option<&raw::SecretText>),
        whole: &Raw,
    ) -> Option<sql::Settings> {
        match (name, own) {
            (Some(name), (None, None)) => {
                self.named_database(&format!("{at}.storage"), name, whole)
            }
            (None, (Some(driver), Some(dsn))) => {
                self.database(at, &raw::Database::at(driver, dsn.clone()))
            }
            _ => {
                self.problem(
                    at,
                    "needs either `driver` and `dsn`, or `storage`",
                    "write `storage: NAME` for one of `storage.databases`",
                );
                None
            }
        }
    }

    fn without_problems<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> T {
        let before = (self.problems.len(), self.trusting.len());
        let made = make(self);
        self.problems.truncate(before.0);
        self.trusting.truncate(before.1);
        made
    }

    fn unknown<'a>(
        &mut self,
        at: &str,
        list: &str,
        name: &str,
        known: impl Iterator<Item = &'a String>,
    ) {
        let known: Vec<_> = known.map(String::as_str).collect();
        let hint = match known[..] {
            [] => format!("`{list}` is empty"),
            _ => format!("there are: {}", known.join(", ")),
        };
        self.problem(at, format!("`{list}` has no enabled entry `{name}`"), &hint);
    }

    pub(super) fn cache(&mut self, at: &str, raw: &raw::Cache) -> Option<redis::Settings> {
        let key = |name: &str| if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
        let (tls, rest) = match raw.addr.split_once("://") {
            Some(("redis", rest)) => (false, rest),
            Some(("rediss", rest)) => (true, rest),
            Some(_) => return self.bad_address(&key("addr")),
            None => (false, raw.addr.as_str()),
        };
        if tls && raw.enabled {
            self.needs_trust(key("addr"));
        }
        let rest = rest.trim_end_matches('/');
        if rest.contains(['@', '/', '?']) {
            self.problem(
                key("addr"),
                "has more than host and port",
                "write `username`, `password` and `db` as separate keys",
            );
            return None;
        }
        let (host, port) = rest.rsplit_once(':').unwrap_or((rest, "6379"));
        let Some(port) = port.parse().ok().filter(|p| *p != 0 && !host.is_empty()) else {
            return self.bad_address(&key("addr"));
        };
        if !(1..=64).contains(&raw.pool_size) {
            self.problem(key("pool_size"), "is not between 1 and 64", "the default is 1");
        }
        let password =
            self.secret(at, "password", raw.password.as_ref(), raw.password_file.as_deref());
        Some(redis::Settings {
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            tls,
            username: raw.username.clone(),
            password: password.filter(|p| !p.expose().is_empty()),
            db: raw.db,
            connections: raw.pool_size,
            connect_timeout: self.positive(&key("dial_timeout"), raw.dial_timeout),
            timeout: self.positive(&key("read_timeout"), raw.read_timeout),
        })
    }

    fn bad_address<T>(&mut self, at: &str) -> Option<T> {
        self.problem(at, "is not an address", "write `localhost:6379` or `rediss://host:6380`");
        None
    }

    fn positive(&mut self, at: &str, span: raw::Span) -> Duration {
        if span.0.is_zero() {
            self.problem(at, "is zero", "");
        }
        span.0
    }

    pub(super) fn database(&mut self, at: &str, raw: &raw::Database) -> Option<sql::Settings> {
        let key = |name: &str| if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
        let password =
            self.secret(at, "password", raw.password.as_ref(), raw.password_file.as_deref());
        let (driver, port) = match raw.driver {
            Driver::Sqlite => (sql::Driver::Sqlite, 0),
            Driver::Mysql => (sql::Driver::Mysql, 3306),
            Driver::Postgres => (sql::Driver::Postgres, 5432),
        };
        let target = match (&raw.dsn, driver) {
            (Some(dsn), sql::Driver::Sqlite) => {
                sql::Target::File(self.path(sqlite_path(dsn.0.expose())))
            }
            (Some(dsn), _) => sql::Target::Dsn(dsn.0.clone()),
            (None, sql::Driver::Sqlite) => match &raw.path {
                Some(path) => sql::Target::File(self.path(path)),
                None => {
                    self.problem(at, "a SQLite database needs a `path`", "");
                    return None;
                }
            },
            (None, _) => {
                let (Some(user), Some(database)) = (&raw.user, &raw.database) else {
                    self.problem(at, "needs `user` and `database`, or a `dsn`", "");
                    return None;
                };
                sql::Target::Server {
                    host: raw.host.clone().unwrap_or_else(|| "localhost".to_owned()),
                    port: raw.port.unwrap_or(port),
                    user: user.clone(),
                    password,
                    database: database.clone(),
                }
            }
        };
        if !(1..=1000).contains(&raw.max_open_conns) {
            self.problem(key("max_open_conns"), "is not between 1 and 1000", "the default is 10");
        }
        let some = |span: raw::Span| (!span.0.is_zero()).then_some(span.0);
        let settings = sql::Settings {
            driver,
            target,
            max_connections: raw.max_open_conns,
            connect_timeout: self.positive(&key("connect_timeout"), raw.connect_timeout),
            max_lifetime: some(raw.conn_max_lifetime),
            idle_timeout: some(raw.conn_max_idle_time),
        };
        self.usable(&key("dsn"), settings)
    }

    fn usable(&mut self, at: &str, settings: sql::Settings) -> Option<sql::Settings> {
        match settings.check() {
            Ok(()) => Some(settings),
            Err(why) => {
                self.problem(at, why, "");
                None
            }
        }
    }
}

fn sqlite_path(text: &str) -> &str {
    let path = text.strip_prefix("sqlite:").or_else(|| text.strip_prefix("file:")).unwrap_or(text);
    path.strip_prefix("//").unwrap_or(path)
}
