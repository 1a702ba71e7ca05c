//! `discovery`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_yaml::Value;

use super::scalar::{SecretText, Span, Switch, secs, ten_seconds, without_query};
use crate::config::choices::DiscoveryMode;

/// Sources of backends, in addition to `backends`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Discovery {
    /// Whether the sources are used.
    pub enabled: Switch,
    /// How several sources are combined.
    pub mode: DiscoveryMode,
    /// How often a source is queried; a source may have its own `interval`.
    pub interval: Span,
    /// Name servers, `address:port`, for the names of backends. Empty: those of the system.
    pub dns_servers: Vec<String>,
    /// The sources.
    pub sources: Vec<DiscoverySource>,
}

impl Default for Discovery {
    fn default() -> Self {
        Self {
            enabled: Switch::default(),
            mode: DiscoveryMode::default(),
            interval: secs(30),
            dns_servers: Vec::new(),
            sources: Vec::new(),
        }
    }
}

/// A source of backends.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(
    dead_code,
    reason = "sections of version 0.3 are accepted, so that only `type` is a problem"
)]
pub struct DiscoverySource {
    /// Name in metrics and logs; the type by default.
    pub name: Option<String>,
    /// The type of the source.
    #[serde(rename = "type")]
    pub kind: SourceType,
    /// Whether it is used.
    #[serde(default)]
    pub enabled: Switch,
    /// An HTTP service.
    pub http: Option<HttpSource>,
    /// A file.
    pub file: Option<FileSource>,
    /// Sent to its backends as `Authorization: Bearer`.
    #[schemars(with = "Option<String>")]
    pub api_key: Option<SecretText>,
    /// A file that holds the key.
    pub api_key_file: Option<String>,
    /// As for a backend: the header field for the key.
    pub auth_header: Option<String>,
    /// As for a backend: the word before the key.
    pub auth_scheme: Option<String>,
    /// The sections of source types of version 0.3 that are not supported.
    #[serde(default, rename = "static", skip_serializing)]
    #[schemars(skip)]
    pub fixed: Option<Value>,
    #[serde(default, skip_serializing)]
    #[schemars(skip)]
    pub database: Option<Value>,
    #[serde(default, skip_serializing)]
    #[schemars(skip)]
    pub consul: Option<Value>,
    #[serde(default, skip_serializing)]
    #[schemars(skip)]
    pub kubernetes: Option<Value>,
    #[serde(default, skip_serializing)]
    #[schemars(skip)]
    pub etcd: Option<Value>,
}

/// Types of sources. Unsupported ones of version 0.3 are read, so that the problem names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SourceType {
    /// An HTTP service.
    Http,
    /// A file.
    File,
    #[schemars(skip)]
    Static,
    #[schemars(skip)]
    Database,
    #[schemars(skip)]
    Consul,
    #[schemars(skip)]
    Kubernetes,
    #[schemars(skip)]
    Etcd,
}

/// An HTTP service that lists backends.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpSource {
    /// It is queried with GET and returns a JSON list of backends, or an object with the list in
    /// `backends` or `services`; an entry has `url`, and may have `name`, `weight`, `models`,
    /// `stream_usage`, `engine`, `vendor`, `languages`, `protocol`, `completions`, `state_domain`, `drop_fields`,
    /// `append_v1`, `addresses` and `status`.
    #[serde(serialize_with = "without_query")]
    pub url: String,
    /// Only `GET` is supported.
    #[serde(default)]
    pub method: SourceMethod,
    /// How long a response may take.
    #[serde(default = "ten_seconds")]
    pub timeout: Span,
    /// How often it is queried; the `interval` of `discovery` by default.
    pub interval: Option<Span>,
    /// Further header fields to send.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub headers: BTreeMap<String, SecretText>,
    /// Header fields whose values are read from files.
    #[serde(default)]
    pub headers_file: BTreeMap<String, String>,
}

/// The method of an HTTP source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum SourceMethod {
    /// The only one.
    #[default]
    #[serde(rename = "GET")]
    Get,
}

/// A file that lists backends.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSource {
    /// YAML or JSON, in the format of an `http` response. It is checked for changes every second.
    pub path: String,
}
