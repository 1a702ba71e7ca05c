//! Where requests wait that find no slot: higher classes first, within a class in turn between keys,
//! in order within a key.
//!
//! A waiter waits for one bucket, which had no slot for it. When a slot of a bucket becomes free,
//! the waiter whose turn it is is woken and tries again itself; nobody who comes later goes before
//! it, unless it is of a higher class. The same holds for slots in this process and for slots in Redis, where a try is a question.

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

/// How much a release weighs against those before it.
const WEIGHT: f64 = 0.2;

/// All who wait.
pub struct Queue {
    /// How many; who sees none takes no lock.
    waiting: AtomicUsize,
    state: Mutex<State>,
    depth: IntGauge,
}

#[derive(Default)]
struct State {
    next: u64,
    /// Those who were not pushed out.
    entered: usize,
    waiters: HashMap<u64, Waiter>,
    /// By the bucket that is waited for.
    groups: HashMap<u64, Group>,
    /// By class and key, in the order in which they came.
    classes: BTreeMap<i32, HashMap<u64, VecDeque<u64>>>,
}

/// Whose a request is, as far as turns go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whose {
    /// Larger goes first.
    pub class: i32,
    /// Keys of one class take turns.
    pub key: u64,
}

struct Waiter {
    whose: Whose,
    group: u64,
    /// All buckets that it needs a slot of.
    slots: Vec<u64>,
    notify: Arc<Notify>,
    /// Until then it lets others go first, because it lacks something else than a slot.
    parked: Option<Instant>,
    pushed_out: bool,
}

/// Who waits for the same bucket.
#[derive(Default)]
struct Group {
    /// By class; none of them is empty.
    classes: BTreeMap<i32, Turns>,
    /// How many there are.
    len: usize,
    /// When a slot became free last, and how often one does.
    released: Option<Instant>,
    every: Option<Duration>,
}

/// Waiters of one class for one bucket.
#[derive(Default)]
struct Turns {
    /// Keys, in the order of their turns.
    keys: VecDeque<u64>,
    /// Waiters of each key.
    lines: HashMap<u64, VecDeque<u64>>,
}

/// Nobody else may wait.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

impl Queue {
    /// An empty one, whose length is shown.
    pub fn new(depth: IntGauge) -> Self {
        Self { waiting: AtomicUsize::new(0), state: Mutex::default(), depth }
    }

    /// Whether somebody waits for one of these buckets: then who comes now must wait as well.
    pub fn ahead(&self, mut buckets: impl Iterator<Item = u64>) -> Option<u64> {
        if self.waiting.load(SeqCst) == 0 {
            return None;
        }
        let state = lock(&self.state);
        buckets.find(|id| state.groups.contains_key(id))
    }

    /// Enters a request, which needs a slot of each of the buckets and waits for the first of them.
    /// When `most` wait already, one of the lowest class must go, if that is not above this one's:
    /// the newest of the key that has most of them, in its own class if that is not this key.
    ///
    /// # Errors
    /// If nobody has to go for this one.
    pub fn enter(
        self: &Arc<Self>,
        whose: Whose,
        slots: Vec<u64>,
        most: usize,
    ) -> Result<Place, Full> {
        let bucket = *slots.first().ok_or(Full)?;
        let mut state = lock(&self.state);
        if state.entered >= most {
            state.push_out(whose)?;
        }
        state.entered += 1;
        let id = state.next;
        state.next += 1;
        let notify = Arc::new(Notify::new());
        let waiter = Waiter {
            whose,
            group: bucket,
            slots,
            notify: Arc::clone(&notify),
            parked: None,
            pushed_out: false,
        };
        state.waiters.insert(id, waiter);
        state.classes.entry(whose.class).or_default().entry(whose.key).or_default().push_back(id);
        state.join(id, whose, bucket);
        drop(state);
        self.depth.set(self.waiting.fetch_add(1, SeqCst) as i64 + 1);
        Ok(Place { queue: Arc::clone(self), id, notify })
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
                    let known = group.every.unwrap_or(pause);
                    group.every = Some(known.mul_f64(1.0 - WEIGHT) + pause.mul_f64(WEIGHT));
                }
                state.wake(id, now);
            }
        }
    }

    /// How long one who comes now would wait for a slot of this bucket, as far as its waiters have
    /// seen slots become free; `None` if they have not.
    pub fn outlook(&self, bucket: u64) -> Option<Duration> {
        let state = lock(&self.state);
        let group = state.groups.get(&bucket)?;
        Some(group.every?.saturating_mul(u32::try_from(group.len + 1).unwrap_or(u32::MAX)))
    }
}

