//! Checks the deadlines of the requests in flight.

use std::{sync::Arc, time::Instant};

use crate::runtime::{Carry, watch::SWEEP};

/// Runs until the process ends.
pub async fn run(carry: Arc<Carry>) {
    loop {
        carry.watches.passed().await;
        carry.watches.sweep(Instant::now());
        tokio::time::sleep(SWEEP).await;
    }
}
