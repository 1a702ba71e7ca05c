//! What an operator sees: metrics, the log, and one access line for each request.

pub mod access;
pub mod logger;
pub mod metrics;

mod usage;

pub use metrics::Metrics;
pub use usage::{DriftMetrics, UsageMetrics};
