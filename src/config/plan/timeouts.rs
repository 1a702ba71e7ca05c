//! `timeouts`.

use std::time::Duration;

use crate::config::raw;

/// `None` means no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeoutPlan {
    pub connect: Option<Duration>,
    pub first_byte: Option<Duration>,
    pub first_token: Option<Duration>,
    pub between_chunks: Option<Duration>,
    pub total: Option<Duration>,
    pub client_head: Option<Duration>,
    pub client_read: Option<Duration>,
    pub client_write: Option<Duration>,
    pub client_idle: Option<Duration>,
    pub upstream_idle: Duration,
}

pub(super) fn timeouts(raw: &raw::Timeouts) -> TimeoutPlan {
    let some = |span: raw::Span| (!span.0.is_zero()).then_some(span.0);
    TimeoutPlan {
        connect: some(raw.connect),
        first_byte: some(raw.first_byte),
        first_token: some(raw.first_token),
        between_chunks: some(raw.between_chunks),
        total: some(raw.total),
        client_head: some(raw.client_head),
        client_read: some(raw.client_read),
        client_write: some(raw.client_write),
        client_idle: some(raw.client_idle),
        upstream_idle: raw.upstream_idle.0,
    }
}
