//! LLMProxy: a programmable gateway at the edge of a fleet of LLM servers.
//!
//! # The floors
//!
//! A module imports modules of lower floors, never one of its own floor and never one above; a
//! test reads every `use crate::` and fails on a wrong direction.
//!
//! | floor | modules | what stands there |
//! |---|---|---|
//! | 9 | [`cli`] | arguments to a call |
//! | 8 | [`demo`] | a gateway with everything around it, in one process |
//! | 7 | [`server`] | the composition root: listeners, services, signals |
//! | 6 | [`gateway`], [`admin`], [`listener`], [`tasks`] | the `ProxyHttp` implementation, one file a phase; the operator's API; clients' connections; what runs beside the requests |
//! | 5 | [`runtime`] | the snapshot of a configuration, and what outlives it |
//! | 4 | [`auth`], [`balance`], [`limit`], [`route`], [`usage`] | policies, each on its own |
//! | 3 | [`config`], [`sim`] | what the configuration file means; a simulated vLLM |
//! | 2 | [`dialect`] | API languages |
//! | 1 | [`lua`], [`store`], [`telemetry`], [`wire`] | scripts; clients and certificates; metrics and logs; bytes |
//! | 0 | [`base`] | words: ids, callers, refusals, faults, counts, secrets |
//!
//! # A request's walk
//!
//! 0. [`listener`] accepts the connection, and gives each state of it a time limit.
//! 1. `gateway/early.rs`: request id, client, size of the headers.
//! 2. `gateway/request.rs`: the path is on the allow-list of [`dialect`]; `gateway/policy.rs` finds
//!    out who is calling, and later asks [`auth`] to decide; `gateway/body_in.rs` reads the body, [`wire::peek`] finds model and stream in it; guarded fields go, usage is
//!    asked for; [`route`] finds the pool of the model; `gateway/limits.rs` lets it in by the rules of
//!    [`limit`], perhaps after a while in a queue.
//! 3. `gateway/peer.rs`: [`balance`] picks a healthy backend, once for each attempt.
//! 4. `gateway/outbound.rs`: the backend's header and the prepared body.
//! 5. `gateway/response.rs`, `gateway/stream.rs`: the answer passes; [`usage`] reads the counts
//!    from it and takes out what was added.
//! 6. `gateway/failure.rs`: what becomes of a fault.
//! 7. `gateway/logging.rs`: the one exit: metrics, usage record, access line; [`auth`] counts what
//!    was used of the key's quota and balance.
//!
//! # State
//!
//! What belongs to a request is in its context, which pins one [`runtime::Snapshot`]. A reload
//! builds the next snapshot whole and swaps once; so does a change of the backends, which
//! `tasks/discovery` finds. Health, counters, connections and records that
//! wait are in [`runtime::Carry`] and live through it.

pub mod admin;
pub mod auth;
pub mod balance;
pub mod base;
pub mod cli;
pub mod config;
pub mod demo;
pub mod dialect;
pub mod gateway;
pub mod limit;
pub mod listener;
pub mod lua;
pub mod route;
pub mod runtime;
pub mod server;
pub mod sim;
pub mod store;
pub mod tasks;
pub mod telemetry;
pub mod usage;
pub mod wire;
