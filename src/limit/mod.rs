//! How much one may call: requests, tokens, requests at the same time, budgets.
//!
//! A request's [`claim::Claims`] follow from the rules that match it. All of them are taken at once
//! or none is, by [`table`] in this process or by Redis for all replicas.

pub mod bucket;
pub mod claim;
pub mod table;
