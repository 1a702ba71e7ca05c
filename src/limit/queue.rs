//! Requests that wait for a slot: higher classes first; within a class keys take turns; within a key
//! first come, first served.
//!
//! A waiter waits for one bucket that had no slot for it. When a slot of a bucket becomes free, the
//! waiter whose turn it is is woken and tries again itself. Later requests do not overtake it unless
//! they are of a higher class. This is the same for slots in this process and for slots in Redis,
//! where each try is a call.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use prometheus::IntGauge;
use tokio::sync::Notify;

use crate::base::lock;

/// Weight of a release in the average interval between releases.
const WEIGHT: f64 = 0.2;

/// All waiting requests.
pub struct Queue {
    /// Number of waiters; while it is 0 no lock is taken.
    waiting: AtomicUsize,
    state: Mutex<State>,
    depth: IntGauge,
}

#[derive(Default)]
struct State {
    next: u64,
    /// Number of waiters that are not evicted.
    entered: usize,
    waiters: HashMap<u64, Waiter>,
    /// By the bucket that the waiters wait for.
    groups: HashMap<u64, BucketQueue>,
    /// By class and key, in order of arrival.
    classes: BTreeMap<i32, HashMap<u64, VecDeque<u64>>>,
}

/// Decides the order among waiters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueKey {
    /// A larger class is served first.
    pub class: i32,
    /// Keys of one class take turns.
    pub key: u64,
}

struct Waiter {
    key: QueueKey,
    group: u64,
    /// All buckets from which it needs a slot.
    slots: Vec<u64>,
    notify: Arc<Notify>,
    /// Until then other waiters are served first, because it lacks something other than a slot.
    parked: Option<Instant>,
    evicted: bool,
}

/// The waiters for one bucket.
#[derive(Default)]
struct BucketQueue {
    /// By class; never empty.
    classes: BTreeMap<i32, Rotation>,
    len: usize,
    /// When a slot last became free.
    released: Option<Instant>,
    /// Average interval between releases.
    interval: Option<Duration>,
}

/// Waiters of one class for one bucket.
#[derive(Default)]
struct Rotation {
    /// Keys in the order of their turns.
    keys: VecDeque<u64>,
    /// Waiters of each key, oldest first.
    lines: HashMap<u64, VecDeque<u64>>,
}

/// The queue is full, and no waiter can be evicted for the new one.
#[derive(Debug, PartialEq, Eq)]
pub struct QueueFull;

impl Queue {
    /// `depth` shows the number of waiters.
    pub fn new(depth: IntGauge) -> Self {
        Self { waiting: AtomicUsize::new(0), state: Mutex::default(), depth }
    }

    /// The first of these buckets that has waiters: a new request must not overtake them.
    pub fn waited_for(&self, mut buckets: impl Iterator<Item = u64>) -> Option<u64> {
        if self.waiting.load(SeqCst) == 0 {
            return None;
        }
        let state = lock(&self.state);
        buckets.find(|id| state.groups.contains_key(id))
    }

    /// Enters a request that needs a slot of each of the buckets and waits for the first of them. If
    /// `max` requests wait already, a waiter of the lowest class is evicted, unless that class is
    /// above the request's: the newest waiter of the key that has the most. Within the request's own
    /// class a key is evicted only if it has more waiters than the request's key.
    ///
    /// # Errors
    /// If no waiter can be evicted.
    pub fn enter(
        self: &Arc<Self>,
        key: QueueKey,
        slots: Vec<u64>,
        max: usize,
    ) -> Result<QueuePlace, QueueFull> {
        let bucket = *slots.first().ok_or(QueueFull)?;
        let mut state = lock(&self.state);
        if state.entered >= max {
            state.evict(key)?;
        }
        state.entered += 1;
        let id = state.next;
        state.next += 1;
        let notify = Arc::new(Notify::new());
        let waiter = Waiter {
            key,
            group: bucket,
            slots,
            notify: Arc::clone(&notify),
            parked: None,
            evicted: false,
        };
        state.waiters.insert(id, waiter);
        state.classes.entry(key.class).or_default().entry(key.key).or_default().push_back(id);
        state.join(id, key, bucket);
        drop(state);
        self.depth.set(self.waiting.fetch_add(1, SeqCst) as i64 + 1);
        Ok(QueuePlace { queue: Arc::clone(self), id, notify })
    }

