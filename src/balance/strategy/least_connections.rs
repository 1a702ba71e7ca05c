//! The backend with the fewest requests in flight, divided by its weight. Equal ones take turns.

use super::{
    super::{pick::Pick, table::Table},
    rule::Rule,
};

pub struct LeastConnections;

impl Rule for LeastConnections {
    fn choose(table: &Table, pick: &Pick<'_>) -> [Option<usize>; 2] {
        [table.least_loaded(pick), None]
    }

    fn score(table: &Table, member: usize, _pick: &Pick<'_>) -> Option<f64> {
        Some(table.load(member))
    }
}
