//! Which pools of one generation go on from which of the one before. Pools have no names, and the
//! models that they serve may change with their backends: what makes a pool the same is that it has
//! the same backends, or many of them. What pools remember is of use as far as that.

use std::collections::{BTreeMap, HashMap};

use super::Pool;
use crate::config::plan::BalancePlan;

/// The pools that a new one goes on from.
#[derive(Clone, Copy, Default)]
pub struct Heritage<'a> {
    /// The one that is most like it. Others may go on from it as well.
    pub closest: Option<&'a Pool>,
    /// The one whose place it takes, alone.
    pub sole: Option<&'a Pool>,
}

/// Finds what each of the new pools goes on from. A new pool is told by the ids of its backends,
/// sorted and each once, and by how it balances.
pub fn heirs<'a>(old: &'a [Pool], new: &[(Vec<u32>, &BalancePlan)]) -> Vec<Heritage<'a>> {
    let before: Vec<&[u32]> = old.iter().map(Pool::ids).collect();
    let after: Vec<&[u32]> = new.iter().map(|(ids, _)| ids.as_slice()).collect();
    let alike = |n: usize, o: usize| new[n].1 == old[o].balance();
    let heritage = |(closest, sole): (Option<usize>, Option<usize>)| Heritage {
        closest: closest.map(|o| &old[o]),
        sole: sole.map(|o| &old[o]),
    };
    matches(&before, &after, alike).into_iter().map(heritage).collect()
}

/// For each of `new`, the closest of `old` and the one whose place it takes, by their numbers. Those
/// that balance alike go first, then those that have most in common.
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
    // Stable, so that of equal ones the first go together.
    pairs.sort_by(|a, b| b.0.cmp(&a.0).then(b.1.total_cmp(&a.1)));
    let mut found = vec![(None, None); new.len()];
    let mut taken = vec![false; old.len()];
    for (_, _, n, o) in pairs {
        let (closest, sole) = &mut found[n];
        closest.get_or_insert(o);
        if sole.is_none() && !taken[o] {
            (*sole, taken[o]) = (Some(o), true);
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
            let mut soles: Vec<_> = found.iter().filter_map(|(_, sole)| *sole).collect();
            let count = soles.len();
            soles.sort_unstable();
            soles.dedup();
            prop_assert_eq!(soles.len(), count);
            for (n, (closest, sole)) in found.iter().enumerate() {
                let common = old.iter().any(|o| !o.is_disjoint(&new[n]));
                prop_assert_eq!(closest.is_some(), common);
                for o in closest.iter().chain(sole) {
                    prop_assert!(!old[*o].is_disjoint(&new[n]));
                }
            }
        }
    }
}
