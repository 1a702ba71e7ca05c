//! What was spent, counted in this process: budgets, and the quotas of keys that stand in the
//! configuration. It is written to a file about once a second, so that a restart forgets nothing.
//! What was spent in a period that is over is forgotten some time later, here and in the file.

use std::{collections::HashMap, path::PathBuf, sync::Mutex};

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
        finish INTEGER,
        amount REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX spent_finish ON spent (finish);
"];

/// For how many seconds an amount is kept whose period is over: clocks may be set back.
const GRACE: i64 = 24 * 3600;

/// Seconds from one search for amounts whose periods are over to the next.
const PRUNE: i64 = 3600;

/// Amounts by their subjects.
pub struct Ledger {
    path: PathBuf,
    pool: OnceCell<SqlitePool>,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    spent: HashMap<String, Spent>,
    /// Subjects of which something is not yet written.
    dirty: Vec<String>,
    /// How many subjects are being written.
    writing: usize,
    /// When it was last looked for amounts whose periods are over, in Unix seconds.
    pruned: i64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Spent {
    start: i64,
    /// When its period is over, in Unix seconds; `None`: never.
    end: Option<i64>,
    amount: f64,
    /// How much of it is not yet written.
    unwritten: f64,
}

impl Book {
    /// Counts an amount; a new period begins at 0.
    fn add(&mut self, spend: &Spend, amount: f64) {
        let spent = match self.spent.get_mut(&spend.subject) {
            Some(spent) => spent,
            None => self.spent.entry(spend.subject.clone()).or_default(),
        };
        if spent.unwritten == 0.0 {
            self.dirty.push(spend.subject.clone());
        }
        if spent.start < spend.start {
            *spent = Spent { start: spend.start, ..Spent::default() };
        }
        // A request that began in the period before does not tell when this one is over.
        if spent.start == spend.start {
            spent.end = spend.end;
        }
        spent.amount += amount;
        spent.unwritten += amount;
    }

    /// What is to be written.
    fn take(&mut self) -> Vec<(String, Spent)> {
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

    /// What could not be written.
    fn put_back(&mut self, news: Vec<(String, Spent)>) {
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

    /// Forgets amounts whose periods are over, now and then; returns whether it was time for that.
    fn prune(&mut self, now: i64) -> bool {
        // A clock that was set back far does not put it off.
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
    /// A ledger with this file, which is made when something is spent.
    pub fn new(path: PathBuf) -> Self {
        Self { path, pool: OnceCell::new(), book: Mutex::default() }
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

    /// Reads what an earlier process has written and is not over.
    ///
    /// # Errors
    /// If there is a file and it cannot be read.
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
        let mut book = lock(&self.book);
        for (subject, start, end, amount) in rows {
            book.spent.insert(subject, Spent { start, end, amount, unwritten: 0.0 });
        }
        Ok(())
    }

    /// The number of the first amount that is spent.
    pub fn used_up(&self, spends: &[Spend]) -> Option<usize> {
        if spends.is_empty() {
            return None;
        }
        let book = lock(&self.book);
        spends.iter().position(|spend| {
            let spent = book.spent.get(&spend.subject).filter(|s| s.start >= spend.start);
            spent.map_or(0.0, |s| s.amount) >= spend.limit
        })
    }

    /// Counts what a request has come to.
    pub fn add(&self, spends: &[Spend], used: &Used) {
        if spends.is_empty() {
            return;
        }
        let mut book = lock(&self.book);
        for spend in spends {
            let amount = used.spent(spend.unit);
            if amount > 0.0 {
                book.add(spend, amount);
            }
        }
    }

    /// How many subjects are not yet written, those included that are being written.
    pub fn waiting(&self) -> usize {
        let book = lock(&self.book);
        book.dirty.len() + book.writing
    }

    /// Writes what has been counted since it was last called, and now and then forgets what is
    /// over.
    ///
    /// # Errors
    /// If the file cannot be written; it will be tried again.
    pub async fn write(&self) -> Result<(), StoreError> {
        self.write_at(now()).await
    }

    async fn write_at(&self, now: i64) -> Result<(), StoreError> {
        let written = if self.waiting() > 0 { self.write_news().await } else { Ok(()) };
        if lock(&self.book).prune(now) && self.path.exists() {
            let over = sqlx::query("DELETE FROM spent WHERE finish <= ?").bind(now - GRACE);
            over.execute(self.open().await?).await.map_err(StoreError::new)?;
        }
        written
    }

    async fn write_news(&self) -> Result<(), StoreError> {
        let pool = self.open().await?;
        let (news, taken) = {
            let mut book = lock(&self.book);
            let before = book.writing;
            (book.take(), book.writing - before)
        };
        let written = write(pool, &news).await;
        let mut book = lock(&self.book);
        book.writing -= taken;
        if written.is_err() {
            book.put_back(news);
        }
        written.map_err(StoreError::new)
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// Adds to what is there: while one process ends and the next has begun, both may write.
async fn write(pool: &SqlitePool, news: &[(String, Spent)]) -> Result<(), sqlx::Error> {
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
        let mut all: Vec<String> = lock(&ledger.book).spent.keys().cloned().collect();
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
        let spent = Spent { start: 1000, end: Some(2000), amount: 1.0, unwritten: 0.0 };
        assert_eq!(lock(&next.book).spent["day"], spent);
    }

    #[tokio::test]
    async fn what_is_being_written_still_waits() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::new(folder.path().join("limits.db"));
        ledger.add(&spend(3.0, 100), &cost(2.0));
        let news = lock(&ledger.book).take();
        assert_eq!((news.len(), ledger.waiting()), (1, 1));
        ledger.add(&spend(3.0, 100), &cost(2.0));
        assert_eq!(ledger.waiting(), 2);
        {
            let mut book = lock(&ledger.book);
            book.writing -= 1;
            book.put_back(news);
        }
        assert_eq!(ledger.waiting(), 1);
        ledger.write().await.unwrap();
        assert_eq!(ledger.waiting(), 0);
    }
}
