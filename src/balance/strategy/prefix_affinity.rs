//! Prompts that begin alike to one backend, so that its KV cache has their beginning: the longest
//! known beginning wins, among the backends that are not overloaded. A popular beginning spreads,
//! because several may know it; what nobody knows goes to the least loaded.

use super::{
    super::{
        ask::Ask,
        table::{Crowd, Table},
    },
    selection::Rule,
};

/// The strategy.
pub struct PrefixAffinity;

impl Rule for PrefixAffinity {
    fn choose(table: &Table, ask: &Ask<'_>) -> [Option<usize>; 2] {
        let crowd = table.crowd(ask);
        let open = |member: usize| table.within(member, &crowd) && table.rested(member, &crowd);
        let knows = |block| {
            let memory = table.memory.as_ref()?;
            let members = memory.who(block).filter_map(|id| table.number(id));
            let fit = members.filter(|member| table.fit(*member, ask) && open(*member));
            fit.min_by(|a, b| table.load(*a).total_cmp(&table.load(*b)))
        };
        // From the longest to the shortest.
        let known = ask.blocks().rev().find_map(knows);
        [known.or_else(|| idlest(table, ask, &crowd)), None]
    }

    fn score(table: &Table, member: usize, _ask: &Ask<'_>) -> Option<f64> {
        Some(table.load(member))
    }

    fn chosen(table: &Table, member: usize, ask: &Ask<'_>) {
        table.chosen(member);
        if let Some(memory) = &table.memory {
            let id = table.members[member].id;
            ask.blocks().for_each(|block| memory.remember(block, id));
        }
    }
}

/// Members of a large pool that are looked at for a prompt that nobody knows.
const SOME: usize = 64;

/// The least loaded one of those that have not been chosen too often of late, if there is any. In a
/// large pool it is the least loaded of some, which take turns.
fn idlest(table: &Table, ask: &Ask<'_>, crowd: &Crowd) -> Option<usize> {
    let start = table.turn_fit(ask);
    if table.len() > 2 * SOME {
        let some = least_of(table.from(start).take(SOME), table, ask, crowd);
        if some.0.is_some() {
            return some.0;
        }
    }
    let (rested, any) = least_of(table.from(start), table, ask, crowd);
    rested.or(any)
}

/// The least loaded of those that are rested, and of all.
fn least_of(
    members: impl Iterator<Item = usize>,
    table: &Table,
    ask: &Ask<'_>,
    crowd: &Crowd,
) -> (Option<usize>, Option<usize>) {
    let (mut rested, mut any) = ((None, f64::INFINITY), (None, f64::INFINITY));
    members.for_each(|member| {
        let load = table.load(member);
        if load < rested.1 && table.fit(member, ask) {
            if load < any.1 {
                any = (Some(member), load);
            }
            if table.rested(member, crowd) {
                rested = (Some(member), load);
            }
        }
    });
    (rested.0, any.0)
}
