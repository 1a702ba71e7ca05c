//! The usage store: records in a table, and questions about them.

mod place;
mod question;
pub mod schema;

use std::{sync::Arc, time::Duration};

use serde_json::{Map, Value};
use tokio::sync::Semaphore;

pub use self::{
    place::Place,
    question::{Column, Cursor, Filter, moment},
};
use crate::{
    config::plan::TablePlan,
    store::{
        StoreError, Stores,
        sql::{Row, Statement, Trouble},
    },
};

/// How long the database may work on an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long an answer may take in all, making the table included.
const IN_ALL: Duration = Duration::from_secs(45);

/// Questions at a time: the connections are those by which records go in.
static QUESTIONS: Semaphore = Semaphore::const_new(2);

/// The records of a table.
#[derive(Clone)]
pub struct Store {
    place: Arc<Place>,
    patience: Duration,
}

/// A part of an answer.
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Where the next part begins; `None` after the last one.
    pub next: Option<Cursor>,
}

/// The sums over some records.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(missing_docs, reason = "as in the record")]
pub struct Sums {
    /// What the records have in common, in the order that was asked for.
    pub group: Vec<(Column, String)>,
    pub requests: i64,
    /// Of these, those that did not end with a whole answer.
    pub errors: i64,
    pub prompt_tokens: i64,
    pub completion_tokens: i64,
    pub total_tokens: i64,
    pub cached_tokens: i64,
    pub reasoning_tokens: i64,
    /// `None` if no model of them has a price.
    pub cost: Option<f64>,
}

impl Store {
    /// The store of a table. Nothing is connected.
    pub fn new(plan: &TablePlan, stores: &Stores) -> Self {
        Self { place: Place::new(plan, stores), patience: PATIENCE }
    }

    /// With another limit to the time that the database may work on an answer.
    #[must_use]
    pub fn patient(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Records, from the newest on, as they were delivered.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn records(
        &self,
        filter: &Filter,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page<Map<String, Value>>, StoreError> {
        let mut rows = self.ask(question::records(&self.place, filter, after, limit + 1)).await?;
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).map(question::after_record);
        Ok(Page { items: rows.into_iter().map(schema::record).collect(), next })
    }

    /// Sums, by what records have in common.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn sums(
        &self,
        filter: &Filter,
        by: &[Column],
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page<Sums>, StoreError> {
        let rows = self.ask(question::sums(&self.place, filter, by, after, limit + 1)).await?;
        let mut items: Vec<_> = rows.iter().map(|row| question::summed(row, by)).collect();
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| more).map(|sums| question::after_sums(&sums.group));
        Ok(Page { items, next })
    }

    /// How the database would find records, or sums if they are to be grouped, in its own words: so that
    /// an operator, or a test, can see whether it uses an index.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn explain(
        &self,
        filter: &Filter,
        by: &[Column],
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        let question = match by {
            [] => question::records(&self.place, filter, None, limit),
            by => question::sums(&self.place, filter, by, None, limit),
        };
        self.ask(question.explained()).await
    }

    async fn ask(&self, question: Statement) -> Result<Vec<Row>, StoreError> {
        let (place, patience) = (Arc::clone(&self.place), self.patience);
        let work = async move {
            let ask = async || {
                let _turn = QUESTIONS.acquire().await;
                place.sql.rows(question.clone(), patience).await
            };
            match ask().await {
                // No record has ever come, or only those of an earlier version.
                Err(Trouble::Shape(_)) => {
                    place.prepare().await?;
                    ask().await
                }
                rows => rows,
            }
        };
        self.place.work(IN_ALL, work).await.map_err(|trouble| trouble.why().clone())
    }
}
