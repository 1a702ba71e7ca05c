//! `static` and `file`: keys in the configuration.

use std::{collections::HashMap, sync::Arc};

use super::lookup::KeyRecord;
use crate::{
    auth::credential::{KeyDigest, digest, key_id},
    base::Allowance,
    config::plan::KeyPlan,
};

/// Keys by digest: the time of a lookup reveals nothing about other keys.
pub struct KeyTable(HashMap<KeyDigest, Arc<KeyRecord>>);

impl KeyTable {
    /// `counted`: the gateway counts usage itself, because it cannot write to the configuration.
    /// `enforced`: a key is rejected once it is used up; false where a script makes the decision.
    pub fn new(keys: &[KeyPlan], counted: bool, enforced: bool) -> Self {
        let entry = |plan: &KeyPlan| {
            let digest = digest(plan.key.expose());
            let mut record = KeyRecord::new(plan.data.clone(), || key_id(&digest));
            if let (true, Ok(terms)) = (counted, &record.terms) {
                let allowance = terms.allowance().map(|a| Arc::new(Allowance { enforced, ..a }));
                Arc::make_mut(&mut record.principal).allowance = allowance;
            }
            (digest, Arc::new(record))
        };
        Self(keys.iter().map(entry).collect())
    }

    pub fn find(&self, digest: &KeyDigest) -> Option<Arc<KeyRecord>> {
        self.0.get(digest).cloned()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::{ResetPeriod, Secret};

    #[test]
    fn the_gateway_itself_is_to_count_what_nobody_else_can() {
        let allowance_of = |data: serde_json::Value, counted, enforced| {
            let data = data.as_object().unwrap().clone();
            let plan = KeyPlan { key: Secret::new("sk-a".to_owned()), data };
            let found = KeyTable::new(&[plan], counted, enforced).find(&digest("sk-a"));
            found.unwrap().principal.allowance.clone()
        };
        let allowance = |data, counted| allowance_of(data, counted, true);
        let data = json!({"total_quota": 30, "used_quota": 5, "quota_reset_period": "monthly"});
        let allowed = allowance(data.clone(), true).unwrap();
        let quota = allowed.quota.unwrap();
        assert_eq!((quota.left(0), allowed.balance), (25.0, None));
        assert_eq!((quota.period, quota.last_reset_at), (ResetPeriod::Monthly, None));
        assert!(allowed.enforced);
        // With a script.
        assert!(!allowance_of(data.clone(), true, false).unwrap().enforced);
        assert_eq!(allowance(data, false), None);
        assert_eq!(allowance(json!({"user_id": "u", "total_quota": 0}), true), None);
    }
}
