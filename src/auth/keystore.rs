//! The keys that the admin API manages: a SQLite file. Keys are stored as their SHA-256, with a
//! few characters for people to recognise them; the key itself is told once, when it is made.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use rand::{Rng, distr::Alphanumeric};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sqlx::{
    Row, Sqlite, SqlitePool, Transaction,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow},
};
use tokio::sync::OnceCell;

use super::credential::{KeyDigest, digest};
use crate::{
    base::terms::{self, Terms},
    store::StoreError,
};

/// Versions of the schema, in their order. What has been released is never changed: a new version
/// is a new entry.
const SCHEMA: [&str; 1] = ["
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
"];

/// How long a writer waits for another one.
const PATIENCE: Duration = Duration::from_secs(10);

/// How keys begin that the gateway makes, and how many characters follow.
const BEGINNING: &str = "sk-llmproxy-";
const LENGTH: usize = 32;

/// Most characters of a key that is given, and the fewest.
pub const KEY_LENGTHS: std::ops::RangeInclusive<usize> = 8..=512;

/// What an operator says of a key. Empty and absent mean the same.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KeySpec {
    /// Its name.
    #[schema(nullable)]
    pub name: String,
    /// Whose it is.
    #[schema(nullable)]
    pub user_id: String,
    /// The team that it belongs to.
    #[schema(nullable)]
    pub team: String,
    /// `active`, `disabled`, `quota_exceeded`, `expired`, or 0 to 3.
    pub status: Value,
    /// From when it is good: Unix seconds, or a date and time.
    pub starts_at: Value,
    /// Until when it is good.
    pub expires_at: Value,
    /// Tokens that it may use.
    pub total_quota: Option<f64>,
    /// Tokens that it has used.
    #[schema(nullable)]
    pub used_quota: f64,
    /// `daily`, `weekly`, `monthly` or `never`.
    pub quota_reset_period: Option<ResetPeriod>,
    /// Money or credits.
    pub balance: Option<f64>,
    /// Addresses from which it may be used; none: every address.
    #[schema(nullable)]
    pub allowed_ips: Vec<String>,
    /// Addresses from which it may not be used.
    #[schema(nullable)]
    pub denied_ips: Vec<String>,
    /// Anything else.
    #[schema(nullable)]
    pub metadata: Map<String, Value>,
    /// Limits of its own.
    pub limits: Option<Map<String, Value>>,
}

/// When a quota begins anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum ResetPeriod {
    Daily,
    Weekly,
    Monthly,
    Never,
}

/// A key, without the key.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredKey {
    /// Its identity.
    pub id: String,
    /// Enough of it to recognise it.
    pub prefix: String,
    /// What is said of it; `status` is a number, times are Unix seconds or null.
    pub spec: KeySpec,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds.
    pub updated_at: i64,
}

impl StoredKey {
    /// As rules and scripts see it.
    pub fn data(&self) -> Map<String, Value> {
        let Ok(Value::Object(mut data)) = serde_json::to_value(&self.spec) else {
            return Map::new();
        };
        let empty = |value: &Value| match value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        };
        data.retain(|_, value| !empty(value));
        data.insert("id".to_owned(), self.id.clone().into());
        data.insert("created_at".to_owned(), self.created_at.into());
        data.insert("updated_at".to_owned(), self.updated_at.into());
        data
    }
}

/// Why a change was not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// There is no such key.
    Unknown,
    /// The key is there already.
    Exists,
    /// What is said of it cannot be.
    Invalid(String),
    /// The file cannot be used.
    Store(StoreError),
}

impl From<sqlx::Error> for KeyError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(e) if e.is_unique_violation() => Self::Exists,
            sqlx::Error::Database(e) => Self::Store(StoreError::new(e.message())),
            other => Self::Store(StoreError::new(other)),
        }
    }
}

impl From<StoreError> for KeyError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Which keys a sync leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// Only those that were given.
    Full,
    /// Those that were given, and all others.
    Incremental,
}

/// What a sync has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Synced {
    pub created: usize,
    pub updated: usize,
    pub deleted: u64,
}

/// The keys. Opened when they are first needed.
pub struct KeyStore {
    path: PathBuf,
    pool: OnceCell<SqlitePool>,
    changes: AtomicU64,
}

impl KeyStore {
    /// Keys in this file, which is made when it is not there.
    pub fn new(path: PathBuf) -> Self {
        Self { path, pool: OnceCell::new(), changes: AtomicU64::new(0) }
    }

