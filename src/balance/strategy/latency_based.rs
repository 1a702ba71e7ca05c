//! The backend whose first tokens have come soonest of late, times the requests that are with it and
//! by its weight. Now and then another one is tried, so that one that has become fast is noticed.

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
pub struct LatencyBased(Arc<Table>);

impl BackendSelection for LatencyBased {
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

impl Ranking for LatencyBased {
    fn score(table: &Table, member: usize, _ask: &Ask<'_>) -> Option<f64> {
        score(table, member)
    }
}

/// How often another one is tried.
const PROBES: f64 = 0.05;

/// Milliseconds to the first token if one request more is there; `None`: not measured yet.
fn score(table: &Table, member: usize) -> Option<f64> {
    let millis = f64::from(table.state(member).latency()?) / 1000.0;
    Some(table.by_weight(member, millis * (table.in_flight(member) + 1.0)))
}

fn choose(table: &Table, ask: &Ask<'_>) -> [Option<usize>; 2] {
    let start = table.turn_fit(ask);
    let measured = |member| score(table, member).unwrap_or(f64::INFINITY);
    let best = table.least(start, ask, measured);
    // One that was not measured yet goes first, but not with all requests that come until it is.
    let unknown = |member: usize| match table.state(member).latency() {
        None => table.load(member),
        Some(_) => f64::INFINITY,
    };
    if let Some(unknown) = table.least(start, ask, unknown)
        && best.is_none_or(|best| table.load(unknown) <= table.load(best))
    {
        return [Some(unknown), best];
    }
    if table.random.happens(PROBES) {
        let other = table.draw_fit(ask).filter(|other| Some(*other) != best);
        return [other, best];
    }
    [best, None]
}
