//! `edge_guard`: privileged inputs of the engines.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Privileged inputs of the engines. vLLM accepts these from every client; its security guide says
/// to remove them at a reverse proxy. A list given here replaces the default list; an empty one
/// removes nothing.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EdgeGuard {
    /// Request headers that never reach a backend.
    pub remove_headers: Vec<String>,
    /// Top-level fields of a JSON body that never reach a backend.
    pub remove_fields: Vec<String>,
    /// Response headers of backends that never reach a client.
    pub remove_response_headers: Vec<String>,
}

impl Default for EdgeGuard {
    fn default() -> Self {
        let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        Self {
            remove_headers: list(&["X-Vllm-Priority", "X-data-parallel-rank"]),
            remove_fields: list(&["priority", "kv_transfer_params", "cache_salt", "vllm_xargs"]),
            remove_response_headers: list(&[
                "Set-Cookie",
                "Server",
                "X-Powered-By",
                "X-Served-By",
                "X-Envoy-Upstream-Service-Time",
                "Alt-Svc",
                "Strict-Transport-Security",
            ]),
        }
    }
}
