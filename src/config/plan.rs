//! What the file means: addresses read, files opened, names checked. A plan is valid; a request
//! never meets a configuration error.

mod auth;
mod backend;
mod base_path;
mod discovery;
mod health_check;
mod limit;
mod log;
mod planner;
mod routing;
mod salt;
mod script;
mod server;
mod storage;
mod tier;
mod timeouts;
mod usage;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use http::HeaderName;
use ipnet::IpNet;

use self::planner::Planner;
pub(super) use self::server::own_url;
pub use self::{
    auth::{Answer, Answers, AuthPlan, CachePlan, KeyPlan, ProviderPlan, Reason, Source},
    backend::BackendPlan,
    base_path::BasePath,
    discovery::{DiscoveryPlan, Listed, Place, SourcePlan, listed},
    health_check::HealthPlan,
    limit::{LimitPlan, Price, QueuePlan, SharedPlan},
    log::LogPlan,
    routing::*,
    script::SHIPPED,
    server::{AdminPlan, Fixed},
    tier::TierPlan,
    timeouts::TimeoutPlan,
    usage::*,
};
use super::{
    choices::{ErrorFormat, Ready},
    problem::Problem,
    raw::Raw,
};
pub use crate::base::ModelPattern;
use crate::{
    base::{ip::IpRules, machine},
    store::proxy::Proxies,
};

/// A configuration that has been understood.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What only a restart can change.
    pub fixed: Fixed,
    /// Largest request body, in bytes.
    pub max_body_size: u64,
    /// Largest sum of header names and values, in bytes.
    pub max_header_size: usize,
    /// Bytes of request bodies that are held at the same time.
    pub max_buffered_bytes: u64,
    /// Bytes a second that a request body must come with; 0 for any.
    pub min_body_rate: u64,
    /// Connections of clients at the same time.
    pub max_connections: usize,
    /// Of those, from one address; 0 for any number.
    pub max_connections_per_ip: u32,
    /// How long streams may go on after SIGTERM.
    pub graceful_shutdown_timeout: Duration,
    /// Which backends must be healthy for `/ready` to be 200.
    pub ready: Ready,
    /// The backends of the file, in its order; at least one, or a source in `discovery`.
    pub backends: Vec<BackendPlan>,
    /// Where more backends come from.
    pub discovery: DiscoveryPlan,
    /// How requests find a backend.
    pub routing: RoutingPlan,
    /// Active probes; `None` if there are none.
    pub health_check: Option<HealthPlan>,
    /// How long to wait for what.
    pub timeouts: TimeoutPlan,
    /// Names of request headers that never reach a backend, in lower case.
    pub guard_headers: Vec<HeaderName>,
    /// Names of response headers that never reach a client.
    pub guard_response_headers: Vec<HeaderName>,
    /// Names of body fields that never reach a backend.
    pub guard_fields: Vec<String>,
    /// What becomes of usage records.
    pub usage: UsagePlan,
    /// Logging.
    pub log: LogPlan,
    /// Who may call; `None`: everybody.
    pub auth: Option<AuthPlan>,
    /// How much one may call.
    pub limits: LimitPlan,
    /// Ranks of keys, by their names.
    pub tiers: BTreeMap<String, TierPlan>,
    /// Addresses that may call at all.
    pub ip_rules: IpRules,
    /// Proxies that are believed about their clients' addresses.
    pub trusted_proxies: Vec<IpNet>,
    /// The form of the gateway's own errors.
    pub error_format: ErrorFormat,
    /// Files that were read beside the configuration, to be watched like it.
    pub files: Vec<PathBuf>,
    /// What is no mistake but may not be meant.
    pub warnings: Vec<Problem>,
    /// The whole configuration with its defaults and without its secrets.
    pub shown: serde_json::Value,
}

/// Understands a raw configuration. Relative paths start at `folder`.
///
/// Returns a plan only if it added no problem.
pub(super) fn plan(
    raw: &Raw,
    folder: &Path,
    proxies: &Proxies,
    problems: &mut Vec<Problem>,
) -> Option<Plan> {
    let before = problems.len();
    let mut planner = Planner::new(folder, proxies, problems);
    planner.discovers = discovery::are_on(raw);
    let fixed = planner.fixed(raw);
    let (backends, unused) = planner.backends(raw);
    let routing = planner.routing(raw, &backends, &unused);
    let discovery = planner.discovery(raw.discovery.as_ref());
    let health_check = planner.health_check(raw.health_check.as_ref());
    let guard = &raw.edge_guard;
    let guard_headers = planner.header_names("edge_guard.remove_headers", &guard.remove_headers);
    let guard_response_headers =
        planner.header_names("edge_guard.remove_response_headers", &guard.remove_response_headers);
    let usage = planner.usage(raw);
    let sizes = planner.sizes(&raw.server);
    planner.storage(raw);
    let auth = planner.auth(raw);
    let limits = planner.limits(raw, auth.as_ref());
    let tiers = planner.tiers(raw);
    let ip_rules = IpRules {
        allowed: planner.nets("server.allowed_ips", &raw.server.allowed_ips),
        denied: planner.nets("server.denied_ips", &raw.server.denied_ips),
    };
    let trusted_proxies = planner.nets("server.trusted_proxies", &raw.server.trusted_proxies);
    planner.trust();
    let Planner { files, warnings, .. } = planner;
    if problems.len() > before {
        return None;
    }
    Some(Plan {
        fixed: fixed?,
        max_body_size: sizes.0,
        max_header_size: sizes.1,
        max_buffered_bytes: match raw.server.max_buffered_bytes.0 {
            0 => machine::memory().map_or(1 << 30, |bytes| bytes / 4),
            bytes => bytes,
        },
        min_body_rate: raw.server.min_body_rate.0,
        max_connections: match raw.server.max_connections {
            0 => machine::open_files().div_ceil(2),
            count => count,
        },
        max_connections_per_ip: raw.server.max_connections_per_ip,
        graceful_shutdown_timeout: raw.server.graceful_shutdown_timeout.0,
        ready: raw.server.ready,
        backends,
        routing,
        discovery,
        health_check,
        timeouts: timeouts::timeouts(&raw.timeouts),
        guard_headers,
        guard_response_headers,
        guard_fields: raw.edge_guard.remove_fields.clone(),
        usage: usage?,
        log: log::log(&raw.log),
        auth,
        limits: limits?,
        tiers,
        ip_rules,
        trusted_proxies,
        error_format: raw.server.error_format,
        files,
        warnings,
        shown: serde_json::to_value(raw).unwrap_or_default(),
    })
}
