//! Decides what is logged of a reporter's failures: the first one, one per interval while it fails, and
//! the recovery.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::base::lock;

/// Time between two warnings of a kind.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Time between two log lines about dead letters.
const DEAD_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The failures of a reporter.
#[derive(Default)]
pub struct FailureLog(Mutex<State>);

#[derive(Default)]
struct State {
    /// `None`: the last attempt succeeded, or there was none.
    failing: Option<Failing>,
    failure_logged: Option<Instant>,
    cursor_logged: Option<Instant>,
    append_logged: Option<Instant>,
    dead_logged: Option<Instant>,
    /// Records put aside since the last log line about it.
    dead: usize,
}

struct Failing {
    since: Instant,
    attempts: u64,
    why: String,
    logged: bool,
}

impl FailureLog {
    /// Records a failed attempt; the text to log, if it is to be logged.
    pub fn attempt_failed(&self, why: &str, now: Instant) -> Option<String> {
        let mut state = lock(&self.0);
        let quiet = state.failure_logged.is_some_and(|at| now.duration_since(at) < LOG_INTERVAL);
        let failing = state.failing.get_or_insert_with(|| Failing {
            since: now,
            attempts: 0,
            why: String::new(),
            logged: false,
        });
        failing.attempts += 1;
        why.clone_into(&mut failing.why);
        if quiet {
            return None;
        }
        failing.logged = true;
        let text = match failing.attempts {
            1 => why.to_owned(),
            n => {
                let time = now.duration_since(failing.since).as_secs();
                format!("{why}; {n} attempts have failed in {time}s")
            }
        };
        state.failure_logged = Some(now);
        Some(text)
    }

    /// Records a delivery; whether a recovery is to be logged.
    pub fn delivered(&self) -> bool {
        lock(&self.0).failing.take().is_some_and(|failing| failing.logged)
    }

    /// For how long attempts have failed, and why the last one did; `None`: the last attempt succeeded, or
    /// there was none.
    pub fn failing(&self, now: Instant) -> Option<(Duration, String)> {
        let state = lock(&self.0);
        state.failing.as_ref().map(|f| (now.duration_since(f.since), f.why.clone()))
    }

    /// Whether to log that the cursor could not be saved, which may happen for each batch.
    pub fn logs_unsaved_cursor(&self, now: Instant) -> bool {
        due(&mut lock(&self.0).cursor_logged, now)
    }

    /// Whether to log that records could not be put aside.
    pub fn logs_failed_append(&self, now: Instant) -> bool {
        due(&mut lock(&self.0).append_logged, now)
    }

    /// Counts records that were put aside; the number to log, if it is to be logged.
    pub fn put_aside(&self, records: usize, now: Instant) -> Option<usize> {
        let mut state = lock(&self.0);
        state.dead += records;
        if state.dead_logged.is_some_and(|at| now.duration_since(at) < DEAD_LOG_INTERVAL) {
            return None;
        }
        state.dead_logged = Some(now);
        Some(std::mem::take(&mut state.dead))
    }
}

/// Whether something is to be logged that was last logged at that time; if so, updates the time.
fn due(logged: &mut Option<Instant>, now: Instant) -> bool {
    let due = logged.is_none_or(|at| now.duration_since(at) >= LOG_INTERVAL);
    if due {
        *logged = Some(now);
    }
    due
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_once_a_minute_that_it_fails_and_once_that_it_works() {
        let log = FailureLog::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!log.delivered());
        assert_eq!(log.attempt_failed("away", at(0)).as_deref(), Some("away"));
        assert_eq!(log.attempt_failed("away", at(59)), None);
        let third = log.attempt_failed("still away", at(60));
        assert_eq!(third.as_deref(), Some("still away; 3 attempts have failed in 60s"));
        assert_eq!(log.failing(at(70)), Some((Duration::from_secs(70), "still away".to_owned())));
        assert!(log.delivered());
        assert_eq!(log.failing(at(70)), None);

        // No recovery is logged for a failure that was not.
        assert_eq!(log.attempt_failed("away", at(80)), None);
        assert!(!log.delivered());
    }

    #[test]
    fn says_once_a_minute_that_cursors_are_not_saved() {
        let log = FailureLog::default();
        let start = Instant::now();
        let logged =
            [0, 1, 59, 60, 61].map(|n| log.logs_unsaved_cursor(start + Duration::from_secs(n)));
        assert_eq!(logged, [true, false, false, true, false]);
    }

    #[test]
    fn sums_up_what_is_put_aside() {
        let log = FailureLog::default();
        let start = Instant::now();
        assert_eq!(log.put_aside(2, start), Some(2));
        assert_eq!(log.put_aside(3, start + Duration::from_secs(1)), None);
        assert_eq!(log.put_aside(4, start + Duration::from_secs(11)), Some(7));
    }
}
