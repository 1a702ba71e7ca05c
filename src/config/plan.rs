//! What the file means: addresses are parsed, files are read, names are resolved. A plan is always
//! valid, so that a request never meets a configuration error.

mod auth;
mod backend;
mod base_path;
mod cors;
mod discovery;
mod guards;
mod health_check;
mod hooks;
mod limit;
mod log;
mod lua;
mod model_presets;
mod planner;
mod prompts;
mod routing;
mod salt;
mod script;
mod server;
mod storage;
mod tier;
mod timeouts;
mod usage;
mod vendor;
mod when;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::HeaderName;
use ipnet::IpNet;

use self::planner::Planner;
pub(super) use self::server::own_url;
pub use self::{
    auth::{
        AuthPlan, CachePlan, KeyPlan, ProviderPlan, Reason, RejectionResponse, RejectionResponses,
        Source,
    },
    backend::BackendPlan,
    base_path::BasePath,
    cors::CorsPlan,
    discovery::{DiscoveryPlan, SourceList, SourceLocation, SourcePlan, read_list},
    guards::*,
    health_check::HealthPlan,
    hooks::HookPlan,
    limit::{LimitPlan, Price, QueuePlan, SharedPlan},
    log::LogPlan,
    model_presets::of as model_facts,
    prompts::{Glob, Piece, PromptPlan, PromptsPlan, RequestVariable, prompt_folder_contents},
    routing::*,
    script::SHIPPED,
    server::{AdminPlan, Fixed},
    tier::TierPlan,
    timeouts::TimeoutPlan,
    usage::*,
    when::{Subject, WhenPlan},
};
use super::{
    choices::{ErrorFormat, Ready},
    problem::Problem,
    raw::Raw,
};
pub use crate::base::ModelPattern;
use crate::{
    base::ip::IpRules,
    lua::Library,
    store::{certificates::Certificates, proxy::Proxies},
};

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Settings that only a restart can change.
    pub fixed: Fixed,
    /// Whether anything may need the trust store of the machine.
    pub uses_tls: bool,
    /// Largest request body, in bytes.
    pub max_body_size: u64,
    /// Largest sum of header names and values, in bytes.
    pub max_header_size: usize,
    /// Memory for the request bodies of all requests, in bytes.
    pub max_buffered_bytes: u64,
    /// The lowest rate of a request body, in bytes per second; 0 for none.
    pub min_body_rate: u64,
    /// Client connections at the same time.
    pub max_connections: usize,
    /// Client connections from one address; 0 for no limit.
    pub max_connections_per_ip: u32,
    /// How long requests may continue after SIGTERM.
    pub graceful_shutdown_timeout: Duration,
    /// Which backends must be healthy for `/ready` to be 200.
    pub ready: Ready,
    /// The backends of the file, in its order; at least one, unless `discovery` has a source.
    pub backends: Vec<BackendPlan>,
    /// Sources of further backends.
    pub discovery: DiscoveryPlan,
    pub routing: RoutingPlan,
    /// `None`: no probes.
    pub health_check: Option<HealthPlan>,
    pub timeouts: TimeoutPlan,
    /// Prompts of the operator; empty if there are none.
    pub prompts: PromptsPlan,
    /// Request headers that never reach a backend.
    pub guard_headers: Vec<HeaderName>,
    /// Response headers that never reach a client.
    pub guard_response_headers: Vec<HeaderName>,
    /// Body fields that never reach a backend.
    pub guard_fields: Vec<String>,
    /// What is looked for in requests and answers.
    pub guards: GuardsPlan,
    pub usage: UsagePlan,
    pub log: LogPlan,
    /// `None`: requests need no key.
    pub auth: Option<AuthPlan>,
    pub limits: LimitPlan,
    /// What scripts reach beyond their own values.
    pub lua: Arc<Library>,
    /// Tiers of keys, by name.
    pub tiers: BTreeMap<String, TierPlan>,
    /// Scripts at the stages of a request.
    pub hooks: Vec<HookPlan>,
    /// Addresses that may send requests.
    pub ip_rules: IpRules,
    /// Proxies whose `X-Forwarded-For` is trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// The format of the gateway's own errors.
    pub error_format: ErrorFormat,
    /// The certificates of the listener; `None`: there is no TLS.
    pub certificates: Option<Arc<Certificates>>,
    /// Which pages in browsers may call; `None`: none.
    pub cors: Option<CorsPlan>,
    /// Further files that were read; they are watched like the configuration file.
    pub files: Vec<PathBuf>,
    /// Settings that are valid but may be unintended.
    pub warnings: Vec<Problem>,
    /// The configuration with defaults and without secrets.
    pub shown: serde_json::Value,
}

