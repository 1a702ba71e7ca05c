//! Telemetry: metrics, the log, and the access log.

pub mod access;
pub mod logger;
pub mod metrics;

mod hooks;
mod limits;
mod models;
mod process;
mod register;
mod usage;

pub use hooks::HookMetrics;
pub use limits::LimitMetrics;
pub use metrics::{ConnectionMetrics, Metrics};
pub use models::ModelTokens;
pub use usage::{DriftMetrics, UsageMetrics};
