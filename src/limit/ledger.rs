//! Amounts spent, counted in this process: budgets, and the quotas and balances of keys in the
//! configuration. They are written to a file about once a second, so that they survive a restart.
//! Amounts of past periods are removed later, here and in the file.

use std::{collections::HashMap, path::PathBuf, sync::Mutex};

use sqlx::SqlitePool;
use tokio::sync::OnceCell;

use super::claim::{Charge, Spend};
use crate::{
    base::lock,
    store::{StoreError, file},
};

const SCHEMA: [&str; 1] = ["
    CREATE TABLE spent (
        subject TEXT PRIMARY KEY,
        start INTEGER NOT NULL,
        finish INTEGER,
        amount REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX spent_finish ON spent (finish);
"];

/// Seconds for which an amount of a past period is kept: clocks may be set back.
const GRACE: i64 = 24 * 3600;

/// Seconds between two searches for amounts of past periods.
const PRUNE: i64 = 3600;

/// Amounts by subject.
pub struct Ledger {
    path: PathBuf,
    pool: OnceCell<SqlitePool>,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    spent: HashMap<String, Entry>,
    /// Subjects with unwritten amounts.
    dirty: Vec<String>,
    /// Number of subjects that are being written.
    writing: usize,
    /// Unix seconds of the last search for amounts of past periods.
    pruned: i64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Entry {
    start: i64,
    /// End of its period in Unix seconds; `None`: never.
    end: Option<i64>,
    amount: f64,
    /// The part that is not yet written to the file.
    unwritten: f64,
}

impl Entries {
    /// Adds an amount; a new period begins at 0.
    fn add(&mut self, spend: &Spend, amount: f64) {
        let spent = match self.spent.get_mut(&spend.subject) {
            Some(spent) => spent,
            None => self.spent.entry(spend.subject.clone()).or_default(),
        };
        if spent.unwritten == 0.0 {
            self.dirty.push(spend.subject.clone());
        }
        if spent.start < spend.start {
            *spent = Entry { start: spend.start, ..Entry::default() };
        }
        // A request that began in the previous period does not know the end of this one.
        if spent.start == spend.start {
            spent.end = spend.end;
        }
        spent.amount += amount;
        spent.unwritten += amount;
    }

    /// Takes the unwritten amounts.
    fn take(&mut self) -> Vec<(String, Entry)> {
        let dirty = std::mem::take(&mut self.dirty);
        self.writing += dirty.len();
        let news = dirty.into_iter().filter_map(|subject| {
            let spent = self.spent.get_mut(&subject)?;
            let copy = (subject, *spent);
            spent.unwritten = 0.0;
            Some(copy)
        });
        news.collect()
    }

    /// Puts back amounts that could not be written.
    fn put_back(&mut self, news: Vec<(String, Entry)>) {
        for (subject, old) in news {
            let Some(spent) = self.spent.get_mut(&subject).filter(|s| s.start == old.start) else {
                continue;
            };
            if spent.unwritten == 0.0 {
                self.dirty.push(subject);
            }
            spent.unwritten += old.unwritten;
        }
    }

    /// Removes amounts of past periods from time to time; returns whether it did.
    fn prune(&mut self, now: i64) -> bool {
        // The range also covers a clock that was set back far.
        if (self.pruned..self.pruned + PRUNE).contains(&now) {
            return false;
        }
        self.pruned = now;
        self.spent.retain(|_, s| s.unwritten > 0.0 || s.end.is_none_or(|end| end > now - GRACE));
        if self.spent.capacity() / 4 > self.spent.len() {
            self.spent.shrink_to_fit();
        }
        true
    }
}

impl Ledger {
    /// The file is created when something is spent.
    pub fn new(path: PathBuf) -> Self {
        Self { path, pool: OnceCell::new(), entries: Mutex::default() }
    }

    async fn open(&self) -> Result<&SqlitePool, StoreError> {
        let cannot = |why| {
            StoreError::new(format!(
                "rate_limit.db_path: cannot use {}: {why}",
                self.path.display()
            ))
        };
        self.pool.get_or_try_init(|| file::open(&self.path, &SCHEMA)).await.map_err(cannot)
    }

    /// Reads the amounts that an earlier process has written and whose periods are not over.
    ///
    /// # Errors
    /// If the file exists and cannot be read.
    pub async fn load(&self) -> Result<(), StoreError> {
        self.load_at(now()).await
    }

    async fn load_at(&self, now: i64) -> Result<(), StoreError> {
        if !self.path.exists() {
            return Ok(());
        }
        let rows = sqlx::query_as(
            "SELECT subject, start, finish, amount FROM spent WHERE finish IS NULL OR finish > ?",
        );
        let rows: Vec<(String, i64, Option<i64>, f64)> =
            rows.bind(now).fetch_all(self.open().await?).await.map_err(StoreError::new)?;
        let mut entries = lock(&self.entries);
        for (subject, start, end, amount) in rows {
            entries.spent.insert(subject, Entry { start, end, amount, unwritten: 0.0 });
        }
        Ok(())
    }

    /// The index of the first amount that is used up.
    pub fn used_up(&self, spends: &[Spend]) -> Option<usize> {
        if spends.is_empty() {
            return None;
        }
        let entries = lock(&self.entries);
        spends.iter().position(|spend| {
            let spent = entries.spent.get(&spend.subject).filter(|s| s.start >= spend.start);
            spent.map_or(0.0, |s| s.amount) >= spend.limit
        })
    }

    /// Adds what a request is charged.
    pub fn add(&self, spends: &[Spend], charge: &Charge) {
        if spends.is_empty() {
            return;
        }
        let mut entries = lock(&self.entries);
        for spend in spends {
            let amount = charge.amount(spend.unit);
            if amount > 0.0 {
                entries.add(spend, amount);
            }
        }
    }

    /// Number of subjects that are not yet written, including those that are being written.
    pub fn waiting(&self) -> usize {
        let entries = lock(&self.entries);
        entries.dirty.len() + entries.writing
    }

    /// Writes the amounts added since the last call, and from time to time removes those of past
    /// periods.
    ///
    /// # Errors
    /// If the file cannot be written. The next call tries again.
    pub async fn write(&self) -> Result<(), StoreError> {
        self.write_at(now()).await
    }

    async fn write_at(&self, now: i64) -> Result<(), StoreError> {
        let written = if self.waiting() > 0 { self.write_news().await } else { Ok(()) };
        if lock(&self.entries).prune(now) && self.path.exists() {
            let over = sqlx::query("DELETE FROM spent WHERE finish <= ?").bind(now - GRACE);
            over.execute(self.open().await?).await.map_err(StoreError::new)?;
        }
        written
    }

    async fn write_news(&self) -> Result<(), StoreError> {
        let pool = self.open().await?;
        let (news, taken) = {
            let mut entries = lock(&self.entries);
            let before = entries.writing;
            (entries.take(), entries.writing - before)
        };
        let written = write(pool, &news).await;
        let mut entries = lock(&self.entries);
        entries.writing -= taken;
        if written.is_err() {
            entries.put_back(news);
        }
        written.map_err(StoreError::new)
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// Adds to the stored amounts: during a restart the old and the new process may both write.
async fn write(pool: &SqlitePool, news: &[(String, Entry)]) -> Result<(), sqlx::Error> {
    const ADD: &str = "INSERT INTO spent (subject, start, finish, amount) VALUES (?1, ?2, ?3, ?4)
        ON CONFLICT (subject) DO UPDATE SET
            amount = CASE WHEN start >= ?2 THEN amount + ?4 ELSE ?4 END,
            finish = CASE WHEN start > ?2 THEN finish ELSE ?3 END,
            start = MAX(start, ?2)";
    let mut change = pool.begin_with("BEGIN IMMEDIATE").await?;
    for (subject, spent) in news {
        sqlx::query(ADD)
            .bind(subject)
            .bind(spent.start)
            .bind(spent.end)
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

    fn cost(cost: f64) -> Charge {
        Charge { cost, ..Charge::default() }
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
        let mut write = std::pin::pin!(ledger.write());
        while futures::poll!(&mut write).is_pending() {
            assert_eq!(ledger.waiting(), 1, "a process that stops waits until it is written");
            tokio::task::yield_now().await;
        }
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

    /// A spend of the period from `start` to `end`.
    fn of(subject: &str, start: i64, end: Option<i64>) -> [Spend; 1] {
        let [mut spend] = spend(1.0, start);
        (spend.subject, spend.end) = (subject.to_owned(), end);
        [spend]
    }

    fn subjects(ledger: &Ledger) -> Vec<String> {
        let mut all: Vec<String> = lock(&ledger.entries).spent.keys().cloned().collect();
        all.sort();
        all
    }

    #[tokio::test]
    async fn periods_that_are_over_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("limits.db");
        let ledger = Ledger::new(path.clone());
        ledger.add(&of("day", 0, Some(1000)), &cost(1.0));
        ledger.add(&of("later", 0, Some(1000 + GRACE)), &cost(1.0));
        ledger.add(&of("ever", 0, None), &cost(1.0));
        ledger.write_at(900).await.unwrap();

        // What is over is not even read, though the file still has it.
        let next = Ledger::new(path.clone());
        next.load_at(1000).await.unwrap();
        assert_eq!(subjects(&next), ["ever", "later"]);

        ledger.write_at(999 + GRACE).await.unwrap();
        assert_eq!(subjects(&ledger), ["day", "ever", "later"]);
        // Not yet time to look again.
        ledger.write_at(1001 + GRACE).await.unwrap();
        assert_eq!(subjects(&ledger), ["day", "ever", "later"]);
        ledger.write_at(999 + GRACE + PRUNE).await.unwrap();
        assert_eq!(subjects(&ledger), ["ever", "later"]);
        let next = Ledger::new(path);
        next.load_at(0).await.unwrap();
        assert_eq!(subjects(&next), ["ever", "later"]);
    }

    #[tokio::test]
    async fn a_new_period_ends_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("limits.db");
        let ledger = Ledger::new(path.clone());
        ledger.add(&of("day", 0, Some(1000)), &cost(1.0));
        ledger.write_at(900).await.unwrap();
        ledger.add(&of("day", 1000, Some(2000)), &cost(0.5));
        // A request of the day before that has ended only now.
        ledger.add(&of("day", 0, Some(1000)), &cost(0.5));
        ledger.write_at(901).await.unwrap();
        let next = Ledger::new(path);
        next.load_at(1500).await.unwrap();
        let spent = Entry { start: 1000, end: Some(2000), amount: 1.0, unwritten: 0.0 };
        assert_eq!(lock(&next.entries).spent["day"], spent);
    }

    #[tokio::test]
    async fn what_is_being_written_still_waits() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::new(folder.path().join("limits.db"));
        ledger.add(&spend(3.0, 100), &cost(2.0));
        let news = lock(&ledger.entries).take();
        assert_eq!((news.len(), ledger.waiting()), (1, 1));
        ledger.add(&spend(3.0, 100), &cost(2.0));
        assert_eq!(ledger.waiting(), 2);
        {
            let mut entries = lock(&ledger.entries);
            entries.writing -= 1;
            entries.put_back(news);
        }
        assert_eq!(ledger.waiting(), 1);
        ledger.write().await.unwrap();
        assert_eq!(ledger.waiting(), 0);
    }
}
