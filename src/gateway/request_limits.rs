//! What a request holds of its limits.

use crate::{base::limits::Standings, limit::Ticket};

/// A request and its limits.
#[derive(Default)]
pub struct RequestLimits {
    /// What it holds.
    pub ticket: Option<Ticket>,
    /// The states of its limits, for the header fields of its answer.
    pub standings: Option<Standings>,
    /// One of them has refused the request.
    pub refused: bool,
    /// All of it has been given back, and what was used has been counted.
    pub settled: bool,
    /// Bytes of the body, and the most tokens that the client allows (0 where none are generated);
    /// `None` for what is not inference.
    pub asked: Option<(usize, Option<u64>)>,
}
