//! What was spent, counted in this process: budgets, and the quotas of keys that stand in the
//! configuration. It is written to a file about once a second, so that a restart forgets nothing.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use sqlx::SqlitePool;
use tokio::sync::OnceCell;

use super::claim::{Spend, Used};
use crate::{
    base::lock,
    store::{StoreError, file},
};

const SCHEMA: [&str; 1] = ["
    CREATE TABLE spent (
        subject TEXT PRIMARY KEY,
        start INTEGER NOT NULL,
        amount REAL NOT NULL
    ) WITHOUT ROWID;
"];

/// Amounts by their subjects.
pub struct Ledger {
    path: PathBuf,
    pool: OnceCell<SqlitePool>,
    spent: Mutex<HashMap<String, Spent>>,
    /// Subjects that are not yet written.
    waiting: AtomicUsize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Spent {
    start: i64,
    amount: f64,
    /// How much of it is not yet written.
    unwritten: f64,
}

impl Ledger {
    /// A ledger with this file, which is made when something is spent.
    pub fn new(path: PathBuf) -> Self {
        Self { path, pool: OnceCell::new(), spent: Mutex::default(), waiting: AtomicUsize::new(0) }
    }

    async fn open(&self) -> Result<&SqlitePool, StoreError> {
        let cannot = |why| StoreError::new(format!("cannot use {}: {why}", self.path.display()));
        self.pool.get_or_try_init(|| file::open(&self.path, &SCHEMA)).await.map_err(cannot)
    }

    /// Reads what an earlier process has written.
    ///
    /// # Errors
    /// If there is a file and it cannot be read.
    pub async fn load(&self) -> Result<(), StoreError> {
        if !self.path.exists() {
            return Ok(());
        }
        let rows = sqlx::query_as("SELECT subject, start, amount FROM spent");
        let rows: Vec<(String, i64, f64)> =
            rows.fetch_all(self.open().await?).await.map_err(StoreError::new)?;
        let mut spent = lock(&self.spent);
        for (subject, start, amount) in rows {
            let known = spent.entry(subject).or_default();
            *known = Spent { start, amount, unwritten: 0.0 };
        }
        Ok(())
    }

    /// The number of the first amount that is spent.
    pub fn used_up(&self, spends: &[Spend]) -> Option<usize> {
        if spends.is_empty() {
            return None;
        }
        let known = lock(&self.spent);
        spends.iter().position(|spend| {
            let spent = known.get(&spend.subject).filter(|s| s.start >= spend.start);
            spent.map_or(0.0, |s| s.amount) >= spend.limit
        })
    }

    /// Counts what a request has come to.
    pub fn add(&self, spends: &[Spend], used: &Used) {
        for spend in spends {
            let amount = used.spent(spend.unit);
            if amount <= 0.0 {
                continue;
            }
            let mut known = lock(&self.spent);
            let spent = known.entry(spend.subject.clone()).or_default();
            if spent.unwritten == 0.0 {
                self.waiting.fetch_add(1, Ordering::Relaxed);
            }
            if spent.start < spend.start {
                *spent = Spent { start: spend.start, ..Spent::default() };
            }
            spent.amount += amount;
            spent.unwritten += amount;
        }
    }

    /// How many subjects are not yet written.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Writes what has been counted since it was last called.
    ///
    /// # Errors
    /// If the file cannot be written; it will be tried again.
    pub async fn write(&self) -> Result<(), StoreError> {
        if self.waiting() == 0 {
            return Ok(());
        }
        let pool = self.open().await?;
        let news: Vec<(String, Spent)> = {
            let mut known = lock(&self.spent);
            let changed = known.iter_mut().filter(|(_, s)| s.unwritten > 0.0);
            let news = changed.map(|(subject, spent)| {
                let copy = (subject.clone(), *spent);
                spent.unwritten = 0.0;
                copy
            });
            let news = news.collect();
            self.waiting.store(0, Ordering::Relaxed);
            news
        };
        let written = write(pool, &news).await;
        if written.is_err() {
            let mut known = lock(&self.spent);
            for (subject, old) in news {
                if let Some(spent) = known.get_mut(&subject).filter(|s| s.start == old.start) {
                    if spent.unwritten == 0.0 {
                        self.waiting.fetch_add(1, Ordering::Relaxed);
                    }
                    spent.unwritten += old.unwritten;
                }
            }
        }
        written.map_err(StoreError::new)
    }
}

/// Adds to what is there: while one process ends and the next has begun, both may write.
async fn write(pool: &SqlitePool, news: &[(String, Spent)]) -> Result<(), sqlx::Error> {
    const ADD: &str = "INSERT INTO spent (subject, start, amount) VALUES (?1, ?2, ?3)
        ON CONFLICT (subject) DO UPDATE SET
            amount = CASE WHEN start >= ?2 THEN amount + ?3 ELSE ?3 END,
            start = MAX(start, ?2)";
    let mut change = pool.begin_with("BEGIN IMMEDIATE").await?;
    for (subject, spent) in news {
        sqlx::query(ADD)
            .bind(subject)
            .bind(spent.start)
            .bind(spent.unwritten)
            .execute(&mut *change)
            .await?;
    }
    change.commit().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{base::limits::Scope, limit::claim::Unit};

    fn spend(limit: f64, start: i64) -> [Spend; 1] {
        let subject = "per_key/budget/k".to_owned();
        [Spend { subject, scope: Scope::Key, unit: Unit::Cost, limit, start, end: None }]
    }

    fn cost(cost: f64) -> Used {
        Used { cost, ..Used::default() }
    }

    #[tokio::test]
    async fn what_was_spent_outlives_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data/limits.db");
        let ledger = Ledger::new(path.clone());
        ledger.load().await.unwrap();
        ledger.write().await.unwrap();
        assert!(!path.exists(), "nothing is spent, and nothing is written");
        assert_eq!(ledger.used_up(&spend(3.0, 100)), None);
        ledger.add(&spend(3.0, 100), &cost(2.0));
        ledger.write().await.unwrap();
        ledger.add(&spend(3.0, 100), &cost(1.0));
        assert_eq!((ledger.used_up(&spend(3.0, 100)), ledger.waiting()), (Some(0), 1));
        ledger.write().await.unwrap();
        assert_eq!(ledger.waiting(), 0);

        let next = Ledger::new(path.clone());
        next.load().await.unwrap();
        assert_eq!(next.used_up(&spend(3.0, 100)), Some(0));
        assert_eq!(next.used_up(&spend(3.1, 100)), None);
        // A new period.
        assert_eq!(next.used_up(&spend(3.0, 200)), None);
        next.add(&spend(3.0, 200), &cost(1.0));
        next.write().await.unwrap();
        let last = Ledger::new(path);
        last.load().await.unwrap();
        assert_eq!(last.used_up(&spend(1.0, 200)), Some(0));
        assert_eq!(last.used_up(&spend(1.1, 200)), None);
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("limits.db");
        std::fs::create_dir(&path).unwrap();
        let ledger = Ledger::new(path.clone());
        ledger.add(&spend(3.0, 100), &cost(2.0));
        assert!(ledger.write().await.is_err());
        assert_eq!(ledger.waiting(), 1);
        std::fs::remove_dir(&path).unwrap();
        ledger.write().await.unwrap();
        let next = Ledger::new(path);
        next.load().await.unwrap();
        assert_eq!(next.used_up(&spend(2.0, 100)), Some(0));
    }
}