    /// Counts the changes made by this process.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Opens the file and brings its schema up to date.
    ///
    /// # Errors
    /// If that is not possible.
    pub async fn open(&self) -> Result<&SqlitePool, StoreError> {
        self.pool
            .get_or_try_init(|| connect(&self.path))
            .await
            .map_err(|why| StoreError::new(format!("cannot use {}: {why}", self.path.display())))
    }

    /// The key with this digest.
    ///
    /// # Errors
    /// If the file cannot be used.
    pub async fn by_digest(&self, digest: &KeyDigest) -> Result<Option<StoredKey>, StoreError> {
        let question = sqlx::query("SELECT * FROM api_keys WHERE digest = ?").bind(&digest[..]);
        let row = question.fetch_optional(self.open().await?).await.map_err(StoreError::new)?;
        row.as_ref().map(read).transpose().map_err(StoreError::new)
    }

    /// The key with this id.
    ///
    /// # Errors
    /// If there is none, or the file cannot be used.
    pub async fn by_id(&self, id: &str) -> Result<StoredKey, KeyError> {
        let question = sqlx::query("SELECT * FROM api_keys WHERE id = ?").bind(id);
        let row = question.fetch_optional(self.open().await?).await?;
        Ok(read(&row.ok_or(KeyError::Unknown)?)?)
    }

    /// Keys from the newest on, and how many there are in all. `user_id` chooses those of a user.
    ///
    /// # Errors
    /// If the file cannot be used.
    pub async fn list(
        &self,
        offset: i64,
        limit: i64,
        user_id: Option<&str>,
    ) -> Result<(Vec<StoredKey>, i64), KeyError> {
        let pool = self.open().await?;
        const CHOSEN: &str = "SELECT * FROM api_keys WHERE ?1 IS NULL OR user_id = ?1
             ORDER BY number DESC LIMIT ?2 OFFSET ?3";
        let rows = sqlx::query(CHOSEN).bind(user_id).bind(limit).bind(offset);
        let rows = rows.fetch_all(pool).await?;
        const COUNT: &str = "SELECT COUNT(*) FROM api_keys WHERE ?1 IS NULL OR user_id = ?1";
        let total = sqlx::query_scalar(COUNT).bind(user_id).fetch_one(pool).await?;
        let keys = rows.iter().map(read).collect::<Result<_, _>>()?;
        Ok((keys, total))
    }

    /// Makes a key, or takes the one that is given. Returns it in full, this once.
    ///
    /// # Errors
    /// If it is there already or cannot be.
    pub async fn create(
        &self,
        key: Option<&str>,
        spec: KeySpec,
    ) -> Result<(String, StoredKey), KeyError> {
        let key = key.map_or_else(make_key, str::to_owned);
        let stored = new_key(&key, spec)?;
        let mut change = self.begin().await?;
        insert(&mut change, &key, &stored).await?;
        self.commit(change).await?;
        Ok((key, stored))
    }

    /// Changes what is said of a key: `change` gets what is said now.
    ///
    /// # Errors
    /// If there is no such key, or it cannot be so.
    pub async fn update(
        &self,
        id: &str,
        change: impl FnOnce(KeySpec) -> Result<KeySpec, String>,
    ) -> Result<StoredKey, KeyError> {
        let mut transaction = self.begin().await?;
        let row = sqlx::query("SELECT * FROM api_keys WHERE id = ?").bind(id);
        let row = row.fetch_optional(&mut *transaction).await?.ok_or(KeyError::Unknown)?;
        let mut stored = read(&row)?;
        let spec = change(stored.spec).map_err(KeyError::Invalid)?;
        stored.spec = checked(spec).map_err(KeyError::Invalid)?;
        stored.updated_at = now();
        write(&mut transaction, &stored).await?;
        self.commit(transaction).await?;
        Ok(stored)
    }

    /// Gives a key a new value. The old one is refused from now on.
    ///
    /// # Errors
    /// If there is no such key.
    pub async fn rotate(&self, id: &str) -> Result<(String, StoredKey), KeyError> {
        let key = make_key();
        let mut change = self.begin().await?;
        let row = sqlx::query("SELECT * FROM api_keys WHERE id = ?").bind(id);
        let row = row.fetch_optional(&mut *change).await?.ok_or(KeyError::Unknown)?;
        let mut stored = read(&row)?;
        (stored.prefix, stored.updated_at) = (prefix(&key), now());
        const ROTATE: &str =
            "UPDATE api_keys SET digest = ?, prefix = ?, updated_at = ? WHERE id = ?";
        sqlx::query(ROTATE)
            .bind(&digest(&key)[..])
            .bind(&stored.prefix)
            .bind(stored.updated_at)
            .bind(id)
            .execute(&mut *change)
            .await?;
        self.commit(change).await?;
        Ok((key, stored))
    }

