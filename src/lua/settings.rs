//! The settings of what scripts reach.

use std::time::Duration;

use super::origin::Origin;
use crate::store::redis::Settings;

/// The settings of `store`.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreSettings {
    /// The name of the storage and its server; `None`: in this process.
    pub redis: Option<(String, Settings)>,
    /// The prefix of keys in Redis.
    pub prefix: String,
    /// The number of values in this process.
    pub max_entries: usize,
    /// Largest value, in bytes of its JSON text.
    pub max_value: usize,
    /// How long a value without a time to live is kept.
    pub default_ttl: Duration,
    /// How long Redis may take.
    pub timeout: Duration,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            redis: None,
            prefix: "llmproxy:lua:".to_owned(),
            max_entries: 10_000,
            max_value: 64 << 10,
            default_ttl: Duration::from_secs(3600),
            timeout: Duration::from_millis(200),
        }
    }
}

/// The settings of `http`.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpSettings {
    /// Where requests may go.
    pub hosts: Vec<Origin>,
    /// How long a request may take.
    pub timeout: Duration,
    /// Largest body of an answer, in bytes.
    pub max_response: usize,
    /// Requests at the same time.
    pub max_concurrent: usize,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            hosts: Vec::new(),
            timeout: Duration::from_secs(1),
            max_response: 1 << 20,
            max_concurrent: 32,
        }
    }
}
