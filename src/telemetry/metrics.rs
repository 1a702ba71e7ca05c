//! Every metric, declared once.
//!
//! Labels are bounded: `path` is a path that the gateway serves or `other`; `backend` is the name of a
//! backend, or empty if none was reached; `stream` is `true` or `false`; `model` is a name in the
//! configuration, one of the first names that backends served, or `other`. If each address of a backend is
//! an endpoint of its own, only gauges have a series per address, which is removed with the address: series
//! of counters would accumulate.

use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use super::{
    hooks::HookMetrics,
    limits::LimitMetrics,
    models::ModelTokens,
    process,
    register::{gauges, register},
    usage::UsageMetrics,
};
use crate::base::Side;

/// The metrics of one process; clones share them.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    /// `llmproxy_requests_total{path,stream,backend,status}`: finished requests, including rejected
    /// ones.
    pub requests: IntCounterVec,
    /// `llmproxy_errors_total{side,reason}`: finished requests that failed, by the side at fault.
    pub errors: IntCounterVec,
    /// `llmproxy_latency_ms{path,stream,backend}`: duration of a request, in milliseconds.
    pub latency_ms: HistogramVec,
    /// `llmproxy_time_to_first_token_seconds`: from the request's arrival to the first event of a
    /// stream.
    pub first_token: Histogram,
    /// `llmproxy_inter_token_latency_seconds`: from one event of a stream to the next.
    pub inter_token: Histogram,
    /// `llmproxy_requests_in_flight`.
    pub in_flight: IntGauge,
    /// `llmproxy_backend_up{backend}`: 1 or 0; `NAME@ADDRESS` for each of several addresses.
    pub backend_up: IntGaugeVec,
    /// Balancing.
    pub balance: BalanceMetrics,
    /// `llmproxy_discovery_up{source}`: 1 if the source answered the last query.
    pub discovery_up: IntGaugeVec,
    /// `llmproxy_discovery_backends{source}`: backends in its last answer.
    pub discovery_backends: IntGaugeVec,
    /// `llmproxy_retries_total{reason}`: further attempts at another backend or on another connection.
    pub retries: IntCounterVec,
    /// `llmproxy_retry_budget_exhausted_total`: retries that were not made because the retry budget of the
    /// pool was used up.
    pub retry_budget_exhausted: IntCounter,
    /// `llmproxy_hedges_total{result}`: second attempts beside a slow first one: `won` (answered
    /// first), `lost` (the first attempt answered, or the client left) or `failed`.
    pub hedges: IntCounterVec,
    /// `llmproxy_translations_total{from,to,result}`: attempts whose request was to be translated from the
    /// client's language into one of the backend's: `whole`, `lossy` (something was dropped) or
    /// `refused`. `to` is empty if no language of the backend could say it.
    pub translations: IntCounterVec,
    /// `llmproxy_usage_tokens_total{model,type}`, `llmproxy_usage_token_parts_total{model,type}`.
    pub tokens: ModelTokens,
    /// Usage records.
    pub usage: UsageMetrics,
    /// `llmproxy_auth_total{provider,decision}`: `allow`, `deny`, `script_error` (denied as well),
    /// `error` (the provider did not answer), `stale` (it did not answer, and its last answer
    /// was used). `provider` is empty if no provider was involved.
    pub auth: IntCounterVec,
    /// `llmproxy_auth_query_seconds{provider,result}`: queries of the providers: `found`,
    /// `unknown` or `error`. Answers from the cache are not counted.
    pub auth_queries: HistogramVec,
    /// `llmproxy_quota_count_errors_total{provider}`: updates of used quota and balance that were
    /// given up.
    pub count_errors: IntCounterVec,
    /// `llmproxy_quota_counting`: keys whose used quota or balance is still to be written to their
    /// source.
    pub counting: IntGauge,
    /// Scripts.
    pub hooks: HookMetrics,
    /// `llmproxy_guard_findings_total{guard,kind,action}`: what guards have found in requests and
    /// answers, and what was done: `mask`, `unmask`, `refuse`, `clamp`, `pass` or `end`.
    pub guard_findings: IntCounterVec,
    /// Limits.
    pub limits: LimitMetrics,
    /// Connections of clients.
    pub connections: ConnectionMetrics,
    /// `llmproxy_buffered_bytes`: bytes of request bodies in memory.
    pub buffered: IntGauge,
    /// `llmproxy_config_reload_success`: 1 if the last load of the configuration succeeded.
    pub reload_success: IntGauge,
}

