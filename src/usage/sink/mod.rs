//! Where records go. One file a sink.

pub mod file;
pub mod stream;
pub mod table;
pub mod webhook;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use super::Entry;
use crate::{
    config::plan::{Destination, ReporterPlan},
    store::Stores,
};

/// Takes records.
#[async_trait]
pub trait Sink: Send + Sync {
    /// Delivers records, of which there is at least one and there are at most as many as
    /// [`Pace::batch`] says: all of them or, for what can be told, none. It may be called again with
    /// records that it has taken.
    ///
    /// # Errors
    /// Why it could not, and what may help.
    async fn deliver(&self, records: &[Entry]) -> Result<(), Failure>;

    /// Does what has to be done from time to time, about once an hour: removes what is too old.
    ///
    /// # Errors
    /// Why it could not.
    async fn tidy(&self) -> Result<(), String> {
        Ok(())
    }
}

/// A delivery that failed. The texts are for the log and never hold a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Another attempt may help.
    Away {
        /// Why.
        why: String,
        /// The receiver asked for so long a pause.
        retry_after: Option<Duration>,
    },
    /// The records themselves are refused: it will not help to send them again.
    Refused {
        /// Why.
        why: String,
    },
    /// The receiver does not want anything any more.
    Gone {
        /// Why.
        why: String,
    },
}

impl Failure {
    /// Another attempt may help.
    pub fn away(why: impl Into<String>) -> Self {
        Self::Away { why: why.into(), retry_after: None }
    }

    /// Why.
    pub fn why(&self) -> &str {
        match self {
            Self::Away { why, .. } | Self::Refused { why } | Self::Gone { why } => why,
        }
    }
}

/// How records are handed to a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Most records at a time.
    pub batch: usize,
    /// How long to wait for more when there are fewer.
    pub linger: Duration,
    /// Calls under way at a time.
    pub concurrency: usize,
    /// Further attempts for records that are refused as such.
    pub retry: u32,
}

impl Pace {
    /// The pace of a reporter.
    pub fn of(plan: &ReporterPlan) -> Self {
        let gather = Duration::from_millis(100);
        let pace = |batch, linger| Self { batch, linger, concurrency: 1, retry: 3 };
        match &plan.to {
            Destination::Webhook(webhook) => Self {
                batch: webhook.batch_size,
                linger: webhook.flush_interval,
                concurrency: webhook.concurrency,
                retry: webhook.retry,
            },
            Destination::Database(table) => pace(table.batch_size, gather),
            Destination::File(_) => pace(1000, gather),
            Destination::Redis(stream) => pace(stream.batch_size, gather),
        }
    }
}

/// What sinks are made with.
#[derive(Clone, Copy)]
pub struct Resources<'a> {
    /// For webhooks.
    pub client: &'a reqwest::Client,
    /// Redis and SQL connections.
    pub stores: &'a Stores,
}

/// Makes the sink of a reporter. Nothing is opened or connected before it is first used.
pub fn make(plan: &ReporterPlan, with: Resources<'_>) -> Arc<dyn Sink> {
    match &plan.to {
        Destination::Webhook(webhook) => {
            Arc::new(webhook::Webhook::new(with.client.clone(), webhook.clone()))
        }
        Destination::Database(table) => Arc::new(table::Table::new(table, with.stores)),
        Destination::File(file) => Arc::new(file::Lines::new(file.clone())),
        Destination::Redis(stream) => {
            let redis = with.stores.redis(&stream.settings);
            Arc::new(stream::Stream::new(redis, stream.clone()))
        }
    }
}