/// Makes the plan of a configuration. Relative paths start at `folder`; `env` looks a variable of the
/// environment up. `None` if there is a problem.
pub(super) fn plan(
    raw: &Raw,
    folder: &Path,
    env: &dyn Fn(&str) -> Option<String>,
    problems: &mut Vec<Problem>,
) -> Option<Plan> {
    let before = problems.len();
    let proxies = Proxies::from_env(env);
    let mut planner = Planner::new(folder, &proxies, env, problems);
    planner.discovers = discovery::are_on(raw);
    let fixed = planner.fixed(raw);
    let (backends, unused) = planner.backends(raw);
    let routing = planner.routing(raw, &backends, &unused);
    let discovery = planner.discovery(raw.discovery.as_ref());
    let health_check = planner.health_check(raw.health_check.as_ref());
    let prompts = planner.prompts(raw.system_prompts.as_ref());
    let guard = &raw.edge_guard;
    let guard_headers = planner.header_names("edge_guard.remove_headers", &guard.remove_headers);
    let guard_response_headers =
        planner.header_names("edge_guard.remove_response_headers", &guard.remove_response_headers);
    let guards = planner.guards(&raw.guards);
    let usage = planner.usage(raw);
    let sizes = planner.sizes(&raw.server);
    planner.storage(raw);
    let lua = planner.lua_library(raw);
    planner.library = Arc::clone(&lua);
    let auth = planner.auth(raw);
    let limits = planner.limits(raw, auth.as_ref());
    if let Some(stored) = &routing.stored_responses {
        let at = ("routing.stored_responses.key_prefix", "llmproxy:stored:");
        planner.apart_from_keys(at, (&stored.server, &stored.prefix), auth.as_ref());
    }
    let tiers = planner.tiers(raw);
    let hooks = planner.hooks(&raw.hooks, &raw.scripts);
    let certificates = planner.certificates(raw.server.tls.as_ref());
    let cors = planner.cors(raw.server.cors.as_ref());
    let ip_rules = planner.ip_rules(&raw.server);
    let trusted_proxies = planner.nets("server.trusted_proxies", &raw.server.trusted_proxies);
    planner.trust();
    // A discovery source may name a backend with TLS at any time.
    let uses_tls = !planner.trusting.is_empty() || planner.discovers;
    let Planner { files, warnings, .. } = planner;
    if problems.len() > before {
        return None;
    }
    Some(Plan {
        fixed: fixed?,
        uses_tls,
        max_body_size: sizes.0,
        max_header_size: sizes.1,
        max_buffered_bytes: server::max_buffered_bytes(&raw.server),
        min_body_rate: raw.server.min_body_rate.0,
        max_connections: server::max_connections(&raw.server),
        max_connections_per_ip: raw.server.max_connections_per_ip,
        graceful_shutdown_timeout: raw.server.graceful_shutdown_timeout.0,
        ready: raw.server.ready,
        backends,
        routing,
        discovery,
        health_check,
        timeouts: timeouts::timeouts(&raw.timeouts),
        prompts,
        guard_headers,
        guard_response_headers,
        guard_fields: raw.edge_guard.remove_fields.clone(),
        guards,
        usage: usage?,
        log: log::log(&raw.log),
        auth,
        limits: limits?,
        lua,
        tiers,
        hooks,
        ip_rules,
        trusted_proxies,
        error_format: raw.server.error_format,
        cors,
        certificates: certificates.map(Arc::new),
        files,
        warnings,
        shown: serde_json::to_value(raw).unwrap_or_default(),
    })
}
