//! Keeps limits tidy: forgets buckets that are full, and writes down what was spent.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::runtime::Carry;

/// From one look at what was spent to the next: what a process that is killed forgets.
const WRITE: Duration = Duration::from_secs(1);

/// Looks until the buckets are swept.
const SWEEP: u32 = 5;

/// For so long the same failure is not told of again.
const QUIET: Duration = Duration::from_secs(60);

/// Runs for ever.
pub async fn run(carry: Arc<Carry>) {
    let mut turn = tokio::time::interval(WRITE);
    turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told: Option<Instant> = None;
    for n in 1u32.. {
        turn.tick().await;
        if n % SWEEP == 0 {
            carry.limits.sweep();
        }
        match carry.limits.ledger().write().await {
            Ok(()) => {
                if told.take().is_some() {
                    log::info!("what was spent is written again");
                }
            }
            Err(why) if told.is_none_or(|at| at.elapsed() > QUIET) => {
                log::error!("what was spent cannot be written, and is kept in memory: {why}");
                told = Some(Instant::now());
            }
            Err(_) => {}
        }
    }
}
