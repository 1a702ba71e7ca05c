//! The Redis sink: adds each record as an entry of a stream.

use std::{borrow::Cow, sync::Arc};

use async_trait::async_trait;
use serde::Deserialize;

use super::delivery::{DeliveryError, Sink};
use crate::{config::plan::StreamPlan, store::redis::Redis, usage::spool::Entry};

/// Adds records to a stream.
pub struct StreamSink {
    redis: Arc<Redis>,
    plan: StreamPlan,
}

impl StreamSink {
    pub fn new(redis: Arc<Redis>, plan: StreamPlan) -> Self {
        Self { redis, plan }
    }
}

/// The part of a record that becomes a field of its own, so that a consumer recognizes repeats without
/// parsing the record.
#[derive(Deserialize)]
struct RecordIdOnly<'a> {
    #[serde(borrow)]
    record_id: Cow<'a, str>,
}

#[async_trait]
impl Sink for StreamSink {
    async fn deliver(&self, records: &[Entry]) -> Result<(), DeliveryError> {
        let fields = |entry: &Entry| {
            let parsed = serde_json::from_slice::<RecordIdOnly<'_>>(&entry.json);
            let id = parsed.map(|parsed| parsed.record_id.into_owned()).unwrap_or_default();
            [("record", entry.json.clone()), ("record_id", id.into())]
        };
        let entries: Vec<_> = records.iter().map(fields).collect();
        let added = self.redis.add(&self.plan.stream, self.plan.max_len, &entries).await;
        // Whatever the error (no server, no memory, no permission, a key of another type): the records
        // are fine, and the server has to be fixed.
        added.map_err(|e| DeliveryError::unavailable(e.to_string()))
    }
}
