//! Every metric, declared once.
//!
//! Labels are bounded: `path` is one of the paths that the gateway serves or `other`, `backend`
//! is the name of a backend or empty (no backend was reached), `stream` is `true` or `false`, `model`
//! is a name that the configuration knows, one of the first that backends served, or `other`. Where
//! each address of a backend counts for itself, only gauges tell them apart: those of an address
//! that has gone are removed, and counters would pile up.

use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use super::{
    limits::LimitMetrics,
    models::ModelTokens,
    process,
    register::{gauges, register},
    usage::UsageMetrics,
};
use crate::base::Side;

/// The metrics of one process; copies are the same metrics.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    /// `llmproxy_requests_total{path,stream,backend,status}`: finished requests, refused ones
    /// included.
    pub requests: IntCounterVec,
    /// `llmproxy_errors_total{side,reason}`: finished requests that did not come to a good end, by
    /// whose fault that is.
    pub errors: IntCounterVec,
    /// `llmproxy_latency_ms{path,stream,backend}`: whole duration of a request, milliseconds.
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
    /// `llmproxy_discovery_up{source}`: 1 if the source told its list when it was last asked.
    pub discovery_up: IntGaugeVec,
    /// `llmproxy_discovery_backends{source}`: backends that it told of last.
    pub discovery_backends: IntGaugeVec,
    /// `llmproxy_retries_total{reason}`: further attempts at another backend or connection.
    pub retries: IntCounterVec,
    /// `llmproxy_retry_budget_exhausted_total`: retries that a pool could not afford.
    pub retry_budget_exhausted: IntCounter,
    /// `llmproxy_hedges_total{result}`: second tries beside a first one that was slow: `won`
    /// (answered first), `lost` (the first try did, or nobody waited any more) or `failed`.
    pub hedges: IntCounterVec,
    /// `llmproxy_usage_tokens_total{model,type}`.
    pub tokens: ModelTokens,
    /// Usage records.
    pub usage: UsageMetrics,
    /// `llmproxy_auth_total{provider,decision}`: `allow`, `deny`, `script_error` (denied as well),
    /// `error` (the provider could not be asked), `stale` (it could not, and its last answer
    /// served). `provider` is empty where none was concerned.
    pub auth: IntCounterVec,
    /// `llmproxy_auth_query_seconds{provider,result}`: questions to the providers' own places,
    /// `found`, `unknown` or `error`. Answers from the cache are none.
    pub auth_queries: HistogramVec,
    /// `llmproxy_quota_count_errors_total{provider}`: counts of used quota and balance that were
    /// given up.
    pub count_errors: IntCounterVec,
    /// `llmproxy_quota_counting`: keys whose used quota or balance is still to be written to the
    /// place where they are.
    pub counting: IntGauge,
    /// Limits.
    pub limits: LimitMetrics,
    /// Connections of clients.
    pub connections: ConnectionMetrics,
    /// `llmproxy_buffered_bytes`: request bodies that are held.
    pub buffered: IntGauge,
    /// `llmproxy_config_reload_success`: 1 if the last load of the configuration succeeded.
    pub reload_success: IntGauge,
}

/// The metrics of clients' connections.
#[derive(Clone)]
pub struct ConnectionMetrics {
    /// `llmproxy_connections`: how many are open.
    pub open: IntGauge,
    /// `llmproxy_connections_refused_total{reason}`: `total` or `address`, the limit that was
    /// reached.
    pub refused: IntCounterVec,
    /// `llmproxy_connections_closed_total{reason}`: closed because a limit was passed: `opening`
    /// (TLS handshake or first byte), `head` (of a request, or the preface of HTTP/2),
    /// `head_size`, `idle`, or `write` (the client did not read).
    pub closed: IntCounterVec,
}

impl ConnectionMetrics {
    fn new(r: &Registry) -> Self {
        let open = IntGauge::new("llmproxy_connections", "Open connections of clients");
        let refused = Opts::new(
            "llmproxy_connections_refused_total",
            "Connections of clients that were refused, because there were as many as there may be",
        );
        let closed = Opts::new(
            "llmproxy_connections_closed_total",
            "Connections of clients that were closed, because a limit of time or size was passed",
        );
        let metrics = Self {
            open: register(r, open),
            refused: register(r, IntCounterVec::new(refused, &["reason"])),
            closed: register(r, IntCounterVec::new(closed, &["reason"])),
        };
        // There from the start, so that a first one is seen as an increase.
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
    /// `llmproxy_circuit_open{backend}`: models for which a backend is left alone, or tried out.
    pub circuit_open: IntGaugeVec,
    /// `llmproxy_circuit_opened_total{backend}`: how often it was found to fail for a model.
    pub circuit_opened: IntCounterVec,
    /// `llmproxy_backend_in_flight{backend}`: requests that are with it.
    pub in_flight: IntGaugeVec,
    /// `llmproxy_backend_load_age_seconds{backend}`: time since its engine's load was last read.
    pub load_age: GaugeVec,
    /// `llmproxy_backend_load{backend,kind}`: what was read: requests `running` and `waiting`, and
    /// the part of the `kv_cache` that is used.
    pub load: GaugeVec,
}

impl BalanceMetrics {
    fn new(r: &Registry) -> Self {
        let gauges = |name: &str, help: &str| {
            register(r, IntGaugeVec::new(Opts::new(name, help), &["backend"]))
        };
        let opened = Opts::new(
            "llmproxy_circuit_opened_total",
            "How often a backend was found to fail for a model",
        );
        let age = Opts::new(
            "llmproxy_backend_load_age_seconds",
            "Time since the load of a backend was last read",
        );
        let load = Opts::new("llmproxy_backend_load", "The load that an engine tells of");
        Self {
            circuit_open: gauges(
                "llmproxy_circuit_open",
                "Models for which a backend is left alone",
            ),
            circuit_opened: register(r, IntCounterVec::new(opened, &["backend"])),
            in_flight: gauges("llmproxy_backend_in_flight", "Requests that are with a backend"),
            load_age: register(r, GaugeVec::new(age, &["backend"])),
            load: register(r, GaugeVec::new(load, &["backend", "kind"])),
        }
    }

