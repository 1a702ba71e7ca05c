//! Prompts with the same beginning go to the same backend, whose KV cache then has it. The longest
//! known beginning wins, among the backends that are not overloaded. A popular beginning spreads,
//! because several backends may know it; an unknown one goes to the least loaded backend.

use super::{
    super::{
        pick::Pick,
        table::{PoolLoad, Table},
    },
    rule::Rule,
};

pub struct PrefixAffinity;

impl Rule for PrefixAffinity {
    fn choose(table: &Table, pick: &Pick<'_>) -> [Option<usize>; 2] {
        let load = table.pool_load(pick);
        let has_room = |member: usize| {
            table.is_within_bound(member, &load) && table.is_within_recent_share(member, &load)
        };
        let holder = |block: &u64| {
            let memory = table.memory.as_ref()?;
            let members = memory.holders(*block).filter_map(|id| table.number(id));
            let members = members.filter(|m| table.is_eligible(*m, pick) && has_room(*m));
            members.min_by(|a, b| table.load(*a).total_cmp(&table.load(*b)))
        };
        // From the longest to the shortest.
        let member = pick.request.blocks.iter().rev().find_map(holder);
        [member.or_else(|| least_loaded(table, pick, &load)), None]
    }

    fn score(table: &Table, member: usize, _pick: &Pick<'_>) -> Option<f64> {
        Some(table.load(member))
    }

    fn picked(table: &Table, member: usize, pick: &Pick<'_>) {
        table.count_pick(member);
        if let Some(memory) = &table.memory {
            let id = table.members[member].id;
            pick.request.blocks.iter().for_each(|block| memory.remember(*block, id));
        }
    }
}

/// Members of a large pool that are compared for a prompt with an unknown beginning.
const SAMPLE: usize = 64;

/// The least loaded member among those within their share of the recent picks; without any, among
/// all. In a large pool a sample is compared, and samples take turns.
fn least_loaded(table: &Table, pick: &Pick<'_>, load: &PoolLoad) -> Option<usize> {
    let start = table.next_eligible(pick);
    if table.len() > 2 * SAMPLE {
        let sample = least_of(table.from(start).take(SAMPLE), table, pick, load);
        if sample.0.is_some() {
            return sample.0;
        }
    }
    let (within_share, any) = least_of(table.from(start), table, pick, load);
    within_share.or(any)
}

/// The least loaded member among those within their share of the recent picks, and among all.
fn least_of(
    members: impl Iterator<Item = usize>,
    table: &Table,
    pick: &Pick<'_>,
    pool: &PoolLoad,
) -> (Option<usize>, Option<usize>) {
    let (mut within_share, mut any) = ((None, f64::INFINITY), (None, f64::INFINITY));
    members.for_each(|member| {
        let load = table.load(member);
        if load < within_share.1 && table.is_eligible(member, pick) {
            if load < any.1 {
                any = (Some(member), load);
            }
            if table.is_within_recent_share(member, pool) {
                within_share = (Some(member), load);
            }
        }
    });
    (within_share.0, any.0)
}
