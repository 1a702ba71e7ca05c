//! The metrics of scripts.

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

use super::register::register;

/// The metrics of scripts at the stages of a request.
#[derive(Clone)]
pub struct HookMetrics {
    /// `llmproxy_hook_calls_total{stage,script,result}`: runs of a script: `nothing` (it changed nothing),
    /// `changed`, `refused`, `error`, `timeout`, `memory` (it exceeded its limit) or `busy` (too
    /// many slow runs).
    pub calls: IntCounterVec,
    /// `llmproxy_hook_seconds{stage,script}`: duration of a run, waits included.
    pub seconds: HistogramVec,
}

impl HookMetrics {
    pub(super) fn new(r: &Registry) -> Self {
        let opts = Opts::new("llmproxy_hook_calls_total", "Runs of hook scripts");
        let calls = IntCounterVec::new(opts, &["stage", "script", "result"]);
        let buckets = vec![0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.001, 0.01, 0.1, 1.0];
        let opts = HistogramOpts::new("llmproxy_hook_seconds", "Duration of runs of hook scripts");
        let seconds = HistogramVec::new(opts.buckets(buckets), &["stage", "script"]);
        Self { calls: register(r, calls), seconds: register(r, seconds) }
    }
}
