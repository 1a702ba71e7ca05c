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
    /// `llmproxy_script_http_requests_total{host,result}`: requests that scripts sent, by the configured
    /// origin: a class of status (`2xx`), or `timeout`, `busy`, `too_large`, `failed`.
    pub http_requests: IntCounterVec,
    /// `llmproxy_script_http_seconds{host}`: duration of such a request, from the call to its result.
    pub http_seconds: HistogramVec,
}

impl HookMetrics {
    pub(super) fn new(r: &Registry) -> Self {
        let opts = Opts::new("llmproxy_hook_calls_total", "Runs of hook scripts");
        let calls = IntCounterVec::new(opts, &["stage", "script", "result"]);
        let buckets = vec![0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.001, 0.01, 0.1, 1.0];
        let opts = HistogramOpts::new("llmproxy_hook_seconds", "Duration of runs of hook scripts");
        let seconds = HistogramVec::new(opts.buckets(buckets), &["stage", "script"]);
        let opts = Opts::new("llmproxy_script_http_requests_total", "Requests that scripts sent");
        let http_requests = IntCounterVec::new(opts, &["host", "result"]);
        let opts =
            HistogramOpts::new("llmproxy_script_http_seconds", "Duration of requests of scripts");
        let buckets = vec![0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
        let http_seconds = HistogramVec::new(opts.buckets(buckets), &["host"]);
        Self {
            calls: register(r, calls),
            seconds: register(r, seconds),
            http_requests: register(r, http_requests),
            http_seconds: register(r, http_seconds),
        }
    }
}
