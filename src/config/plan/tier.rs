//! Tiers, and the keys of the file that belong to them.

use std::collections::BTreeMap;

use super::planner::Planner;
use crate::config::{problem::closest, raw::Raw};

/// Priorities of the engines: far inside of what any of them takes.
const PRIORITIES: std::ops::RangeInclusive<i32> = -1000..=1000;

/// What a key of one tier is given before others; the default is that of a key without a tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierPlan {
    /// How important its requests are to the engines, larger is more; `None`: nothing is sent.
    pub engine_priority: Option<i32>,
    /// Its place in the gateway's queue, larger goes first.
    pub queue_class: i32,
}

impl Planner<'_> {
    pub(super) fn tiers(&mut self, raw: &Raw) -> BTreeMap<String, TierPlan> {
        let mut tiers = BTreeMap::new();
        for (name, tier) in &raw.tiers {
            if name.is_empty() {
                self.problem("tiers", "holds a tier without a name", "a key names it in `tier`");
            }
            if tier.engine_priority.is_some_and(|n| !PRIORITIES.contains(&n)) {
                self.problem(
                    format!("tiers.{name}.engine_priority"),
                    "is not between -1000 and 1000",
                    "larger is more important; remove it to send nothing",
                );
            }
            let (engine_priority, queue_class) = (tier.engine_priority, tier.queue_class);
            tiers.insert(name.clone(), TierPlan { engine_priority, queue_class });
        }
        self.tiers_of_keys(raw);
        tiers
    }

    /// Keys of the file name tiers of the file.
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
