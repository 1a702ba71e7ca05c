//! By chance, in proportion to the weights.

use std::{collections::BTreeSet, sync::Arc};

use pingora_load_balancing::{Backend, selection::BackendSelection};

use super::{
    super::{
        ask::Ask,
        table::{Offers, Table},
    },
    Ranking,
};

/// The strategy.
pub struct Random(Arc<Table>);

impl BackendSelection for Random {
    type Iter = Offers;
    type Config = Arc<Table>;

    fn build_with_config(_backends: &BTreeSet<Backend>, table: &Arc<Table>) -> Self {
        Self(Arc::clone(table))
    }

    /// Without a table there is nobody to choose.
    fn build(_backends: &BTreeSet<Backend>) -> Self {
        Self(Arc::default())
    }

    fn iter(self: &Arc<Self>, key: &[u8]) -> Offers {
        let table = &self.0;
        let choices = Ask::read(key, table.epoch).map_or([None, None], |ask| choose(table, &ask));
        Offers::new(table, choices, Table::load)
    }
}

impl Ranking for Random {}

fn choose(table: &Table, ask: &Ask<'_>) -> [Option<usize>; 2] {
    [table.draw_fit(ask), table.draw_fit(ask)]
}
