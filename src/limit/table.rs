//! The buckets of this process.
//!
//! A request's claims are decided together: under the locks of their shards all claims are checked
//! first and then taken. So a rejected request consumes nothing. No thread waits for anything else
//! while it holds a lock.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::{Mutex, MutexGuard},
};

use super::{
    bucket::{Bucket, Ticks},
    claim::{Claim, ClaimKind, Shortfall},
};
use crate::base::lock;

/// As many as there are bits in the sets of shards.
const SHARDS: usize = u64::BITS as usize;

/// The bits of an id that select its shard: others than the ones that the maps use.
const SHARD_SHIFT: u32 = 32;

/// Shards that a request's claims are in, if its rules are few.
const FEW: usize = 4;

/// Number of buckets that are compared when one must be removed.
const CANDIDATES: usize = 16;

/// The keys are already hashes.
#[derive(Default)]
struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}

type Shard = HashMap<u64, Bucket, BuildHasherDefault<IdentityHasher>>;

/// All buckets. A bucket that is not in the table is full.
pub struct Table {
    shards: Vec<Mutex<Shard>>,
}

impl Default for Table {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

/// Marks the id of a bucket that many callers share.
pub fn shared(id: u64) -> u64 {
    id | 1
}

/// Marks the id of a bucket of a single caller.
pub fn single(id: u64) -> u64 {
    id & !1
}

fn is_shared(id: u64) -> bool {
    id & 1 == 1
}

/// The id of another bucket of the same rule and identity. It is in the same shard, so that a request
/// locks one shard for each rule.
pub fn sibling(id: u64, salt: u64) -> u64 {
    id ^ (salt & !((SHARDS as u64 - 1) << SHARD_SHIFT))
}

fn shard_of(id: u64) -> usize {
    (id >> SHARD_SHIFT) as usize % SHARDS
}

/// The locked shards of some claims.
struct Locked<'a> {
    few: [Option<LockedShard<'a>>; FEW],
    more: Vec<LockedShard<'a>>,
}

struct LockedShard<'a> {
    number: usize,
    shard: MutexGuard<'a, Shard>,
}

impl Locked<'_> {
    fn shard(&mut self, id: u64) -> &mut Shard {
        let wanted = |locked: &&mut LockedShard<'_>| locked.number == shard_of(id);
        let mut all = self.few.iter_mut().flatten().chain(&mut self.more);
        &mut all.find(wanted).expect("the shards of all claims are locked").shard
    }

    fn bucket(&mut self, id: u64) -> Bucket {
        self.shard(id).get(&id).copied().unwrap_or_default()
    }

    /// Records in the claims what is left.
    fn observe(&mut self, claims: &mut [Claim], now: Ticks) {
        for claim in claims {
            let bucket = self.bucket(claim.id);
            claim.observe(&bucket, now);
        }
    }
}

impl Table {
    /// Locks the shards of these buckets; always in the same order, to avoid deadlocks.
    fn lock(&self, buckets: impl Iterator<Item = u64>) -> Locked<'_> {
        let mut wanted = buckets.fold(0_u64, |set, id| set | 1 << shard_of(id));
        let mut next = || {
            let number = wanted.trailing_zeros() as usize;
            // Without its lowest bit.
            wanted &= wanted.wrapping_sub(1);
            let shard = self.shards.get(number)?;
            Some(LockedShard { number, shard: lock(shard) })
        };
        let few = std::array::from_fn(|_| next());
        Locked { few, more: std::iter::from_fn(next).collect() }
    }

    /// Takes all claims or none. `max_buckets` is the largest number of buckets.
    ///
    /// # Errors
    /// The claim that fails: of several the one with the longest wait, a slot after all others.
    pub fn take(
        &self,
        claims: &mut [Claim],
        now: Ticks,
        max_buckets: usize,
    ) -> Result<(), Shortfall> {
        let mut locked = self.lock(claims.iter().map(|claim| claim.id));
        let mut shortfall: Option<(bool, Shortfall)> = None;
        for (index, claim) in claims.iter().enumerate() {
            let bucket = locked.bucket(claim.id);
            let slot = claim.dim.kind() == ClaimKind::Slot;
            let wait = match claim.dim.kind() {
                ClaimKind::Slot => {
                    let free = bucket.held().saturating_add(claim.amount) <= claim.rate.capacity;
                    if free { 0 } else { 1 }
                }
                ClaimKind::Take | ClaimKind::Reserve => bucket.wait(claim.rate, claim.amount, now),
            };
            let longer = |(known_slot, known): &(bool, Shortfall)| match (slot, known_slot) {
                (true, false) => false,
                (false, true) => true,
                _ => wait > known.wait,
            };
            if wait > 0 && shortfall.as_ref().is_none_or(longer) {
                shortfall = Some((slot, Shortfall { index, wait: if slot { 0 } else { wait } }));
            }
        }
        if let Some((_, shortfall)) = shortfall {
            locked.observe(claims, now);
            return Err(shortfall);
        }
        // Before any is added: none of them may be removed to make room for another.
        let most = max_buckets / SHARDS;
        for claim in claims.iter() {
            let shard = locked.shard(claim.id);
            if shard.len() + claims.len() <= most {
                continue;
            }
            let beside = |other: &&Claim| shard_of(other.id) == shard_of(claim.id);
            let new = claims.iter().filter(beside).filter(|c| !shard.contains_key(&c.id)).count();
            while new > 0 && shard.len() + new > most && make_room(shard) {}
        }
        for claim in claims {
            let bucket = locked.shard(claim.id).entry(claim.id).or_default();
            match claim.dim.kind() {
                ClaimKind::Take => bucket.take(claim.rate, claim.amount, now),
                ClaimKind::Reserve | ClaimKind::Slot => bucket.hold(claim.amount),
            }
            claim.observe(bucket, now);
        }
        Ok(())
    }

    /// Records in the claims what is left, and takes nothing.
    pub fn observe(&self, claims: &mut [Claim], now: Ticks) {
        self.lock(claims.iter().map(|claim| claim.id)).observe(claims, now);
    }

    /// Releases what is held, and takes `used` units in place of each reservation.
    pub fn settle(&self, claims: &[Claim], used: impl Fn(&Claim) -> u64, now: Ticks) {
        let held = || claims.iter().filter(|claim| claim.dim.kind() != ClaimKind::Take);
        let mut locked = self.lock(held().map(|claim| claim.id));
        for claim in held() {
            let shard = locked.shard(claim.id);
            let bucket = shard.entry(claim.id).or_default();
            bucket.release(claim.amount);
            if claim.dim.kind() == ClaimKind::Reserve {
                bucket.take(claim.rate, used(claim), now);
            }
            if bucket.idle(now) {
                shard.remove(&claim.id);
            }
        }
    }

    /// Removes buckets that are full: a new one is the same.
    pub fn sweep(&self, now: Ticks) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.retain(|_, bucket| !bucket.idle(now));
            let few = shard.len() * 4 + 64;
            if shard.capacity() > few {
                shard.shrink_to(few / 2);
            }
        }
    }

    /// Number of buckets.
    pub fn buckets(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }
}

