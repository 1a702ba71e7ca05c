//! What a log of records has to do: [`RecordLog`], on disk or in memory.

use super::entry::Entry;
use crate::config::plan::UsagePlan;

/// A log of records.
pub trait RecordLog: Send + Sync {
    /// Appends records. Called by one thread.
    fn append(&self, records: Vec<Entry>) -> Result<(), AppendError>;

    /// Syncs appended records to disk.
    fn sync(&self) -> Result<(), String>;

    /// The index of the next record to append.
    fn end(&self) -> u64;

    /// The index of the oldest record.
    fn first(&self) -> u64;

    /// Up to `most` records from an index on, and the index to continue from. Unreadable records are
    /// skipped.
    fn read(&self, from: u64, most: usize) -> Result<(Vec<Entry>, u64), String>;

    /// The position of a reporter of the plan given to [`Self::set`].
    fn position_of(&self, reporter: &str) -> u64;

    /// Saves the position of a reporter.
    fn save_position(&self, reporter: &str, next: u64) -> Result<(), String>;

    /// Removes records that are delivered and older than the configured retention. Called now and then by
    /// the thread that appends.
    fn trim(&self);

    /// Makes space by dropping the oldest segment, although reporters still need it. Returns how many
    /// records were lost; `None`: no space can be made.
    fn drop_oldest(&self) -> Option<u64>;

    /// Removes the size limit, because the process is about to end.
    fn lift_limit(&self);

    /// Applies a new plan, completely or not at all. A reporter that never used this log begins at the end;
    /// records are no longer kept for reporters that are not in the plan.
    fn set(&self, plan: &UsagePlan) -> Result<(), String>;
}

/// Why records could not be appended; they are returned with it.
pub struct AppendError {
    pub kind: AppendErrorKind,
    pub why: String,
    pub records: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendErrorKind {
    /// The queue in memory is full: the records are lost.
    QueueFull,
    /// `usage.spool.max_size` is reached, or the disk is full.
    NoSpace,
    /// Another error, which free space would not fix.
    Broken,
}
