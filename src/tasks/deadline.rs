//! Checks the deadlines of the requests in flight.

use std::{sync::Arc, time::Instant};

use crate::runtime::{Carry, watch::SWEEP};

/// Runs until the process ends.
pub async fn run(carry: Arc<Carry>) {
    let mut turn = tokio::time::interval(SWEEP);
    turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        turn.tick().await;
        carry.watches.sweep(Instant::now());
    }
}
