//! Requests of one session to one backend, as long as it is not overloaded: a ring (Ketama), where
//! few sessions move when a backend comes or goes. A session whose backend is above the bound goes to
//! the next one on the ring. A request without a session goes anywhere.

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
pub struct ConsistentHash(Arc<Table>);

impl BackendSelection for ConsistentHash {
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

impl Ranking for ConsistentHash {
    fn score(table: &Table, member: usize, _ask: &Ask<'_>) -> Option<f64> {
        Some(table.load(member))
    }
}

fn choose(table: &Table, ask: &Ask<'_>) -> [Option<usize>; 2] {
    if ask.session.is_none() {
        return [table.draw_fit(ask), table.draw_fit(ask)];
    }
    let crowd = table.crowd(ask);
    let home = table.home(ask, |member| table.within(member, &crowd));
    [home.or_else(|| table.least_loaded(ask)), None]
}
