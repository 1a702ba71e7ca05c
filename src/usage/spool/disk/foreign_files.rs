//! Foreign files in the folder of the log: their records are taken over, or they are reported.

use std::path::Path;

use super::files::DiskLog;
use crate::{
    base::lock,
    usage::spool::{entry::Entry, foreign, record_log::RecordLog, segment::Segment},
};

impl DiskLog {
    /// Appends the records of a foreign segment that the log does not have, and moves the file aside.
    pub(super) fn take_over(&self, segment: &Segment) {
        let shown = segment.path.display();
        let own: Vec<_> = lock(&self.state).segments.iter().cloned().collect();
        let entries = match foreign::missing_records(segment, &own) {
            Ok(entries) => entries,
            Err(e) => {
                log::error!("{shown} does not belong to the usage spool and cannot be read: {e}");
                return;
            }
        };
        let end = self.end();
        let entries = entries.into_iter().zip(end..);
        let entries: Vec<_> = entries.map(|(entry, index)| Entry { index, ..entry }).collect();
        let all = entries.len() as u64;
        let left = match self.append(entries) {
            Ok(()) => 0,
            Err(full) => {
                log::error!(
                    "the records of {shown} cannot be added to the usage spool: {}",
                    full.why
                );
                full.records.len() as u64
            }
        };
        if let Err(e) = self.sync() {
            log::error!("{e}");
        }
        self.metrics.spool.adopted.inc_by(all - left);
        self.metrics.lost.with_label_values(&["foreign"]).inc_by(left);
        let done = format!(
            "{shown} does not belong to the usage spool: its records clash with those of another file. {} \
             missing records were added from #{end} on, {left} could not be added",
            all - left
        );
        match foreign::set_aside(&self.folder, &segment.path) {
            Ok(aside) => log::error!("{done}; moved to {}", aside.display()),
            Err(e) => log::error!("{done}; it cannot be moved aside: {e}"),
        }
    }

    /// Logs files in the folder that look like segments but are not read, each once.
    pub(super) fn report_unread_files(&self) {
        // A new segment exists before it is in the list.
        let _writing = lock(&self.active);
        let mut state = lock(&self.state);
        let own: Vec<_> = state.segments.iter().cloned().collect();
        let unread = match foreign::unread_files(&self.folder, &own) {
            Ok(unread) => unread,
            // Errors of the folder are reported by writes to it.
            Err(_) => return,
        };
        let there = unread.len() + foreign::count_set_aside(&self.folder);
        self.metrics.spool.foreign.set(i64::try_from(there).unwrap_or(i64::MAX));
        for path in unread {
            let shown = path.display().to_string();
            if state.reported_files.insert(path) {
                log::error!(
                    "{shown} does not belong to the usage spool: its records are not delivered. To deliver \
                     them, give it the name of a segment and restart the gateway; otherwise remove it"
                );
            }
        }
    }
}

/// Logs runs of missing records between two files. The records before a gap are delivered to reporters
/// that still need them.
pub(super) fn report_gaps(folder: &Path, gaps: &[(u64, u64)]) {
    for (end, next) in gaps {
        log::warn!(
            "usage records #{end} to #{} are missing in {}: files were removed, or a foreign file was put \
             there. Run `llmproxy usage verify` for details",
            next - 1,
            folder.display()
        );
    }
}
