//! The less busy one of two that chance has chosen: nearly as good as comparing all, and two
//! gateways that do not know of each other do not run to the same backend.

use super::{
    super::{ask::Ask, table::Table},
    selection::Rule,
};

/// The strategy.
pub struct P2c;

impl Rule for P2c {
    fn choose(table: &Table, ask: &Ask<'_>) -> [Option<usize>; 2] {
        let Some(one) = table.draw_fit(ask) else { return [None, None] };
        let other = (0..4).filter_map(|_| table.draw_fit(ask)).find(|other| *other != one);
        // By weight: both were drawn in proportion to theirs, and are compared in proportion to it.
        match other {
            Some(other) if table.load(other) < table.load(one) => [Some(other), Some(one)],
            other => [Some(one), other],
        }
    }

    fn score(table: &Table, member: usize, _ask: &Ask<'_>) -> Option<f64> {
        Some(table.load(member))
    }
}
