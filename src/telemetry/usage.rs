//! The metrics of usage records and of reconciliation.

use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::register::{gauges, register};

/// The metrics of usage records.
#[derive(Clone)]
pub struct UsageMetrics {
    /// `llmproxy_webhook_success_total`: records accepted by a webhook.
    pub webhook_success: IntCounter,
    /// `llmproxy_webhook_failure_total`: records that a webhook did not accept: given up, or
    /// dead letters.
    pub webhook_failure: IntCounter,
    /// `llmproxy_webhook_queue_depth`: records that wait for the slowest webhook.
    pub webhook_queue: IntGauge,
    /// `llmproxy_usage_delivered_total{reporter}`: delivered records.
    pub delivered: IntCounterVec,
    /// `llmproxy_usage_delivery_errors_total{reporter}`: failed attempts.
    pub errors: IntCounterVec,
    /// `llmproxy_usage_dead_letters_total{reporter}`: records that became dead letters.
    pub dead: IntCounterVec,
    /// `llmproxy_usage_dead_letters_bytes{reporter}`: the size of the files with dead letters.
    pub dead_bytes: IntGaugeVec,
    /// `llmproxy_usage_waiting{reporter}`: undelivered records.
    pub waiting: IntGaugeVec,
    /// `llmproxy_usage_oldest_waiting_seconds{reporter}`: the age of the oldest of them.
    pub oldest: GaugeVec,
    /// `llmproxy_usage_reporter_disabled{reporter}`: 1 once its receiver has answered 410.
    pub disabled: IntGaugeVec,
    /// `llmproxy_usage_records_lost_total{reason}`: records that will never be delivered: `queue_full`
    /// (they could not be written fast enough, or not at all), `spool_full` (the oldest were dropped; the
    /// delivery of a few may have been running), `damaged` (they cannot be read, or were removed), `foreign`
    /// (they are in a foreign file and could not be added to the spool), `given_up` (without a spool on disk:
    /// they could not be delivered), `unknown_caller` (requests rejected for a missing or unknown key: no
    /// record is made while waiting records take more than half of the spool).
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
            "Usage records that will never be delivered",
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
                "Usage records that a webhook did not accept: given up, or dead letters",
            ),
            webhook_queue: gauge(
                "llmproxy_webhook_queue_depth",
                "Usage records that wait for a webhook",
            ),
            delivered: counters(
                "llmproxy_usage_delivered_total",
                "Delivered usage records",
                "reporter",
            ),
            errors: counters(
                "llmproxy_usage_delivery_errors_total",
                "Failed attempts to deliver usage records",
                "reporter",
            ),
            dead: counters(
                "llmproxy_usage_dead_letters_total",
                "Usage records that became dead letters because they could not be delivered",
                "reporter",
            ),
            dead_bytes: gauges(
                r,
                "llmproxy_usage_dead_letters_bytes",
                "Bytes of dead letters that have not been replayed",
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
                "Age in seconds of the oldest usage record that a reporter has not delivered",
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

    /// Removes the series of a reporter that is no longer in use.
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
    /// `llmproxy_usage_spool_bytes`: the size of the spool, including records kept for a replay.
    pub bytes: IntGauge,
    /// `llmproxy_usage_spool_waiting_bytes`: the part that a reporter still needs.
    pub waiting_bytes: IntGauge,
    /// `llmproxy_usage_spool_max_bytes`: the limit of the waiting part.
    pub max_bytes: IntGauge,
    /// `llmproxy_usage_spool_sync_errors_total`: failed syncs to disk. After one, records
    /// written before it may be lost.
    pub sync_errors: IntCounter,
    /// `llmproxy_usage_spool_foreign_files`: foreign files in its folder, including those that were
    /// moved aside.
    pub foreign: IntGauge,
    /// `llmproxy_usage_spool_adopted_total`: records of foreign files that were added to it.
    pub adopted: IntCounter,
    /// `llmproxy_usage_spool_full`: 1 while there is no space for new records.
    pub full: IntGauge,
}

impl SpoolMetrics {
    fn new(r: &Registry) -> Self {
        let counter = |name: &str, help: &str| register(r, IntCounter::new(name, help));
        let gauge = |name: &str, help: &str| register(r, IntGauge::new(name, help));
        Self {
            bytes: gauge("llmproxy_usage_spool_bytes", "Bytes of the usage spool"),
            waiting_bytes: gauge(
                "llmproxy_usage_spool_waiting_bytes",
                "Bytes of the usage spool that a reporter has not delivered",
            ),
            max_bytes: gauge(
                "llmproxy_usage_spool_max_bytes",
                "The most bytes of the usage spool that may wait",
            ),
            sync_errors: counter(
                "llmproxy_usage_spool_sync_errors_total",
                "How often usage records could not be synced to disk",
            ),
            foreign: gauge(
                "llmproxy_usage_spool_foreign_files",
                "Files in the folder of the usage spool that do not belong to it",
            ),
            adopted: counter(
                "llmproxy_usage_spool_adopted_total",
                "Usage records of foreign files that were added to the spool",
            ),
            full: gauge(
                "llmproxy_usage_spool_full",
                "Whether there is no space for new usage records",
            ),
        }
    }
}

/// The metrics of reconciliation; `type` is `prompt` or `completion`.
#[derive(Clone)]
pub struct DriftMetrics {
    /// `llmproxy_usage_engine_tokens_total{backend,type}`: tokens that vLLM itself has counted since
    /// its first scrape.
    pub engine_tokens: IntCounterVec,
    /// `llmproxy_usage_metered_tokens_total{backend,type}`: tokens metered since then.
    pub metered_tokens: IntCounterVec,
    /// `llmproxy_usage_drift_tokens{backend,type}`: the difference of both over the window.
    pub drift_tokens: GaugeVec,
    /// `llmproxy_usage_drift_ratio{backend,type}`: that difference divided by the tokens of the
    /// engine.
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
                "Tokens that an engine has counted since its first scrape",
                &of,
            ),
            metered_tokens: counters(
                "llmproxy_usage_metered_tokens_total",
                "Tokens metered at a backend since the first scrape of its engine",
                &of,
            ),
            drift_tokens: floats(
                "llmproxy_usage_drift_tokens",
                "Tokens that an engine counted and the gateway did not meter, over the window",
                &of,
            ),
            drift_ratio: floats(
                "llmproxy_usage_drift_ratio",
                "The drift divided by the tokens that the engine counted, over the window",
                &of,
            ),
        }
    }

    /// Removes the series of a backend that is no longer in use.
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
