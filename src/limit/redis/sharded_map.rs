//! A map in shards: a walk through all of it can release its lock between shards.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
};

/// Number of shards.
pub const SHARDS: usize = 64;

/// A hash map that is split by the hash of its keys.
pub struct ShardedMap<K, V> {
    hash: RandomState,
    maps: Vec<HashMap<K, V>>,
}

impl<K, V> Default for ShardedMap<K, V> {
    fn default() -> Self {
        let maps = (0..SHARDS).map(|_| HashMap::default()).collect();
        Self { hash: RandomState::new(), maps }
    }
}

impl<K: Eq + Hash, V> ShardedMap<K, V> {
    /// The shard of a key.
    pub fn shard<Q: Hash + ?Sized>(&mut self, key: &Q) -> &mut HashMap<K, V> {
        let index = self.hash.hash_one(key) as usize % SHARDS;
        &mut self.maps[index]
    }

    /// Keeps the entries of one shard for which `keep` returns true.
    pub fn retain(&mut self, shard: usize, keep: impl FnMut(&K, &mut V) -> bool) {
        let map = &mut self.maps[shard];
        map.retain(keep);
        let few = map.len() * 4 + 16;
        if map.capacity() > few {
            map.shrink_to(few / 2);
        }
    }

    #[cfg(test)]
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.maps.iter().flat_map(HashMap::values)
    }
}
