//! Reading records of the log from its segments.

use std::{io, path::Path};

use super::{files::DiskLog, state::LogState};
use crate::{
    base::lock,
    usage::spool::{
        entry::Entry,
        segment::{Segment, SegmentItem, SegmentReader},
    },
};

/// Bytes that one read returns, unless a single record is larger.
const AT_A_TIME: usize = 1 << 20;

impl DiskLog {
    /// Where an index is: the segment, the offset to read from, and whether it is the last segment.
    pub(super) fn find(&self, from: u64) -> Option<(Segment, Option<u64>, bool)> {
        let state = lock(&self.state);
        let behind = state.segments.partition_point(|segment| segment.first <= from);
        let at = behind.saturating_sub(1);
        let segment = state.segments.get(at)?.clone();
        let hint = state.hints.iter().find(|h| h.0 == from && h.1 == segment.first).map(|h| h.2);
        Some((segment, hint, at + 1 == state.segments.len()))
    }

    /// Up to `most` records of one segment, and the index to continue from.
    pub(super) fn read_segment(
        &self,
        (segment, hint, last): (Segment, Option<u64>, bool),
        from: u64,
        most: usize,
        end: u64,
    ) -> io::Result<(Vec<Entry>, u64)> {
        let mut reader = SegmentReader::open(&segment.path, hint, Some(segment.bytes))?;
        let (mut entries, mut next, mut bytes) = (Vec::new(), from.max(segment.first), 0);
        self.missing(from.max(lock(&self.state).dropped), segment.first, &segment.path);
        loop {
            match reader.next_item()? {
                Some(SegmentItem::Record(entry, _)) if entry.index < next => {}
                Some(SegmentItem::Record(entry, position)) => {
                    self.missing(next, entry.index, &segment.path);
                    next = entry.index + 1;
                    bytes += entry.json.len();
                    entries.push(entry);
                    if entries.len() >= most || bytes >= AT_A_TIME {
                        lock(&self.state).hint(next, segment.first, position);
                        return Ok((entries, next));
                    }
                }
                Some(SegmentItem::Damage(..)) => {}
                None => break,
            }
        }
        if last {
            // Records still missing at the end of the log were lost.
            self.missing(next, end, &segment.path);
            next = next.max(end);
            lock(&self.state).hint(next, segment.first, segment.bytes);
        } else if let Some(first) = self.after(segment.first) {
            self.missing(next, first, &segment.path);
            next = first;
        }
        Ok((entries, next))
    }

    /// The index with which the next segment begins.
    pub(super) fn after(&self, first: u64) -> Option<u64> {
        lock(&self.state).segments.iter().map(|s| s.first).find(|other| *other > first)
    }

    /// Counts and logs missing records, once.
    pub(super) fn missing(&self, from: u64, to: u64, path: &Path) {
        let is_new = |state: &mut LogState| {
            // Bounded, even on a disk that loses everything.
            if state.damaged.len() > 10_000 {
                state.damaged.clear();
            }
            state.damaged.insert(from)
        };
        if to > from && is_new(&mut lock(&self.state)) {
            let lost = to - from;
            self.metrics.lost.with_label_values(&["damaged"]).inc_by(lost);
            log::error!(
                "{lost} usage records (#{from} to #{}) cannot be read: damaged or removed, at {}",
                to - 1,
                path.display()
            );
        }
    }
}
