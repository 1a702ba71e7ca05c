//! Why a store did not answer.

use std::{fmt, future::Future, sync::Arc, time::Duration};

/// Why a store did not answer, in one sentence without secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreError(pub Arc<str>);

impl StoreError {
    pub fn new(why: impl fmt::Display) -> Self {
        Self(why.to_string().into())
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Waits for an answer for at most `patience`.
///
/// # Errors
/// The error of the store, or that it did not answer in time.
pub async fn within<T>(
    patience: Duration,
    answer: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(patience, answer)
        .await
        .unwrap_or_else(|_| Err(StoreError::new(format!("no answer within {patience:?}"))))
}
