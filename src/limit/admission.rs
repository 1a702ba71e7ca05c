//! A request before its admission, and the ways in which it is rejected.

use std::sync::Arc;

use super::{
    claim::{Claims, Dim},
    estimate::{Averages, Estimate},
};
use crate::base::Rejection;

/// The rule of denials because Redis cannot be reached.
pub(super) const REDIS: &str = "redis";

/// A request that has not been admitted yet.
#[derive(Default)]
pub struct AdmissionRequest {
    pub(super) claims: Claims,
    pub(super) estimate: Option<Estimate>,
    /// What the estimate is from; `None` for the first request for a model.
    pub(super) averages: Option<Arc<Averages>>,
    /// Size of the body.
    pub(super) bytes: usize,
    pub(super) max_tokens: Option<u64>,
    /// Queue class; a larger one is served first.
    pub class: i32,
}

impl AdmissionRequest {
    /// It counts as this many requests where requests are counted. Tokens and slots are as they are.
    pub fn weigh(&mut self, weight: u64) {
        let counts_requests = |dim| matches!(dim, Dim::RequestsPerSecond | Dim::RequestsPerMinute);
        for claim in self.claims.takes.iter_mut().filter(|claim| counts_requests(claim.dim)) {
            claim.amount = claim.amount.saturating_mul(weight);
        }
    }
}

/// A rejection and the rule that caused it.
pub struct Denial {
    pub rejection: Rejection,
    /// Set if quota or balance of a key is used up: when the quota is reset (Unix seconds), if ever.
    /// The auth pipeline words this rejection.
    pub quota: Option<Option<i64>>,
    /// `per_key.requests_per_minute`
    pub(super) rule: String,
}

impl Denial {
    /// Whether the limits could be checked.
    pub fn is_known(&self) -> bool {
        self.rule != REDIS
    }

    /// Whether only a slot was missing.
    pub fn is_for_slot(&self) -> bool {
        self.rule.ends_with(Dim::Concurrent.word())
    }
}

/// Why a request is not admitted.
pub enum Rejected {
    Denied(Denial),
    /// Only a slot is missing: the request may wait for one.
    NoSlot {
        /// The bucket that has no free slot.
        bucket: u64,
        /// For a request that does not wait.
        denial: Denial,
    },
}
