//! The caller of a request.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{allowance::Allowance, limits::OwnLimits};

/// The caller, as the auth pipeline identified it. Limits, routing, usage records and logs read it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Principal {
    /// Identity of the key, never the key itself.
    pub key_id: String,
    /// The owner of the key; empty if unknown.
    pub user_id: String,
    /// Name of the key; may be empty.
    pub name: String,
    /// May be empty.
    pub team: String,
    /// May be empty.
    pub tier: String,
    /// Further fields of the key's data or of a script's result.
    pub metadata: Map<String, Value>,
    /// Limits of this caller alone, from its key's data or a script.
    pub limits: Option<Arc<OwnLimits>>,
    /// Labels that a script set.
    pub tags: Vec<String>,
    /// Set where the gateway itself must count the key's usage.
    pub allowance: Option<Arc<Allowance>>,
}
