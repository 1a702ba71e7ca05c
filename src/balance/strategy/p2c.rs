//! The less busy one of two that chance has chosen: nearly as good as comparing all, and two
//! gateways that do not know of each other do not run to the same backend.

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
pub struct P2c(Arc<Table>);

impl BackendSelection for P2c {
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

impl Ranking for P2c {
    fn score(table: &Table, member: usize, _ask: &Ask<'_>) -> Option<f64> {
        Some(table.load(member))
    }
}

fn choose(table: &Table, ask: &Ask<'_>) -> [Option<usize>; 2] {
    let Some(one) = table.draw_fit(ask) else { return [None, None] };
    let other = (0..4).filter_map(|_| table.draw_fit(ask)).find(|other| *other != one);
    // By weight: both were drawn in proportion to theirs, and are compared in proportion to it.
    match other {
        Some(other) if table.load(other) < table.load(one) => [Some(other), Some(one)],
        other => [Some(one), other],
    }
}
