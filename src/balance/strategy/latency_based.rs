//! The backend whose first tokens have come soonest of late, times the requests that are with it and
//! by its weight. Now and then another one is tried, so that one that has become fast is noticed.

use super::{
    super::{ask::Ask, table::Table},
    selection::Rule,
};

/// The strategy.
pub struct LatencyBased;

impl Rule for LatencyBased {
    fn choose(table: &Table, ask: &Ask<'_>) -> [Option<usize>; 2] {
        let [best, unknown] = best(table, ask, table.turn_fit(ask));
        // One that was not measured yet goes first, but not with all requests that come until it is.
        if let Some(unknown) = unknown
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

/// The best one of those that were measured, and the least busy one of the others. Of equal ones the
/// first from `start`.
fn best(table: &Table, ask: &Ask<'_>, start: usize) -> [Option<usize>; 2] {
    let mut best = [None, None];
    let mut lowest = [f64::INFINITY; 2];
    table.from(start).for_each(|member| {
        let (kind, score) = match score(table, member) {
            Some(score) => (0, score),
            None => (1, table.load(member)),
        };
        if score < lowest[kind] && table.fit(member, ask) {
            (best[kind], lowest[kind]) = (Some(member), score);
        }
    });
    best
}
