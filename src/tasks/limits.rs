//! Maintains the limits: removes full buckets, and writes spent amounts to disk.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::runtime::Carry;

/// Time between two writes: what a killed process loses.
const WRITE: Duration = Duration::from_secs(1);

/// Writes between two sweeps of the buckets.
const SWEEP: u32 = 5;

/// Time between two log lines about failed writes.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Runs until the process ends.
pub async fn run(carry: Arc<Carry>) {
    let mut turn = tokio::time::interval(WRITE);
    turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut logged: Option<Instant> = None;
    for n in 1u32.. {
        turn.tick().await;
        if n % SWEEP == 0 {
            carry.limits.sweep();
        }
        match carry.limits.ledger().write().await {
            Ok(()) => {
                if logged.take().is_some() {
                    log::info!("spent amounts are written again");
                }
            }
            Err(why) if logged.is_none_or(|at| at.elapsed() > LOG_INTERVAL) => {
                log::error!("spent amounts cannot be written and are kept in memory: {why}");
                logged = Some(Instant::now());
            }
            Err(_) => {}
        }
    }
}
