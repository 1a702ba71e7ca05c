//! Warnings about a provider that are not repeated all the time.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::base::lock;

/// Shortest time between two equal warnings.
const QUIET: Duration = Duration::from_secs(1);

/// Logs the failures of one provider, but the same one at most once a second.
pub struct WarnOnce {
    name: String,
    last: Mutex<Option<(Instant, String)>>,
}

impl WarnOnce {
    /// `name` is the provider's name.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), last: Mutex::default() }
    }

    /// The provider's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn warn(&self, what: &str) {
        let mut last = lock(&self.last);
        let repeated = |(at, text): &(Instant, String)| at.elapsed() < QUIET && text == what;
        if !last.as_ref().is_some_and(repeated) {
            log::warn!("auth provider {}: {what}", self.name);
            *last = Some((Instant::now(), what.to_owned()));
        }
    }
}
