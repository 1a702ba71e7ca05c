//! A log in memory, for those who want none on disk: bounded, and gone with the process.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Mutex,
};

use super::{Entry, Full, Kind, Log};
use crate::{base::lock, config::plan::UsagePlan, telemetry::UsageMetrics};

/// The log.
pub struct Memory(Mutex<Book>, UsageMetrics);

impl Memory {
    /// An empty log.
    pub fn new(metrics: UsageMetrics) -> Self {
        Self(Mutex::default(), metrics)
    }
}

#[derive(Default)]
struct Book {
    entries: VecDeque<Entry>,
    end: u64,
    limit: usize,
    places: BTreeMap<String, u64>,
}

impl Book {
    /// Forgets what every reporter has delivered.
    fn forget(&mut self) {
        let needed = self.places.values().min().copied().unwrap_or(self.end);
        let over = self.entries.partition_point(|entry| entry.index < needed);
        self.entries.drain(..over);
    }

    /// Makes room at the cost of reporters that are behind others: one that is away holds nobody up.
    /// Returns how many records that costs.
    fn make_room(&mut self, wanted: usize) -> u64 {
        let ahead = self.places.values().max().copied().unwrap_or(self.end);
        let passed = self.entries.partition_point(|entry| entry.index < ahead);
        let over = (self.entries.len() + wanted).saturating_sub(self.limit).min(passed);
        self.entries.drain(..over);
        over as u64
    }
}

impl Log for Memory {
    fn append(&self, mut records: Vec<Entry>) -> Result<(), Full> {
        let mut book = lock(&self.0);
        let dropped = book.make_room(records.len());
        let room = book.limit.saturating_sub(book.entries.len());
        let left = records.split_off(room.min(records.len()));
        book.end += records.len() as u64;
        book.entries.extend(records);
        if dropped > 0 {
            self.1.lost.with_label_values(&["queue_full"]).inc_by(dropped);
            log::error!(
                "{dropped} usage records lost for reporters that are behind: the queue is full"
            );
        }
        match left.is_empty() {
            true => Ok(()),
            false => {
                let why = "the queue is full".to_owned();
                Err(Full { kind: Kind::Queue, why, records: left })
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
        let book = lock(&self.0);
        let start = book.entries.partition_point(|entry| entry.index < from);
        let entries: Vec<_> = book.entries.iter().skip(start).take(most).cloned().collect();
        let next = entries.last().map_or(from, |last| last.index + 1);
        Ok((entries, next))
    }

    fn place(&self, reporter: &str) -> u64 {
        let book = lock(&self.0);
        book.places.get(reporter).copied().unwrap_or(book.end)
    }

    fn keep_place(&self, reporter: &str, next: u64) -> Result<(), String> {
        let mut book = lock(&self.0);
        if let Some(place) = book.places.get_mut(reporter) {
            *place = next;
        }
        // What is delivered makes room at once.
        book.forget();
        Ok(())
    }

    fn first(&self) -> u64 {
        let book = lock(&self.0);
        book.entries.front().map_or(book.end, |oldest| oldest.index)
    }

    fn lift_limit(&self) {}

    fn trim(&self) {}

    /// Here the newest are lost: those that wait may be under way.
    fn drop_oldest(&self) -> Option<u64> {
        None
    }

    fn set(&self, plan: &UsagePlan) -> Result<(), String> {
        let mut book = lock(&self.0);
        let end = book.end;
        let place = |book: &Book, name: &str| book.places.get(name).copied().unwrap_or(end);
        let names = plan.reporters.iter().map(|reporter| reporter.name.clone());
        book.places = names.map(|name| (name.clone(), place(&book, &name))).collect();
        book.limit = plan.queue_size;
        book.forget();
        Ok(())
    }
}