    /// Slots of these buckets have become free.
    pub fn released(&self, buckets: impl Iterator<Item = u64>) {
        if self.waiting.load(SeqCst) == 0 {
            return;
        }
        let now = Instant::now();
        let mut state = lock(&self.state);
        for id in buckets {
            if let Some(group) = state.groups.get_mut(&id) {
                if let Some(last) = group.released.replace(now) {
                    let pause = now - last;
                    let known = group.interval.unwrap_or(pause);
                    group.interval = Some(known.mul_f64(1.0 - WEIGHT) + pause.mul_f64(WEIGHT));
                }
                state.wake(id, now);
            }
        }
    }

    /// How long a request that arrives now would wait for a slot of this bucket; `None` if slots have
    /// not become free often enough to tell.
    pub fn expected_wait(&self, bucket: u64) -> Option<Duration> {
        let state = lock(&self.state);
        let group = state.groups.get(&bucket)?;
        Some(group.interval?.saturating_mul(u32::try_from(group.len + 1).unwrap_or(u32::MAX)))
    }
}

impl State {
    /// The waiter whose turn it is: the oldest of the next key of the highest class, without parked
    /// waiters.
    fn first(&self, bucket: u64, now: Instant) -> Option<u64> {
        let group = self.groups.get(&bucket)?;
        let mut heads = group.classes.values().rev().flat_map(Rotation::heads);
        heads.find(|id| {
            let parked = self.waiters.get(id).and_then(|waiter| waiter.parked);
            parked.is_none_or(|until| until <= now)
        })
    }

    /// Another bucket from which the waiter needs a slot and where it is another key's turn.
    fn claimed_by_other(&self, waiter: &Waiter, now: Instant) -> Option<u64> {
        let others = waiter.slots.iter().filter(|bucket| **bucket != waiter.group);
        others.copied().find(|bucket| {
            let first = self.first(*bucket, now).and_then(|id| self.waiters.get(&id));
            // It overtakes waiters of lower classes, whatever bucket they wait for.
            first
                .is_some_and(|first| first.key != waiter.key && first.key.class >= waiter.key.class)
        })
    }

    /// Moves a waiter to another bucket.
    fn regroup(&mut self, id: u64, bucket: u64, now: Instant) {
        let Some(waiter) = self.waiters.get_mut(&id) else {
            return;
        };
        let (key, before) = (waiter.key, std::mem::replace(&mut waiter.group, bucket));
        if before != bucket {
            self.remove(id, key, before, false);
            self.join(id, key, bucket);
            self.wake(before, now);
        }
    }

    fn join(&mut self, id: u64, key: QueueKey, bucket: u64) {
        let group = self.groups.entry(bucket).or_default();
        group.classes.entry(key.class).or_default().join(id, key.key);
        group.len += 1;
    }

    /// Removes a waiter from its group. `served`: the turn passes to the next key.
    fn remove(&mut self, id: u64, key: QueueKey, bucket: u64, served: bool) {
        let Some(group) = self.groups.get_mut(&bucket) else {
            return;
        };
        if let Some(turns) = group.classes.get_mut(&key.class) {
            group.len -= turns.remove(id, key.key, served);
            if turns.keys.is_empty() {
                group.classes.remove(&key.class);
            }
        }
        if group.classes.is_empty() {
            self.groups.remove(&bucket);
        }
    }

    fn wake(&self, bucket: u64, now: Instant) {
        if let Some(waiter) = self.first(bucket, now).and_then(|id| self.waiters.get(&id)) {
            waiter.notify.notify_one();
        }
    }

    /// Makes room for a waiter with this key.
    fn evict(&mut self, key: QueueKey) -> Result<(), QueueFull> {
        let (class, keys) = self.classes.first_key_value().ok_or(QueueFull)?;
        let longest = keys.iter().max_by_key(|(_, line)| line.len());
        let (longest_key, line) = longest.ok_or(QueueFull)?;
        let own = keys.get(&key.key).map_or(0, VecDeque::len);
        let evictable = match class.cmp(&key.class) {
            Ordering::Less => true,
            Ordering::Equal => line.len() > own + 1,
            Ordering::Greater => false,
        };
        if !evictable {
            return Err(QueueFull);
        }
        let newest = *line.back().ok_or(QueueFull)?;
        let key = QueueKey { class: *class, key: *longest_key };
        self.unlist(newest, key);
        self.entered -= 1;
        if let Some(waiter) = self.waiters.get_mut(&newest) {
            waiter.evicted = true;
            waiter.notify.notify_one();
            let group = waiter.group;
            self.remove(newest, key, group, false);
            self.wake(group, Instant::now());
        }
        Ok(())
    }

    /// Removes a waiter from the list of its class and key.
    fn unlist(&mut self, id: u64, key: QueueKey) {
        let Some(keys) = self.classes.get_mut(&key.class) else {
            return;
        };
        if let Some(line) = keys.get_mut(&key.key) {
            line.retain(|other| *other != id);
            if line.is_empty() {
                keys.remove(&key.key);
            }
        }
        if keys.is_empty() {
            self.classes.remove(&key.class);
        }
    }
}

