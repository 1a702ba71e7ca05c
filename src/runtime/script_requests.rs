//! The counts of the requests that scripts send.

use std::time::Duration;

use crate::{lua::HttpObserver, telemetry::HookMetrics};

/// Counts each request by the configured origin.
pub struct ScriptRequests(pub HookMetrics);

impl HttpObserver for ScriptRequests {
    fn request(&self, host: &str, result: &'static str, took: Duration) {
        self.0.http_requests.with_label_values(&[host, result]).inc();
        self.0.http_seconds.with_label_values(&[host]).observe(took.as_secs_f64());
    }
}
