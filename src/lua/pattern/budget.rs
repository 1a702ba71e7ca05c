//! Bounds the work of matching.

use super::failure::{Failure, Result};

const STEPS_PER_CHECK: usize = 4096;

/// Counts steps, and calls `over` regularly to find out whether the time is over.
pub struct Budget<'a> {
    over: &'a dyn Fn() -> bool,
    left: usize,
}

impl<'a> Budget<'a> {
    /// Calls `over` about every 4096 steps. Calls in a loop should share one budget: a call with
    /// fewer steps would never check the time.
    pub fn new(over: &'a dyn Fn() -> bool) -> Self {
        Self { over, left: STEPS_PER_CHECK }
    }

    #[inline]
    pub(super) fn spend(&mut self, steps: usize) -> Result<()> {
        if steps < self.left {
            self.left -= steps;
            return Ok(());
        }
        self.left = STEPS_PER_CHECK;
        if (self.over)() { Err(Failure::Over) } else { Ok(()) }
    }
}
