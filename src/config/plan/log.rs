//! `log`, except for its format, which only a restart changes.

use crate::config::{choices::Level, raw};

/// What is logged.
#[derive(Clone, Copy, Debug)]
pub struct LogPlan {
    pub level: Level,
    /// A line for each request.
    pub access: bool,
}

pub(super) fn log(raw: &raw::Log) -> LogPlan {
    LogPlan { level: raw.level, access: raw.access.0 }
}
