//! `backends`, as the file has them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scalar::{SecretText, Switch, languages_schema, one, protocol_schema, without_query};
use crate::config::choices::{Addresses, Engine, StreamUsage, Vendor};

/// One LLM server.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// `http://host:port` or `https://host`, with the path and query that the server needs. A path
    /// with a version (`/v1`, `/api/paas/v4`), or `/openai/deployments/NAME`, is the base that
    /// endpoint paths are appended to; to any other path `/v1` is appended first. A query is sent
    /// with every request.
    #[serde(serialize_with = "without_query")]
    pub url: String,
    /// Whether `/v1` is appended to the path of the URL; overrides the rule above.
    pub append_v1: Option<bool>,
    /// Name in metrics and logs; the URL by default.
    pub name: Option<String>,
    /// Share of the requests relative to the other backends, 1 to 1000.
    #[serde(default = "one")]
    pub weight: u32,
    /// Models that it serves: exact names, or a prefix with `*` at the end. Empty: every model.
    #[serde(default)]
    pub models: Vec<String>,
    /// Sent to the backend as `Authorization: Bearer`. The client's own key is never sent.
    #[schemars(with = "Option<String>")]
    pub api_key: Option<SecretText>,
    /// A file that holds the key.
    pub api_key_file: Option<String>,
    /// The header field for the key, for instance `api-key`; `Authorization` by default.
    pub auth_header: Option<String>,
    /// The word before the key. The default is `Bearer` in `Authorization`, and none in any other
    /// field.
    pub auth_scheme: Option<String>,
    /// Header fields that are sent with every request and replace the client's.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub headers: BTreeMap<String, SecretText>,
    /// Header fields whose values are read from files.
    #[serde(default)]
    pub headers_file: BTreeMap<String, String>,
    /// The HTTP proxy to use, `http://user:password@host:port`; `none` for a direct connection. By
    /// default the environment variables `HTTPS_PROXY` and `NO_PROXY` apply to https.
    #[schemars(with = "Option<String>")]
    pub proxy: Option<SecretText>,
    /// How the gateway asks for token counts in streams if the client does not. The default is
    /// `continuous`; with `vendor` it is `final`, or `off` if that one takes no such option.
    pub stream_usage: Option<StreamUsage>,
    /// The kind of server. Engines differ in the fields for the priority of a request and for the
    /// salt of their caches. The default is `vllm`, with `vendor` `other`.
    pub engine: Option<Engine>,
    /// Whether it is used. `false` disables it and every route to it.
    #[serde(default)]
    pub enabled: Switch,
    /// Whether the probes of `health_check` apply to it. `false`: it is considered healthy.
    #[serde(default)]
    pub health_check: Switch,
    /// The hosted API that it is. It sets the defaults of `languages` and `auth_header`, and how
    /// requests are written for it.
    pub vendor: Option<Vendor>,
    /// The languages of its API: `chat` (OpenAI's Chat Completions, Completions and Embeddings),
    /// `responses` (OpenAI's Responses), `messages` (Anthropic's Messages). A request in another
    /// language is translated into one of these. The default is that of `vendor`, else `[chat]`.
    #[serde(default)]
    #[schemars(schema_with = "languages_schema")]
    pub languages: Vec<String>,
    /// The same with one language: `openai` is `chat`, `anthropic` is `messages`.
    #[serde(default)]
    #[schemars(schema_with = "protocol_schema")]
    pub protocol: Option<String>,
    /// Whether it has `/v1/completions`, if it speaks `chat`. Without it such a request becomes one for
    /// Chat. The default is true, with `vendor` what is known of that one.
    pub completions: Option<bool>,
    /// Which backends can read each other's state of reasoning: backends of one account of a vendor
    /// have the same word here. The default is the backend's name.
    pub state_domain: Option<String>,
    /// Members that are left out of translated requests, because it rejects them; by their names in
    /// its language.
    #[serde(default)]
    pub drop_fields: Vec<String>,
    /// How connections to it are secured, for an https URL.
    pub tls: Option<BackendTls>,
    /// How a name with several addresses is treated. The default is `each` for http and `one` for
    /// https, because the addresses of hosted services change.
    pub addresses: Option<Addresses>,
}

/// How connections to a backend are secured.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BackendTls {
    /// A PEM file with the certificates that may have signed the backend's. It replaces the trust store
    /// of the machine.
    pub ca: Option<String>,
    /// A PEM file with the certificate that the gateway shows, and what leads to its issuer.
    pub cert: Option<String>,
    /// A PEM file with the key of `cert`.
    pub key: Option<String>,
    /// The name in the backend's certificate and in the handshake; the host of the URL by default.
    pub server_name: Option<String>,
    /// `false`: whoever answers is taken for the backend.
    #[serde(default)]
    pub verify: Switch,
}
