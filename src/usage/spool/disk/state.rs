//! What is known of the log without reading it: its segments, its last records, and the positions of the
//! reporters.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
    time::Instant,
};

use crate::{
    config::plan::SpoolPlan,
    usage::spool::{entry::Entry, segment::Segment},
};

/// The last records are also kept in memory, so that a reporter that keeps up does not read the disk.
const RECENT: usize = 1024;

/// The most bytes of these records.
const RECENT_BYTES: usize = 4 << 20;

pub struct LogState {
    /// From the oldest to the active one; never empty.
    pub segments: VecDeque<Segment>,
    /// The index of the next record to append.
    pub end: u64,
    pub recent: VecDeque<Entry>,
    pub recent_bytes: usize,
    /// The positions of the reporters of the plan.
    pub positions: BTreeMap<String, u64>,
    /// Where recent reads ended: index, segment, offset in its file.
    pub hints: VecDeque<(u64, u64, u64)>,
    /// Indexes at which damage was reported.
    pub damaged: BTreeSet<u64>,
    /// Everything before this index was dropped and counted as lost.
    pub dropped: u64,
    /// Segments that begin before this index may be foreign: they are never deleted.
    pub doubtful: u64,
    pub plan: SpoolPlan,
    pub trimmed_at: Option<Instant>,
    pub searched_at: Instant,
    /// Foreign files that have been reported.
    pub reported_files: BTreeSet<PathBuf>,
}

impl LogState {
    /// The index of the oldest record that a reporter needs.
    pub fn needed(&self) -> u64 {
        self.positions.values().min().copied().unwrap_or(self.end)
    }

    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// How many of the oldest segments no reporter needs.
    pub fn spare(&self) -> usize {
        let needed = self.needed();
        self.segments.iter().skip(1).take_while(|next| next.first <= needed).count()
    }

    pub fn remember(&mut self, entry: &Entry) {
        self.recent_bytes += entry.json.len();
        self.recent.push_back(entry.clone());
        while self.recent.len() > RECENT || self.recent_bytes > RECENT_BYTES {
            let Some(old) = self.recent.pop_front() else { break };
            self.recent_bytes -= old.json.len();
        }
    }

    pub fn hint(&mut self, index: u64, segment: u64, position: u64) {
        self.hints.retain(|(known, ..)| *known != index);
        self.hints.push_back((index, segment, position));
        if self.hints.len() > 32 {
            self.hints.pop_front();
        }
    }
}
