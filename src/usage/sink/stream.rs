//! The Redis sink: each record an entry of a stream.

use std::{borrow::Cow, sync::Arc};

use async_trait::async_trait;
use serde::Deserialize;

use super::{Failure, Sink};
use crate::{config::plan::StreamPlan, store::redis::Redis, usage::Entry};

/// Adds records to a stream.
pub struct Stream {
    redis: Arc<Redis>,
    plan: StreamPlan,
}

impl Stream {
    /// A sink for a stream of this server.
    pub fn new(redis: Arc<Redis>, plan: StreamPlan) -> Self {
        Self { redis, plan }
    }
}

/// What is read of a record: for the consumer, who can tell repeats without reading all of it.
#[derive(Deserialize)]
struct Named<'a> {
    #[serde(borrow)]
    record_id: Cow<'a, str>,
}

#[async_trait]
impl Sink for Stream {
    async fn deliver(&self, records: &[Entry]) -> Result<(), Failure> {
        let fields = |entry: &Entry| {
            let named = serde_json::from_slice::<Named<'_>>(&entry.json);
            let id = named.map(|named| named.record_id.into_owned()).unwrap_or_default();
            [("record", entry.json.clone()), ("record_id", id.into())]
        };
        let entries: Vec<_> = records.iter().map(fields).collect();
        let added = self.redis.add(&self.plan.stream, self.plan.max_len, &entries).await;
        // Whatever it is (no server, no memory, no right, something else at the key): the records
        // are good, and somebody has to mend the server.
        added.map_err(|e| Failure::away(e.to_string()))
    }
}
