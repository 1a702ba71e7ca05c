//! `health_check`: active probes.

use std::time::Duration;

use http::{Method, Uri};

use super::planner::Planner;
use crate::config::raw::HealthCheck;

/// Active probes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthPlan {
    /// Time between two rounds.
    pub interval: Duration,
    /// How long a probe may take.
    pub timeout: Duration,
    pub method: Method,
    /// Path, relative to the root of the backend's URL.
    pub path: String,
    /// The status of a healthy backend.
    pub expected_status: u16,
    /// Consecutive failures after which a backend is unhealthy.
    pub unhealthy_threshold: usize,
    /// Consecutive successes after which it is healthy again.
    pub healthy_threshold: usize,
}

impl Planner<'_> {
    pub(super) fn health_check(&mut self, raw: Option<&HealthCheck>) -> Option<HealthPlan> {
        let raw = raw.filter(|h| h.enabled)?;
        let at = |key: &str| format!("health_check.{key}");
        if raw.interval.0 < Duration::from_millis(10) {
            self.problem(at("interval"), "is shorter than 10ms", "the default is 30s");
        }
        if raw.timeout.0.is_zero() {
            self.problem(at("timeout"), "is zero", "the default is 5s");
        }
        for (key, n) in [
            ("unhealthy_threshold", raw.unhealthy_threshold),
            ("healthy_threshold", raw.healthy_threshold),
        ] {
            if n == 0 {
                self.problem(at(key), "is zero", "1 means after the first probe");
            }
        }
        if !(100..=599).contains(&raw.expected_status) {
            self.problem(at("expected_status"), "is not an HTTP status", "the default is 200");
        }
        if !raw.path.starts_with('/') || raw.path.parse::<Uri>().is_err() {
            self.problem(at("path"), "is not a path", "write `/health`");
        }
        let method = match raw.method.parse::<Method>() {
            Ok(method) if raw.method == raw.method.to_uppercase() => method,
            _ => {
                self.problem(
                    at("method"),
                    format!("`{}` is not an HTTP method", raw.method),
                    "write `GET`",
                );
                return None;
            }
        };
        Some(HealthPlan {
            interval: raw.interval.0,
            timeout: raw.timeout.0,
            method,
            path: raw.path.clone(),
            expected_status: raw.expected_status,
            unhealthy_threshold: raw.unhealthy_threshold,
            healthy_threshold: raw.healthy_threshold,
        })
    }
}
