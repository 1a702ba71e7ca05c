//! What becomes of files in the folder that do not belong to the log.

use std::{io, path::Path};

use super::{
    super::{Entry, Log, foreign, segment::Segment},
    Disk,
};
use crate::base::lock;

impl Disk {
    /// Adds what is new in a segment that does not belong to the log, and puts the file aside.
    pub(super) fn take_over(&self, stranger: &Segment) {
        let shown = stranger.path.display();
        let own: Vec<_> = lock(&self.state).segments.iter().cloned().collect();
        let entries = match foreign::news(stranger, &own) {
            Ok(entries) => entries,
            Err(e) => {
                log::error!("{shown} does not belong to the spool, and cannot be read: {e}");
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
                log::error!("the records of {shown} cannot be taken over: {}", full.why);
                full.records.len() as u64
            }
        };
        if let Err(e) = self.sync() {
            log::error!("{e}");
        }
        self.metrics.spool.adopted.inc_by(all - left);
        self.metrics.lost.with_label_values(&["foreign"]).inc_by(left);
        let done = format!(
            "{shown} does not belong to the spool: its records clash with those of another file. {} \
             records that were not there are added as #{end} and following, {left} are not",
            all - left
        );
        match foreign::put_aside(&self.folder, &stranger.path) {
            Ok(aside) => log::error!("{done}; it is now {}", aside.display()),
            Err(e) => log::error!("{done}; it cannot be put aside: {e}"),
        }
    }

    /// Puts aside a segment behind which records are missing, and which nobody wants: its records may
    /// never have been delivered.
    pub(super) fn put_doubtful_aside(&self, segment: &Segment) -> io::Result<()> {
        let aside = foreign::put_aside(&self.folder, &segment.path)?;
        log::error!(
            "{} lies before all that is still to be delivered, and records are missing behind it: it may \
             not belong to the spool, and its records are not delivered; it is now {}",
            segment.path.display(),
            aside.display()
        );
        Ok(())
    }

    /// Tells of files in the folder that look like segments and are not read, each once.
    pub(super) fn tell_strangers(&self) {
        // A file that is being begun is there before it is known.
        let _writing = lock(&self.active);
        let mut state = lock(&self.state);
        let own: Vec<_> = state.segments.iter().cloned().collect();
        let strangers = match foreign::strangers(&self.folder, &own) {
            Ok(strangers) => strangers,
            // What is wrong with the folder is told by whoever writes to it.
            Err(_) => return,
        };
        let there = strangers.len() + foreign::put_aside_before(&self.folder);
        self.metrics.spool.foreign.set(i64::try_from(there).unwrap_or(i64::MAX));
        for path in strangers {
            let shown = path.display().to_string();
            if state.strangers.insert(path) {
                log::error!(
                    "{shown} does not belong to the spool, and its records are not delivered. If they \
                     should be, restart the gateway while it has the name of a segment; if not, remove it"
                );
            }
        }
    }
}

/// Tells where records are missing between two files. What stands before them is delivered to those
/// who have not got it yet, and to nobody else.
pub(super) fn tell_gaps(folder: &Path, gaps: &[(u64, u64)]) {
    for (end, next) in gaps {
        log::warn!(
            "the usage records #{end} to #{} are not in {}: files were removed, or one was put there \
             that does not belong to it. `llmproxy usage verify` tells more",
            next - 1,
            folder.display()
        );
    }
}
