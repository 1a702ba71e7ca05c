//! What a guard has found: for the metric, and for `explain`. The value itself is never a part of it.

use crate::base::Rejection;

/// How often a guard has found something in a request or an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The guard: `redact`, `deny`, `moderation`, `caps`.
    pub guard: &'static str,
    /// What was found: a kind of personal data, the name of a pattern or a cap, `prompt` or `answer`. Only
    /// names of the configuration.
    pub kind: String,
    /// What was done: `mask`, `unmask`, `refuse`, `clamp`, `end`.
    pub action: &'static str,
    /// How often.
    pub count: usize,
}

/// A request that does not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What the client is told.
    pub rejection: Rejection,
    pub findings: Vec<Finding>,
}
