//! Tests of the queue.

use proptest::prelude::*;

use super::*;

const BUCKET: u64 = 7;

/// A key of the usual class.
fn key_of(key: u64) -> QueueKey {
    QueueKey { class: 0, key }
}

fn queue() -> Arc<Queue> {
    Arc::new(Queue::new(IntGauge::new("depth", "depth").unwrap()))
}

/// Serves waiters in turn until none may try; returns the keys in the order of service.
fn served(places: &mut Vec<(char, QueuePlace)>) -> String {
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
        places.push((key, queue.enter(key_of(key as u64), vec![BUCKET], 100).unwrap()));
    }
    assert_eq!(served(&mut places), "abcabaaa");
    assert_eq!((queue.depth.get(), queue.waited_for([BUCKET].into_iter())), (0, None));
}

#[test]
fn one_who_comes_late_waits_for_one_turn() {
    let queue = queue();
    let mut places = Vec::new();
    for _ in 0..500 {
        places.push(('a', queue.enter(key_of('a' as u64), vec![BUCKET], 1000).unwrap()));
    }
    places.push(('b', queue.enter(key_of('b' as u64), vec![BUCKET], 1000).unwrap()));
    let order = served(&mut places);
    assert!(order.starts_with("ab"), "{}", &order[..10]);
}

/// Enters waiters by class and key; returns their places.
fn entered(queue: &Arc<Queue>, all: &[(i32, u8)]) -> Vec<(char, QueuePlace)> {
    let enter = |(class, key): &(i32, u8)| {
        let whose = QueueKey { class: *class, key: u64::from(*key) };
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
        let mut places: Vec<(i32, QueuePlace)> = Vec::new();
        for (class, key) in &all {
            let whose = QueueKey { class: *class, key: u64::from(*key) };
            places.extend(queue.enter(whose, vec![BUCKET], most).ok().map(|p| (*class, p)));
            places.retain(|(_, place)| place.turn() != Turn::Evicted);
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
    let low = queue.enter(QueueKey { class: -1, key: 1 }, vec![model], 10).unwrap();
    let high = queue.enter(QueueKey { class: 5, key: 2 }, vec![own, model], 10).unwrap();
    // It waits for a slot of its own key; the model's next slot is still the other's.
    assert_eq!((low.turn(), high.turn()), (Turn::Try, Turn::Try));
    high.wait_for(model);
    assert_eq!((low.turn(), high.turn()), (Turn::Wait, Turn::Try));
    // The same key in a lower class waits as well.
    let lower = queue.enter(QueueKey { class: 0, key: 2 }, vec![own, model], 10).unwrap();
    assert_eq!(lower.turn(), Turn::Wait);
    high.park(Duration::from_secs(60));
    assert_eq!((high.turn(), lower.turn(), low.turn()), (Turn::Wait, Turn::Try, Turn::Wait));
}

#[test]
fn who_leaves_is_not_waited_for() {
    let queue = queue();
    let first = queue.enter(key_of(1), vec![BUCKET], 10).unwrap();
    let second = queue.enter(key_of(1), vec![BUCKET], 10).unwrap();
    assert_eq!((first.turn(), second.turn()), (Turn::Try, Turn::Wait));
    drop(first);
    assert_eq!(second.turn(), Turn::Try);
    assert_eq!(queue.waited_for([3, BUCKET].into_iter()), Some(BUCKET));
    assert_eq!(queue.waited_for([3].into_iter()), None);
}

#[test]
fn a_full_queue_makes_room_for_a_key_with_fewer() {
    let queue = queue();
    let many: Vec<_> = (0..4).map(|_| queue.enter(key_of(1), vec![BUCKET], 4).unwrap()).collect();
    assert!(queue.enter(key_of(1), vec![BUCKET], 4).is_err());
    let other = queue.enter(key_of(2), vec![BUCKET], 4).unwrap();
    assert_eq!(many[3].turn(), Turn::Evicted);
    assert_eq!((many[0].turn(), other.turn()), (Turn::Try, Turn::Wait));
    let second = queue.enter(key_of(2), vec![BUCKET], 4);
    assert!(second.is_ok() && many[2].turn() == Turn::Evicted);
    // Two each: no waiter is evicted for one more.
    assert!(queue.enter(key_of(2), vec![BUCKET], 4).is_err());
    drop(many);
    assert_eq!(other.turn(), Turn::Try);
}

#[test]
fn who_lacks_something_else_lets_others_go_first() {
    let queue = queue();
    let first = queue.enter(key_of(1), vec![BUCKET], 10).unwrap();
    let second = queue.enter(key_of(2), vec![BUCKET], 10).unwrap();
    let pause = Duration::from_secs(60);
    first.park(pause);
    assert_eq!((first.turn(), second.turn()), (Turn::Wait, Turn::Try));
    // A new waiter does not have to wait either.
    let third = queue.enter(key_of(3), vec![BUCKET], 10).unwrap();
    second.park(pause);
    assert_eq!((second.turn(), third.turn()), (Turn::Wait, Turn::Try));
    third.park(Duration::ZERO);
    assert_eq!(third.turn(), Turn::Try);
}

#[test]
fn who_waits_for_one_bucket_takes_nothing_from_those_who_wait_for_another() {
    let (queue, own, model) = (queue(), 1, 2);
    let many: Vec<_> =
        (0..5).map(|_| queue.enter(key_of(1), vec![own, model], 10).unwrap()).collect();
    let other = queue.enter(key_of(2), vec![model], 10).unwrap();
    // A slot of its own key is free; but the model's next slot is the other's.
    assert_eq!((many[0].turn(), other.turn()), (Turn::Wait, Turn::Try));
    assert_eq!(queue.waited_for([model].into_iter()), Some(model));
    drop(other);
    // Younger waiters of its own key do not block it.
    assert_eq!((many[0].turn(), many[1].turn()), (Turn::Try, Turn::Try));
    many[0].wait_for(own);
    assert_eq!((many[0].turn(), many[1].turn()), (Turn::Try, Turn::Wait));
}

#[tokio::test]
async fn a_free_slot_wakes_whose_turn_it_is() {
    let queue = queue();
    let first = queue.enter(key_of(1), vec![BUCKET], 10).unwrap();
    let second = queue.enter(key_of(2), vec![BUCKET], 10).unwrap();
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
    assert_eq!(queue.expected_wait(BUCKET), None);
    let _places: Vec<_> =
        (0..9).map(|_| queue.enter(key_of(1), vec![BUCKET], 10).unwrap()).collect();
    queue.released([BUCKET].into_iter());
    std::thread::sleep(Duration::from_millis(20));
    queue.released([BUCKET].into_iter());
    assert!(queue.expected_wait(BUCKET).unwrap() >= Duration::from_millis(200));
}
