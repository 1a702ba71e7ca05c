//! From a model to the pools that serve it.

mod layout;
mod router;

pub use router::{PoolSpec, Route, RouteTarget, Router, Split, Tier};
