//! Tests of the real binary against simulated backends, over real sockets.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on has failed"
)]

mod support;

mod admin;
mod auth;
mod balancing;
mod body;
mod breaking;
mod captures;
mod chart;
mod chart_reload;
mod chart_values;
mod compose;
mod configuration;
mod configuration_routing;
mod crashes;
mod dashboards;
mod delivery;
mod discovery;
mod docs;
mod examples;
mod failures;
mod faults;
mod floors;
mod framing;
mod guard;
mod health;
mod health_cli;
mod hedging;
mod image;
mod keepalive;
mod lifecycle;
mod limit_redis;
mod limits;
mod memory;
mod operator;
mod paths;
mod quotas;
mod reconciliation;
mod records;
mod replicas;
mod retries;
mod routing;
mod scripts;
mod sdk;
mod sim;
mod slow_clients;
mod spool;
mod stores;
mod streaming;
mod systemd;
mod timeouts;
mod tls;
mod usage;
mod usage_cli;
mod usage_sinks;
mod usage_store;
mod ways;
mod webhook_receiver;
