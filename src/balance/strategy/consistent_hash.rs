//! Requests of one session to one backend, as long as it is not overloaded: a ring (Ketama), where
//! few sessions move when a backend comes or goes. A session whose backend is above the bound goes to
//! the next one on the ring. A request without a session goes anywhere.

use super::{
    super::{ask::Ask, table::Table},
    selection::Rule,
};

/// The strategy.
pub struct ConsistentHash;

impl Rule for ConsistentHash {
    fn choose(table: &Table, ask: &Ask<'_>) -> [Option<usize>; 2] {
        if ask.session.is_none() {
            return [table.draw_fit(ask), table.draw_fit(ask)];
        }
        let crowd = table.crowd(ask);
        let home = table.home(ask, |member| table.within(member, &crowd));
        [home.or_else(|| table.least_loaded(ask)), None]
    }

    fn score(table: &Table, member: usize, _ask: &Ask<'_>) -> Option<f64> {
        Some(table.load(member))
    }
}
