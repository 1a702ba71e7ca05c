//! A server that is away is not asked by each request: that would make all of them wait for it.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::{base::lock, store::StoreError};

/// For so long nobody asks after a failure.
const PAUSE: Duration = Duration::from_millis(500);

/// What is known about an outage.
#[derive(Default)]
pub struct Outage(Mutex<Option<Known>>);

struct Known {
    why: StoreError,
    until: Instant,
    /// Someone is finding out whether it is over.
    probing: bool,
}

impl Outage {
    /// Whether one may ask. After an outage one question at a time may. Who may ask has to say how
    /// it went.
    ///
    /// # Errors
    /// What went wrong last.
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

    /// Whether there is one.
    pub fn is_on(&self) -> bool {
        lock(&self.0).is_some()
    }

    /// A question failed.
    pub fn failed(&self, why: StoreError, now: Instant) {
        *lock(&self.0) = Some(Known { why, until: now + PAUSE, probing: false });
    }

    /// A question was answered in time.
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
