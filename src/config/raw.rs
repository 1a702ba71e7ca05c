//! What the file says: one struct a section, every key with its default. The JSON Schema printed
//! by `llmproxy schema` is derived from these types and their comments.

mod admin;
mod auth;
mod backend;
mod discovery;
mod edge_guard;
mod health_check;
mod limit;
mod log;
mod models;
mod routing;
mod scalar;
mod server;
mod storage;
mod tier;
mod timeouts;
mod usage;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::{
    admin::*, auth::*, backend::*, discovery::*, edge_guard::*, health_check::*, limit::*, log::*,
    models::*, routing::*, scalar::*, server::*, storage::*, tier::*, timeouts::*, usage::*,
};

/// LLMProxy configuration. Strings may hold `${VAR}`, `${VAR:-default}`, and `$$` for a dollar
/// sign. Durations are written `500ms`, `10s`, `5m`. Relative paths start at the folder of this
/// file.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    /// Address of the gateway, `host:port`, or `:port` for all addresses, of IPv6 as well as of IPv4
    /// where the machine has both.
    #[serde(default = "default_listen")]
    pub listen: String,
    /// Process and listener settings.
    #[serde(default)]
    pub server: Server,
    /// The LLM servers behind the gateway.
    #[serde(default)]
    pub backends: Vec<Backend>,
    /// Backends that other places tell of, and name servers.
    pub discovery: Option<Discovery>,
    /// How a backend is chosen, and what happens when one fails.
    #[serde(default)]
    pub routing: Routing,
    /// Models by other names than the backends' own, exact or a prefix with `*` at the end; the
    /// closest one counts.
    #[serde(default)]
    pub models: BTreeMap<String, Model>,
    /// What becomes of requests whose backends fail, in the words of other gateways.
    #[serde(default)]
    pub fallback: Fallback,
    /// Which answers are failures of the backend.
    #[serde(default)]
    pub detection: Detection,
    /// Active probes of the backends. Without this section every backend counts as healthy.
    pub health_check: Option<HealthCheck>,
    /// How long to wait for what.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Which privileged inputs of the engines are taken out of client requests.
    #[serde(default)]
    pub edge_guard: EdgeGuard,
    /// The folder for what the gateway itself keeps: usage records on their way, its databases.
    /// Without this key, the variable `LLMPROXY_DATA_DIR`, if it is set.
    #[serde(default = "data_dir")]
    pub data_dir: String,
    /// Usage records: what becomes of them.
    #[serde(default)]
    pub usage: Usage,
    /// Where usage records are sent, in the words of the first version.
    pub usage_hook: Option<UsageHook>,
    /// What is logged, and how.
    #[serde(default)]
    pub log: Log,
    /// Who may call. Without this section everybody may.
    pub auth: Option<Auth>,
    /// Keys for the provider `file` of `auth`.
    #[serde(default)]
    pub api_keys: Vec<ApiKey>,
    /// Connections that several sections may name.
    #[serde(default)]
    pub storage: Storage,
    /// The admin API.
    #[serde(default)]
    pub admin: Admin,
    /// How much one may call. Without this section only limits of a key's own hold.
    pub rate_limit: Option<RateLimit>,
    /// Ranks of keys, by their names. A key says in `tier` to which it belongs.
    #[serde(default)]
    pub tiers: BTreeMap<String, Tier>,
}

fn default_listen() -> String {
    ":8000".to_owned()
}

fn data_dir() -> String {
    "data".to_owned()
}
