//! A map in slices: whoever walks through all of it does so slice by slice, and keeps nobody waiting
//! for long.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
};

/// How many there are.
pub const SLICES: usize = 64;

/// The map.
pub struct Slices<K, V> {
    hash: RandomState,
    maps: Vec<HashMap<K, V>>,
}

impl<K, V> Default for Slices<K, V> {
    fn default() -> Self {
        let maps = (0..SLICES).map(|_| HashMap::default()).collect();
        Self { hash: RandomState::new(), maps }
    }
}

impl<K: Eq + Hash, V> Slices<K, V> {
    /// The slice that a key belongs to.
    pub fn of<Q: Hash + ?Sized>(&mut self, key: &Q) -> &mut HashMap<K, V> {
        let turn = self.hash.hash_one(key) as usize % SLICES;
        &mut self.maps[turn]
    }

    /// Keeps those of one slice of which that is said.
    pub fn retain(&mut self, slice: usize, keep: impl FnMut(&K, &mut V) -> bool) {
        let map = &mut self.maps[slice];
        map.retain(keep);
        let few = map.len() * 4 + 16;
        if map.capacity() > few {
            map.shrink_to(few / 2);
        }
    }

    /// All values.
    #[cfg(test)]
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.maps.iter().flat_map(HashMap::values)
    }
}
