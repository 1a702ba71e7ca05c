//! `/admin/v1/usage`: usage records, sums over them, and the state of their delivery.

mod export;
mod filter;
mod records;
mod reporters;

pub use self::{export::*, records::*, reporters::*};
