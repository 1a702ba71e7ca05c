//! The engine that has the least to do, by its own metrics: what waits counts twice, because it has
//! yet to be run through; what we have sent since the reading is added. An engine whose KV cache is
//! nearly full counts twice, because it will have to push requests out. Where there is no fresh
//! reading, our own requests count.

use super::{
    super::{ask::Ask, table::Table},
    selection::Rule,
};

/// The strategy.
pub struct LeastLoad;

impl Rule for LeastLoad {
    fn choose(table: &Table, ask: &Ask<'_>) -> [Option<usize>; 2] {
        [table.least(table.turn_fit(ask), ask, |member| load(table, member, ask)), None]
    }

    fn score(table: &Table, member: usize, ask: &Ask<'_>) -> Option<f64> {
        Some(load(table, member, ask))
    }
}

fn load(table: &Table, member: usize, ask: &Ask<'_>) -> f64 {
    table.by_weight(member, table.state(member).load(ask.millis, table.stale))
}
