//! The destinations of usage records: one file for each kind of sink.

mod delivery;
pub mod file;
pub mod stream;
pub mod table;
pub mod webhook;

use std::{sync::Arc, time::Duration};

pub use self::delivery::{DeliveryError, Sink};
use crate::{
    config::plan::{Destination, ReporterPlan},
    store::Stores,
};

/// How fast, and in what portions, records are handed to a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// The most records of one delivery.
    pub batch: usize,
    /// How long to wait for more records while there are fewer.
    pub linger: Duration,
    /// Deliveries at a time.
    pub concurrency: usize,
    /// Further attempts for records that the destination rejects.
    pub retry: u32,
}

impl Pace {
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

/// The clients and connections that sinks use.
#[derive(Clone, Copy)]
pub struct Resources<'a> {
    pub client: &'a reqwest::Client,
    pub stores: &'a Stores,
}

/// Creates the sink of a reporter. It opens or connects nothing before its first delivery.
pub fn make(plan: &ReporterPlan, with: Resources<'_>) -> Arc<dyn Sink> {
    match &plan.to {
        Destination::Webhook(webhook) => {
            Arc::new(webhook::WebhookSink::new(with.client.clone(), webhook.clone()))
        }
        Destination::Database(table) => Arc::new(table::TableSink::new(table, with.stores)),
        Destination::File(file) => Arc::new(file::FileSink::new(file.clone())),
        Destination::Redis(stream) => {
            let redis = with.stores.redis(&stream.settings);
            Arc::new(stream::StreamSink::new(redis, stream.clone()))
        }
    }
}
