//! A meter of named events under test.

use bytes::Bytes;
use serde_json::Value;

use super::{Events, TypedMeter};
use crate::{
    base::UsageSource,
    dialect::{Meter, Metering, Progress},
};

/// A meter, what it has seen, and what went out.
pub struct Watched<E> {
    pub meter: TypedMeter<E>,
    pub seen: Progress,
    pub out: Vec<u8>,
}

impl<E: Events + Default> Watched<E> {
    pub fn new(model: Option<&str>) -> Self {
        let metering = Metering { model: model.map(Into::into), ..Metering::default() };
        let meter = TypedMeter::new(&metering);
        Self { meter, seen: Progress::default(), out: Vec::new() }
    }

    pub fn of(parts: &[&[u8]]) -> Self {
        let mut watched = Self::new(None);
        for part in parts {
            watched.push(part);
        }
        watched
    }

    pub fn push(&mut self, part: &[u8]) {
        let out = self.meter.push(Bytes::copy_from_slice(part), &mut self.seen);
        self.out.extend_from_slice(&out);
    }

    pub fn finished(mut self) -> Self {
        let out = self.meter.finish(&mut self.seen);
        self.out.extend_from_slice(&out);
        self
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }

    pub fn usage(&self) -> (u64, u64, Option<u64>, UsageSource) {
        let (counts, source) = self.seen.usage(self.meter.counts());
        (counts.prompt, counts.completion, counts.cached, source)
    }

    /// The last event that went out.
    pub fn last(&self) -> Value {
        serde_json::from_str(self.text().rsplit("data: ").next().unwrap()).unwrap()
    }

    /// All that must not depend on how the bytes are cut.
    pub fn all(&self) -> (String, String) {
        let Progress { events, parts, content, finished, ended, choice_ended, aborted, .. } =
            self.seen;
        let flags = (events, parts, content, finished, ended, choice_ended, aborted);
        let rest = (&self.seen.error, &self.seen.model, self.usage());
        (self.text().to_owned(), format!("{flags:?} {rest:?}"))
    }
}
