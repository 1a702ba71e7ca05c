//! Finds which pool of the previous generation each new pool continues. Pools have no names, and the
//! models that they serve may change with their backends, so a pool is recognised by its backends:
//! all the same, or many of them. To that extent the old pool's memory is still useful.

use std::collections::{BTreeMap, HashMap};

use super::pool::{Pool, Predecessor};
use crate::config::plan::BalancePlan;

/// The predecessor of each new pool. A new pool is given by the ids of its backends, sorted and
/// without duplicates, and by its balancing.
pub fn predecessors<'a>(old: &'a [Pool], new: &[(Vec<u32>, &BalancePlan)]) -> Vec<Predecessor<'a>> {
    let before: Vec<&[u32]> = old.iter().map(Pool::ids).collect();
    let after: Vec<&[u32]> = new.iter().map(|(ids, _)| ids.as_slice()).collect();
    let alike = |n: usize, o: usize| new[n].1 == old[o].balance();
    let predecessor = |(closest, replaced): (Option<usize>, Option<usize>)| Predecessor {
        closest: closest.map(|o| &old[o]),
        replaced: replaced.map(|o| &old[o]),
    };
    matches(&before, &after, alike).into_iter().map(predecessor).collect()
}

/// For each of `new`, the closest of `old` and the one that it replaces, by their indices. Pools with
/// the same balancing match first, then those with the most backends in common.
fn matches(
    old: &[&[u32]],
    new: &[&[u32]],
    alike: impl Fn(usize, usize) -> bool,
) -> Vec<(Option<usize>, Option<usize>)> {
    let mut holders: HashMap<u32, Vec<usize>> = HashMap::new();
    for (o, ids) in old.iter().enumerate() {
        ids.iter().for_each(|id| holders.entry(*id).or_default().push(o));
    }
    let mut pairs = Vec::new();
    for (n, ids) in new.iter().enumerate() {
        let mut common: BTreeMap<usize, usize> = BTreeMap::new();
        for o in ids.iter().filter_map(|id| holders.get(id)).flatten() {
            *common.entry(*o).or_default() += 1;
        }
        pairs.extend(common.into_iter().map(|(o, common)| {
            let all = ids.len() + old[o].len() - common;
            (alike(n, o), common as f64 / all as f64, n, o)
        }));
    }
    // Stable: among equal pairs the first ones match.
    pairs.sort_by(|a, b| b.0.cmp(&a.0).then(b.1.total_cmp(&a.1)));
    let mut found = vec![(None, None); new.len()];
    let mut taken = vec![false; old.len()];
    for (_, _, n, o) in pairs {
        let (closest, replaced) = &mut found[n];
        closest.get_or_insert(o);
        if replaced.is_none() && !taken[o] {
            (*replaced, taken[o]) = (Some(o), true);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(old: &[&[u32]], new: &[&[u32]]) -> Vec<(Option<usize>, Option<usize>)> {
        matches(old, new, |_, _| true)
    }

    #[test]
    fn a_pool_stays_the_same_when_one_of_its_backends_comes_or_goes() {
        let before: [&[u32]; 2] = [&[1, 2, 3, 4], &[3, 4, 5]];
        let both = [(Some(0), Some(0)), (Some(1), Some(1))];
        assert_eq!(found(&before, &[&[1, 2, 3], &[3, 4, 5, 6]]), both);
        assert_eq!(found(&before, &[&[1, 2, 3, 4, 9], &[3, 5]]), both);
        assert_eq!(found(&before, &[&[7, 8], &[3, 4, 5]])[0], (None, None));
        assert_eq!(found(&[], &[&[1], &[]]), [(None, None), (None, None)]);
    }

    #[test]
    fn of_two_that_come_from_one_the_closer_takes_its_place() {
        let after = found(&[&[1, 2, 3]], &[&[1, 2, 3, 4], &[1, 2, 3]]);
        assert_eq!(after, [(Some(0), None), (Some(0), Some(0))]);
    }

    #[test]
    fn pools_of_the_same_backends_are_told_apart_by_how_they_balance() {
        let ids: &[u32] = &[1, 2];
        let after = matches(&[ids, ids], &[ids, ids], |n, o| n != o);
        assert_eq!(after, [(Some(1), Some(1)), (Some(0), Some(0))]);
    }

    proptest! {
        #[test]
        fn no_pool_has_two_in_its_place(
            old in prop::collection::vec(prop::collection::btree_set(0u32..12, 0..6), 0..6),
            new in prop::collection::vec(prop::collection::btree_set(0u32..12, 0..6), 0..6),
        ) {
            let lists = |sets: &[std::collections::BTreeSet<u32>]| {
                sets.iter().map(|s| s.iter().copied().collect()).collect::<Vec<Vec<u32>>>()
            };
            let (before, after) = (lists(&old), lists(&new));
            let before: Vec<_> = before.iter().map(Vec::as_slice).collect();
            let after: Vec<_> = after.iter().map(Vec::as_slice).collect();
            let found = matches(&before, &after, |n, o| (n + o).is_multiple_of(2));
            let mut replaced_pools: Vec<_> = found.iter().filter_map(|(_, replaced)| *replaced).collect();
            let count = replaced_pools.len();
            replaced_pools.sort_unstable();
            replaced_pools.dedup();
            prop_assert_eq!(replaced_pools.len(), count);
            for (n, (closest, replaced)) in found.iter().enumerate() {
                let common = old.iter().any(|o| !o.is_disjoint(&new[n]));
                prop_assert_eq!(closest.is_some(), common);
                for o in closest.iter().chain(replaced) {
                    prop_assert!(!old[*o].is_disjoint(&new[n]));
                }
            }
        }
    }
}
