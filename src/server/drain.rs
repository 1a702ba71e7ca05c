//! The end of the process: requests in flight, then their usage records and counts.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use crate::{
    runtime::{Carry, Live},
    telemetry::logger,
};

/// How long aborted requests may take to end.
const ABORTED_REQUESTS: Duration = Duration::from_secs(3);

/// How long records may still be delivered, and usage counted, after the last request has ended.
const LAST_DELIVERIES: Duration = Duration::from_secs(5);

/// How long the last records may take to be written, also after a second signal.
const LAST_WRITES: Duration = Duration::from_secs(1);

/// Waits for the requests in flight, then for their records and counts, and ends the process.
/// `at_once` ends every wait except the one for the last writes.
pub fn drain(live: &Live, carry: &Carry, timeout: Duration, at_once: &AtomicBool) {
    let wait = |longest: Duration, over: &dyn Fn() -> bool| {
        let end = Instant::now() + longest;
        while !over() && Instant::now() < end && !at_once.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let idle = || carry.metrics.in_flight.get() <= 0;
    wait(timeout, &idle);
    if !idle() {
        let open = carry.metrics.in_flight.get();
        log::warn!("the drain timeout is over: {open} requests are aborted");
        carry.watches.end_all(Instant::now());
        wait(ABORTED_REQUESTS, &idle);
        if !idle() {
            let open = carry.metrics.in_flight.get();
            log::error!("{open} requests could not be aborted; they have no usage record");
        }
    }
    carry.usage.finish();
    wait(LAST_DELIVERIES, &|| {
        // Returns also what a request has left behind that ended just now.
        if let Some(redis) = live.load().limits.redis() {
            redis.give_back();
        }
        let completed = carry.completing.load(Ordering::Relaxed) == 0;
        completed && is_counted(carry) && !carry.usage.busy()
    });
    log_uncounted(carry);
    write_last_records(carry);
    logger::flush();
    std::process::exit(0);
}

/// Whether the usage of every request is counted.
fn is_counted(carry: &Carry) -> bool {
    carry.limits.ledger().waiting() == 0
        && carry.metrics.counting.get() <= 0
        && carry.metrics.limits.pending.get() <= 0
}

fn log_uncounted(carry: &Carry) {
    let pending = carry.metrics.limits.pending.get();
    if pending > 0 {
        log::error!("the end of {pending} requests could not be reported to Redis");
    }
    let callers = carry.limits.ledger().waiting();
    if callers > 0 {
        log::error!("the last spending of {callers} callers could not be written");
    }
    let keys = carry.metrics.counting.get();
    if keys > 0 {
        log::error!("the usage of {keys} keys could not be counted");
    }
}

/// Writes the records that are still in memory to the spool; a second signal does not shorten this.
fn write_last_records(carry: &Carry) {
    let end = Instant::now() + LAST_WRITES;
    while carry.usage.unwritten() > 0 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    carry.usage.flush();
    let (unwritten, waiting) = (carry.usage.unwritten(), carry.usage.waiting());
    if unwritten > 0 {
        log::error!("{unwritten} usage records could not be written to the spool; they are lost");
    }
    match waiting {
        0 => log::info!("stopped"),
        left if carry.usage.durable() => {
            log::info!("stopped; {left} usage records wait in the spool for the next start");
        }
        lost => log::error!("stopped; {lost} usage records could not be delivered"),
    }
}
