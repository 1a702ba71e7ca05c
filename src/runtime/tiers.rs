//! Tiers of callers, looked up for each request.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Mutex,
};

use crate::{
    base::{Principal, lock},
    config::plan::TierPlan,
};

/// Unknown names that are remembered, so that each is logged once.
const MOST_UNKNOWN: usize = 100;

/// The tiers of one generation of the configuration.
pub struct Tiers {
    known: BTreeMap<String, TierPlan>,
    /// Names of unknown tiers that were logged.
    unknown: Mutex<HashSet<String>>,
}

impl Tiers {
    pub fn new(known: BTreeMap<String, TierPlan>) -> Self {
        Self { known, unknown: Mutex::default() }
    }

    /// The tier of a caller. A caller of an unknown tier has the default.
    pub fn of(&self, caller: Option<&Principal>) -> TierPlan {
        // Without configured tiers, `tier` in a key's data has no meaning for the gateway.
        let name = caller.map_or("", |caller| caller.tier.as_str());
        if name.is_empty() || self.known.is_empty() {
            return TierPlan::default();
        }
        self.known.get(name).copied().unwrap_or_else(|| {
            if self.is_new_unknown(name) {
                log::warn!(
                    "there is no tier {name:?} in `tiers`: its keys are treated as without a tier"
                );
            }
            TierPlan::default()
        })
    }

    fn is_new_unknown(&self, name: &str) -> bool {
        let mut unknown = lock(&self.unknown);
        unknown.len() < MOST_UNKNOWN && !unknown.contains(name) && unknown.insert(name.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_tier_is_logged_once_and_is_the_default() {
        let gold = TierPlan { engine_priority: Some(5), queue_class: 2 };
        let tiers = Tiers::new(BTreeMap::from([("gold".to_owned(), gold)]));
        let of = |tier: &str| {
            tiers.of(Some(&Principal { tier: tier.to_owned(), ..Principal::default() }))
        };
        assert_eq!((of("gold"), of(""), tiers.of(None)), (gold, TierPlan::default(), of("tin")));
        assert!(!tiers.is_new_unknown("tin"), "it was logged when it was looked up");
        assert!(tiers.is_new_unknown("lead") && !tiers.is_new_unknown("lead"));
        for n in 0..2 * MOST_UNKNOWN {
            of(&format!("unknown-{n}"));
        }
        assert_eq!(lock(&tiers.unknown).len(), MOST_UNKNOWN);
    }
}
