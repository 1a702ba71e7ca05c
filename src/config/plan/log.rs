//! `log`, except for its format, which only a restart changes.

use std::time::Duration;

use crate::{
    base::AccessField,
    config::{choices::Level, raw},
};

/// What is logged.
#[derive(Clone, Debug)]
pub struct LogPlan {
    pub level: Level,
    /// A line for each request.
    pub access: bool,
    /// The fields of such a line; empty: all.
    pub access_fields: Vec<AccessField>,
    /// Longer requests have a warning of their own.
    pub slow_requests: Option<Duration>,
}

pub(super) fn log(raw: &raw::Log) -> LogPlan {
    LogPlan {
        level: raw.level,
        access: raw.access.0,
        access_fields: raw.access_fields.clone(),
        slow_requests: raw.slow_requests.map(|span| span.0).filter(|span| !span.is_zero()),
    }
}
