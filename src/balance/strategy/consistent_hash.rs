//! The requests of one session go to one backend, as long as it is not overloaded. The backends stand
//! on a ring (Ketama), so few sessions move when a backend is added or removed. A session whose
//! backend is above the bound goes to the next one on the ring. A request without a session goes to a
//! random backend.

use super::{
    super::{pick::Pick, table::Table},
    rule::Rule,
};

pub struct ConsistentHash;

impl Rule for ConsistentHash {
    fn choose(table: &Table, pick: &Pick<'_>) -> [Option<usize>; 2] {
        if pick.request.session.is_none() {
            return [table.draw_eligible(pick), table.draw_eligible(pick)];
        }
        let load = table.pool_load(pick);
        let member = table.ring_member(pick, |member| table.is_within_bound(member, &load));
        [member.or_else(|| table.least_loaded(pick)), None]
    }

    fn score(table: &Table, member: usize, _pick: &Pick<'_>) -> Option<f64> {
        Some(table.load(member))
    }
}
