//! The less busy of two random backends: nearly as good as comparing all, and gateways that do not
//! know of each other do not all send to the same backend.

use super::{
    super::{pick::Pick, table::Table},
    rule::Rule,
};

pub struct P2c;

impl Rule for P2c {
    fn choose(table: &Table, pick: &Pick<'_>) -> [Option<usize>; 2] {
        let Some(one) = table.draw_eligible(pick) else { return [None, None] };
        let other = (0..4).filter_map(|_| table.draw_eligible(pick)).find(|other| *other != one);
        // By weight: both were drawn in proportion to theirs, and are compared in proportion to it.
        match other {
            Some(other) if table.load(other) < table.load(one) => [Some(other), Some(one)],
            other => [Some(one), other],
        }
    }

    fn score(table: &Table, member: usize, _pick: &Pick<'_>) -> Option<f64> {
        Some(table.load(member))
    }
}
