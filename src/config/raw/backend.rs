//! `backends`, as the file has them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scalar::{SecretText, Switch, one, without_query};
use crate::config::choices::{Addresses, Engine, StreamUsage};

/// One LLM server.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// `http://host:port` or `https://host`, with the path and query that the server wants. A path
    /// with a version in it (`/v1`, `/api/paas/v4`), or `/openai/deployments/NAME`, is the base that
    /// endpoints follow; any other is a prefix before `/v1`. A query is sent with every request.
    #[serde(serialize_with = "without_query")]
    pub url: String,
    /// Whether `/v1` follows the path of the URL, in place of the rule for paths.
    pub append_v1: Option<bool>,
    /// Name in metrics and logs; the URL without one.
    pub name: Option<String>,
    /// Share of the requests in relation to the others, 1 to 1000.
    #[serde(default = "one")]
    pub weight: u32,
    /// Models it serves, exact names or a prefix with `*` at the end. Empty: every model.
    #[serde(default)]
    pub models: Vec<String>,
    /// Sent to the backend as `Authorization: Bearer`. The client's own key never is.
    #[schemars(with = "Option<String>")]
    pub api_key: Option<SecretText>,
    /// A file that holds the key.
    pub api_key_file: Option<String>,
    /// The header field for the key, `api-key` for instance; `Authorization` without it.
    pub auth_header: Option<String>,
    /// The word before the key; without this key `Bearer` in `Authorization`, and none in any other
    /// field.
    pub auth_scheme: Option<String>,
    /// Further header fields to send with every request, in place of the client's.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub headers: BTreeMap<String, SecretText>,
    /// Header fields whose values stand in files of their own.
    #[serde(default)]
    pub headers_file: BTreeMap<String, String>,
    /// The proxy that leads to it, `http://user:password@host:port`; `none`: a direct connection,
    /// whatever the environment says. Without this key `HTTPS_PROXY` and `NO_PROXY` hold, for https.
    #[schemars(with = "Option<String>")]
    pub proxy: Option<SecretText>,
    /// How to ask for token counts in streams where the client did not.
    #[serde(default)]
    pub stream_usage: StreamUsage,
    /// What it is: engines have words of their own for the priority of a request and for the salt
    /// of their caches.
    #[serde(default)]
    pub engine: Engine,
    /// Whether it is used. `false` leaves it out, with every route to it.
    #[serde(default)]
    pub enabled: Switch,
    /// Whether it is probed as the section `health_check` says. `false`: it counts as healthy.
    #[serde(default)]
    pub health_check: Switch,
    /// Language of its API; `openai` without this.
    #[serde(default)]
    #[schemars(schema_with = "super::protocol_schema")]
    pub protocol: Option<String>,
    /// What becomes of a name that leads to several addresses. `each` without this for http, and
    /// `one` for https: hosted services stand behind addresses that change.
    pub addresses: Option<Addresses>,
}
