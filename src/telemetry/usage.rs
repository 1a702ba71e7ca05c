//! The metrics of usage records and of reconciliation.

use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::register::{gauges, register};

/// The metrics of usage records.
#[derive(Clone)]
pub struct UsageMetrics {
    /// `llmproxy_webhook_success_total`: records accepted by a webhook.
    pub webhook_success: IntCounter,
    /// `llmproxy_webhook_failure_total`: records that a webhook did not take, and that were given up
    /// or put aside with the dead letters.
    pub webhook_failure: IntCounter,
    /// `llmproxy_webhook_queue_depth`: records that wait for a webhook: the most of all.
    pub webhook_queue: IntGauge,
    /// `llmproxy_usage_delivered_total{reporter}`: records that were delivered.
    pub delivered: IntCounterVec,
    /// `llmproxy_usage_delivery_errors_total{reporter}`: attempts that failed.
    pub errors: IntCounterVec,
    /// `llmproxy_usage_dead_letters_total{reporter}`: records put aside.
    pub dead: IntCounterVec,
    /// `llmproxy_usage_dead_letters_bytes{reporter}`: the size of the file with those that are there.
    pub dead_bytes: IntGaugeVec,
    /// `llmproxy_usage_waiting{reporter}`: records that it has not delivered.
    pub waiting: IntGaugeVec,
    /// `llmproxy_usage_oldest_waiting_seconds{reporter}`: the age of the oldest of them.
    pub oldest: GaugeVec,
    /// `llmproxy_usage_reporter_disabled{reporter}`: 1 once its receiver has answered 410.
    pub disabled: IntGaugeVec,
    /// `llmproxy_usage_records_lost_total{reason}`: records that nobody will ever get: `queue_full`
    /// (they could not be written as fast as they came, or not at all), `spool_full` (the oldest
    /// were dropped; a few may have been on their way), `damaged` (they cannot be read any more, or were removed),
    /// `foreign` (they stand in a file that does not belong to the spool, and were not taken over), `given_up` (without a spool on disk:
    /// they could not be delivered), `unknown_caller` (requests refused for want of a key, of which no
    /// record is made while more than half of the spool's room is taken).
    pub lost: IntCounterVec,
    /// The spool.
    pub spool: SpoolMetrics,
    /// Reconciliation.
    pub drift: DriftMetrics,
}

impl UsageMetrics {
    pub(super) fn new(r: &Registry) -> Self {
        let counter = |name: &str, help: &str| register(r, IntCounter::new(name, help));
        let gauge = |name: &str, help: &str| register(r, IntGauge::new(name, help));
        let counters = |name: &str, help: &str, label: &str| {
            register(r, IntCounterVec::new(Opts::new(name, help), &[label]))
        };
        let floats = |name: &str, help: &str, labels: &[&str]| {
            register(r, GaugeVec::new(Opts::new(name, help), labels))
        };
        let lost = counters(
            "llmproxy_usage_records_lost_total",
            "Usage records that nobody will ever get",
            "reason",
        );
        for reason in
            ["queue_full", "spool_full", "damaged", "foreign", "given_up", "unknown_caller"]
        {
            lost.with_label_values(&[reason]);
        }
        Self {
            webhook_success: counter(
                "llmproxy_webhook_success_total",
                "Usage records accepted by a webhook",
            ),
            webhook_failure: counter(
                "llmproxy_webhook_failure_total",
                "Usage records that a webhook did not take: given up or put aside",
            ),
            webhook_queue: gauge(
                "llmproxy_webhook_queue_depth",
                "Usage records that wait for a webhook",
            ),
            delivered: counters(
                "llmproxy_usage_delivered_total",
                "Usage records that were delivered",
                "reporter",
            ),
            errors: counters(
                "llmproxy_usage_delivery_errors_total",
                "Attempts to deliver usage records that failed",
                "reporter",
            ),
            dead: counters(
                "llmproxy_usage_dead_letters_total",
                "Usage records put aside, because they could not be delivered",
                "reporter",
            ),
            dead_bytes: gauges(
                r,
                "llmproxy_usage_dead_letters_bytes",
                "The size of the usage records that were put aside and not replayed",
                "reporter",
            ),
            waiting: gauges(
                r,
                "llmproxy_usage_waiting",
                "Usage records that a reporter has not delivered",
                "reporter",
            ),
            oldest: floats(
                "llmproxy_usage_oldest_waiting_seconds",
                "The age of the oldest record that a reporter has not delivered",
                &["reporter"],
            ),
            disabled: gauges(
                r,
                "llmproxy_usage_reporter_disabled",
                "Whether the receiver of a reporter wants no more records (410)",
                "reporter",
            ),
            lost,
            spool: SpoolMetrics::new(r),
            drift: DriftMetrics::new(r),
        }
    }

