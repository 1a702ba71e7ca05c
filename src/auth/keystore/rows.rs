//! The schema and the rows of the SQLite file.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;
use sqlx::{Row, Sqlite, SqlitePool, Transaction, sqlite::SqliteRow};

use super::{
    error::KeyError,
    spec::{KeySpec, StoredKey},
};
use crate::{auth::credential::digest, base::terms::UsageChange, store::file};

/// Versions of the schema in order. A released version is never changed; a change is a new entry.
const SCHEMA: [&str; 2] = [
    "
    CREATE TABLE api_keys (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        digest BLOB NOT NULL UNIQUE,
        prefix TEXT NOT NULL,
        name TEXT NOT NULL,
        user_id TEXT NOT NULL,
        team TEXT NOT NULL,
        status INTEGER NOT NULL,
        starts_at INTEGER,
        expires_at INTEGER,
        total_quota REAL,
        used_quota REAL NOT NULL,
        quota_reset_period TEXT,
        last_reset_at INTEGER,
        balance REAL,
        allowed_ips TEXT NOT NULL,
        denied_ips TEXT NOT NULL,
        metadata TEXT NOT NULL,
        limits TEXT,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL
    );
    CREATE INDEX api_keys_status ON api_keys (status);
    CREATE INDEX api_keys_user_id ON api_keys (user_id);
",
    "ALTER TABLE api_keys ADD COLUMN tier TEXT NOT NULL DEFAULT '';",
];

/// A query of keys that names each column: statements stay prepared, and a newer gateway that shares
/// the file may add columns to the table, which `*` would return under wrong names.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, prefix, name, user_id, team, tier, status, starts_at, expires_at, total_quota, \
             used_quota, quota_reset_period, last_reset_at, balance, allowed_ips, denied_ips, metadata, \
             limits, created_at, updated_at FROM api_keys",
            $rest
        )
    };
}
pub(super) use select;

/// Opens the file and creates it if it does not exist.
pub async fn connect(path: &Path) -> Result<SqlitePool, String> {
    file::open(path, &SCHEMA).await
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Adds a key.
pub async fn insert(
    change: &mut Transaction<'_, Sqlite>,
    key: &str,
    stored: &StoredKey,
) -> Result<(), KeyError> {
    const INSERT: &str = "INSERT INTO api_keys (id, digest, prefix, name, user_id, team, status,
         used_quota, allowed_ips, denied_ips, metadata, created_at, updated_at)
         VALUES (?, ?, ?, '', '', '', 0, 0, '[]', '[]', '{}', ?, ?)";
    sqlx::query(INSERT)
        .bind(&stored.id)
        .bind(&digest(key)[..])
        .bind(&stored.prefix)
        .bind(stored.created_at)
        .bind(stored.updated_at)
        .execute(&mut **change)
        .await?;
    write(change, stored).await
}

/// Writes the fields of an existing key.
pub async fn write(
    change: &mut Transaction<'_, Sqlite>,
    stored: &StoredKey,
) -> Result<(), KeyError> {
    const UPDATE: &str = "UPDATE api_keys SET name = ?, user_id = ?, team = ?, tier = ?, status = ?,
         starts_at = ?, expires_at = ?, total_quota = ?, used_quota = ?, quota_reset_period = ?,
         last_reset_at = ?, balance = ?, allowed_ips = ?, denied_ips = ?, metadata = ?, limits = ?, updated_at = ?
         WHERE id = ?";
    let spec = &stored.spec;
    let period = spec.quota_reset_period.map(|p| json(&p).trim_matches('"').to_owned());
    sqlx::query(UPDATE)
        .bind(&spec.name)
        .bind(&spec.user_id)
        .bind(&spec.team)
        .bind(&spec.tier)
        .bind(spec.status.as_i64())
        .bind(spec.starts_at.as_i64())
        .bind(spec.expires_at.as_i64())
        .bind(spec.total_quota)
        .bind(spec.used_quota)
        .bind(period)
        .bind(stored.last_reset_at)
        .bind(spec.balance)
        .bind(json(&spec.allowed_ips))
        .bind(json(&spec.denied_ips))
        .bind(json(&spec.metadata))
        .bind(spec.limits.as_ref().map(json))
        .bind(stored.updated_at)
        .bind(&stored.id)
        .execute(&mut **change)
        .await?;
    Ok(())
}

/// Writes the fields that counting changes. `updated_at` stays: it is for changes by operators.
pub async fn count(
    transaction: &mut Transaction<'_, Sqlite>,
    id: &str,
    change: &UsageChange,
) -> Result<(), sqlx::Error> {
    const COUNT: &str = "UPDATE api_keys SET
         used_quota = CASE WHEN ? THEN 0 ELSE used_quota END + ?,
         last_reset_at = COALESCE(?, last_reset_at), balance = balance - ? WHERE id = ?";
    sqlx::query(COUNT)
        .bind(change.reset)
        .bind(change.tokens.unwrap_or(0.0))
        .bind(change.reset_at)
        .bind(change.credit.unwrap_or(0.0))
        .bind(id)
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

/// Reads a row.
pub fn read(row: &SqliteRow) -> Result<StoredKey, sqlx::Error> {
    fn parsed<T: serde::de::DeserializeOwned + Default>(text: &str) -> T {
        serde_json::from_str(text).unwrap_or_default()
    }
    let time = |name| Ok::<_, sqlx::Error>(Value::from(row.try_get::<Option<i64>, _>(name)?));
    let period: Option<String> = row.try_get("quota_reset_period")?;
    let limits: Option<String> = row.try_get("limits")?;
    Ok(StoredKey {
        id: row.try_get("id")?,
        prefix: row.try_get("prefix")?,
        spec: KeySpec {
            name: row.try_get("name")?,
            user_id: row.try_get("user_id")?,
            team: row.try_get("team")?,
            tier: row.try_get("tier")?,
            status: row.try_get::<i64, _>("status")?.into(),
            starts_at: time("starts_at")?,
            expires_at: time("expires_at")?,
            total_quota: row.try_get("total_quota")?,
            used_quota: row.try_get("used_quota")?,
            quota_reset_period: period.and_then(|p| parsed(&format!("\"{p}\""))),
            balance: row.try_get("balance")?,
            allowed_ips: parsed(row.try_get("allowed_ips")?),
            denied_ips: parsed(row.try_get("denied_ips")?),
            metadata: parsed(row.try_get("metadata")?),
            limits: limits.and_then(|text| parsed(&text)),
        },
        last_reset_at: row.try_get("last_reset_at")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keys_of_an_earlier_version_belong_to_no_tier() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.db");
        let pool = file::open(&path, &SCHEMA[..1]).await.unwrap();
        let insert = "INSERT INTO api_keys (id, digest, prefix, name, user_id, team, status,
             used_quota, allowed_ips, denied_ips, metadata, created_at, updated_at)
             VALUES ('k', x'00', 'p', 'n', 'u', 't', 0, 0, '[]', '[]', '{}', 1, 1)";
        sqlx::query(insert).execute(&pool).await.unwrap();
        pool.close().await;
        let pool = connect(&path).await.unwrap();
        let row = sqlx::query(select!("")).fetch_one(&pool).await.unwrap();
        let spec = read(&row).unwrap().spec;
        assert_eq!((spec.team.as_str(), spec.tier.as_str()), ("t", ""));
    }
}
