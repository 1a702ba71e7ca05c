//! What a sink is, and how a delivery fails.

use std::time::Duration;

use async_trait::async_trait;

use crate::usage::spool::Entry;

/// A destination of usage records.
#[async_trait]
pub trait Sink: Send + Sync {
    /// Delivers a batch of records, which is not empty and not larger than `Pace::batch` of the sink:
    /// all of them or, as far as can be known, none. Records that were delivered may come again.
    ///
    /// # Errors
    /// Why the delivery failed, and what may help.
    async fn deliver(&self, records: &[Entry]) -> Result<(), DeliveryError>;

    /// Removes records that are older than the retention time. Called about once an hour.
    ///
    /// # Errors
    /// Why they could not be removed.
    async fn tidy(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Why a delivery failed. The texts are for the log and never hold a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeliveryError {
    /// The destination is unavailable: another attempt may help.
    Unavailable {
        why: String,
        /// The pause that the receiver asked for.
        retry_after: Option<Duration>,
    },
    /// The destination rejects these records: sending them again does not help.
    Refused { why: String },
    /// The receiver wants no more records (410).
    Gone { why: String },
}

impl DeliveryError {
    /// Another attempt may help, after the usual pause.
    pub fn unavailable(why: impl Into<String>) -> Self {
        Self::Unavailable { why: why.into(), retry_after: None }
    }

    pub fn why(&self) -> &str {
        match self {
            Self::Unavailable { why, .. } | Self::Refused { why } | Self::Gone { why } => why,
        }
    }
}
