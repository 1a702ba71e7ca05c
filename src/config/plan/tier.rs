//! `tiers`, and the keys of the file that refer to them.

use std::collections::BTreeMap;

use super::planner::Planner;
use crate::config::{problem::closest, raw::Raw};

/// The range of priorities, which every engine supports.
const PRIORITIES: std::ops::RangeInclusive<i32> = -1000..=1000;

/// The priorities of a tier; the default is for a key without a tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierPlan {
    /// The priority in the engines, larger is more important; `None`: none is sent.
    pub engine_priority: Option<i32>,
    /// The class in the gateway's queue, larger is first.
    pub queue_class: i32,
}

impl Planner<'_> {
    pub(super) fn tiers(&mut self, raw: &Raw) -> BTreeMap<String, TierPlan> {
        let mut tiers = BTreeMap::new();
        for (name, tier) in &raw.tiers {
            if name.is_empty() {
                self.problem(
                    "tiers",
                    "has a tier without a name",
                    "the `tier` of a key refers to it by name",
                );
            }
            if tier.engine_priority.is_some_and(|n| !PRIORITIES.contains(&n)) {
                self.problem(
                    format!("tiers.{name}.engine_priority"),
                    "is not between -1000 and 1000",
                    "larger is more important; without this key no priority is sent",
                );
            }
            let (engine_priority, queue_class) = (tier.engine_priority, tier.queue_class);
            tiers.insert(name.clone(), TierPlan { engine_priority, queue_class });
        }
        self.tiers_of_keys(raw);
        tiers
    }

    /// Reports keys of the file with an unknown tier.
    fn tiers_of_keys(&mut self, raw: &Raw) {
        let listed = raw.api_keys.iter().enumerate();
        let mut named: Vec<(String, &str)> = listed
            .filter_map(|(i, key)| Some((format!("api_keys[{i}].tier"), key.tier.as_deref()?)))
            .collect();
        let providers = raw.auth.iter().flat_map(|auth| auth.pipeline.iter().enumerate());
        for (p, provider) in providers {
            let keys = provider.fixed.iter().flat_map(|fixed| fixed.keys.iter().enumerate());
            named.extend(keys.filter_map(|(i, key)| {
                let at = format!("auth.pipeline[{p}].static.keys[{i}].tier");
                Some((at, key.tier.as_deref()?))
            }));
        }
        for (at, name) in named {
            if name.is_empty() || raw.tiers.contains_key(name) {
                continue;
            }
            let hint = match closest(name, raw.tiers.keys().map(String::as_str)) {
                Some(known) => format!("did you mean `{known}`?"),
                None => format!("add it: `tiers: {{{name}: {{queue_class: 1}}}}`"),
            };
            self.problem(at, format!("there is no tier `{name}` in `tiers`"), &hint);
        }
    }
}