/// Removes one of a few buckets of single callers in which nothing is held: the fullest one, whose
/// owner gains least by it. Buckets that many callers share are few, and stay.
/// `false`: there is none.
fn make_room(shard: &mut Shard) -> bool {
    let mut free = shard.iter().filter(|(id, bucket)| bucket.held() == 0 && !is_shared(**id));
    let free = free.by_ref().take(CANDIDATES);
    let fullest = free.min_by_key(|(_, bucket)| bucket.missing(0)).map(|(id, _)| *id);
    fullest.is_some_and(|id| shard.remove(&id).is_some())
}

impl Claim {
    /// Records what is left.
    fn observe(&mut self, bucket: &Bucket, now: Ticks) {
        (self.left, self.reset) = match self.dim.kind() {
            ClaimKind::Slot => (self.rate.capacity.saturating_sub(bucket.held()), 0),
            ClaimKind::Take | ClaimKind::Reserve => (
                bucket.left(self.rate, now),
                bucket.missing(now).saturating_add(self.rate.span(bucket.held())),
            ),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::limits::Scope,
        limit::{
            bucket::{Rate, SECOND},
            claim::Dim,
        },
    };

    const MOST: usize = 1 << 20;

    fn claim(id: u64, dim: Dim, capacity: u64, amount: u64) -> Claim {
        // Ids as they are in life: spread over all bits.
        let id = single((id + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let rate = Rate { interval: SECOND, capacity };
        Claim { id, name: String::new(), scope: Scope::Key, dim, rate, amount, left: 0, reset: 0 }
    }

    #[test]
    fn a_refusal_takes_nothing() {
        let table = Table::default();
        let mut first = [claim(1, Dim::RequestsPerSecond, 5, 1), claim(2, Dim::Concurrent, 1, 1)];
        table.take(&mut first, 0, MOST).unwrap();
        assert_eq!((first[0].left, first[1].left), (4, 0));
        let mut second = [
            claim(1, Dim::RequestsPerSecond, 5, 1),
            claim(3, Dim::Tokens, 100, 60),
            claim(2, Dim::Concurrent, 1, 1),
        ];
        for _ in 0..20 {
            assert_eq!(table.take(&mut second, 0, MOST), Err(Shortfall { index: 2, wait: 0 }));
        }
        assert_eq!((second[0].left, second[1].left), (4, 100));
        table.settle(&first, |_| 0, 0);
        table.take(&mut second, 0, MOST).unwrap();
        assert_eq!((second[0].left, second[1].left), (3, 40));
    }

    #[test]
    fn the_longest_wait_is_told_and_a_slot_last() {
        let table = Table::default();
        let all = |n| {
            [
                claim(1, Dim::Concurrent, 1, 1),
                claim(2, Dim::RequestsPerSecond, 1, n),
                claim(3, Dim::RequestsPerMinute, 3, 3 * n),
            ]
        };
        table.take(&mut all(1), 0, MOST).unwrap();
        let refusal = table.take(&mut all(1), 0, MOST).unwrap_err();
        assert_eq!(refusal, Shortfall { index: 2, wait: 3 * SECOND });
    }

    #[test]
    fn reservations_end_at_what_was_metered() {
        let table = Table::default();
        let mut tokens = [claim(1, Dim::Tokens, 100, 80)];
        table.take(&mut tokens, 0, MOST).unwrap();
        assert_eq!(tokens[0].left, 20);
        table.settle(&tokens, |_| 30, 0);
        let mut rest = [claim(1, Dim::Tokens, 100, 70)];
        table.take(&mut rest, 0, MOST).unwrap();
        table.settle(&rest, |_| 0, 0);
        table.take(&mut rest, 0, MOST).unwrap();
        assert_eq!(rest[0].left, 0);
    }

    #[test]
    fn idle_buckets_are_forgotten_and_others_not() {
        let table = Table::default();
        for id in 0..1000 {
            table.take(&mut [claim(id, Dim::RequestsPerSecond, 5, 1)], 0, MOST).unwrap();
        }
        table.take(&mut [claim(5000, Dim::Concurrent, 5, 1)], 0, MOST).unwrap();
        table.sweep(SECOND - 1);
        assert_eq!(table.buckets(), 1001);
        table.sweep(SECOND);
        assert_eq!(table.buckets(), 1);
        table.settle(&[claim(5000, Dim::Concurrent, 5, 1)], |_| 0, SECOND);
        assert_eq!(table.buckets(), 0);
    }

    #[test]
    fn room_is_made_for_a_request_and_not_within_it() {
        let table = Table::default();
        let most = 64 * 4;
        let at = claim(1, Dim::RequestsPerSecond, 5, 1).id;
        // Ids in the same shard: they differ in other bits.
        let beside = |n: u64| Claim {
            id: single(at ^ (n << 40)),
            ..claim(1, Dim::RequestsPerMinute, 100, 1)
        };
        let shard = |claim: &Claim| shard_of(claim.id);
        assert!((1..9).all(|n| shard(&beside(n)) == shard(&beside(0))));
        for n in 1..5 {
            let mut one = [Claim { amount: 50, ..beside(n) }];
            table.take(&mut one, 0, most).unwrap();
        }
        let request = || [beside(5), beside(6), beside(7)];
        table.take(&mut request(), 0, most).unwrap();
        let mut again = request();
        table.take(&mut again, 0, most).unwrap();
        assert_eq!(again.map(|claim| claim.left), [98, 98, 98]);
        assert!(table.buckets() <= 4);
    }

    #[test]
    fn a_flood_of_keys_does_not_fill_the_memory_nor_free_who_is_being_served() {
        let table = Table::default();
        let most = 64 * 100;
        let served = || [claim(u64::MAX / 2, Dim::Concurrent, 1, 1)];
        table.take(&mut served(), 0, most).unwrap();
        let heavy = || [claim(u64::MAX / 3, Dim::RequestsPerMinute, 60, 60)];
        table.take(&mut heavy(), 0, most).unwrap();
        for id in 0..1_000_000 {
            table.take(&mut [claim(id, Dim::RequestsPerSecond, 5, 1)], id, most).unwrap();
        }
        assert!(table.buckets() <= most + 1, "{}", table.buckets());
        // The bound that the documentation states, with the room that maps keep free.
        let each = size_of::<(u64, Bucket)>() + 1;
        let slots: usize = table.shards.iter().map(|s| lock(s).capacity() * 8 / 7).sum();
        assert!(slots * each <= most * 64, "{} bytes", slots * each);
        assert!(table.take(&mut served(), 0, most).is_err());
        // Those that have taken least go first.
        assert!(table.take(&mut heavy(), 1_000_000, most).is_err());
    }

    #[test]
    fn what_many_share_is_not_dropped_for_a_flood_of_others() {
        let table = Table::default();
        let all = || {
            let mut all = claim(7, Dim::RequestsPerSecond, 2, 2);
            all.id = shared(all.id);
            [all]
        };
        table.take(&mut all(), 0, 64 * 20).unwrap();
        for id in 0..100_000 {
            let mut slow = [claim(id, Dim::RequestsPerMinute, 600, 600)];
            table.take(&mut slow, id, 64 * 20).unwrap();
        }
        assert!(table.take(&mut all(), 100_000, 64 * 20).is_err());
    }

    #[test]
    fn many_threads_take_no_more_than_there_is() {
        let table = Table::default();
        let taken = std::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|scope| {
            for n in 0..8 {
                let (table, taken) = (&table, &taken);
                scope.spawn(move || {
                    for i in 0..2000 {
                        let mut claims = [
                            claim(1, Dim::RequestsPerSecond, 1000, 1),
                            claim(100 + (i * 8 + n) % 50, Dim::RequestsPerMinute, 1000, 1),
                        ];
                        if table.take(&mut claims, 0, MOST).is_ok() {
                            taken.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(taken.into_inner(), 1000);
    }
}