    /// A backend that is not in use any more is not in the gauges either.
    pub fn forget(&self, name: &str) {
        self.in_flight.remove_label_values(&[name]).ok();
        self.circuit_open.remove_label_values(&[name]).ok();
        self.load_age.remove_label_values(&[name]).ok();
        for kind in ["waiting", "running", "kv_cache"] {
            self.load.remove_label_values(&[name, kind]).ok();
        }
    }
}

/// The counters of requests to one path of one backend that were answered 200: looked up once,
/// because nearly all requests are such.
pub struct Usual {
    /// One of [`Metrics::requests`].
    pub requests: IntCounter,
    /// One of [`Metrics::latency_ms`].
    pub latency_ms: Histogram,
}

/// Milliseconds: the seeds' buckets from 10 to 10000, finer ones below, and coarser ones above, since
/// a long answer takes minutes.
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
    /// Declares them all.
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
                "Finished requests, refused ones included",
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
                "From the arrival of a streaming request to its first event",
                &FIRST_TOKEN,
            ),
            inter_token: histogram(
                "llmproxy_inter_token_latency_seconds",
                "From one event of a stream to the next",
                &INTER_TOKEN,
            ),
            in_flight: gauge("llmproxy_requests_in_flight", "Requests being served"),
            backend_up: gauges(
                r,
                "llmproxy_backend_up",
                "Whether a backend is in use (1) or taken out (0)",
                "backend",
            ),
            balance: BalanceMetrics::new(r),
            discovery_up,
            discovery_backends,
            retries: retries(r),
            retry_budget_exhausted: counter(
                "llmproxy_retry_budget_exhausted_total",
                "Retries that were not made, because the retry budget of the pool was used up",
            ),
            hedges: hedges(r),
            auth,
            auth_queries,
            count_errors,
            counting,
            limits: LimitMetrics::new(r),
            tokens: ModelTokens::new(r),
            usage: UsageMetrics::new(r),
            connections: ConnectionMetrics::new(r),
            buffered: gauge("llmproxy_buffered_bytes", "Bytes of request bodies that are held"),
            reload_success: gauge(
                "llmproxy_config_reload_success",
                "Whether the last load of the configuration succeeded",
            ),
            registry,
        }
    }

    /// Looks the counters of usual requests up.
    pub fn usual(&self, path: &str, stream: &str, backend: &str) -> Usual {
        Usual {
            requests: self.requests.with_label_values(&[path, stream, backend, "200"]),
            latency_ms: self.latency_ms.with_label_values(&[path, stream, backend]),
        }
    }

    /// The Prometheus text format.
    pub fn render(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 * 1024);
        if let Err(e) = TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            log::error!("cannot write the metrics: {e}");
        }
        out
    }

    /// Content type of [`Self::render`].
    pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
}

fn discovery(r: &Registry) -> (IntGaugeVec, IntGaugeVec) {
    let up = "Whether a source of backends told its list when it was last asked";
    let backends = "Backends that a source told of last";
    (
        gauges(r, "llmproxy_discovery_up", up, "source"),
        gauges(r, "llmproxy_discovery_backends", backends, "source"),
    )
}

fn auth(r: &Registry) -> (IntCounterVec, HistogramVec) {
    let decisions = Opts::new("llmproxy_auth_total", "Decisions about callers");
    let queries = HistogramOpts::new(
        "llmproxy_auth_query_seconds",
        "Questions to the places where keys come from",
    );
    (
        register(r, IntCounterVec::new(decisions, &["provider", "decision"])),
        register(r, HistogramVec::new(queries.buckets(QUERY.to_vec()), &["provider", "result"])),
    )
}

fn quotas(r: &Registry) -> (IntCounterVec, IntGauge) {
    let errors =
        Opts::new("llmproxy_quota_count_errors_total", "Counts of used quota and balance given up");
    let counting = "Keys whose used quota or balance is still to be written";
    (
        register(r, IntCounterVec::new(errors, &["provider"])),
        register(r, IntGauge::new("llmproxy_quota_counting", counting)),
    )
}

/// How requests end that do not end well, by whose fault it is. What a connection that was kept alive
/// does is tried again, and not here.
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
    let help = "Finished requests that did not come to a good end, by whose fault that is";
    let errors = Opts::new("llmproxy_errors_total", help);
    let errors = register(r, IntCounterVec::new(errors, &["side", "reason"]));
    // There from the start, so that a first error is seen as an increase.
    for (side, reasons) in ERRORS {
        for reason in reasons {
            errors.with_label_values(&[side.word(), reason]);
        }
    }
    errors
}

fn hedges(r: &Registry) -> IntCounterVec {
    let help = "Second tries at the same time as a first one that was slow";
    let hedges = Opts::new("llmproxy_hedges_total", help);
    let hedges = register(r, IntCounterVec::new(hedges, &["result"]));
    for result in ["won", "lost", "failed"] {
        hedges.with_label_values(&[result]);
    }
    hedges
}

fn retries(r: &Registry) -> IntCounterVec {
    let help = "Further attempts after one that failed before anything was answered";
    let retries = Opts::new("llmproxy_retries_total", help);
    let retries = register(r, IntCounterVec::new(retries, &["reason"]));
    // There from the start, so that a first retry is seen as an increase.
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
