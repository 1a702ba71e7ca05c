//! Balancing strategies, each a selection of pingora-load-balancing. One file a strategy.

mod round_robin;

pub use round_robin::RoundRobin;
