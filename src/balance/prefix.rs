//! Which backends have seen which beginning of a conversation: a table of fixed size, without locks,
//! that forgets. A wrong or lost entry costs a cache miss of an engine, and nothing else.

use std::sync::atomic::{AtomicU64, Ordering};

use super::random::{mix, scale};

/// Entries of a set: one cache line. New entries start in the middle and rise when they are used, so
/// that frequent entries are not evicted by those that are seen once.
const WAYS: usize = 8;
const MIDDLE: usize = WAYS / 2;

#[derive(Debug)]
pub struct PrefixMemory {
    /// An entry is a part of the hash in the upper half and the backend's id in the lower; 0: empty.
    sets: Box<[Set]>,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Set([AtomicU64; WAYS]);

impl PrefixMemory {
    pub fn new(entries: usize) -> Self {
        Self { sets: (0..Self::sets(entries)).map(|_| Set::default()).collect() }
    }

    /// Whether it is as large as a new one for this many entries.
    pub fn has_capacity(&self, entries: usize) -> bool {
        self.sets.len() == Self::sets(entries)
    }

    fn sets(entries: usize) -> usize {
        entries.div_ceil(WAYS).max(1)
    }

    /// The set and the tag of a block.
    fn locate(&self, block: u64) -> (&Set, u64) {
        let hash = mix(block);
        // The upper bits select the set, the lower ones are the tag.
        let set = &self.sets[scale(hash, self.sets.len() as u64) as usize];
        (set, (hash & 0xffff_ffff).max(1) << 32)
    }

    /// The ids of the backends that have seen a beginning.
    pub fn holders(&self, block: u64) -> impl Iterator<Item = u32> {
        let (set, tag) = self.locate(block);
        set.0.iter().filter_map(move |way| {
            let entry = way.load(Ordering::Relaxed);
            (entry >> 32 == tag >> 32).then_some(entry as u32)
        })
    }

    /// Notes that a backend has seen a beginning.
    pub fn remember(&self, block: u64, id: u32) {
        let (Set(ways), tag) = self.locate(block);
        let (entry, relaxed) = (tag | u64::from(id), Ordering::Relaxed);
        match ways.iter().position(|way| way.load(relaxed) == entry) {
            Some(0) => {}
            Some(at) => {
                // Two threads doing this at once may lose an entry or duplicate it.
                ways[at].store(ways[at - 1].load(relaxed), relaxed);
                ways[at - 1].store(entry, relaxed);
            }
            None => {
                let free = ways[..MIDDLE].iter().position(|way| way.load(relaxed) == 0);
                let at = free.unwrap_or(MIDDLE);
                if free.is_none() {
                    for way in (MIDDLE + 1..WAYS).rev() {
                        ways[way].store(ways[way - 1].load(relaxed), relaxed);
                    }
                }
                ways[at].store(entry, relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_backends_may_know_the_same() {
        let memory = PrefixMemory::new(64);
        memory.remember(1, 10);
        memory.remember(1, 20);
        memory.remember(1, 10);
        let mut holders: Vec<_> = memory.holders(1).collect();
        holders.sort_unstable();
        assert_eq!(holders, [10, 20]);
        assert_eq!(memory.holders(2).count(), 0);
    }

    #[test]
    fn what_is_used_often_stays_and_the_rest_is_bounded() {
        let memory = PrefixMemory::new(1024);
        assert!(memory.has_capacity(1024) && !memory.has_capacity(2048));
        for n in 0..100_000u64 {
            memory.remember(n + 1000, 1);
            if n % 100 == 0 {
                (0..50).for_each(|block| memory.remember(block, 2));
            }
        }
        let kept = (0..50).filter(|block| memory.holders(*block).any(|id| id == 2)).count();
        assert!(kept >= 45, "{kept} of 50");
    }
}