/// The metrics of client connections.
#[derive(Clone)]
pub struct ConnectionMetrics {
    /// `llmproxy_connections`: open connections.
    pub open: IntGauge,
    /// `llmproxy_connections_refused_total{reason}`: `total` or `address`, the limit that
    /// was reached.
    pub refused: IntCounterVec,
    /// `llmproxy_connections_closed_total{reason}`: closed because a limit was exceeded:
    /// `opening` (TLS handshake or first byte), `head` (of a request, or the HTTP/2 preface),
    /// `head_size`, `idle`, or `write` (the client did not read).
    pub closed: IntCounterVec,
    /// `llmproxy_certificate_expiry_timestamp_seconds{certificate}`: when a certificate of the listener ends,
    /// by its file.
    pub certificate_ends: IntGaugeVec,
}

impl ConnectionMetrics {
    fn new(r: &Registry) -> Self {
        let open = IntGauge::new("llmproxy_connections", "Open client connections");
        let refused = Opts::new(
            "llmproxy_connections_refused_total",
            "Client connections that were refused because a connection limit was reached",
        );
        let closed = Opts::new(
            "llmproxy_connections_closed_total",
            "Client connections that were closed because a time or size limit was exceeded",
        );
        let metrics = Self {
            open: register(r, open),
            refused: register(r, IntCounterVec::new(refused, &["reason"])),
            closed: register(r, IntCounterVec::new(closed, &["reason"])),
            certificate_ends: gauges(
                r,
                "llmproxy_certificate_expiry_timestamp_seconds",
                "When a certificate of the listener ends, in seconds since 1970",
                "certificate",
            ),
        };
        // Created at start, so that the first event shows as an increase.
        for reason in ["total", "address"] {
            metrics.refused.with_label_values(&[reason]);
        }
        for reason in ["opening", "head", "head_size", "idle", "write"] {
            metrics.closed.with_label_values(&[reason]);
        }
        metrics
    }
}

/// The metrics of balancing.
#[derive(Clone)]
pub struct BalanceMetrics {
    /// `llmproxy_circuit_open{backend}`: models for which a backend is ejected or being probed.
    pub circuit_open: IntGaugeVec,
    /// `llmproxy_circuit_opened_total{backend}`: how often it was ejected for a model.
    pub circuit_opened: IntCounterVec,
    /// `llmproxy_backend_in_flight{backend}`: requests in progress.
    pub in_flight: IntGaugeVec,
    /// `llmproxy_backend_load_age_seconds{backend}`: time since the load of its engine was last read.
    pub load_age: GaugeVec,
    /// `llmproxy_backend_load{backend,kind}`: the last reading: requests `running` and `waiting`,
    /// and the used share of the `kv_cache`.
    pub load: GaugeVec,
}

impl BalanceMetrics {
    fn new(r: &Registry) -> Self {
        let gauges = |name: &str, help: &str| {
            register(r, IntGaugeVec::new(Opts::new(name, help), &["backend"]))
        };
        let opened = Opts::new(
            "llmproxy_circuit_opened_total",
            "How often a backend was ejected for a model",
        );
        let age = Opts::new(
            "llmproxy_backend_load_age_seconds",
            "Seconds since the load of a backend was last read",
        );
        let load = Opts::new("llmproxy_backend_load", "The load that an engine reports");
        Self {
            circuit_open: gauges("llmproxy_circuit_open", "Models for which a backend is ejected"),
            circuit_opened: register(r, IntCounterVec::new(opened, &["backend"])),
            in_flight: gauges("llmproxy_backend_in_flight", "Requests in progress at a backend"),
            load_age: register(r, GaugeVec::new(age, &["backend"])),
            load: register(r, GaugeVec::new(load, &["backend", "kind"])),
        }
    }

