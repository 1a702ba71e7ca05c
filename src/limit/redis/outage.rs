//! While Redis cannot be reached, requests do not ask it: otherwise all of them would wait for it.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::{base::lock, store::StoreError};

/// Time without calls after a failure.
const PAUSE: Duration = Duration::from_millis(500);

/// The current outage, if any.
#[derive(Default)]
pub struct Outage(Mutex<Option<LastFailure>>);

struct LastFailure {
    why: StoreError,
    until: Instant,
    /// One call is under way to find out whether the outage is over.
    probing: bool,
}

impl Outage {
    /// Whether a call may be made. During an outage one call at a time probes the server. The caller
    /// must report the result with [`Self::failed`] or [`Self::over`].
    ///
    /// # Errors
    /// The last failure.
    pub fn may_ask(&self, now: Instant) -> Result<(), StoreError> {
        match &mut *lock(&self.0) {
            None => Ok(()),
            Some(known) if known.probing || now < known.until => Err(known.why.clone()),
            Some(known) => {
                known.probing = true;
                Ok(())
            }
        }
    }

    pub fn is_on(&self) -> bool {
        lock(&self.0).is_some()
    }

    /// Reports a failed call.
    pub fn failed(&self, why: StoreError, now: Instant) {
        *lock(&self.0) = Some(LastFailure { why, until: now + PAUSE, probing: false });
    }

    /// Reports a call that was answered in time.
    pub fn over(&self) {
        *lock(&self.0) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_finds_out_whether_it_is_over() {
        let (outage, start) = (Outage::default(), Instant::now());
        assert_eq!(outage.may_ask(start), Ok(()));
        let why = StoreError::new("gone");
        outage.failed(why.clone(), start);
        assert_eq!(outage.may_ask(start + PAUSE / 2), Err(why.clone()));
        assert_eq!(outage.may_ask(start + PAUSE), Ok(()));
        assert_eq!(outage.may_ask(start + PAUSE * 2), Err(why.clone()));
        outage.failed(why.clone(), start + PAUSE * 2);
        assert_eq!(outage.may_ask(start + PAUSE * 2), Err(why));
        assert_eq!(outage.may_ask(start + PAUSE * 3), Ok(()));
        outage.over();
        assert_eq!(outage.may_ask(start), Ok(()));
    }
}
