//! The engine with the lowest load by its own metrics. Waiting requests count twice, because they
//! still have to run; requests sent since the reading are added. The load of an engine whose KV cache
//! is nearly full is doubled, because it will have to evict requests. Without a fresh reading, the
//! gateway's own requests in flight count.

use super::{
    super::{pick::Pick, table::Table},
    rule::Rule,
};

pub struct LeastLoad;

impl Rule for LeastLoad {
    fn choose(table: &Table, pick: &Pick<'_>) -> [Option<usize>; 2] {
        [table.least(table.next_eligible(pick), pick, |member| load(table, member, pick)), None]
    }

    fn score(table: &Table, member: usize, pick: &Pick<'_>) -> Option<f64> {
        Some(load(table, member, pick))
    }
}

fn load(table: &Table, member: usize, pick: &Pick<'_>) -> f64 {
    table.by_weight(member, table.state(member).load(pick.millis, table.stale))
}
