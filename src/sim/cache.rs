//! The prefix cache of the simulated engine.
//!
//! As in vLLM, a prompt is a chain of full blocks, and the identity of a block includes all blocks before it.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
};

use super::text;

/// Bytes in a block.
pub const BLOCK: usize = text::BYTES_PER_TOKEN * BLOCK_TOKENS as usize;
/// Tokens in a block.
pub const BLOCK_TOKENS: u64 = 16;

/// An LRU cache of blocks.
#[derive(Default)]
pub struct PrefixCache {
    /// The time of the last use of each block.
    used: HashMap<u64, u64>,
    /// The blocks by the time of their last use.
    order: BTreeMap<u64, u64>,
    time: u64,
}

/// The full blocks of a prompt. Model and salt are part of their identity.
pub fn chain(model: &str, salt: Option<&str>, prompt: &str) -> Vec<u64> {
    let mut hasher = DefaultHasher::new();
    (model, salt).hash(&mut hasher);
    let blocks = prompt.as_bytes().chunks_exact(BLOCK);
    blocks
        .map(|block| {
            block.hash(&mut hasher);
            hasher.finish()
        })
        .collect()
}

impl PrefixCache {
    /// How many blocks at the beginning of the chain are cached.
    pub fn known(&self, chain: &[u64]) -> usize {
        chain.iter().take_while(|block| self.used.contains_key(block)).count()
    }

    /// Adds the blocks of a chain, and removes old blocks beyond `capacity`.
    pub fn keep(&mut self, chain: &[u64], capacity: usize) {
        // In reverse, so that the last block is the oldest: without the blocks before it, it is useless.
        for block in chain.iter().rev() {
            self.time += 1;
            if let Some(before) = self.used.insert(*block, self.time) {
                self.order.remove(&before);
            }
            self.order.insert(self.time, *block);
        }
        while self.used.len() > capacity {
            let Some((_, oldest)) = self.order.pop_first() else { return };
            self.used.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(blocks: &str) -> Vec<u64> {
        let text: String = blocks.chars().map(|c| c.to_string().repeat(BLOCK)).collect();
        chain("m", None, &text)
    }

    #[test]
    fn a_beginning_is_known_up_to_where_prompts_differ() {
        let mut cache = PrefixCache::default();
        assert_eq!(cache.known(&prompt("abc")), 0);
        cache.keep(&prompt("abc"), 10);
        assert_eq!(cache.known(&prompt("abcd")), 3);
        assert_eq!(cache.known(&prompt("abd")), 2);
        assert_eq!(cache.known(&prompt("bc")), 0, "a block elsewhere is another");
    }

    #[test]
    fn what_is_not_a_full_block_is_not_kept() {
        assert!(chain("m", None, &"a".repeat(BLOCK - 1)).is_empty());
        assert_eq!(chain("m", None, &"a".repeat(2 * BLOCK - 1)).len(), 1);
    }

    #[test]
    fn models_and_salts_share_nothing() {
        let text = "a".repeat(BLOCK);
        let all = [
            chain("m", None, &text),
            chain("n", None, &text),
            chain("m", Some("s"), &text),
            chain("m", Some("t"), &text),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|other| other != one));
        }
    }

    #[test]
    fn the_least_recently_used_goes_first_and_the_end_before_the_beginning() {
        let mut cache = PrefixCache::default();
        cache.keep(&prompt("abc"), 6);
        cache.keep(&prompt("xyz"), 6);
        cache.keep(&prompt("ab"), 6);
        cache.keep(&prompt("p"), 6);
        assert_eq!(cache.known(&prompt("abc")), 2, "its end was used longest ago");
        assert_eq!(cache.known(&prompt("xyz")), 3);
        cache.keep(&prompt("pq"), 6);
        assert_eq!(cache.known(&prompt("xyz")), 2);
        cache.keep(&[], 0);
        assert_eq!(cache.known(&prompt("p")), 0);
    }
}