impl State {
    /// The waiter whose turn it is: of the highest class the first of a key, keys in their turns,
    /// those that let others go first left out.
    fn first(&self, bucket: u64, now: Instant) -> Option<u64> {
        let group = self.groups.get(&bucket)?;
        let mut fronts = group.classes.values().rev().flat_map(Turns::fronts);
        fronts.find(|id| {
            let parked = self.waiters.get(id).and_then(|waiter| waiter.parked);
            parked.is_none_or(|until| until <= now)
        })
    }

    /// A bucket that a waiter needs as well, and where it is the turn of another key or class.
    fn contested(&self, waiter: &Waiter, now: Instant) -> Option<u64> {
        let others = waiter.slots.iter().filter(|bucket| **bucket != waiter.group);
        others.copied().find(|bucket| {
            let first = self.first(*bucket, now).and_then(|id| self.waiters.get(&id));
            // It goes before those of lower classes, wherever they wait.
            first.is_some_and(|first| {
                first.whose != waiter.whose && first.whose.class >= waiter.whose.class
            })
        })
    }

    /// Makes a waiter wait for another bucket.
    fn regroup(&mut self, id: u64, bucket: u64, now: Instant) {
        let Some(waiter) = self.waiters.get_mut(&id) else {
            return;
        };
        let (whose, before) = (waiter.whose, std::mem::replace(&mut waiter.group, bucket));
        if before != bucket {
            self.part(id, whose, before, false);
            self.join(id, whose, bucket);
            self.wake(before, now);
        }
    }

    fn join(&mut self, id: u64, whose: Whose, bucket: u64) {
        let group = self.groups.entry(bucket).or_default();
        group.classes.entry(whose.class).or_default().join(id, whose.key);
        group.len += 1;
    }

