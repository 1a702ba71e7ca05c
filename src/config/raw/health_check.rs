//! `health_check`: active probes.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scalar::Span;

/// Active probes.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HealthCheck {
    /// Whether to probe at all.
    pub enabled: bool,
    /// Time between two rounds of probes.
    pub interval: Span,
    /// How long a probe may take.
    pub timeout: Span,
    /// HTTP method.
    pub method: String,
    /// Path, relative to the path of the backend's URL without a `/v1` at its end.
    pub path: String,
    /// The status of a healthy backend.
    pub expected_status: u16,
    /// Consecutive failures after which a backend is unhealthy.
    pub unhealthy_threshold: usize,
    /// Consecutive successes after which it is healthy again.
    pub healthy_threshold: usize,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            enabled: true,
            interval: Span(Duration::from_secs(30)),
            timeout: Span(Duration::from_secs(5)),
            method: "GET".to_owned(),
            path: "/health".to_owned(),
            expected_status: 200,
            unhealthy_threshold: 3,
            healthy_threshold: 2,
        }
    }
}
