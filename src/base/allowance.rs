//! Quota and balance: how much a key may use.

use super::period::ResetPeriod;

/// Tokens that a key may use in a period.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quota {
    pub(super) used: f64,
    pub(super) total: f64,
    pub period: ResetPeriod,
    /// Unix seconds.
    pub last_reset_at: Option<i64>,
}

impl Quota {
    /// When the current period began, if it began after the last reset.
    pub(super) fn due_reset(&self, now: i64) -> Option<i64> {
        let last = self.last_reset_at?;
        self.period.start(now, Some(last)).filter(|start| *start > last)
    }

    /// Tokens used in the current period.
    pub(super) fn used(&self, now: i64) -> f64 {
        if self.due_reset(now).is_some() { 0.0 } else { self.used }
    }

    /// Tokens left in the current period.
    pub fn left(&self, now: i64) -> f64 {
        self.total - self.used(now)
    }

    /// When the next period begins; `None` if the quota is never reset.
    pub fn renews_at(&self, now: i64) -> Option<i64> {
        self.period.end(now, self.last_reset_at)
    }
}

/// Quota and balance of a key whose store cannot count usage (a key in the configuration file): the
/// gateway counts them itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Allowance {
    /// Tokens.
    pub quota: Option<Quota>,
    /// Money or credits.
    pub balance: Option<f64>,
    /// Whether the key is rejected once they are used up. If not they are only counted, and a
    /// script decides.
    pub enforced: bool,
}
