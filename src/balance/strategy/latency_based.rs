//! The backend with the lowest score: its recent time to first token, times its requests in flight,
//! divided by its weight. A small share of the requests goes to other backends, so that one that has
//! become faster is noticed.

use super::{
    super::{pick::Pick, table::Table},
    rule::Rule,
};

pub struct LatencyBased;

impl Rule for LatencyBased {
    fn choose(table: &Table, pick: &Pick<'_>) -> [Option<usize>; 2] {
        let [best, unknown] = best(table, pick, table.next_eligible(pick));
        // An unmeasured backend takes precedence, unless it already has more requests than the best.
        if let Some(unknown) = unknown
            && best.is_none_or(|best| table.load(unknown) <= table.load(best))
        {
            return [Some(unknown), best];
        }
        if table.random.happens(PROBES) {
            let other = table.draw_eligible(pick).filter(|other| Some(*other) != best);
            return [other, best];
        }
        [best, None]
    }

    fn score(table: &Table, member: usize, _pick: &Pick<'_>) -> Option<f64> {
        score(table, member)
    }
}

/// Share of the requests that go to another backend than the best.
const PROBES: f64 = 0.05;

/// Expected milliseconds to the first token of one more request; `None`: not measured yet.
fn score(table: &Table, member: usize) -> Option<f64> {
    let millis = f64::from(table.state(member).latency()?) / 1000.0;
    Some(table.by_weight(member, millis * (table.in_flight(member) + 1.0)))
}

/// The best measured member, and the least busy unmeasured one. Among equal ones the first from
/// `start`.
fn best(table: &Table, pick: &Pick<'_>, start: usize) -> [Option<usize>; 2] {
    let mut best = [None, None];
    let mut lowest = [f64::INFINITY; 2];
    table.from(start).for_each(|member| {
        let (kind, score) = match score(table, member) {
            Some(score) => (0, score),
            None => (1, table.load(member)),
        };
        if score < lowest[kind] && table.is_eligible(member, pick) {
            (best[kind], lowest[kind]) = (Some(member), score);
        }
    });
    best
}
