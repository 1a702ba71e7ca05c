//! A random backend, in proportion to the weights.

use super::{
    super::{pick::Pick, table::Table},
    rule::Rule,
};

pub struct Random;

impl Rule for Random {
    fn choose(table: &Table, pick: &Pick<'_>) -> [Option<usize>; 2] {
        [table.draw_eligible(pick), table.draw_eligible(pick)]
    }
}