    /// Takes a waiter out of its group. `served`: the turn passes on to the next key.
    fn part(&mut self, id: u64, whose: Whose, bucket: u64, served: bool) {
        let Some(group) = self.groups.get_mut(&bucket) else {
            return;
        };
        if let Some(turns) = group.classes.get_mut(&whose.class) {
            group.len -= turns.part(id, whose.key, served);
            if turns.keys.is_empty() {
                group.classes.remove(&whose.class);
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

    /// Makes room for a waiter.
    fn push_out(&mut self, whose: Whose) -> Result<(), Full> {
        let (class, keys) = self.classes.first_key_value().ok_or(Full)?;
        let most = keys.iter().max_by_key(|(_, line)| line.len());
        let (longest, line) = most.ok_or(Full)?;
        let own = keys.get(&whose.key).map_or(0, VecDeque::len);
        let goes = match class.cmp(&whose.class) {
            Ordering::Less => true,
            Ordering::Equal => line.len() > own + 1,
            Ordering::Greater => false,
        };
        if !goes {
            return Err(Full);
        }
        let newest = *line.back().ok_or(Full)?;
        let whose = Whose { class: *class, key: *longest };
        self.forget(newest, whose);
        self.entered -= 1;
        if let Some(waiter) = self.waiters.get_mut(&newest) {
            waiter.pushed_out = true;
            waiter.notify.notify_one();
            let group = waiter.group;
            self.part(newest, whose, group, false);
            self.wake(group, Instant::now());
        }
        Ok(())
    }

    /// Takes a waiter off the list of its class and key.
    fn forget(&mut self, id: u64, whose: Whose) {
        let Some(keys) = self.classes.get_mut(&whose.class) else {
            return;
        };
        if let Some(line) = keys.get_mut(&whose.key) {
            line.retain(|other| *other != id);
            if line.is_empty() {
                keys.remove(&whose.key);
            }
        }
        if keys.is_empty() {
            self.classes.remove(&whose.class);
        }
    }
}

impl Turns {
    /// The first of each key, in the order of their turns.
    fn fronts(&self) -> impl Iterator<Item = u64> {
        self.keys.iter().filter_map(|key| self.lines.get(key)?.front().copied())
    }

    fn join(&mut self, id: u64, key: u64) {
        let line = self.lines.entry(key).or_default();
        if line.is_empty() {
            self.keys.push_back(key);
        }
        // A waiter that comes over from another bucket keeps its age.
        let place = line.partition_point(|other| *other < id);
        line.insert(place, id);
    }

    /// Takes a waiter out; tells how many that were.
    fn part(&mut self, id: u64, key: u64, served: bool) -> usize {
        let Some(line) = self.lines.get_mut(&key) else {
            return 0;
        };
        let before = line.len();
        line.retain(|other| *other != id);
        let gone = before - line.len();
        if !line.is_empty() {
            if served {
                self.pass(key);
            }
            return gone;
        }
        self.lines.remove(&key);
        if self.keys.front() == Some(&key) {
            self.keys.pop_front();
        } else {
            self.keys.retain(|other| *other != key);
        }
        gone
    }

    /// The turn of this key, if it is its turn, passes on to the next.
    fn pass(&mut self, key: u64) {
        if self.keys.front() == Some(&key) {
            self.keys.rotate_left(1);
        }
    }
}

/// What a waiter may do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Try to take what it wants.
    Try,
    /// Wait.
    Wait,
    /// Go: another one has its place.
    PushedOut,
}

/// A place in the queue; given up when dropped.
pub struct Place {
    queue: Arc<Queue>,
    id: u64,
    notify: Arc<Notify>,
}

impl Place {
    /// Whose turn it is.
    pub fn turn(&self) -> Turn {
        let now = Instant::now();
        let mut state = lock(&self.queue.state);
        let Some(waiter) = state.waiters.get(&self.id).filter(|w| !w.pushed_out) else {
            return Turn::PushedOut;
        };
        if state.first(waiter.group, now) != Some(self.id) {
            return Turn::Wait;
        }
        match state.contested(waiter, now) {
            None => Turn::Try,
            Some(bucket) => {
                // It must not take there what is another's.
                state.regroup(self.id, bucket, now);
                let first = state.first(bucket, now) == Some(self.id);
                if first { Turn::Try } else { Turn::Wait }
            }
        }
    }

    /// Waits until something may have changed.
    pub async fn changed(&self) {
        self.notify.notified().await;
    }

    /// It needs slots of these buckets now, and of no others.
    pub fn needs(&self, slots: Vec<u64>) {
        let mut state = lock(&self.queue.state);
        let Some(waiter) = state.waiters.get_mut(&self.id).filter(|w| !w.pushed_out) else {
            return;
        };
        let other = slots.first().copied().filter(|_| !slots.contains(&waiter.group));
        waiter.slots = slots;
        if let Some(bucket) = other {
            state.regroup(self.id, bucket, Instant::now());
        }
    }

    /// The try has failed for want of a slot of this bucket.
    pub fn waits_for(&self, bucket: u64) {
        let mut state = lock(&self.queue.state);
        if !state.waiters.get(&self.id).is_none_or(|waiter| waiter.pushed_out) {
            state.regroup(self.id, bucket, Instant::now());
        }
    }

    /// The try has failed for another reason: for this long others go first.
    pub fn yields(&self, pause: Duration) {
        let now = Instant::now();
        let mut state = lock(&self.queue.state);
        let Some(waiter) = state.waiters.get_mut(&self.id) else {
            return;
        };
        waiter.parked = Some(now + pause);
        let (whose, bucket) = (waiter.whose, waiter.group);
        let group = state.groups.get_mut(&bucket);
        if let Some(turns) = group.and_then(|group| group.classes.get_mut(&whose.class)) {
            turns.pass(whose.key);
        }
        state.wake(bucket, now);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = lock(&self.queue.state);
        if let Some(waiter) = state.waiters.remove(&self.id) {
            if !waiter.pushed_out {
                state.entered -= 1;
                state.forget(self.id, waiter.whose);
                state.part(self.id, waiter.whose, waiter.group, true);
                // There may be more slots than one.
                state.wake(waiter.group, Instant::now());
            }
            drop(state);
            self.queue.depth.set(self.queue.waiting.fetch_sub(1, SeqCst) as i64 - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BUCKET: u64 = 7;

    /// A key of the usual class.
    fn of(key: u64) -> Whose {
        Whose { class: 0, key }
    }

    fn queue() -> Arc<Queue> {
        Arc::new(Queue::new(IntGauge::new("depth", "depth").unwrap()))
    }

    /// Serves whoever's turn it is, as often as it can; tells the keys in their order.
    fn served(places: &mut Vec<(char, Place)>) -> String {
        let mut keys = String::new();
        while let Some(turn) = places.iter().position(|(_, p)| p.turn() == Turn::Try) {
            keys.push(places.remove(turn).0);
        }
        keys
    }

    #[test]
    fn turns_go_round_between_keys() {
        let queue = queue();
        let mut places = Vec::new();
        for key in "aaaaabbc".chars() {
            places.push((key, queue.enter(of(key as u64), vec![BUCKET], 100).unwrap()));
        }
        assert_eq!(served(&mut places), "abcabaaa");
        assert_eq!((queue.depth.get(), queue.ahead([BUCKET].into_iter())), (0, None));
    }

    #[test]
    fn one_who_comes_late_waits_for_one_turn() {
        let queue = queue();
        let mut places = Vec::new();
        for _ in 0..500 {
            places.push(('a', queue.enter(of('a' as u64), vec![BUCKET], 1000).unwrap()));
        }
        places.push(('b', queue.enter(of('b' as u64), vec![BUCKET], 1000).unwrap()));
        let order = served(&mut places);
        assert!(order.starts_with("ab"), "{}", &order[..10]);
    }

    /// Who waits, by class and key, and the places that they have.
    fn entered(queue: &Arc<Queue>, all: &[(i32, u8)]) -> Vec<(char, Place)> {
        let enter = |(class, key): &(i32, u8)| {
            let whose = Whose { class: *class, key: u64::from(*key) };
            let name = char::from(b'a' + *key);
            (name, queue.enter(whose, vec![BUCKET], 100).unwrap())
        };
        all.iter().map(enter).collect()
    }

    proptest! {
        #[test]
        fn each_class_is_served_as_if_those_below_were_not_there(
            all in prop::collection::vec((-2..3, 0_u8..4), 0..40)
        ) {
            let alone = |class: i32| {
                let own: Vec<_> = all.iter().copied().filter(|(c, _)| *c == class).collect();
                served(&mut entered(&queue(), &own))
            };
            let expected: String = (-2..3).rev().map(alone).collect();
            let queue = queue();
            prop_assert_eq!(served(&mut entered(&queue, &all)), expected);
            let state = lock(&queue.state);
            prop_assert!(state.groups.is_empty() && state.classes.is_empty());
        }

        #[test]
        fn a_full_queue_keeps_the_highest(
            all in prop::collection::vec((-2..3, 0_u8..4), 1..40), most in 1_usize..10
        ) {
            let queue = queue();
            let mut places: Vec<(i32, Place)> = Vec::new();
            for (class, key) in &all {
                let whose = Whose { class: *class, key: u64::from(*key) };
                places.extend(queue.enter(whose, vec![BUCKET], most).ok().map(|p| (*class, p)));
                places.retain(|(_, place)| place.turn() != Turn::PushedOut);
                prop_assert!(places.len() <= most);
            }
            let mut kept: Vec<i32> = places.iter().map(|(class, _)| *class).collect();
            let mut best: Vec<i32> = all.iter().map(|(class, _)| *class).collect();
            kept.sort_unstable_by_key(|class| -class);
            best.sort_unstable_by_key(|class| -class);
            best.truncate(most);
            prop_assert_eq!(kept, best);
        }
    }

    #[test]
    fn who_comes_late_goes_before_lower_classes_wherever_they_wait() {
        let (queue, own, model) = (queue(), 1, 2);
        let low = queue.enter(Whose { class: -1, key: 1 }, vec![model], 10).unwrap();
        let high = queue.enter(Whose { class: 5, key: 2 }, vec![own, model], 10).unwrap();
        // It waits for a slot of its own key; the model's next slot is the other's all the same.
        assert_eq!((low.turn(), high.turn()), (Turn::Try, Turn::Try));
        high.waits_for(model);
        assert_eq!((low.turn(), high.turn()), (Turn::Wait, Turn::Try));
        // The same key in a lower class waits as well.
        let lower = queue.enter(Whose { class: 0, key: 2 }, vec![own, model], 10).unwrap();
        assert_eq!(lower.turn(), Turn::Wait);
        high.yields(Duration::from_secs(60));
        assert_eq!((high.turn(), lower.turn(), low.turn()), (Turn::Wait, Turn::Try, Turn::Wait));
    }

    #[test]
    fn who_leaves_is_not_waited_for() {
        let queue = queue();
        let first = queue.enter(of(1), vec![BUCKET], 10).unwrap();
        let second = queue.enter(of(1), vec![BUCKET], 10).unwrap();
        assert_eq!((first.turn(), second.turn()), (Turn::Try, Turn::Wait));
        drop(first);
        assert_eq!(second.turn(), Turn::Try);
        assert_eq!(queue.ahead([3, BUCKET].into_iter()), Some(BUCKET));
        assert_eq!(queue.ahead([3].into_iter()), None);
    }

    #[test]
    fn a_full_queue_makes_room_for_a_key_with_fewer() {
        let queue = queue();
        let many: Vec<_> = (0..4).map(|_| queue.enter(of(1), vec![BUCKET], 4).unwrap()).collect();
        assert!(queue.enter(of(1), vec![BUCKET], 4).is_err());
        let other = queue.enter(of(2), vec![BUCKET], 4).unwrap();
        assert_eq!(many[3].turn(), Turn::PushedOut);
        assert_eq!((many[0].turn(), other.turn()), (Turn::Try, Turn::Wait));
        let second = queue.enter(of(2), vec![BUCKET], 4);
        assert!(second.is_ok() && many[2].turn() == Turn::PushedOut);
        // Two each: nobody has to go for one more.
        assert!(queue.enter(of(2), vec![BUCKET], 4).is_err());
        drop(many);
        assert_eq!(other.turn(), Turn::Try);
    }

    #[test]
    fn who_lacks_something_else_lets_others_go_first() {
        let queue = queue();
        let first = queue.enter(of(1), vec![BUCKET], 10).unwrap();
        let second = queue.enter(of(2), vec![BUCKET], 10).unwrap();
        let pause = Duration::from_secs(60);
        first.yields(pause);
        assert_eq!((first.turn(), second.turn()), (Turn::Wait, Turn::Try));
        // Who comes now is not kept waiting either.
        let third = queue.enter(of(3), vec![BUCKET], 10).unwrap();
        second.yields(pause);
        assert_eq!((second.turn(), third.turn()), (Turn::Wait, Turn::Try));
        third.yields(Duration::ZERO);
        assert_eq!(third.turn(), Turn::Try);
    }

    #[test]
    fn who_waits_for_one_bucket_takes_nothing_from_those_who_wait_for_another() {
        let (queue, own, model) = (queue(), 1, 2);
        let many: Vec<_> =
            (0..5).map(|_| queue.enter(of(1), vec![own, model], 10).unwrap()).collect();
        let other = queue.enter(of(2), vec![model], 10).unwrap();
        // A slot of its own key is free; but the model's next slot is the other's.
        assert_eq!((many[0].turn(), other.turn()), (Turn::Wait, Turn::Try));
        assert_eq!(queue.ahead([model].into_iter()), Some(model));
        drop(other);
        // Its own key's others, who are younger, do not stand in its way.
        assert_eq!((many[0].turn(), many[1].turn()), (Turn::Try, Turn::Try));
        many[0].waits_for(own);
        assert_eq!((many[0].turn(), many[1].turn()), (Turn::Try, Turn::Wait));
    }

    #[tokio::test]
    async fn a_free_slot_wakes_whose_turn_it_is() {
        let queue = queue();
        let first = queue.enter(of(1), vec![BUCKET], 10).unwrap();
        let second = queue.enter(of(2), vec![BUCKET], 10).unwrap();
        queue.released([BUCKET].into_iter());
        first.changed().await;
        // Its place passes the word on.
        drop(first);
        second.changed().await;
        assert_eq!(second.turn(), Turn::Try);
    }

    #[test]
    fn the_outlook_follows_the_pace() {
        let queue = queue();
        assert_eq!(queue.outlook(BUCKET), None);
        let _places: Vec<_> =
            (0..9).map(|_| queue.enter(of(1), vec![BUCKET], 10).unwrap()).collect();
        queue.released([BUCKET].into_iter());
        std::thread::sleep(Duration::from_millis(20));
        queue.released([BUCKET].into_iter());
        assert!(queue.outlook(BUCKET).unwrap() >= Duration::from_millis(200));
    }
}
