//! A selection of pingora-load-balancing that offers what a rule prefers, then all other members.

use std::{collections::BTreeSet, marker::PhantomData, sync::Arc};

use pingora_load_balancing::{Backend, selection::BackendSelection};

use super::{
    super::table::{Offers, Table},
    rule::{Rule, RuleSelection, start_members},
};

/// The selection by a rule.
pub struct Selection<R>(Arc<Table>, PhantomData<R>);

impl<R: Rule> BackendSelection for Selection<R> {
    type Iter = Offers;
    type Config = Arc<Table>;

    fn build_with_config(_backends: &BTreeSet<Backend>, table: &Arc<Table>) -> Self {
        Self(Arc::clone(table), PhantomData)
    }

    /// Without a table there are no backends.
    fn build(_backends: &BTreeSet<Backend>) -> Self {
        Self(Arc::default(), PhantomData)
    }

    fn iter(self: &Arc<Self>, key: &[u8]) -> Offers {
        Offers::new(&self.0, start_members(key), Table::load)
    }
}

impl<R: Rule> RuleSelection for Selection<R> {
    type Rule = R;
}