    /// Removes a key.
    ///
    /// # Errors
    /// If there is no such key.
    pub async fn delete(&self, id: &str) -> Result<(), KeyError> {
        let mut change = self.begin().await?;
        let done =
            sqlx::query("DELETE FROM api_keys WHERE id = ?").bind(id).execute(&mut *change).await?;
        if done.rows_affected() == 0 {
            return Err(KeyError::Unknown);
        }
        self.commit(change).await
    }

    /// Takes over a list of keys, all or nothing. With each comes what makes of what is said now
    /// (nothing, for a new key) what shall be said.
    ///
    /// # Errors
    /// If one of them cannot be.
    pub async fn sync<F>(&self, keys: Vec<(String, F)>, mode: SyncMode) -> Result<Synced, KeyError>
    where
        F: FnOnce(KeySpec) -> Result<KeySpec, String>,
    {
        let mut done = Synced::default();
        let mut change = self.begin().await?;
        let mut kept = std::collections::HashSet::new();
        for (key, said) in keys {
            if !kept.insert(digest(&key)) {
                return Err(KeyError::Invalid("a key stands twice in the list".to_owned()));
            }
            let known = sqlx::query("SELECT * FROM api_keys WHERE digest = ?")
                .bind(&digest(&key)[..])
                .fetch_optional(&mut *change)
                .await?;
            match known {
                Some(row) => {
                    let mut stored = read(&row)?;
                    let spec = said(stored.spec).and_then(checked).map_err(KeyError::Invalid)?;
                    (stored.spec, stored.updated_at) = (spec, now());
                    write(&mut change, &stored).await?;
                    done.updated += 1;
                }
                None => {
                    let spec = said(KeySpec::default()).map_err(KeyError::Invalid)?;
                    let stored = new_key(&key, spec)?;
                    insert(&mut change, &key, &stored).await?;
                    done.created += 1;
                }
            }
        }
        if mode == SyncMode::Full {
            let all = sqlx::query("SELECT digest FROM api_keys").fetch_all(&mut *change).await?;
            for row in all {
                let digest: Vec<u8> = row.try_get("digest")?;
                if !<KeyDigest>::try_from(&digest[..]).is_ok_and(|d| kept.contains(&d)) {
                    let gone = sqlx::query("DELETE FROM api_keys WHERE digest = ?").bind(digest);
                    done.deleted += gone.execute(&mut *change).await?.rows_affected();
                }
            }
        }
        self.commit(change).await?;
        Ok(done)
    }

    async fn begin(&self) -> Result<Transaction<'_, Sqlite>, KeyError> {
        Ok(self.open().await?.begin_with("BEGIN IMMEDIATE").await?)
    }

    async fn commit(&self, change: Transaction<'_, Sqlite>) -> Result<(), KeyError> {
        change.commit().await?;
        // After the commit: whoever reads the count before it asks, and the old data, is corrected.
        self.changes.fetch_add(1, Ordering::Release);
        Ok(())
    }
}

async fn connect(path: &Path) -> Result<SqlitePool, String> {
    prepare(path).map_err(|e| e.to_string())?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(PATIENCE)
        .journal_mode(SqliteJournalMode::Wal);
    let pool = SqlitePoolOptions::new()
        .max_connections(4)
        .acquire_timeout(PATIENCE)
        .connect_with(options)
        .await
        .map_err(|e| e.to_string())?;
    migrate(&pool).await?;
    Ok(pool)
}

/// Makes folder and file, for nobody else to read.
fn prepare(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    Ok(())
}