    /// A reporter that is not in use any more is not in the gauges either.
    pub fn forget(&self, reporter: &str) {
        self.dead_bytes.remove_label_values(&[reporter]).ok();
        self.waiting.remove_label_values(&[reporter]).ok();
        self.oldest.remove_label_values(&[reporter]).ok();
        self.disabled.remove_label_values(&[reporter]).ok();
    }
}

/// The metrics of the spool.
#[derive(Clone)]
pub struct SpoolMetrics {
    /// `llmproxy_usage_spool_bytes`: the size of the spool, what is kept for a replay included.
    pub bytes: IntGauge,
    /// `llmproxy_usage_spool_waiting_bytes`: the part that some reporter still needs.
    pub waiting_bytes: IntGauge,
    /// `llmproxy_usage_spool_max_bytes`: how much may wait.
    pub max_bytes: IntGauge,
    /// `llmproxy_usage_spool_sync_errors_total`: records could not be forced to the disk. After one
    /// the disk may have lost what was written before it.
    pub sync_errors: IntCounter,
    /// `llmproxy_usage_spool_foreign_files`: files in its folder that do not belong to it, and that
    /// were put aside.
    pub foreign: IntGauge,
    /// `llmproxy_usage_spool_adopted_total`: records of such files that were added to it.
    pub adopted: IntCounter,
    /// `llmproxy_usage_spool_full`: 1 while there is no room for new records.
    pub full: IntGauge,
}

impl SpoolMetrics {
    fn new(r: &Registry) -> Self {
        let counter = |name: &str, help: &str| register(r, IntCounter::new(name, help));
        let gauge = |name: &str, help: &str| register(r, IntGauge::new(name, help));
        Self {
            bytes: gauge("llmproxy_usage_spool_bytes", "The size of the usage spool"),
            waiting_bytes: gauge(
                "llmproxy_usage_spool_waiting_bytes",
                "The part of the usage spool that is not delivered everywhere",
            ),
            max_bytes: gauge(
                "llmproxy_usage_spool_max_bytes",
                "How much of the usage spool may wait",
            ),
            sync_errors: counter(
                "llmproxy_usage_spool_sync_errors_total",
                "How often usage records could not be forced to the disk",
            ),
            foreign: gauge(
                "llmproxy_usage_spool_foreign_files",
                "Files in the folder of the usage spool that do not belong to it",
            ),
            adopted: counter(
                "llmproxy_usage_spool_adopted_total",
                "Usage records of files that did not belong to the spool, added to it",
            ),
            full: gauge(
                "llmproxy_usage_spool_full",
                "Whether there is no room for new usage records",
            ),
        }
    }
}

/// The metrics of reconciliation; `type` is `prompt` or `completion`.
#[derive(Clone)]
pub struct DriftMetrics {
    /// `llmproxy_usage_engine_tokens_total{backend,type}`: what vLLM itself has counted since it was
    /// first asked; for reconciliation.
    pub engine_tokens: IntCounterVec,
    /// `llmproxy_usage_metered_tokens_total{backend,type}`: what was metered meanwhile.
    pub metered_tokens: IntCounterVec,
    /// `llmproxy_usage_drift_tokens{backend,type}`: the first less the second, over the window.
    pub drift_tokens: GaugeVec,
    /// `llmproxy_usage_drift_ratio{backend,type}`: that, by what the engine has counted.
    pub drift_ratio: GaugeVec,
}

impl DriftMetrics {
    fn new(r: &Registry) -> Self {
        let floats = |name: &str, help: &str, labels: &[&str]| {
            register(r, GaugeVec::new(Opts::new(name, help), labels))
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            register(r, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let of = ["backend", "type"];
        Self {
            engine_tokens: counters(
                "llmproxy_usage_engine_tokens_total",
                "Tokens that an engine has counted itself since it was first asked",
                &of,
            ),
            metered_tokens: counters(
                "llmproxy_usage_metered_tokens_total",
                "Tokens that were metered at a backend since its engine was first asked",
                &of,
            ),
            drift_tokens: floats(
                "llmproxy_usage_drift_tokens",
                "Tokens that an engine has counted and that were not metered, over the window",
                &of,
            ),
            drift_ratio: floats(
                "llmproxy_usage_drift_ratio",
                "The drift by what the engine has counted, over the window",
                &of,
            ),
        }
    }

    /// A backend that is not in use any more is not in the metrics either.
    pub fn forget(&self, backend: &str) {
        for kind in ["prompt", "completion"] {
            for counter in [&self.engine_tokens, &self.metered_tokens] {
                counter.remove_label_values(&[backend, kind]).ok();
            }
            for gauge in [&self.drift_tokens, &self.drift_ratio] {
                gauge.remove_label_values(&[backend, kind]).ok();
            }
        }
    }
}
