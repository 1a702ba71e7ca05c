//! A selection of pingora-load-balancing that offers what a rule chooses.

use std::{collections::BTreeSet, marker::PhantomData, sync::Arc};

use pingora_load_balancing::{Backend, selection::BackendSelection};

use super::{
    super::{
        ask::Ask,
        table::{Offers, Table},
    },
    Ranking,
};

/// What a strategy goes by.
pub trait Rule: Send + Sync + 'static {
    /// One or two members to offer first, before all others are offered. `None`: nobody that it
    /// would choose.
    fn choose(table: &Table, ask: &Ask<'_>) -> [Option<usize>; 2];

    /// By what a member is compared with the others; lower is better. `None`: it compares nothing.
    fn score(_table: &Table, _member: usize, _ask: &Ask<'_>) -> Option<f64> {
        None
    }

    /// A member has been chosen.
    fn chosen(_table: &Table, _member: usize, _ask: &Ask<'_>) {}
}

/// The selection by a rule.
pub struct Selection<R>(Arc<Table>, PhantomData<R>);

impl<R: Rule> BackendSelection for Selection<R> {
    type Iter = Offers;
    type Config = Arc<Table>;

    fn build_with_config(_backends: &BTreeSet<Backend>, table: &Arc<Table>) -> Self {
        Self(Arc::clone(table), PhantomData)
    }

    /// Without a table there is nobody to choose.
    fn build(_backends: &BTreeSet<Backend>) -> Self {
        Self(Arc::default(), PhantomData)
    }

    fn iter(self: &Arc<Self>, key: &[u8]) -> Offers {
        let table = &self.0;
        let ask = Ask::read(key, table.epoch);
        let choices = ask.map_or([None, None], |ask| R::choose(table, &ask));
        Offers::new(table, choices, Table::load)
    }
}

impl<R: Rule> Ranking for Selection<R> {
    fn score(table: &Table, member: usize, ask: &Ask<'_>) -> Option<f64> {
        R::score(table, member, ask)
    }

    fn chosen(table: &Table, member: usize, ask: &Ask<'_>) {
        R::chosen(table, member, ask);
    }
}