    /// Removes the series of a backend that is no longer in use.
    pub fn forget(&self, name: &str) {
        self.in_flight.remove_label_values(&[name]).ok();
        self.circuit_open.remove_label_values(&[name]).ok();
        self.load_age.remove_label_values(&[name]).ok();
        for kind in ["waiting", "running", "kv_cache"] {
            self.load.remove_label_values(&[name, kind]).ok();
        }
    }
}

/// The metrics of requests to one path of one backend with status 200. Looked up once, because nearly all
/// requests use them.
pub struct SuccessMetrics {
    /// One of [`Metrics::requests`].
    pub requests: IntCounter,
    /// One of [`Metrics::latency_ms`].
    pub latency_ms: Histogram,
}

/// Milliseconds: the buckets of earlier versions from 10 to 10000, with finer ones below and coarser ones
/// above, since a long response takes minutes.
const LATENCY_MS: [f64; 17] = [
    0.5, 1.0, 2.0, 5.0, 10.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 30000.0,
    60000.0, 120_000.0, 300_000.0,
];
const QUERY: [f64; 10] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0];
const FIRST_TOKEN: [f64; 15] =
    [0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
const INTER_TOKEN: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 5.0];

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers all metrics.
    pub fn new() -> Self {
        let registry = Registry::new();
        let r = &registry;
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            register(r, Histogram::with_opts(opts))
        };
        let gauge = |name: &str, help: &str| register(r, IntGauge::new(name, help));
        let counter = |name: &str, help: &str| register(r, IntCounter::new(name, help));
        let counters = |name: &str, help: &str, labels: &[&str]| {
            register(r, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let histograms = |name: &str, help: &str, buckets: &[f64], labels: &[&str]| {
            let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            register(r, HistogramVec::new(opts, labels))
        };
        let (auth, auth_queries) = auth(r);
        let (count_errors, counting) = quotas(r);
        let (discovery_up, discovery_backends) = discovery(r);
        process::register(r);
        Self {
            requests: counters(
                "llmproxy_requests_total",
                "Finished requests, including rejected ones",
                &["path", "stream", "backend", "status"],
            ),
            errors: errors(r),
            latency_ms: histograms(
                "llmproxy_latency_ms",
                "Duration of a request in milliseconds",
                &LATENCY_MS,
                &["path", "stream", "backend"],
            ),
            first_token: histogram(
                "llmproxy_time_to_first_token_seconds",
                "Seconds from the arrival of a streaming request to its first event",
                &FIRST_TOKEN,
            ),
            inter_token: histogram(
                "llmproxy_inter_token_latency_seconds",
                "Seconds from one event of a stream to the next",
                &INTER_TOKEN,
            ),
            in_flight: gauge("llmproxy_requests_in_flight", "Requests in progress"),
            backend_up: gauges(
                r,
                "llmproxy_backend_up",
                "Whether a backend is in use (1) or not (0)",
                "backend",
            ),
            balance: BalanceMetrics::new(r),
            discovery_up,
            discovery_backends,
            retries: retries(r),
            retry_budget_exhausted: counter(
                "llmproxy_retry_budget_exhausted_total",
                "Retries that were not made because the retry budget of the pool was used up",
            ),
            hedges: hedges(r),
            translations: counters(
                "llmproxy_translations_total",
                "Requests that were to be translated for a backend of another language",
                &["from", "to", "result"],
            ),
            auth,
            auth_queries,
            count_errors,
            counting,
            hooks: HookMetrics::new(r),
            guard_findings: guard_findings(r),
            limits: LimitMetrics::new(r),
            tokens: ModelTokens::new(r),
            usage: UsageMetrics::new(r),
            connections: ConnectionMetrics::new(r),
            buffered: gauge("llmproxy_buffered_bytes", "Bytes of request bodies in memory"),
            reload_success: gauge(
                "llmproxy_config_reload_success",
                "Whether the last load of the configuration succeeded",
            ),
            registry,
        }
    }

    pub fn success(&self, path: &str, stream: &str, backend: &str) -> SuccessMetrics {
        SuccessMetrics {
            requests: self.requests.with_label_values(&[path, stream, backend, "200"]),
            latency_ms: self.latency_ms.with_label_values(&[path, stream, backend]),
        }
    }

    /// The Prometheus text format.
    pub fn render(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 * 1024);
        if let Err(e) = TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            log::error!("cannot encode the metrics: {e}");
        }
        out
    }

    /// Content type of [`Self::render`].
    pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
}