/// Brings the schema up to date. Of several processes that start at once the first does it, and
/// the others wait and find it done.
async fn migrate(pool: &SqlitePool) -> Result<(), String> {
    let text = |e: sqlx::Error| e.to_string();
    let mut change = pool.begin_with("BEGIN IMMEDIATE").await.map_err(text)?;
    let version: i64 =
        sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *change).await.map_err(text)?;
    let version = usize::try_from(version).unwrap_or(usize::MAX);
    if version > SCHEMA.len() {
        return Err(format!("its schema is version {version}, made by a newer llmproxy"));
    }
    for step in &SCHEMA[version..] {
        sqlx::raw_sql(*step).execute(&mut *change).await.map_err(text)?;
    }
    // A pragma takes no bound values.
    let done = sqlx::AssertSqlSafe(format!("PRAGMA user_version = {}", SCHEMA.len()));
    sqlx::raw_sql(done).execute(&mut *change).await.map_err(text)?;
    change.commit().await.map_err(text)
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

fn make_key() -> String {
    let random = rand::rng().sample_iter(Alphanumeric).take(LENGTH).map(char::from);
    BEGINNING.chars().chain(random).collect()
}

/// Enough of a key for people to recognise it: never more than half of it.
fn prefix(key: &str) -> String {
    let chars: Vec<char> = key.chars().collect();
    let head = (chars.len() / 3).min(BEGINNING.len() + 4);
    let tail = if chars.len() >= 24 { 4 } else { 0 };
    let head: String = chars[..head].iter().collect();
    let tail: String = chars[chars.len() - tail..].iter().collect();
    format!("{head}***{tail}")
}

fn new_key(key: &str, spec: KeySpec) -> Result<StoredKey, KeyError> {
    let harmless = key.chars().all(|c| c.is_ascii_graphic());
    if !KEY_LENGTHS.contains(&key.len()) || !harmless {
        let (least, most) = (KEY_LENGTHS.start(), KEY_LENGTHS.end());
        return Err(KeyError::Invalid(format!(
            "a key has {least} to {most} visible ASCII characters"
        )));
    }
    let (at, id) = (now(), format!("key_{:016x}", rand::random::<u64>()));
    let spec = checked(spec).map_err(KeyError::Invalid)?;
    Ok(StoredKey { id, prefix: prefix(key), spec, created_at: at, updated_at: at })
}

