//! Why an attempt failed.

use std::{borrow::Cow, time::Duration};

use crate::{base::FaultKind, config::plan::RetryOn};

/// Why an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cause {
    /// Something broke.
    Fault(FaultKind),
    /// The backend answered with a status that another backend may not answer with.
    Status(u16),
    /// It has no capacity now, and perhaps says for how long.
    Busy(Option<Duration>),
    /// An error event came before any content.
    ErrorEvent,
    /// The engine broke the generation off before any content came.
    Aborted,
    /// The stream had no content.
    Empty,
}

impl Cause {
    /// The label of `llmproxy_retries_total`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Fault(kind) => kind.word(),
            Self::Status(_) => "status",
            Self::Busy(_) => "busy",
            Self::ErrorEvent => "error_event",
            Self::Aborted => "aborted",
            Self::Empty => "empty",
        }
    }

    /// The result of its attempt in the timeline.
    pub fn result(self) -> Cow<'static, str> {
        match self {
            Self::Status(status) => format!("status {status}").into(),
            Self::Busy(None) => "busy".into(),
            Self::Busy(Some(pause)) => format!("busy for {} s", pause.as_secs()).into(),
            Self::Fault(_) if self.is_unsent() => self.word().into(),
            cause => format!("{} before content", cause.word()).into(),
        }
    }

    /// Whether `retry_on` allows another attempt after it. Statuses are checked when the response is judged.
    pub fn is_retried(self, on: &RetryOn) -> bool {
        match self {
            Self::Status(_) | Self::Busy(_) => true,
            Self::ErrorEvent | Self::Aborted | Self::Empty => on.reset,
            Self::Fault(kind) => match kind {
                FaultKind::Connect | FaultKind::ConnectTimeout => on.connect_failure,
                FaultKind::Broken
                | FaultKind::Protocol
                | FaultKind::Redirect
                | FaultKind::Refusing => on.reset,
                FaultKind::FirstByteTimeout | FaultKind::ChunkTimeout => on.timeout,
                _ => false,
            },
        }
    }

    /// Nothing has reached the backend.
    pub fn is_unsent(self) -> bool {
        matches!(self, Self::Fault(FaultKind::Connect | FaultKind::ConnectTimeout))
    }
}
