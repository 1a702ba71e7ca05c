//! The metrics of limits.

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry};

use super::register::register;

/// The metrics of limits.
#[derive(Clone)]
pub struct LimitMetrics {
    /// `llmproxy_limit_refused_total{rule}`: requests refused by a limit, a budget or a full queue;
    /// `rule` is `per_key.requests_per_minute` and so on.
    pub refused: IntCounterVec,
    /// `llmproxy_limit_queue_depth`: requests that wait for a slot.
    pub queue: IntGauge,
    /// `llmproxy_limit_queue_wait_seconds{result}`: how long they waited: `admitted`, `timeout`,
    /// `refused` (pushed out by another key, or by another limit) or `left` (the client has gone).
    pub waits: HistogramVec,
    /// `llmproxy_limit_buckets`: limits that are counted in memory.
    pub buckets: IntGauge,
    /// `llmproxy_token_estimate_ratio{kind}`: tokens as guessed before a request, by the tokens that
    /// were metered after it; `prompt` and `completion`.
    pub estimates: HistogramVec,
    /// `llmproxy_limit_store_errors_total{action}`: questions about limits that Redis did not
    /// answer: to `take`, to `settle` what a request came to, to `renew` what is held.
    pub store_errors: IntCounterVec,
    /// `llmproxy_limit_store_pending`: questions about limits that are under way to Redis, and
    /// requests that have ended of which it has not been told yet.
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
            "Questions about limits that Redis did not answer",
            "action",
        );
        for action in ["take", "settle", "renew"] {
            store_errors.with_label_values(&[action]);
        }
        Self {
            refused: counters(
                "llmproxy_limit_refused_total",
                "Requests refused by a limit",
                "rule",
            ),
            queue: gauge("llmproxy_limit_queue_depth", "Requests that wait for a slot"),
            waits: histograms(
                "llmproxy_limit_queue_wait_seconds",
                "How long requests waited for a slot",
                &WAIT,
                "result",
            ),
            buckets: gauge("llmproxy_limit_buckets", "Limits that are counted in memory"),
            estimates: histograms(
                "llmproxy_token_estimate_ratio",
                "Tokens as guessed before a request, by those metered after it",
                &RATIO,
                "kind",
            ),
            store_errors,
            pending: gauge(
                "llmproxy_limit_store_pending",
                "What Redis has not answered about limits, or has not been told",
            ),
        }
    }
}

/// Seconds.
const WAIT: [f64; 10] = [0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0];
/// Estimated by metered.
const RATIO: [f64; 11] = [0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 2.0, 4.0, 10.0];
