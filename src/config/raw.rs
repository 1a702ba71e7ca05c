//! What the file says: one struct a section, every key with its default. The JSON Schema printed
//! by `llmproxy schema` is derived from these types and their comments.

mod admin;
mod auth;
mod backend;
mod discovery;
mod edge_guard;
mod guards;
mod health_check;
mod hooks;
mod limit;
mod log;
mod lua;
mod models;
mod prompts;
mod routing;
mod scalar;
mod server;
mod storage;
mod tier;
mod timeouts;
mod usage;
mod when;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::{
    admin::*, auth::*, backend::*, discovery::*, edge_guard::*, guards::*, health_check::*,
    hooks::*, limit::*, log::*, lua::*, models::*, prompts::*, routing::*, scalar::*, server::*,
    storage::*, tier::*, timeouts::*, usage::*, when::*,
};

/// LLMProxy configuration. Strings may hold `${VAR}`, `${VAR:-default}`, and `$$` for a dollar
/// sign. Durations are written `500ms`, `10s`, `5m`. Relative paths start at the folder of this
/// file.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    /// Address of the gateway, `host:port`, or `:port` for all addresses, of IPv6 as well as of
    /// IPv4 where the machine has both.
    #[serde(default = "default_listen")]
    pub listen: String,
    /// Process and listener settings.
    #[serde(default)]
    pub server: Server,
    /// The LLM servers behind the gateway.
    #[serde(default)]
    pub backends: Vec<Backend>,
    /// Sources of further backends, and name servers.
    pub discovery: Option<Discovery>,
    /// How a backend is chosen, and what happens when one fails.
    #[serde(default)]
    pub routing: Routing,
    /// Models under names of your own: an exact name, or a prefix with `*` at the end. The most
    /// specific entry applies.
    #[serde(default)]
    pub models: BTreeMap<String, Model>,
    /// What happens to requests whose backends fail, with the keys of other gateways.
    #[serde(default)]
    pub fallback: Fallback,
    /// Which responses are failures of the backend.
    #[serde(default)]
    pub detection: Detection,
    /// Active probes of the backends. Without this section every backend is considered healthy.
    pub health_check: Option<HealthCheck>,
    /// Timeouts.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Prompts of the operator, which are put into requests. Without this section there are none.
    pub system_prompts: Option<SystemPrompts>,
    /// Privileged inputs of the engines that are removed from client requests.
    #[serde(default)]
    pub edge_guard: EdgeGuard,
    /// What is looked for in requests and answers before they pass.
    #[serde(default)]
    pub guards: Guards,
    /// The folder for the gateway's own data: usage records that wait for delivery, and databases.
    /// The environment variable `LLMPROXY_DATA_DIR` sets the default.
    #[serde(default = "data_dir")]
    pub data_dir: String,
    /// Usage records.
    #[serde(default)]
    pub usage: Usage,
    /// Where usage records are sent, with the keys of version 0.3.
    pub usage_hook: Option<UsageHook>,
    /// The log.
    #[serde(default)]
    pub log: Log,
    /// Authentication. Without this section requests need no key.
    pub auth: Option<Auth>,
    /// Keys of the provider `file` of `auth`.
    #[serde(default)]
    pub api_keys: Vec<ApiKey>,
    /// Connections that other sections refer to by name.
    #[serde(default)]
    pub storage: Storage,
    /// The admin API.
    #[serde(default)]
    pub admin: Admin,
    /// Limits. Without this section only the per-key limits of `api_keys` and providers apply.
    pub rate_limit: Option<RateLimit>,
    /// What scripts reach beyond their own values.
    #[serde(default)]
    pub lua: LuaLibrary,
    /// Tiers of keys, by name. The `tier` of a key refers to one.
    #[serde(default)]
    pub tiers: BTreeMap<String, Tier>,
    /// Scripts at the stages of a request.
    #[serde(default)]
    pub hooks: Hooks,
    /// Scripts at the stages of a request, with the keys of version 0.5.
    #[serde(default)]
    pub scripts: Scripts,
}

fn default_listen() -> String {
    ":8000".to_owned()
}

fn data_dir() -> String {
    "data".to_owned()
}
