//! The engine that has the least to do, by its own metrics: what waits counts twice, because it has
//! yet to be run through; what we have sent since the reading is added. An engine whose KV cache is
//! nearly full counts twice, because it will have to push requests out. Where there is no fresh
//! reading, our own requests count.

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
pub struct LeastLoad(Arc<Table>);

impl BackendSelection for LeastLoad {
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

impl Ranking for LeastLoad {
    fn score(table: &Table, member: usize, ask: &Ask<'_>) -> Option<f64> {
        Some(load(table, member, ask))
    }
}

fn load(table: &Table, member: usize, ask: &Ask<'_>) -> f64 {
    table.by_weight(member, table.state(member).load(ask.millis, table.stale))
}

fn choose(table: &Table, ask: &Ask<'_>) -> [Option<usize>; 2] {
    [table.least(table.turn_fit(ask), ask, |member| load(table, member, ask)), None]
}
