//! `static` and `file`: keys that stand in the configuration.

use std::{collections::HashMap, sync::Arc};

use super::KeyRecord;
use crate::{
    auth::credential::{KeyDigest, digest, key_id},
    config::plan::KeyPlan,
};

/// Keys at hand, by their digests: the time of a lookup tells nothing about other keys.
pub struct KeyTable(HashMap<KeyDigest, Arc<KeyRecord>>);

impl KeyTable {
    /// A table of these keys.
    pub fn new(keys: &[KeyPlan]) -> Self {
        let entry = |plan: &KeyPlan| {
            let digest = digest(plan.key.expose());
            (digest, Arc::new(KeyRecord::new(plan.data.clone(), || key_id(&digest))))
        };
        Self(keys.iter().map(entry).collect())
    }

    /// What is known of a key.
    pub fn find(&self, digest: &KeyDigest) -> Option<Arc<KeyRecord>> {
        self.0.get(digest).cloned()
    }
}