/// The spec in one form: the status a number, times Unix seconds or null.
fn checked(mut spec: KeySpec) -> Result<KeySpec, String> {
    let nothing = |value: &Value| value.is_null() || value.as_str() == Some("");
    let status = if nothing(&spec.status) { Some(0) } else { terms::status_number(&spec.status) };
    spec.status =
        status.ok_or("`status` is not active, disabled, quota_exceeded or expired")?.into();
    for (name, time) in [("starts_at", &mut spec.starts_at), ("expires_at", &mut spec.expires_at)] {
        *time = match nothing(time) {
            true => Value::Null,
            false => terms::moment(time).ok_or(format!("`{name}` is not a time"))?.into(),
        };
    }
    let amounts = [spec.total_quota, Some(spec.used_quota), spec.balance];
    if amounts.into_iter().flatten().any(|n| !n.is_finite()) {
        return Err("an amount is not a number".to_owned());
    }
    let stored = StoredKey {
        id: String::new(),
        prefix: String::new(),
        spec: spec.clone(),
        created_at: 0,
        updated_at: 0,
    };
    // Whatever the rules cannot read is not stored.
    Terms::read(&stored.data())?;
    Ok(spec)
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

async fn insert(
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

async fn write(change: &mut Transaction<'_, Sqlite>, stored: &StoredKey) -> Result<(), KeyError> {
    const UPDATE: &str = "UPDATE api_keys SET name = ?, user_id = ?, team = ?, status = ?,
         starts_at = ?, expires_at = ?, total_quota = ?, used_quota = ?, quota_reset_period = ?,
         balance = ?, allowed_ips = ?, denied_ips = ?, metadata = ?, limits = ?, updated_at = ?
         WHERE id = ?";
    let spec = &stored.spec;
    let period = spec.quota_reset_period.map(|p| json(&p).trim_matches('"').to_owned());
    sqlx::query(UPDATE)
        .bind(&spec.name)
        .bind(&spec.user_id)
        .bind(&spec.team)
        .bind(spec.status.as_i64())
        .bind(spec.starts_at.as_i64())
        .bind(spec.expires_at.as_i64())
        .bind(spec.total_quota)
        .bind(spec.used_quota)
        .bind(period)
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

fn read(row: &SqliteRow) -> Result<StoredKey, sqlx::Error> {
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
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(value: Value) -> KeySpec {
        serde_json::from_value(value).unwrap()
    }

    #[tokio::test]
    async fn a_key_is_stored_hashed_and_found_by_its_digest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/keys.db");
        let store = KeyStore::new(path.clone());
        let said = json!({"name": "one", "status": "disabled", "starts_at": "2026-01-01T00:00:00Z",
            "allowed_ips": ["10.0.0.0/8"], "metadata": {"tier": "gold"}, "balance": 1.5,
            "quota_reset_period": "monthly", "limits": {"requests_per_minute": 3}});
        let (key, made) = store.create(None, spec(said)).await.unwrap();
        assert!(key.starts_with(BEGINNING) && key.len() == BEGINNING.len() + LENGTH);
        let found = store.by_digest(&digest(&key)).await.unwrap().unwrap();
        assert_eq!(found, made);
        assert_eq!(found.spec.status, json!(1));
        assert_eq!(found.spec.starts_at, json!(1_767_225_600));
        assert_eq!(found.data()["metadata"], json!({"tier": "gold"}));
        assert_eq!(store.by_digest(&digest("other")).await.unwrap(), None);
        // Also not in the log beside the file.
        for file in std::fs::read_dir(path.parent().unwrap()).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            assert!(memchr::memmem::find(&bytes, key.as_bytes()).is_none());
        }
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn changes_are_whole_and_counted() {
        let folder = tempfile::tempdir().unwrap();
        let store = KeyStore::new(folder.path().join("keys.db"));
        let (key, made) = store.create(Some("sk-given-1"), KeySpec::default()).await.unwrap();
        assert_eq!((key.as_str(), store.changes()), ("sk-given-1", 1));
        let again = store.create(Some("sk-given-1"), KeySpec::default()).await;
        assert_eq!(again.unwrap_err(), KeyError::Exists);
        let changed = store.update(&made.id, |s| Ok(KeySpec { user_id: "u".to_owned(), ..s }));
        assert_eq!(changed.await.unwrap().spec.user_id, "u");
        let bad = store.update(&made.id, |s| Ok(KeySpec { status: "paused".into(), ..s })).await;
        assert!(matches!(bad, Err(KeyError::Invalid(_))));
        let (new, _) = store.rotate(&made.id).await.unwrap();
        assert!(store.by_digest(&digest("sk-given-1")).await.unwrap().is_none());
        assert_eq!(store.by_digest(&digest(&new)).await.unwrap().unwrap().spec.user_id, "u");
        store.delete(&made.id).await.unwrap();
        assert_eq!(store.delete(&made.id).await, Err(KeyError::Unknown));
        assert_eq!(store.changes(), 4);
    }

    #[tokio::test]
    async fn a_sync_is_all_or_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = KeyStore::new(folder.path().join("keys.db"));
        let keys = |names: &[&str]| {
            names.iter().map(|n| ((*n).to_owned(), Ok::<KeySpec, String>)).collect::<Vec<_>>()
        };
        let done = store.sync(keys(&["sk-aaaaaa", "sk-bbbbbb"]), SyncMode::Incremental).await;
        assert_eq!(done.unwrap(), Synced { created: 2, updated: 0, deleted: 0 });
        let done = store.sync(keys(&["sk-bbbbbb", "sk-cccccc"]), SyncMode::Full).await;
        assert_eq!(done.unwrap(), Synced { created: 1, updated: 1, deleted: 1 });
        let bad = store.sync(keys(&["sk-dddddd", "short"]), SyncMode::Full).await;
        assert!(matches!(bad, Err(KeyError::Invalid(_))));
        assert_eq!(store.list(0, 10, None).await.unwrap().1, 2);
    }

    #[tokio::test]
    async fn many_may_start_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.db");
        let all = (0..8).map(|n| {
            let store = KeyStore::new(path.clone());
            async move { store.create(Some(&format!("sk-key-{n}")), KeySpec::default()).await }
        });
        assert!(futures::future::join_all(all).await.into_iter().all(|made| made.is_ok()));
        assert_eq!(KeyStore::new(path).list(0, 10, None).await.unwrap().1, 8);
    }

    #[tokio::test]
    async fn a_file_of_a_newer_version_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.db");
        let store = KeyStore::new(path.clone());
        sqlx::raw_sql("PRAGMA user_version = 99")
            .execute(store.open().await.unwrap())
            .await
            .unwrap();
        let why = KeyStore::new(path).open().await.unwrap_err().to_string();
        assert!(why.contains("newer llmproxy"), "{why}");
    }
}
