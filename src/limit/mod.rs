//! Limits: requests, tokens, concurrent requests, budgets.
//!
//! A request's [`claim::Claims`] follow from the rules that match it. All of them are taken at once
//! or none is, by [`table`] in this process or by [`redis`] for all replicas.

mod admission;
pub mod bucket;
pub mod claim;
mod counters;
pub mod estimate;
pub mod ledger;
pub mod limiter;
pub mod price;
pub mod queue;
pub mod redis;
pub mod rules;
pub mod table;
pub mod ticket;

pub use admission::{AdmissionRequest, Denial, Rejected};
pub use claim::{ClaimState, Dim};
pub use limiter::{Limiter, Shared};
pub use rules::RequestFacts;
pub use ticket::{Consumption, CountSource, Ticket};
