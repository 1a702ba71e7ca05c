//! By chance, in proportion to the weights.

use super::{
    super::{ask::Ask, table::Table},
    selection::Rule,
};

/// The strategy.
pub struct Random;

impl Rule for Random {
    fn choose(table: &Table, ask: &Ask<'_>) -> [Option<usize>; 2] {
        [table.draw_fit(ask), table.draw_fit(ask)]
    }
}
