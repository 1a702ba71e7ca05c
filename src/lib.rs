//! LLMProxy: a programmable gateway at the edge of a fleet of LLM servers.
//!
//! # The floors
//!
//! A module imports modules of lower floors, never one of its own floor and never one above; a
//! test reads every import and fails on a wrong direction.
//!
//! | floor | modules | what stands there |
//! |---|---|---|
//! | 9 | [`cli`] | arguments to a call |
//! | 8 | [`demo`] | a gateway with everything around it, in one process |
//! | 7 | [`server`] | the composition root: listeners, services, signals |
//! | 6 | [`gateway`], [`admin`], [`listener`], [`tasks`] | the `ProxyHttp` implementation; the operator's API; clients' connections; background services |
//! | 5 | [`runtime`] | the snapshot of a configuration, and what outlives it |
//! | 4 | [`auth`], [`balance`], [`guards`], [`hooks`], [`limit`], [`prompts`], [`route`], [`usage`] | policies, each on its own |
//! | 3 | [`config`], [`sim`] | what the configuration file means; a simulated vLLM |
//! | 2 | [`dialect`], [`lua`] | API languages; scripts |
//! | 1 | [`store`], [`telemetry`], [`wire`] | clients and certificates; metrics and logs; bytes |
//! | 0 | [`base`] | shared values: ids, callers, rejections, faults, counts, secrets |
//!
//! Inside a folder the files form no circle of imports; the same test fails on one.
//!
//! # A request's walk
//!
//! `gateway/mod.rs` has one delegating line for each phase of Pingora's `ProxyHttp`.
//!
//! 0. [`listener`] accepts the connection, and gives each state of it a time limit.
//! 1. `gateway/early.rs`: request id, client address, deadlines.
//! 2. `gateway/request.rs`: the order of everything that is decided before a backend is asked.
//!    - [`dialect`] finds the operation that stands at the path, and its language.
//!    - `gateway/auth.rs` identifies the key, and later asks [`auth`] to decide about it.
//!    - `gateway/receive.rs` reads the body into `gateway/body.rs`; the language glances at it for
//!      model, stream and limits.
//!    - [`route`] finds the tiers of pools for the model.
//!    - `gateway/admission.rs` admits the request by the rules of [`limit`], perhaps after a while in
//!      the queue.
//!    - `gateway/hedge.rs` serves short requests with two attempts at the same time, through
//!      `gateway/direct.rs`.
//! 3. `gateway/peer.rs`: the retry policy (`gateway/retry/mod.rs`) picks a healthy backend from
//!    [`balance`], by `gateway/retry/pick.rs`; a `gateway/attempt.rs` begins.
//! 4. `gateway/outbound.rs`: the backend's header and its version of the body.
//! 5. `gateway/response.rs`: the head of the answer, and the passage of its body, from
//!    `dialect/passage.rs`.
//! 6. `gateway/passing.rs`: each piece of the body goes through the passage, which meters it; as long
//!    as another backend could take over, nothing goes to the client before there is content.
//! 7. `gateway/failure.rs`: what broke. `gateway/attempts.rs` asks the retry policy whether another
//!    attempt follows; if none does, `gateway/fault.rs` has the status and `gateway/reply.rs` writes
//!    it.
//! 8. `gateway/settlement.rs`: what the request used is settled with its limits, before the client
//!    sees the end.
//! 9. `gateway/logging.rs`: the one exit: metrics, usage record, access line, timeline.
//!
//! # Where to add what
//!
//! | what | where |
//! |---|---|
//! | an API language | its file or folder in `dialect/`, and its line in `dialect/catalog.rs` |
//! | an operation of a language | a line in its list of operations |
//! | a cause for a retry | `gateway/retry/cause.rs`; what it says of a backend: `gateway/retry/verdict.rs` |
//! | a rule about attempts | `gateway/retry/mod.rs`: `RetryPolicy::decide` |
//! | a hook | a call at its phase in `gateway/request.rs`, `gateway/outbound.rs`, `gateway/response.rs` or `gateway/passing.rs`; the decision itself is a policy's own module, as [`auth`] is |
//! | a balancing strategy | its file in `balance/strategy/`, and its line there |
//! | a limit | its key in `base/limits.rs`, its dimension in `limit/claim.rs`, its claim in `limit/rules.rs` |
//! | a source of keys | its file in `auth/provider/`, and its line there |
//! | a sink of usage records | its file in `usage/sink/`, and its line there |
//!
//! # State
//!
//! | state | where | how long |
//! |---|---|---|
//! | of one attempt | `Attempt`, in the context | one attempt |
//! | of one policy within a request | the policy's own object, in the context | one request |
//! | between policies | typed values in the context, each with its writers and readers named in `gateway/ctx.rs` | one request |
//! | of the configuration | [`runtime::Snapshot`], which a request pins | until the next reload |
//! | of the process: health, counters, connections, the spool | [`runtime::Carry`] | through reloads |
//!
//! A reload builds the next snapshot whole and swaps once; so does a change of the backends, which
//! `tasks/discovery/mod.rs` finds.

pub mod admin;
pub mod auth;
pub mod balance;
pub mod base;
pub mod cli;
pub mod config;
pub mod demo;
pub mod dialect;
pub mod gateway;
pub mod guards;
pub mod hooks;
pub mod limit;
pub mod listener;
pub mod lua;
pub mod prompts;
pub mod route;
pub mod runtime;
pub mod server;
pub mod sim;
pub mod store;
pub mod tasks;
pub mod telemetry;
pub mod usage;
pub mod wire;
