//! The backend with the fewest requests in flight in proportion to its weight. Equal ones take turns.

use super::{
    super::{ask::Ask, table::Table},
    selection::Rule,
};

/// The strategy.
pub struct LeastConnections;

impl Rule for LeastConnections {
    fn choose(table: &Table, ask: &Ask<'_>) -> [Option<usize>; 2] {
        [table.least_loaded(ask), None]
    }

    fn score(table: &Table, member: usize, _ask: &Ask<'_>) -> Option<f64> {
        Some(table.load(member))
    }
}
