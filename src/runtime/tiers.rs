//! Tiers of callers, looked up while requests run.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Mutex,
};

use crate::{
    base::{Principal, lock},
    config::plan::TierPlan,
};

/// Unknown names that are remembered, so that each is told of once.
const MOST_UNKNOWN: usize = 100;

/// The tiers of one generation of the configuration.
pub struct Tiers {
    known: BTreeMap<String, TierPlan>,
    /// Names that are none, and were told of.
    unknown: Mutex<HashSet<String>>,
}

impl Tiers {
    /// The tiers of a configuration.
    pub fn new(known: BTreeMap<String, TierPlan>) -> Self {
        Self { known, unknown: Mutex::default() }
    }

    /// What a caller is given before others. One of a tier that nobody knows is as one without.
    pub fn of(&self, who: Option<&Principal>) -> TierPlan {
        // Without tiers a `tier` in a key's data is the operator's own affair.
        let name = who.map_or("", |who| who.tier.as_str());
        if name.is_empty() || self.known.is_empty() {
            return TierPlan::default();
        }
        self.known.get(name).copied().unwrap_or_else(|| {
            if self.is_news(name) {
                log::warn!("there is no tier {name:?} in `tiers`: its keys are as without a tier");
            }
            TierPlan::default()
        })
    }

    fn is_news(&self, name: &str) -> bool {
        let mut unknown = lock(&self.unknown);
        unknown.len() < MOST_UNKNOWN && !unknown.contains(name) && unknown.insert(name.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_belongs_to_no_known_tier_is_told_of_once_and_given_nothing() {
        let gold = TierPlan { engine_priority: Some(5), queue_class: 2 };
        let tiers = Tiers::new(BTreeMap::from([("gold".to_owned(), gold)]));
        let of = |tier: &str| {
            tiers.of(Some(&Principal { tier: tier.to_owned(), ..Principal::default() }))
        };
        assert_eq!((of("gold"), of(""), tiers.of(None)), (gold, TierPlan::default(), of("tin")));
        assert!(!tiers.is_news("tin"), "it was told of when it was looked up");
        assert!(tiers.is_news("lead") && !tiers.is_news("lead"));
        for n in 0..2 * MOST_UNKNOWN {
            of(&format!("unknown-{n}"));
        }
        assert_eq!(lock(&tiers.unknown).len(), MOST_UNKNOWN);
    }
}
