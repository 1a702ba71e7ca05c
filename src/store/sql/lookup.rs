//! The row of a key: the query that finds it, and the quoting of names.

use serde_json::{Map, Value};

use super::settings::Driver;
use crate::store::error::StoreError;

/// A row: column names and values. Dates and times are Unix seconds.
pub type Row = Map<String, Value>;

/// The name under which every row repeats its key.
const KEY: &str = "llmproxy_key";

/// A query for a row by its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    pub(super) sql: String,
    key_column: String,
    /// Table and key column, quoted.
    pub(super) table: String,
    pub(super) key: String,
}

impl Lookup {
    /// Finds the row of `table` whose `key_column` is the key. `fields` are the columns to return; empty
    /// means all.
    ///
    /// # Errors
    /// If a name is not valid.
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
        // MySQL may compare case-insensitively, so that several rows match.
        let sql =
            format!("SELECT {wanted}, {key} AS {KEY} FROM {table} WHERE {key} = {mark} LIMIT 8");
        Ok(Self { sql, key_column: key_column.to_owned(), table, key })
    }

    /// Whether both find the same rows, possibly with other columns.
    pub fn same_rows(&self, other: &Self) -> bool {
        (&self.table, &self.key) == (&other.table, &other.key)
    }

    /// The row without its key, if the key is exactly this one.
    ///
    /// # Errors
    /// If the key cannot be compared: this must not look like an unknown key.
    pub(super) fn exact(&self, mut row: Row, key: &str) -> Result<Option<Row>, StoreError> {
        use subtle::ConstantTimeEq;
        let Some(Value::String(found)) = row.shift_remove(KEY) else {
            let column = &self.key_column;
            return Err(StoreError::new(format!("the key column `{column}` does not hold text")));
        };
        // Column names are case-insensitive in MySQL and SQLite.
        row.retain(|name, _| !name.eq_ignore_ascii_case(&self.key_column));
        let same = bool::from(found.as_bytes().ct_eq(key.as_bytes()));
        Ok(same.then_some(row))
    }
}

/// A table name, with or without schema, quoted for the database.
///
/// # Errors
/// If it is not a valid name.
pub fn table_name(driver: Driver, table: &str) -> Result<String, String> {
    let parts = table.split('.').map(|part| quote(driver, part));
    parts.collect::<Result<Vec<_>, _>>().map(|parts| parts.join("."))
}

/// A name, quoted for the database. Only letters, digits and `_` are accepted.
///
/// # Errors
/// If it is not a valid name.
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
        // SQLite reads an unknown name in double quotes as a string.
        Driver::Mysql | Driver::Sqlite => format!("`{name}`"),
        Driver::Postgres => format!("\"{name}\""),
    })
}

/// The placeholder of the `n`th bound value.
pub(super) fn mark(driver: Driver, n: usize) -> String {
    if driver == Driver::Postgres { format!("${n}") } else { "?".to_owned() }
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
