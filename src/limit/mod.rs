//! How much one may call: requests, tokens, requests at the same time, budgets.
//!
//! A request's [`claim::Claims`] follow from the rules that match it. All of them are taken at once
//! or none is, by [`table`] in this process or by [`redis`] for all replicas.

pub mod bucket;
pub mod claim;
pub mod estimate;
pub mod ledger;
pub mod limiter;
pub mod price;
pub mod queue;
pub mod redis;
pub mod rules;
pub mod table;
pub mod ticket;

pub use limiter::{Denial, Limiter, No, Shared, Wish};
pub use rules::Ask;
pub use ticket::{Came, Seen, Ticket};
