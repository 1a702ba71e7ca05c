//! The keys that the admin API manages, in a SQLite file. A key is stored as its SHA-256, with a few
//! characters to recognise it. The key itself is shown once, when it is created.

mod error;
mod rows;
mod spec;

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use serde_json::{Map, Value};
use sqlx::{Row, Sqlite, SqlitePool, Transaction};
use tokio::sync::OnceCell;

pub use self::{
    error::KeyError,
    spec::{KEY_LENGTHS, KeySpec, StoredKey},
};
use self::{
    rows::{connect, count, insert, read, select, write},
    spec::{checked, make_key, new_key, prefix},
};
use super::credential::{KeyDigest, digest};
use crate::{
    base::{KeyUsage, period::now, terms::Terms},
    store::StoreError,
};

/// Which keys remain after a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// Only the given ones.
    Full,
    /// The given ones and all others.
    Incremental,
}

/// The result of a sync: numbers of keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    pub created: usize,
    pub updated: usize,
    pub deleted: u64,
}

/// The stored keys. The file is opened on first use.
pub struct KeyStore {
    path: PathBuf,
    pool: OnceCell<SqlitePool>,
    changes: AtomicU64,
}

impl KeyStore {
    /// The file is created if it does not exist.
    pub fn new(path: PathBuf) -> Self {
        Self { path, pool: OnceCell::new(), changes: AtomicU64::new(0) }
    }

