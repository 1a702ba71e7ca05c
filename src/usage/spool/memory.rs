//! A log in memory, for those who want none on disk: bounded, and gone with the process.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Mutex,
};

use super::{Entry, Full, Log};
use crate::{base::lock, config::plan::UsagePlan};

/// The log.
#[derive(Default)]
pub struct Memory(Mutex<Book>);

#[derive(Default)]
struct Book {
    entries: VecDeque<Entry>,
    end: u64,
    limit: usize,
    places: BTreeMap<String, u64>,
}

impl Log for Memory {
    fn append(&self, mut records: Vec<Entry>) -> Result<(), Full> {
        let mut book = lock(&self.0);
        let room = book.limit.saturating_sub(book.entries.len());
        let left = records.split_off(room.min(records.len()));
        book.end += records.len() as u64;
        book.entries.extend(records);
        match left.is_empty() {
            true => Ok(()),
            false => Err(Full { why: "the queue is full".to_owned(), waits: false, records: left }),
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
        let needed = book.places.values().min().copied().unwrap_or(book.end);
        let over = book.entries.partition_point(|entry| entry.index < needed);
        book.entries.drain(..over);
        Ok(())
    }

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
        Ok(())
    }
}
