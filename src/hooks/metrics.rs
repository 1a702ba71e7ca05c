//! The counts of one script at one stage.

use std::time::Duration;

use prometheus::{Histogram, IntCounter};

use crate::{base::Stage, lua::Failure, telemetry::Metrics};

/// Bound once, when the script is loaded.
pub(super) struct HookMetrics {
    seconds: Histogram,
    nothing: IntCounter,
    changed: IntCounter,
    refused: IntCounter,
    error: IntCounter,
    timeout: IntCounter,
    memory: IntCounter,
    busy: IntCounter,
}

impl HookMetrics {
    pub fn new(metrics: &Metrics, stage: Stage, script: &str) -> Self {
        let calls = |result| metrics.hooks.calls.with_label_values(&[stage.key(), script, result]);
        Self {
            seconds: metrics.hooks.seconds.with_label_values(&[stage.key(), script]),
            nothing: calls("nothing"),
            changed: calls("changed"),
            refused: calls("refused"),
            error: calls("error"),
            timeout: calls("timeout"),
            memory: calls("memory"),
            busy: calls("busy"),
        }
    }

    pub fn took(&self, time: Duration) {
        self.seconds.observe(time.as_secs_f64());
    }

    pub fn succeeded(&self, word: &'static str) {
        match word {
            "nothing" => self.nothing.inc(),
            "refused" => self.refused.inc(),
            _ => self.changed.inc(),
        }
    }

    pub fn failed(&self, failure: &Failure) {
        match failure {
            Failure::Time(_) => self.timeout.inc(),
            Failure::Memory(_) => self.memory.inc(),
            Failure::Busy => self.busy.inc(),
            _ => self.error.inc(),
        }
    }
}
