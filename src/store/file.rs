//! SQLite files of the gateway itself: created if they do not exist, readable only for their owner, and
//! migrated when they are opened.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions},
};

/// How long a writer waits for the lock of another.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two attempts to connect.
const AGAIN: Duration = Duration::from_millis(10);

/// Opens a file. `schema` is the list of migrations: a released one is never changed, a new version is a new
/// entry.
///
/// # Errors
/// If it cannot be opened or migrated.
pub async fn open(path: &Path, schema: &[&'static str]) -> Result<SqlitePool, String> {
    prepare(path).map_err(|e| e.to_string())?;
    let pool = connect(path).await.map_err(|e| e.to_string())?;
    migrate(&pool, schema).await?;
    Ok(pool)
}

/// Connects, and again while another process that starts gives the file its journal: SQLite reports that at
/// once, whatever the busy timeout.
async fn connect(path: &Path) -> Result<SqlitePool, sqlx::Error> {
    let end = Instant::now() + PATIENCE;
    loop {
        let pool = SqlitePoolOptions::new().max_connections(4).acquire_timeout(PATIENCE);
        match pool.connect_with(options(path)).await {
            Err(e) if is_busy(&e) && Instant::now() < end => tokio::time::sleep(AGAIN).await,
            connected => return connected,
        }
    }
}

/// SQLITE_BUSY.
fn is_busy(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|e| e.code());
    code.is_some_and(|code| code == "5")
}

/// The options for opening such a file. [`prepare`] creates it.
pub fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(PATIENCE)
        .journal_mode(SqliteJournalMode::Wal)
}

/// Creates the folder, and the file, readable only for its owner.
///
/// # Errors
/// If they cannot be created.
pub fn prepare(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    Ok(())
}

/// Migrates the schema. Of several processes that start at once, the first migrates while the others wait.
async fn migrate(pool: &SqlitePool, schema: &[&'static str]) -> Result<(), String> {
    let text = |e: sqlx::Error| e.to_string();
    let mut change = pool.begin_with("BEGIN IMMEDIATE").await.map_err(text)?;
    let version: i64 =
        sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *change).await.map_err(text)?;
    let version = usize::try_from(version).unwrap_or(usize::MAX);
    if version > schema.len() {
        return Err(format!("its schema is version {version}, created by a newer llmproxy"));
    }
    for step in &schema[version..] {
        sqlx::raw_sql(*step).execute(&mut *change).await.map_err(text)?;
    }
    // PRAGMA takes no bound values.
    let done = sqlx::AssertSqlSafe(format!("PRAGMA user_version = {}", schema.len()));
    sqlx::raw_sql(done).execute(&mut *change).await.map_err(text)?;
    change.commit().await.map_err(text)
}