    /// Number of changes made by this process.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Opens the file and brings its schema up to date.
    ///
    /// # Errors
    /// If the file cannot be used.
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
        let question = sqlx::query(select!(" WHERE digest = ?")).bind(&digest[..]);
        let row = question.fetch_optional(self.open().await?).await.map_err(StoreError::new)?;
        row.as_ref().map(read).transpose().map_err(StoreError::new)
    }

    /// Counts usage of a key and returns its new data; `None` if the key does not exist. Concurrent
    /// changes by other processes and operators are not lost.
    ///
    /// # Errors
    /// If the file cannot be used.
    pub async fn count(
        &self,
        digest: &KeyDigest,
        usage: KeyUsage,
    ) -> Result<Option<Map<String, Value>>, StoreError> {
        let begun = self.open().await?.begin_with("BEGIN IMMEDIATE").await;
        let mut transaction = begun.map_err(StoreError::new)?;
        let question = sqlx::query(select!(" WHERE digest = ?")).bind(&digest[..]);
        let row = question.fetch_optional(&mut *transaction).await.map_err(StoreError::new)?;
        let Some(row) = row else { return Ok(None) };
        let stored = read(&row).map_err(StoreError::new)?;
        let mut data = stored.data();
        let change = Terms::read(&data).map_err(StoreError::new)?.change(usage, now());
        count(&mut transaction, &stored.id, &change).await.map_err(StoreError::new)?;
        // `changes` is not incremented: that would invalidate the cached data of every key.
        transaction.commit().await.map_err(StoreError::new)?;
        change.apply(&mut data);
        Ok(Some(data))
    }

    /// The key with this id.
    ///
    /// # Errors
    /// If it does not exist or the file cannot be used.
    pub async fn by_id(&self, id: &str) -> Result<StoredKey, KeyError> {
        let question = sqlx::query(select!(" WHERE id = ?")).bind(id);
        let row = question.fetch_optional(self.open().await?).await?;
        Ok(read(&row.ok_or(KeyError::Unknown)?)?)
    }

    /// A page of keys, newest first, and the number of all keys. `user_id` selects those of one user.
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
        const CHOSEN: &str =
            select!(" WHERE ?1 IS NULL OR user_id = ?1 ORDER BY number DESC LIMIT ?2 OFFSET ?3");
        let rows = sqlx::query(CHOSEN).bind(user_id).bind(limit).bind(offset);
        let rows = rows.fetch_all(pool).await?;
        const COUNT: &str = "SELECT COUNT(*) FROM api_keys WHERE ?1 IS NULL OR user_id = ?1";
        let total = sqlx::query_scalar(COUNT).bind(user_id).fetch_one(pool).await?;
        let keys = rows.iter().map(read).collect::<Result<_, _>>()?;
        Ok((keys, total))
    }

    /// Creates a key, or stores the given one. Returns the full key.
    ///
    /// # Errors
    /// If it exists already or is invalid.
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

    /// Changes the fields of a key: `change` gets the current ones.
    ///
    /// # Errors
    /// If the key does not exist or the new fields are invalid.
    pub async fn update(
        &self,
        id: &str,
        change: impl FnOnce(KeySpec) -> Result<KeySpec, String>,
    ) -> Result<StoredKey, KeyError> {
        let mut transaction = self.begin().await?;
        let row = sqlx::query(select!(" WHERE id = ?")).bind(id);
        let row = row.fetch_optional(&mut *transaction).await?.ok_or(KeyError::Unknown)?;
        let mut stored = read(&row)?;
        let spec = change(stored.spec.clone()).map_err(KeyError::Invalid)?;
        stored.set_spec(checked(spec).map_err(KeyError::Invalid)?);
        write(&mut transaction, &stored).await?;
        self.commit(transaction).await?;
        Ok(stored)
    }

    /// Gives a key a new value. The old value is rejected from now on.
    ///
    /// # Errors
    /// If the key does not exist.
    pub async fn rotate(&self, id: &str) -> Result<(String, StoredKey), KeyError> {
        let key = make_key();
        let mut change = self.begin().await?;
        let row = sqlx::query(select!(" WHERE id = ?")).bind(id);
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
    /// If the key does not exist.
    pub async fn delete(&self, id: &str) -> Result<(), KeyError> {
        let mut change = self.begin().await?;
        let done =
            sqlx::query("DELETE FROM api_keys WHERE id = ?").bind(id).execute(&mut *change).await?;
        if done.rows_affected() == 0 {
            return Err(KeyError::Unknown);
        }
        self.commit(change).await
    }

    /// Stores a list of keys, all or none. The function with each key turns its current fields (the
    /// default ones for a new key) into the new ones.
    ///
    /// # Errors
    /// If one of them is invalid.
    pub async fn sync<F>(&self, keys: Vec<(String, F)>, mode: SyncMode) -> Result<Synced, KeyError>
    where
        F: FnOnce(KeySpec) -> Result<KeySpec, String>,
    {
        let mut done = Synced::default();
        let mut change = self.begin().await?;
        let mut kept = std::collections::HashSet::new();
        for (key, new_spec) in keys {
            if !kept.insert(digest(&key)) {
                return Err(KeyError::Invalid("a key is in the list twice".to_owned()));
            }
            let known = sqlx::query(select!(" WHERE digest = ?"))
                .bind(&digest(&key)[..])
                .fetch_optional(&mut *change)
                .await?;
            match known {
                Some(row) => {
                    let mut stored = read(&row)?;
                    let spec = new_spec(stored.spec.clone()).and_then(checked);
                    stored.set_spec(spec.map_err(KeyError::Invalid)?);
                    write(&mut change, &stored).await?;
                    done.updated += 1;
                }
                None => {
                    let spec = new_spec(KeySpec::default()).map_err(KeyError::Invalid)?;
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
        // After the commit: a reader that got the old data has read the old number before.
        self.changes.fetch_add(1, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        spec::{BEGINNING, LENGTH},
        *,
    };
    use crate::base::ResetPeriod;

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

    /// A newer gateway that shares the file gives the table more columns, while statements for it are
    /// prepared here.
    #[tokio::test]
    async fn keys_are_read_from_a_table_that_has_got_more_columns() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.db");
        let store = KeyStore::new(path.clone());
        let said = json!({"name": "n", "user_id": "u", "team": "t", "balance": 1.5});
        let (key, made) = store.create(None, spec(said)).await.unwrap();
        let digest = digest(&key);
        let newer = connect(&path).await.unwrap();
        for n in 0..4 {
            for _ in 0..8 {
                assert_eq!(store.by_digest(&digest).await.unwrap().as_ref(), Some(&made), "{n}");
                assert_eq!(store.by_id(&made.id).await.unwrap(), made, "{n}");
                assert_eq!(store.list(0, 9, None).await.unwrap(), (vec![made.clone()], 1), "{n}");
            }
            let more = format!("ALTER TABLE api_keys ADD COLUMN more_{n} TEXT DEFAULT 'sk'");
            sqlx::query(sqlx::AssertSqlSafe(more)).execute(&newer).await.unwrap();
        }
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
    async fn counting_is_no_change_of_the_key_and_changes_lose_no_count() {
        let folder = tempfile::tempdir().unwrap();
        let store = KeyStore::new(folder.path().join("keys.db"));
        let said = json!({"total_quota": 100, "quota_reset_period": "daily", "balance": 10});
        let (key, made) = store.create(None, spec(said)).await.unwrap();
        let used = KeyUsage { tokens: 25.0, credit: 0.5 };
        let data = store.count(&digest(&key), used).await.unwrap().unwrap();
        let found = store.by_id(&made.id).await.unwrap();
        assert_eq!((found.spec.used_quota, found.spec.balance), (25.0, Some(9.5)));
        assert_eq!((store.changes(), found.updated_at), (1, made.updated_at));
        let midnight = ResetPeriod::Daily.start(now(), None);
        assert_eq!(found.last_reset_at, midnight);
        assert_eq!(Terms::read(&data), Terms::read(&found.data()));
        let change = |change: Value| {
            let change = change.as_object().unwrap().clone();
            move |old: KeySpec| {
                let mut spec = serde_json::to_value(old).unwrap();
                spec.as_object_mut().unwrap().extend(change);
                Ok(serde_json::from_value(spec).unwrap())
            }
        };
        let renamed = store.update(&made.id, change(json!({"name": "n"}))).await.unwrap();
        assert_eq!((renamed.spec.used_quota, renamed.last_reset_at), (25.0, midnight));
        // A number that an operator sets is about the current period.
        let pool = store.open().await.unwrap();
        let back = sqlx::query("UPDATE api_keys SET last_reset_at = ?");
        back.bind(now() - 2 * 24 * 3600 - 60).execute(pool).await.unwrap();
        let set = store.update(&made.id, change(json!({"used_quota": 100}))).await.unwrap();
        assert!(set.last_reset_at.unwrap() >= now() - 120);
        let terms = Terms::read(&set.data()).unwrap();
        assert!(terms.check(now(), None, |_| false).is_err());
        let weekly = json!({"quota_reset_period": "weekly"});
        let other = store.update(&made.id, change(weekly)).await.unwrap();
        assert_eq!((other.spec.used_quota, other.last_reset_at), (100.0, None));
        assert_eq!(store.count(&digest("nobody"), used).await, Ok(None));
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
        for made in futures::future::join_all(all).await {
            made.unwrap();
        }
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
