//! Where records go. One file a sink.

pub mod webhook;

use async_trait::async_trait;

use super::Record;

/// Takes records, one at a time.
#[async_trait]
pub trait Sink: Send + Sync {
    /// Delivers one record.
    ///
    /// # Errors
    /// Why it could not, and whether another attempt may help.
    async fn deliver(&self, record: &Record) -> Result<(), Failure>;
}

/// A delivery that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// For the log; never holds a secret.
    pub why: String,
    /// Another attempt may help.
    pub again: bool,
}