impl Rotation {
    /// The first of each key, in the order of their turns.
    fn heads(&self) -> impl Iterator<Item = u64> {
        self.keys.iter().filter_map(|key| self.lines.get(key)?.front().copied())
    }

    fn join(&mut self, id: u64, key: u64) {
        let line = self.lines.entry(key).or_default();
        if line.is_empty() {
            self.keys.push_back(key);
        }
        // A waiter that moves from another bucket keeps its age.
        let at = line.partition_point(|other| *other < id);
        line.insert(at, id);
    }

    /// Removes a waiter; returns the number removed, 0 or 1.
    fn remove(&mut self, id: u64, key: u64, served: bool) -> usize {
        let Some(line) = self.lines.get_mut(&key) else {
            return 0;
        };
        let before = line.len();
        line.retain(|other| *other != id);
        let removed = before - line.len();
        if !line.is_empty() {
            if served {
                self.advance(key);
            }
            return removed;
        }
        self.lines.remove(&key);
        if self.keys.front() == Some(&key) {
            self.keys.pop_front();
        } else {
            self.keys.retain(|other| *other != key);
        }
        removed
    }

    /// Passes the turn of this key, if it has it, to the next.
    fn advance(&mut self, key: u64) {
        if self.keys.front() == Some(&key) {
            self.keys.rotate_left(1);
        }
    }
}

/// What a waiter may do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Try to be admitted.
    Try,
    Wait,
    /// Give up: another request has taken its place.
    Evicted,
}

/// A place in the queue, which is given up when dropped.
pub struct QueuePlace {
    queue: Arc<Queue>,
    id: u64,
    notify: Arc<Notify>,
}

impl QueuePlace {
    /// QueueKey turn it is.
    pub fn turn(&self) -> Turn {
        let now = Instant::now();
        let mut state = lock(&self.queue.state);
        let Some(waiter) = state.waiters.get(&self.id).filter(|w| !w.evicted) else {
            return Turn::Evicted;
        };
        if state.first(waiter.group, now) != Some(self.id) {
            return Turn::Wait;
        }
        match state.claimed_by_other(waiter, now) {
            None => Turn::Try,
            Some(bucket) => {
                // It must not take a slot there before its turn.
                state.regroup(self.id, bucket, now);
                let first = state.first(bucket, now) == Some(self.id);
                if first { Turn::Try } else { Turn::Wait }
            }
        }
    }

    /// Waits until its turn may have come.
    pub async fn changed(&self) {
        self.notify.notified().await;
    }

    /// Replaces the buckets from which it needs slots.
    pub fn set_slots(&self, slots: Vec<u64>) {
        let mut state = lock(&self.queue.state);
        let Some(waiter) = state.waiters.get_mut(&self.id).filter(|w| !w.evicted) else {
            return;
        };
        let other = slots.first().copied().filter(|_| !slots.contains(&waiter.group));
        waiter.slots = slots;
        if let Some(bucket) = other {
            state.regroup(self.id, bucket, Instant::now());
        }
    }

    /// After a try that failed because this bucket had no free slot.
    pub fn wait_for(&self, bucket: u64) {
        let mut state = lock(&self.queue.state);
        if !state.waiters.get(&self.id).is_none_or(|waiter| waiter.evicted) {
            state.regroup(self.id, bucket, Instant::now());
        }
    }

    /// After a try that failed for another reason: for this long other waiters are served first.
    pub fn park(&self, pause: Duration) {
        let now = Instant::now();
        let mut state = lock(&self.queue.state);
        let Some(waiter) = state.waiters.get_mut(&self.id) else {
            return;
        };
        waiter.parked = Some(now + pause);
        let (key, bucket) = (waiter.key, waiter.group);
        let group = state.groups.get_mut(&bucket);
        if let Some(turns) = group.and_then(|group| group.classes.get_mut(&key.class)) {
            turns.advance(key.key);
        }
        state.wake(bucket, now);
    }
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        let mut state = lock(&self.queue.state);
        if let Some(waiter) = state.waiters.remove(&self.id) {
            if !waiter.evicted {
                state.entered -= 1;
                state.unlist(self.id, waiter.key);
                state.remove(self.id, waiter.key, waiter.group, true);
                // More than one slot may be free.
                state.wake(waiter.group, Instant::now());
            }
            drop(state);
            self.queue.depth.set(self.queue.waiting.fetch_sub(1, SeqCst) as i64 - 1);
        }
    }
}

#[cfg(test)]
mod tests;
