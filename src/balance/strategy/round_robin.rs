//! Weighted round robin, smoothly interleaved: weights 5 and 3 give A B A A B A B A, and never
//! five requests in a row to A.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use pingora_load_balancing::{
    Backend,
    selection::{BackendIter, BackendSelection},
};

use super::{
    super::table::Table,
    rule::{Rule, RuleSelection},
};

/// The turns of a whole round are computed once; a pick is one atomic increment.
pub struct RoundRobin {
    backends: Box<[Backend]>,
    /// Indices into `backends`, one for each request of a round.
    turns: Box<[u32]>,
    next: AtomicUsize,
}

/// Turns that are offered before the backends are offered one after the other.
const WEIGHTED_OFFERS: usize = 8;

/// The most turns of a round. Weights whose round would be longer are rounded.
const LONGEST: i64 = 1 << 16;

impl Rule for RoundRobin {}

impl RuleSelection for RoundRobin {
    type Rule = Self;
}

impl BackendSelection for RoundRobin {
    type Iter = Turn;
    type Config = Arc<Table>;

    fn build(backends: &BTreeSet<Backend>) -> Self {
        let backends: Box<[Backend]> = backends.iter().cloned().collect();
        let weights: Vec<usize> = backends.iter().map(|b| b.weight.max(1)).collect();
        Self { turns: turns(&weights), backends, next: AtomicUsize::new(0) }
    }

    fn iter(self: &Arc<Self>, _key: &[u8]) -> Turn {
        let start = self.next.fetch_add(1, Ordering::Relaxed);
        Turn { selection: Arc::clone(self), start, step: 0 }
    }
}

/// The offers of one pick: the backend whose turn it is; if it is not accepted, those of a few turns
/// far apart, so that its share is spread over the others by their weights; then all.
pub struct Turn {
    selection: Arc<RoundRobin>,
    start: usize,
    step: usize,
}

impl BackendIter for Turn {
    fn next(&mut self) -> Option<&Backend> {
        let RoundRobin { backends, turns, .. } = &*self.selection;
        let step = self.step;
        self.step += 1;
        let index = match step.checked_sub(WEIGHTED_OFFERS) {
            // 0x9e37... spreads consecutive numbers evenly (Fibonacci hashing).
            None if step > 0 => {
                let far = (self.start + step).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
                *turns.get(far % turns.len().max(1))? as usize
            }
            None => *turns.get(self.start % turns.len().max(1))? as usize,
            Some(n) if n < backends.len() => (self.start + n) % backends.len(),
            Some(_) => return None,
        };
        backends.get(index)
    }
}

/// The smooth weighted round robin of nginx, run for one whole round.
fn turns(weights: &[usize]) -> Box<[u32]> {
    let common = weights.iter().copied().reduce(gcd).unwrap_or(1).max(1);
    let mut weights: Vec<i64> = weights.iter().map(|w| (w / common) as i64).collect();
    let whole: i64 = weights.iter().sum();
    if whole > LONGEST {
        weights.iter_mut().for_each(|w| *w = (*w * LONGEST / whole).max(1));
    }
    let total: i64 = weights.iter().sum();
    let mut current = vec![0i64; weights.len()];
    (0..total)
        .map(|_| {
            let mut best = 0;
            for i in 0..weights.len() {
                current[i] += weights[i];
                if current[i] > current[best] {
                    best = i;
                }
            }
            current[best] -= total;
            best as u32
        })
        .collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(weights: &[usize]) -> Arc<RoundRobin> {
        let set = weights
            .iter()
            .enumerate()
            .map(|(i, w)| Backend::new_with_weight(&format!("10.0.0.{}:80", i + 1), *w).unwrap());
        Arc::new(RoundRobin::build(&set.collect()))
    }

    fn pick(selection: &Arc<RoundRobin>, usable: impl Fn(&Backend) -> bool) -> Option<String> {
        let mut turn = selection.iter(b"");
        while let Some(backend) = turn.next() {
            if usable(backend) {
                return Some(backend.addr.to_string());
            }
        }
        None
    }

    #[test]
    fn interleaves_by_weight() {
        assert_eq!(&*turns(&[5, 3]), [0, 1, 0, 0, 1, 0, 1, 0]);
        assert_eq!(turns(&[10, 10]).len(), 2);
        assert_eq!(turns(&[]).len(), 0);
    }

    #[test]
    fn five_to_three_over_eight() {
        let selection = selection(&[5, 3]);
        for _ in 0..4 {
            let picks: Vec<_> = (0..8).filter_map(|_| pick(&selection, |_| true)).collect();
            assert_eq!(picks.iter().filter(|p| p.starts_with("10.0.0.1")).count(), 5);
        }
    }

    #[test]
    fn the_share_of_a_dead_backend_goes_to_the_others_by_weight() {
        let selection = selection(&[4, 6, 2]);
        let mut counts = [0u32; 3];
        for _ in 0..6000 {
            let picked = pick(&selection, |b| !b.addr.to_string().starts_with("10.0.0.1")).unwrap();
            counts[picked[7..8].parse::<usize>().unwrap() - 1] += 1;
        }
        assert_eq!(counts[0], 0);
        let ratio = f64::from(counts[1]) / f64::from(counts[2]);
        assert!((2.4..3.7).contains(&ratio), "{counts:?}");
    }

    #[test]
    fn every_backend_is_offered_before_giving_up() {
        let selection = selection(&[100, 1, 1]);
        assert!(pick(&selection, |b| b.addr.to_string().starts_with("10.0.0.3")).is_some());
        assert!(pick(&selection, |_| false).is_none());
    }
}
