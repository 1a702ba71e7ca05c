//! What providers are opened with.

use std::sync::Arc;

use super::keystore::KeyStore;
use crate::{store::Stores, telemetry::Metrics};

/// Connections and counters that providers use.
pub struct Resources<'a> {
    /// Redis and SQL.
    pub stores: &'a Stores,
    /// For webhooks.
    pub client: &'a reqwest::Client,
    /// The keys of the admin API.
    pub keys: &'a Arc<KeyStore>,
    pub metrics: &'a Metrics,
}