fn discovery(r: &Registry) -> (IntGaugeVec, IntGaugeVec) {
    let up = "Whether a discovery source answered its last query (1) or not (0)";
    let backends = "Backends in the last answer of a discovery source";
    (
        gauges(r, "llmproxy_discovery_up", up, "source"),
        gauges(r, "llmproxy_discovery_backends", backends, "source"),
    )
}

fn auth(r: &Registry) -> (IntCounterVec, HistogramVec) {
    let decisions = Opts::new("llmproxy_auth_total", "Authentication decisions");
    let queries = HistogramOpts::new(
        "llmproxy_auth_query_seconds",
        "Duration of queries of key providers, in seconds",
    );
    (
        register(r, IntCounterVec::new(decisions, &["provider", "decision"])),
        register(r, HistogramVec::new(queries.buckets(QUERY.to_vec()), &["provider", "result"])),
    )
}

fn guard_findings(r: &Registry) -> IntCounterVec {
    let opts =
        Opts::new("llmproxy_guard_findings_total", "Findings of guards in requests and answers");
    register(r, IntCounterVec::new(opts, &["guard", "kind", "action"]))
}

fn quotas(r: &Registry) -> (IntCounterVec, IntGauge) {
    let errors = Opts::new(
        "llmproxy_quota_count_errors_total",
        "Updates of used quota and balance that were given up",
    );
    let counting = "Keys whose used quota or balance is still to be written";
    (
        register(r, IntCounterVec::new(errors, &["provider"])),
        register(r, IntGauge::new("llmproxy_quota_counting", counting)),
    )
}

/// Reasons of failed requests, by the side at fault. A closed keep-alive connection is retried and not among
/// them.
const ERRORS: [(Side, &[&str]); 3] = [
    (Side::Client, &["client_gone", "limited", "refused", "status"]),
    (Side::Gateway, &["internal_error", "shutdown", "total_timeout", "unavailable"]),
    (
        Side::Backend,
        &[
            "backend_refusing",
            "broken_off",
            "chunk_timeout",
            "connect_failure",
            "connect_timeout",
            "connection_broken",
            "first_byte_timeout",
            "no_healthy_backend",
            "not_replayable",
            "protocol_error",
            "redirect",
            "status",
            "total_timeout",
        ],
    ),
];

fn errors(r: &Registry) -> IntCounterVec {
    let help = "Finished requests that failed, by the side at fault";
    let errors = Opts::new("llmproxy_errors_total", help);
    let errors = register(r, IntCounterVec::new(errors, &["side", "reason"]));
    // Created at start, so that the first error shows as an increase.
    for (side, reasons) in ERRORS {
        for reason in reasons {
            errors.with_label_values(&[side.word(), reason]);
        }
    }
    errors
}

fn hedges(r: &Registry) -> IntCounterVec {
    let help = "Second attempts at the same time as a slow first one";
    let hedges = Opts::new("llmproxy_hedges_total", help);
    let hedges = register(r, IntCounterVec::new(hedges, &["result"]));
    for result in ["won", "lost", "failed"] {
        hedges.with_label_values(&[result]);
    }
    hedges
}

fn retries(r: &Registry) -> IntCounterVec {
    let help = "Further attempts after one that failed before the response began";
    let retries = Opts::new("llmproxy_retries_total", help);
    let retries = register(r, IntCounterVec::new(retries, &["reason"]));
    // Created at start, so that the first retry shows as an increase.
    for reason in [
        "connect_failure",
        "connect_timeout",
        "stale_connection",
        "connection_broken",
        "first_byte_timeout",
        "chunk_timeout",
        "protocol_error",
        "redirect",
        "backend_refusing",
        "status",
        "busy",
        "error_event",
        "aborted",
        "empty",
    ] {
        retries.with_label_values(&[reason]);
    }
    retries
}
