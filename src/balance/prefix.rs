//! Which backend has seen which beginning of a conversation: a table of fixed size, without locks,
//! that forgets. A wrong or lost entry costs a cache miss of an engine, and nothing else.

use std::sync::atomic::{AtomicU64, Ordering};

use super::random::{mix, scale};

/// Entries that share a place: those of one cache line. New ones come into the middle and rise when
/// they are used, so that what is used often is not swept out by what is seen once.
const WAYS: usize = 8;
const MIDDLE: usize = WAYS / 2;

/// The memory of a pool.
#[derive(Debug)]
pub struct Memory {
    /// A part of the hash in the upper half, the backend's id in the lower one; 0: empty.
    sets: Box<[Set]>,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Set([AtomicU64; WAYS]);

impl Memory {
    /// Room for this many entries.
    pub fn new(entries: usize) -> Self {
        Self { sets: (0..Self::sets(entries)).map(|_| Set::default()).collect() }
    }

    /// Whether it is as large as a new one with room for this many entries.
    pub fn has_room_for(&self, entries: usize) -> bool {
        self.sets.len() == Self::sets(entries)
    }

    fn sets(entries: usize) -> usize {
        entries.div_ceil(WAYS).max(1)
    }

    fn place(&self, block: u64) -> (&Set, u64) {
        let hash = mix(block);
        // The set is told by the upper bits, the tag by the lower ones.
        let set = &self.sets[scale(hash, self.sets.len() as u64) as usize];
        (set, (hash & 0xffff_ffff).max(1) << 32)
    }

    /// The ids of the backends that have seen a beginning.
    pub fn who(&self, block: u64) -> impl Iterator<Item = u32> {
        let (set, tag) = self.place(block);
        set.0.iter().filter_map(move |way| {
            let entry = way.load(Ordering::Relaxed);
            (entry >> 32 == tag >> 32).then_some(entry as u32)
        })
    }

    /// A backend sees a beginning.
    pub fn remember(&self, block: u64, id: u32) {
        let (Set(ways), tag) = self.place(block);
        let (entry, relaxed) = (tag | u64::from(id), Ordering::Relaxed);
        match ways.iter().position(|way| way.load(relaxed) == entry) {
            Some(0) => {}
            Some(at) => {
                // Two that do this at once may lose an entry or have it twice.
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
        let memory = Memory::new(64);
        memory.remember(1, 10);
        memory.remember(1, 20);
        memory.remember(1, 10);
        let mut who: Vec<_> = memory.who(1).collect();
        who.sort_unstable();
        assert_eq!(who, [10, 20]);
        assert_eq!(memory.who(2).count(), 0);
    }

    #[test]
    fn what_is_used_often_stays_and_the_rest_is_bounded() {
        let memory = Memory::new(1024);
        assert!(memory.has_room_for(1024) && !memory.has_room_for(2048));
        for n in 0..100_000u64 {
            memory.remember(n + 1000, 1);
            if n % 100 == 0 {
                (0..50).for_each(|block| memory.remember(block, 2));
            }
        }
        let kept = (0..50).filter(|block| memory.who(*block).any(|id| id == 2)).count();
        assert!(kept >= 45, "{kept} of 50");
    }
}
