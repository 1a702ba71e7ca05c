//! The log in memory, for `usage.spool.enabled: false`: bounded, and lost with the process.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Mutex,
};

use super::{
    entry::Entry,
    record_log::{AppendError, AppendErrorKind, RecordLog},
};
use crate::{base::lock, config::plan::UsagePlan, telemetry::UsageMetrics};

/// A log in memory.
pub struct MemoryLog(Mutex<MemoryState>, UsageMetrics);

impl MemoryLog {
    pub fn new(metrics: UsageMetrics) -> Self {
        Self(Mutex::default(), metrics)
    }
}

#[derive(Default)]
struct MemoryState {
    entries: VecDeque<Entry>,
    end: u64,
    limit: usize,
    positions: BTreeMap<String, u64>,
}

impl MemoryState {
    /// Drops the records that every reporter has delivered.
    fn forget(&mut self) {
        let needed = self.positions.values().min().copied().unwrap_or(self.end);
        let over = self.entries.partition_point(|entry| entry.index < needed);
        self.entries.drain(..over);
    }

    /// Makes room by dropping records that only slow reporters still need: an unavailable destination must
    /// not block the others. Returns how many records were dropped.
    fn make_room(&mut self, wanted: usize) -> u64 {
        let ahead = self.positions.values().max().copied().unwrap_or(self.end);
        let passed = self.entries.partition_point(|entry| entry.index < ahead);
        let over = (self.entries.len() + wanted).saturating_sub(self.limit).min(passed);
        self.entries.drain(..over);
        over as u64
    }
}

impl RecordLog for MemoryLog {
    fn append(&self, mut records: Vec<Entry>) -> Result<(), AppendError> {
        let mut state = lock(&self.0);
        let dropped = state.make_room(records.len());
        let room = state.limit.saturating_sub(state.entries.len());
        let left = records.split_off(room.min(records.len()));
        state.end += records.len() as u64;
        state.entries.extend(records);
        if dropped > 0 {
            self.1.lost.with_label_values(&["queue_full"]).inc_by(dropped);
            log::error!("{dropped} usage records lost for the slower reporters: the queue is full");
        }
        match left.is_empty() {
            true => Ok(()),
            false => {
                let why = "the queue is full".to_owned();
                Err(AppendError { kind: AppendErrorKind::QueueFull, why, records: left })
            }
        }
    }

    fn sync(&self) -> Result<(), String> {
        Ok(())
    }

    fn end(&self) -> u64 {
        lock(&self.0).end
    }

    fn read(&self, from: u64, most: usize) -> Result<(Vec<Entry>, u64), String> {
        let state = lock(&self.0);
        let start = state.entries.partition_point(|entry| entry.index < from);
        let entries: Vec<_> = state.entries.iter().skip(start).take(most).cloned().collect();
        let next = entries.last().map_or(from, |last| last.index + 1);
        Ok((entries, next))
    }

    fn position_of(&self, reporter: &str) -> u64 {
        let state = lock(&self.0);
        state.positions.get(reporter).copied().unwrap_or(state.end)
    }

    fn save_position(&self, reporter: &str, next: u64) -> Result<(), String> {
        let mut state = lock(&self.0);
        if let Some(place) = state.positions.get_mut(reporter) {
            *place = next;
        }
        state.forget();
        Ok(())
    }

    fn first(&self) -> u64 {
        let state = lock(&self.0);
        state.entries.front().map_or(state.end, |oldest| oldest.index)
    }

    fn lift_limit(&self) {}

    fn trim(&self) {}

    /// In memory the newest records are lost instead: a delivery of the oldest may be running.
    fn drop_oldest(&self) -> Option<u64> {
        None
    }

    fn set(&self, plan: &UsagePlan) -> Result<(), String> {
        let mut state = lock(&self.0);
        let end = state.end;
        let place =
            |state: &MemoryState, name: &str| state.positions.get(name).copied().unwrap_or(end);
        let names = plan.reporters.iter().map(|reporter| reporter.name.clone());
        state.positions = names.map(|name| (name.clone(), place(&state, &name))).collect();
        state.limit = plan.queue_size;
        state.forget();
        Ok(())
    }
}
