//! Tests of the real binary against simulated backends, over real sockets.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on has failed"
)]

mod support;

mod admin;
mod amounts;
mod auth;
mod backend_urls;
mod balancing;
mod body;
mod captures;
mod chart;
mod chart_reload;
mod chart_values;
mod client_forms;
mod clock;
mod compose;
mod configuration;
mod configuration_routing;
mod convert;
mod crashes;
mod dashboards;
mod delivery;
mod discovery;
mod docs;
mod ejection;
mod error_responses;
mod examples;
mod failures;
mod fault_attribution;
mod faults;
mod figures;
mod first_steps;
mod floors;
mod framing;
mod guard;
mod health;
mod health_cli;
mod hedging;
mod image;
mod keepalive;
mod languages;
mod lifecycle;
mod limit_redis;
mod limits;
mod memory;
mod metering;
mod model_aliases;
mod one_server;
mod operator;
mod paths;
mod quotas;
mod reconciliation;
mod records;
mod redis_faults;
mod replicas;
mod retries;
mod routing;
mod script_library;
mod script_values;
mod scripts;
mod sdk;
mod secrets;
mod silence;
mod sim;
mod slow_clients;
mod spool;
mod spool_foreign;
mod store_faults;
mod stored;
mod stores;
mod stream_ends;
mod streaming;
mod systemd;
mod timeouts;
mod tls;
mod trust;
mod upstream_identity;
mod usage;
mod usage_cli;
mod usage_sinks;
mod usage_store;
mod webhook_receiver;
