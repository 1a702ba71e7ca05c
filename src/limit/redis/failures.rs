//! Counts and logs the failures of calls to Redis.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use prometheus::IntCounterVec;

use crate::{base::lock, store::StoreError};

/// Shortest time between two log lines.
const QUIET: Duration = Duration::from_secs(1);

/// What a call was for.
#[derive(Clone, Copy)]
pub enum Action {
    Take,
    Settle,
    Renew,
}

impl Action {
    fn word(self) -> &'static str {
        match self {
            Self::Take => "take",
            Self::Settle => "settle",
            Self::Renew => "renew",
        }
    }
}

/// Failures of one counter.
pub struct Failures {
    errors: IntCounterVec,
    logged: Mutex<Option<Instant>>,
}

impl Failures {
    pub fn new(errors: IntCounterVec) -> Self {
        Self { errors, logged: Mutex::default() }
    }

    /// Counts a failure, and logs it at most once a second.
    pub fn report(&self, action: Action, why: &StoreError) {
        self.errors.with_label_values(&[action.word()]).inc();
        let mut logged = lock(&self.logged);
        if !logged.is_some_and(|at| at.elapsed() < QUIET) {
            log::warn!("limits: Redis did not {}: {why}", action.word());
            *logged = Some(Instant::now());
        }
    }
}
