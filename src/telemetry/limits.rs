//! The metrics of limits.

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry};

use super::register::register;

/// The metrics of limits.
#[derive(Clone)]
pub struct LimitMetrics {
    /// `llmproxy_limit_refused_total{rule}`: requests rejected by a limit, a budget or a full queue;
    /// `rule` is `per_key.requests_per_minute` and so on.
    pub refused: IntCounterVec,
    /// `llmproxy_limit_queue_depth`: requests that wait for a slot.
    pub queue: IntGauge,
    /// `llmproxy_limit_queue_wait_seconds{result}`: how long they waited: `admitted`, `timeout`,
    /// `refused` (displaced by another key, or rejected by another limit) or `left` (the client
    /// disconnected).
    pub waits: HistogramVec,
    /// `llmproxy_limit_buckets`: counters of limits in memory.
    pub buckets: IntGauge,
    /// `llmproxy_token_estimate_ratio{kind}`: estimated tokens of a request divided by its
    /// metered tokens; `prompt` and `completion`.
    pub estimates: HistogramVec,
    /// `llmproxy_limit_store_errors_total{action}`: calls that Redis did not answer: to `take`, to
    /// `settle` a finished request, to `renew` leases.
    pub store_errors: IntCounterVec,
    /// `llmproxy_limit_store_pending`: running calls to Redis, and finished requests that are still to
    /// be reported to it.
    pub pending: IntGauge,
}

impl LimitMetrics {
    pub(super) fn new(r: &Registry) -> Self {
        let gauge = |name: &str, help: &str| register(r, IntGauge::new(name, help));
        let counters = |name: &str, help: &str, label: &str| {
            register(r, IntCounterVec::new(Opts::new(name, help), &[label]))
        };
        let histograms = |name: &str, help: &str, buckets: &[f64], label: &str| {
            let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            register(r, HistogramVec::new(opts, &[label]))
        };
        let store_errors = counters(
            "llmproxy_limit_store_errors_total",
            "Calls about limits that Redis did not answer",
            "action",
        );
        for action in ["take", "settle", "renew"] {
            store_errors.with_label_values(&[action]);
        }
        Self {
            refused: counters(
                "llmproxy_limit_refused_total",
                "Requests rejected by a limit",
                "rule",
            ),
            queue: gauge("llmproxy_limit_queue_depth", "Requests that wait for a slot"),
            waits: histograms(
                "llmproxy_limit_queue_wait_seconds",
                "Seconds that requests waited for a slot",
                &WAIT,
                "result",
            ),
            buckets: gauge("llmproxy_limit_buckets", "Counters of limits in memory"),
            estimates: histograms(
                "llmproxy_token_estimate_ratio",
                "Estimated tokens of a request divided by its metered tokens",
                &RATIO,
                "kind",
            ),
            store_errors,
            pending: gauge(
                "llmproxy_limit_store_pending",
                "Calls about limits that Redis has not answered, and finished requests not yet reported to it",
            ),
        }
    }
}

/// Seconds.
const WAIT: [f64; 10] = [0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0];
/// Estimated divided by metered tokens.
const RATIO: [f64; 11] = [0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 2.0, 4.0, 10.0];
