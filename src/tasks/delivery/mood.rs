//! How a reporter has fared of late, told in the log: when it begins to fail, once in a while for as
//! long as it does, and when it works again.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::base::lock;

/// From one warning to the next.
const QUIET: Duration = Duration::from_secs(60);

/// From one line about dead letters to the next.
const DEAD_QUIET: Duration = Duration::from_secs(10);

/// The mood of a reporter.
#[derive(Default)]
pub struct Mood(Mutex<State>);

#[derive(Default)]
struct State {
    failing: Option<Failing>,
    warned: Option<Instant>,
    unkept_told: Option<Instant>,
    not_aside_told: Option<Instant>,
    dead_told: Option<Instant>,
    /// Records put aside since that was last told.
    dead: usize,
}

struct Failing {
    since: Instant,
    attempts: u64,
    why: String,
    /// There was a warning.
    told: bool,
}

impl Mood {
    /// An attempt has failed. `Some(text)` if that is to be told.
    pub fn failed(&self, why: &str, now: Instant) -> Option<String> {
        let mut state = lock(&self.0);
        let quiet = state.warned.is_some_and(|at| now.duration_since(at) < QUIET);
        let failing = state.failing.get_or_insert_with(|| Failing {
            since: now,
            attempts: 0,
            why: String::new(),
            told: false,
        });
        failing.attempts += 1;
        why.clone_into(&mut failing.why);
        if quiet {
            return None;
        }
        failing.told = true;
        let text = match failing.attempts {
            1 => why.to_owned(),
            n => {
                let time = now.duration_since(failing.since).as_secs();
                format!("{why}; {n} attempts have failed in {time}s")
            }
        };
        state.warned = Some(now);
        Some(text)
    }

    /// Records were delivered. Whether it is to be told that this works again.
    pub fn worked(&self) -> bool {
        lock(&self.0).failing.take().is_some_and(|failing| failing.told)
    }

    /// For how long nothing could be delivered, and why not; `None`: the last attempt has worked, or
    /// there was none.
    pub fn failing(&self, now: Instant) -> Option<(Duration, String)> {
        let state = lock(&self.0);
        state.failing.as_ref().map(|f| (now.duration_since(f.since), f.why.clone()))
    }

    /// The place could not be kept, which may be so for each batch. Whether that is to be told.
    pub fn unkept(&self, now: Instant) -> bool {
        due(&mut lock(&self.0).unkept_told, now)
    }

    /// Records could not be put aside either. Whether that is to be told.
    pub fn not_aside(&self, now: Instant) -> bool {
        due(&mut lock(&self.0).not_aside_told, now)
    }

    /// Records were put aside. `Some(n)`: it is to be told that so many were.
    pub fn dead(&self, records: usize, now: Instant) -> Option<usize> {
        let mut state = lock(&self.0);
        state.dead += records;
        if state.dead_told.is_some_and(|at| now.duration_since(at) < DEAD_QUIET) {
            return None;
        }
        state.dead_told = Some(now);
        Some(std::mem::take(&mut state.dead))
    }
}

/// Whether something is to be told that was last told at that time; then it is told now.
fn due(told: &mut Option<Instant>, now: Instant) -> bool {
    let due = told.is_none_or(|at| now.duration_since(at) >= QUIET);
    if due {
        *told = Some(now);
    }
    due
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_once_a_minute_that_it_fails_and_once_that_it_works() {
        let mood = Mood::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!mood.worked());
        assert_eq!(mood.failed("away", at(0)).as_deref(), Some("away"));
        assert_eq!(mood.failed("away", at(59)), None);
        let third = mood.failed("still away", at(60));
        assert_eq!(third.as_deref(), Some("still away; 3 attempts have failed in 60s"));
        assert_eq!(mood.failing(at(70)), Some((Duration::from_secs(70), "still away".to_owned())));
        assert!(mood.worked());
        assert_eq!(mood.failing(at(70)), None);

        // What was not told of is not told to be over.
        assert_eq!(mood.failed("away", at(80)), None);
        assert!(!mood.worked());
    }

    #[test]
    fn says_once_a_minute_that_places_are_not_kept() {
        let mood = Mood::default();
        let start = Instant::now();
        let told = [0, 1, 59, 60, 61].map(|n| mood.unkept(start + Duration::from_secs(n)));
        assert_eq!(told, [true, false, false, true, false]);
    }

    #[test]
    fn sums_up_what_is_put_aside() {
        let mood = Mood::default();
        let start = Instant::now();
        assert_eq!(mood.dead(2, start), Some(2));
        assert_eq!(mood.dead(3, start + Duration::from_secs(1)), None);
        assert_eq!(mood.dead(4, start + Duration::from_secs(11)), Some(7));
    }
}
