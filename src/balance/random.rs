//! Random numbers without a lock: one sequence from a seed, shared by all threads.

use std::sync::atomic::{AtomicU64, Ordering};

/// 2^64 divided by the golden ratio: multiples of it are spread evenly.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64 over a shared counter. Not for secrets.
#[derive(Debug, Default)]
pub struct Random(AtomicU64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    pub fn number(&self) -> u64 {
        mix(self.0.fetch_add(GOLDEN, Ordering::Relaxed).wrapping_add(GOLDEN))
    }

    /// A number below `end`, which must not be zero.
    pub fn below(&self, end: u64) -> u64 {
        scale(self.number(), end)
    }

    /// `true` with this probability, 0 to 1.
    pub fn happens(&self, probability: f64) -> bool {
        (self.number() >> 11) as f64 * (1.0 / (1u64 << 53) as f64) < probability
    }
}

/// The `n`th number of an evenly spread sequence.
pub fn spread(n: u64) -> u64 {
    n.wrapping_mul(GOLDEN)
}

/// Maps all numbers evenly to those below `end`.
pub fn scale(number: u64, end: u64) -> u64 {
    ((u128::from(number) * u128::from(end)) >> 64) as u64
}

/// Scatters the bits of a number.
pub fn mix(number: u64) -> u64 {
    let mut z = number;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_says_it_all_and_its_numbers_are_even() {
        let (a, b) = (Random::new(7), Random::new(7));
        let mut counts = [0u32; 10];
        for _ in 0..10_000 {
            let n = a.below(10);
            assert_eq!(n, b.below(10));
            counts[n as usize] += 1;
        }
        assert!(counts.iter().all(|c| (850..1150).contains(c)), "{counts:?}");
        let often = (0..10_000).filter(|_| a.happens(0.05)).count();
        assert!((400..600).contains(&often), "{often}");
    }
}
