//! Connection strings: URLs, and the forms of Go programs, which the configuration of the gateway's
//! predecessor used.

use std::str::FromStr;

use sqlx::{mysql::MySqlConnectOptions, postgres::PgConnectOptions};

/// `mysql://user:password@host:3306/database`, or `user:password@tcp(host:3306)/database`.
pub fn mysql(text: &str) -> Result<MySqlConnectOptions, String> {
    if text.contains("://") {
        // The message of the parser may contain part of the string.
        return MySqlConnectOptions::from_str(text)
            .map_err(|_| bad("mysql://user:password@host/db"));
    }
    go_mysql(text).ok_or_else(|| bad("mysql://user:password@host/db"))
}

fn go_mysql(text: &str) -> Option<MySqlConnectOptions> {
    let (login, rest) = text.rsplit_once("@tcp(")?;
    let (address, rest) = rest.split_once(')')?;
    let database = rest.strip_prefix('/')?.split('?').next()?;
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "3306"));
    Some(
        MySqlConnectOptions::new()
            .username(user)
            .password(password)
            .host(host.trim_matches(['[', ']']))
            .port(port.parse().ok()?)
            .database(database),
    )
}

/// `postgres://user:password@host:5432/database`, or `host=... user=... password=... dbname=...`.
pub fn postgres(text: &str) -> Result<PgConnectOptions, String> {
    if text.contains("://") {
        return PgConnectOptions::from_str(text)
            .map_err(|_| bad("postgres://user:password@host/db"));
    }
    keywords(text).ok_or_else(|| bad("postgres://user:password@host/db"))
}

/// Keywords and values of libpq; values may be in single quotes.
fn keywords(text: &str) -> Option<PgConnectOptions> {
    let mut options = PgConnectOptions::new_without_pgpass();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let (value, after) = match after.trim_start().strip_prefix('\'') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let after = after.trim_start();
                let end = after.find(char::is_whitespace).unwrap_or(after.len());
                (after[..end].to_owned(), &after[end..])
            }
        };
        options = match name.trim() {
            "host" => options.host(&value),
            "port" => options.port(value.parse().ok()?),
            "user" => options.username(&value),
            "password" => options.password(&value),
            "dbname" => options.database(&value),
            "sslmode" => options.ssl_mode(value.parse().ok()?),
            // Times go to and fro in UTC: the session's time zone makes no difference.
            "TimeZone" | "connect_timeout" | "application_name" => options,
            _ => return None,
        };
        rest = after.trim_start();
    }
    Some(options)
}

/// The text up to the closing quote, and the rest.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\'' => return Some((value, &text[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

fn bad(form: &str) -> String {
    format!("the connection string cannot be understood; write `{form}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_gos_forms_are_understood() {
        for text in [
            "mysql://u:p%40ss@db.example:3307/keys",
            "u:p@ss@tcp(db.example:3307)/keys?charset=utf8mb4&parseTime=True",
        ] {
            let options = mysql(text).unwrap();
            assert_eq!(
                (options.get_host(), options.get_port(), options.get_username()),
                ("db.example", 3307, "u"),
                "{text}"
            );
            assert_eq!(options.get_database(), Some("keys"));
        }
        for text in [
            "postgres://u:p@db.example:5433/keys",
            "host=db.example port=5433 user=u password='a b\\'c' dbname=keys sslmode=disable TimeZone=UTC",
        ] {
            let options = postgres(text).unwrap();
            assert_eq!(
                (options.get_host(), options.get_port(), options.get_username()),
                ("db.example", 5433, "u"),
                "{text}"
            );
            assert_eq!(options.get_database(), Some("keys"));
        }
    }

    #[test]
    fn a_bad_string_is_not_repeated() {
        for text in ["secret", "u:secret@tcp(x", "mysql://u:secret@:x/"] {
            let why = mysql(text).unwrap_err();
            assert!(!why.contains("secret"), "{why}");
        }
        assert!(!postgres("secret").unwrap_err().contains("secret"));
        assert!(!postgres("password=secret nothing=1").unwrap_err().contains("secret"));
    }
}
