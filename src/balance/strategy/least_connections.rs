//! The backend with the fewest requests in flight in proportion to its weight. Equal ones take turns.

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
pub struct LeastConnections(Arc<Table>);

impl BackendSelection for LeastConnections {
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

impl Ranking for LeastConnections {
    fn score(table: &Table, member: usize, _ask: &Ask<'_>) -> Option<f64> {
        Some(table.load(member))
    }
}

fn choose(table: &Table, ask: &Ask<'_>) -> [Option<usize>; 2] {
    [table.least_loaded(ask), None]
}
