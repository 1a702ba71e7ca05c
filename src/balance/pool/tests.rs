//! Pools with each strategy, with random numbers from a seed.

use std::{collections::HashMap, path::Path};

use super::*;
use crate::{
    balance::{
        ejection::{Evidence, Trials},
        endpoint::BackendIds,
        state::Lease,
    },
    config,
    telemetry::Metrics,
};

const SECOND: Duration = Duration::from_secs(1);

/// A pool and the clock of its test.
struct Bed {
    pool: Pool,
    registry: Arc<HealthRegistry>,
    endpoints: Vec<Arc<Endpoint>>,
    now: Instant,
}

fn endpoints(ids: &BackendIds, count: usize) -> Vec<Arc<Endpoint>> {
    let backends: String =
        (0..count).map(|n| format!("  - {{name: b{n}, url: \"http://10.0.0.1:{n}\"}}\n")).collect();
    let text = format!("backends:\n{}", backends.replace(":0\"", ":9999\""));
    let plan = config::load_text(&text, Path::new("."), &|_| None).plan.unwrap();
    let one = |b: &config::plan::BackendPlan| {
        Arc::new(Endpoint::new(ids.get(b), b.clone(), &[b.literal().unwrap()], &plan.timeouts))
    };
    plan.backends.iter().map(one).collect()
}

fn plan(strategy: Strategy) -> BalancePlan {
    BalancePlan { strategy, ..BalancePlan::default() }
}

impl Bed {
    fn new(balance: &BalancePlan, weights: &[u32]) -> Self {
        Self::with(balance, &CircuitPlan::default(), weights)
    }

    fn with(balance: &BalancePlan, circuit: &CircuitPlan, weights: &[u32]) -> Self {
        let ids = BackendIds::new(&Metrics::new());
        let endpoints = endpoints(&ids, weights.len());
        let registry = Arc::new(HealthRegistry::with_equivalence(|backend| {
            u64::from(Endpoint::id_of(backend))
        }));
        let members = endpoints.iter().cloned().zip(weights.iter().copied()).collect();
        let pool = pool(members, balance, circuit, Predecessor::default(), &registry);
        Self { pool, registry, endpoints, now: Instant::now() }
    }

    fn request(&self) -> PickRequest<'static> {
        PickRequest {
            model: "m",
            caller: 1,
            ignore_ejections: false,
            session: None,
            blocks: &[],
            excluded: &[],
            strategy: None,
            binds: false,
            now: self.now,
        }
    }

    fn pick(&self, request: &PickRequest<'_>) -> (usize, Lease) {
        let picked = self.pool.pick(request).expect("a backend is available");
        let at = self.endpoints.iter().position(|e| e.id == picked.endpoint.id);
        (at.unwrap(), picked.lease)
    }

    /// How often each is chosen, if every request ends at once.
    fn counts(&self, picks: usize) -> Vec<usize> {
        let mut counts = vec![0; self.endpoints.len()];
        (0..picks).for_each(|_| counts[self.pick(&self.request()).0] += 1);
        counts
    }

    /// Leases of one backend.
    fn occupy(&self, backend: usize, requests: usize) -> Vec<Lease> {
        let state = self.endpoints[backend].state();
        (0..requests)
            .map(|_| state.lease(("m", 1), CircuitPlan::default(), Trials::default()))
            .collect()
    }

    fn fail(&self, backend: usize) {
        for _ in 0..5 {
            let state = self.endpoints[backend].state();
            state
                .lease(("m", 1), CircuitPlan::default(), Trials::default())
                .unreachable_at(self.now);
        }
    }
}

fn pool(
    members: Vec<(Arc<Endpoint>, u32)>,
    balance: &BalancePlan,
    circuit: &CircuitPlan,
    predecessor: Predecessor<'_>,
    registry: &Arc<HealthRegistry>,
) -> Pool {
    let options = PoolOptions {
        balance,
        circuit,
        budget: &BudgetPlan::default(),
        load_interval: 2 * SECOND,
        registry,
        probed: false,
        predecessor,
        selectable: false,
        seed: 42,
    };
    Pool::new(members, &options)
}

const ALL: [Strategy; 8] = [
    Strategy::RoundRobin,
    Strategy::LeastConnections,
    Strategy::LatencyBased,
    Strategy::Random,
    Strategy::P2c,
    Strategy::ConsistentHash,
    Strategy::PrefixAffinity,
    Strategy::LeastLoad,
];

#[test]
fn no_strategy_chooses_who_cannot_be_chosen() {
    for strategy in ALL {
        let mut bed = Bed::new(&plan(strategy), &[1, 2, 3, 4, 5]);
        bed.endpoints[0].drain(true);
        bed.fail(1);
        bed.pick(&PickRequest { excluded: &[0, 1, 2, 4, 5], ..bed.request() })
            .1
            .busy_at(None, bed.now);
        let excluded = [bed.endpoints[3].id];
        for session in 0..200 {
            let request = PickRequest {
                session: Some(session * 77),
                blocks: &[1, 2],
                excluded: &excluded,
                ..bed.request()
            };
            assert_eq!(bed.pick(&request).0, 4, "{strategy:?}");
        }
        let all: Vec<_> = bed.endpoints.iter().map(|e| e.id).collect();
        let unavailable = bed.pool.pick(&PickRequest { excluded: &all, ..bed.request() }).err();
        assert_eq!(unavailable, Some(NoBackend::default()), "{strategy:?}");
        // All that are left will come back: the busy one first.
        let excluded = [all[3], all[4]];
        let unavailable =
            bed.pool.pick(&PickRequest { excluded: &excluded, ..bed.request() }).err();
        assert_eq!(unavailable, Some(NoBackend { retry_after: Some(SECOND) }), "{strategy:?}");
        bed.now += SECOND;
        assert_eq!(
            bed.pick(&PickRequest { excluded: &excluded, ..bed.request() }).0,
            2,
            "{strategy:?}"
        );
        assert!(bed.endpoints.iter().all(|e| e.in_flight() == 0), "{strategy:?}");
    }
}

#[test]
fn round_robin_gives_five_to_three() {
    let bed = Bed::new(&plan(Strategy::RoundRobin), &[5, 3]);
    for _ in 0..10 {
        assert_eq!(bed.counts(8), [5, 3]);
    }
}

#[test]
fn weights_count_with_every_strategy() {
    for strategy in [Strategy::Random, Strategy::P2c, Strategy::ConsistentHash] {
        let counts = Bed::new(&plan(strategy), &[5, 3, 2]).counts(10_000);
        for (count, share) in counts.iter().zip([5000usize, 3000, 2000]) {
            assert!(count.abs_diff(share) < 200, "{strategy:?} {counts:?}");
        }
    }
    // Requests that stay: loads in proportion to the weights.
    for strategy in [Strategy::LeastConnections, Strategy::P2c, Strategy::LeastLoad] {
        let bed = Bed::new(&plan(strategy), &[5, 3, 2]);
        let leases: Vec<_> = (0..1000).map(|_| bed.pick(&bed.request()).1).collect();
        for (endpoint, share) in bed.endpoints.iter().zip([500usize, 300, 200]) {
            assert!(endpoint.in_flight().abs_diff(share) < 20, "{strategy:?}");
        }
        drop(leases);
        assert!(bed.endpoints.iter().all(|e| e.in_flight() == 0));
    }
}

#[test]
fn the_idle_is_preferred_and_equal_ones_take_turns() {
    let bed = Bed::new(&plan(Strategy::LeastConnections), &[1, 1, 1, 1]);
    assert_eq!(bed.counts(400), [100, 100, 100, 100]);
    let _busy = (bed.occupy(0, 3), bed.occupy(1, 2), bed.occupy(2, 4));
    assert_eq!(bed.counts(10), [0, 0, 0, 10]);
    let bed = Bed::new(&plan(Strategy::P2c), &[1, 1, 1, 1]);
    let _busy = bed.occupy(0, 3);
    let counts = bed.counts(1000);
    // Picked only if no other backend is drawn.
    assert!(counts[0] < 5 && counts[1] > 250, "{counts:?}");
}

#[test]
fn listing_candidates_takes_no_turn() {
    for strategy in [Strategy::PrefixAffinity, Strategy::LeastConnections] {
        let bed = Bed::new(&plan(strategy), &[1, 1]);
        let mut counts = [0, 0];
        for _ in 0..100 {
            bed.pool.candidates(&bed.request(), 16);
            counts[bed.pick(&bed.request()).0] += 1;
        }
        assert_eq!(counts, [50, 50], "{strategy:?}");
    }
}

#[test]
fn the_faster_is_preferred_and_the_others_are_tried_now_and_then() {
    let bed = Bed::new(&plan(Strategy::LatencyBased), &[1, 1, 1]);
    // Not measured yet: each gets some requests.
    assert_eq!(bed.counts(30), [10, 10, 10]);
    for (endpoint, millis) in bed.endpoints.iter().zip([300, 100, 500]) {
        endpoint.state().first_token(Duration::from_millis(millis), true);
    }
    let counts = bed.counts(3000);
    assert!(counts[1] > 2800, "{counts:?}");
    assert!(counts[0] > 20 && counts[2] > 20, "{counts:?}");
    // It has become fast, which one of its few requests shows.
    (0..20).for_each(|_| bed.endpoints[2].state().first_token(Duration::from_millis(10), true));
    let counts = bed.counts(1000);
    assert!(counts[2] > 900, "{counts:?}");
    // With many requests the fast one is not the best any more.
    let _busy = bed.occupy(2, 30);
    assert!(bed.counts(1000)[1] > 900);
}

#[test]
fn a_backend_that_is_new_does_not_get_everything() {
    let bed = Bed::new(&plan(Strategy::LatencyBased), &[1, 1]);
    bed.endpoints[0].state().first_token(Duration::from_millis(100), true);
    let leases: Vec<_> = (0..100).map(|_| bed.pick(&bed.request()).1).collect();
    let new = bed.endpoints[1].in_flight();
    assert!((30..70).contains(&new), "{new}");
    drop(leases);
}

#[test]
fn the_engine_that_says_it_is_idle_is_preferred() {
    let mut bed = Bed::new(&plan(Strategy::LeastLoad), &[1, 1]);
    let report = |backend: usize, waiting: u32, at| {
        let text = format!("vllm:num_requests_waiting {waiting}\nvllm:num_requests_running 1\n");
        assert!(bed.endpoints[backend].record_load_metrics(text.as_bytes(), at));
    };
    report(0, 10, bed.now);
    report(1, 0, bed.now);
    assert_eq!(bed.counts(10), [0, 10]);
    // What was sent since the reading counts, until both have as much to do.
    let leases: Vec<_> = (0..40).map(|_| bed.pick(&bed.request()).1).collect();
    assert_eq!(bed.endpoints[0].in_flight(), 10);
    drop(leases);
    // What it said long ago does not count.
    bed.now += 7 * SECOND;
    assert_eq!(bed.counts(10), [5, 5]);
}

fn home(bed: &Bed, session: u64) -> usize {
    bed.pick(&PickRequest { session: Some(session), ..bed.request() }).0
}

#[test]
fn sessions_stay_where_they_are() {
    let bed = Bed::new(&plan(Strategy::ConsistentHash), &[1; 10]);
    let sessions: Vec<u64> = (0..1000).map(crate::balance::random::mix).collect();
    let before: Vec<_> = sessions.iter().map(|s| home(&bed, *s)).collect();
    let again: Vec<_> = sessions.iter().map(|s| home(&bed, *s)).collect();
    assert_eq!(before, again);
    bed.endpoints[3].drain(true);
    for (session, was) in sessions.iter().zip(&before) {
        let is = home(&bed, *session);
        assert!(is == *was || *was == 3, "{session} moved from {was} to {is}");
    }
    // A pool without it: few others move.
    let rest = bed.endpoints.iter().filter(|e| e.id != bed.endpoints[3].id);
    let members = rest.map(|e| (Arc::clone(e), 1)).collect();
    let (balance, circuit) = (plan(Strategy::ConsistentHash), CircuitPlan::default());
    let smaller = pool(members, &balance, &circuit, Predecessor::default(), &bed.registry);
    let smaller = Bed { pool: smaller, ..bed };
    let moved =
        sessions.iter().zip(&before).filter(|(s, was)| home(&smaller, **s) != **was).count();
    assert!(moved < 250, "{moved} of 1000");
}

#[test]
fn replicas_agree_where_a_session_belongs() {
    let ids = BackendIds::new(&Metrics::new());
    let here = endpoints(&ids, 12);
    // The other one has known other backends before, and these in another order.
    let other = BackendIds::new(&Metrics::new());
    endpoints(&other, 40).iter().rev().for_each(|e| _ = other.get(&e.plan));
    other.tidy(&Default::default(), Instant::now() + 1000 * SECOND);
    for endpoint in here[..7].iter().rev() {
        other.get(&endpoint.plan);
    }
    let there = endpoints(&other, 12);
    assert!(here.iter().zip(&there).all(|(a, b)| a.name == b.name && a.id != b.id));
    let key = Some(config::plan::Affinity::Key);
    for (strategy, affinity) in [(Strategy::ConsistentHash, None), (Strategy::RoundRobin, key)] {
        let balance = BalancePlan { affinity, ..plan(strategy) };
        let registry = Arc::new(HealthRegistry::new());
        let weight = |e: &Arc<Endpoint>| 1 + e.plan.port as u32 % 3;
        let made = |members: &mut dyn Iterator<Item = &Arc<Endpoint>>| {
            let members = members.map(|e| (Arc::clone(e), weight(e))).collect();
            pool(members, &balance, &CircuitPlan::default(), Predecessor::default(), &registry)
        };
        let pools = [made(&mut here.iter()), made(&mut there.iter().rev())];
        for session in (0..500).map(crate::balance::random::mix) {
            let request = PickRequest {
                model: "m",
                caller: 1,
                ignore_ejections: false,
                session: Some(session),
                blocks: &[],
                excluded: &[],
                strategy: None,
                binds: false,
                now: Instant::now(),
            };
            let [one, two] = pools.each_ref().map(|pool| pool.pick(&request).ok().unwrap());
            assert_eq!(one.endpoint.name, two.endpoint.name, "{strategy:?}");
        }
    }
}

#[test]
fn a_session_stays_while_there_is_little_to_do() {
    let key = Some(config::plan::Affinity::Key);
    for (strategy, affinity) in [(Strategy::ConsistentHash, None), (Strategy::LeastLoad, key)] {
        let bed = Bed::new(&BalancePlan { affinity, ..plan(strategy) }, &[1; 3]);
        let request = PickRequest { session: Some(7), ..bed.request() };
        let (at, _first) = bed.pick(&request);
        let (next, _second) = bed.pick(&request);
        assert_eq!(next, at);
        let (third, _third) = bed.pick(&request);
        assert_ne!(third, at, "two are enough while others have nothing to do");
    }
}

#[test]
fn a_session_leaves_an_overloaded_backend() {
    for affinity in [None, Some(config::plan::Affinity::Key)] {
        let strategy = match affinity {
            None => Strategy::ConsistentHash,
            Some(_) => Strategy::RoundRobin,
        };
        let bed = Bed::new(&BalancePlan { affinity, ..plan(strategy) }, &[1; 4]);
        let at = home(&bed, 7);
        assert!((0..20).all(|_| home(&bed, 7) == at), "{strategy:?}");
        let leases: Vec<_> = (0..400)
            .map(|_| bed.pick(&PickRequest { session: Some(7), ..bed.request() }).1)
            .collect();
        let most = bed.endpoints.iter().map(|e| e.in_flight()).max().unwrap();
        assert!((120..=126).contains(&most), "{strategy:?} {most}");
        let more = bed.occupy(at, 50);
        let candidates =
            bed.pool.candidates(&PickRequest { session: Some(7), ..bed.request() }, 10);
        assert_eq!(candidates[at].barred, Some("overloaded"), "{strategy:?}");
        drop((leases, more));
        assert_eq!(home(&bed, 7), at);
    }
}

/// The blocks of a conversation: a beginning that others share, and an end of its own.
fn conversation(beginning: u64, own: u64) -> Vec<u64> {
    let shared = (0..8).map(|n| crate::balance::random::mix(beginning * 1000 + n));
    shared.chain((0..4).map(|n| crate::balance::random::mix(own * 1_000_000 + n + 1))).collect()
}

#[test]
fn prompts_that_begin_alike_go_together() {
    let bed = Bed::new(&plan(Strategy::PrefixAffinity), &[1; 5]);
    let mut at: HashMap<u64, usize> = HashMap::new();
    for n in 0..500 {
        let beginning = n % 20;
        let blocks = conversation(beginning, n + 1);
        let (backend, _lease) = bed.pick(&PickRequest { blocks: &blocks, ..bed.request() });
        assert_eq!(*at.entry(beginning).or_insert(backend), backend, "beginning {beginning}");
    }
    let mut used: Vec<_> = at.into_values().collect();
    used.sort_unstable();
    used.dedup();
    assert_eq!(used.len(), 5);
}

#[test]
fn a_pool_goes_on_where_the_one_before_it_was() {
    let bed = Bed::new(&plan(Strategy::PrefixAffinity), &[1; 5]);
    let blocks = |n| conversation(n, n + 1000);
    let pick = |bed: &Bed, n| bed.pick(&PickRequest { blocks: &blocks(n), ..bed.request() }).0;
    let before: Vec<_> = (0..50).map(|n| pick(&bed, n)).collect();
    // One of five is removed, and later it is back.
    let (balance, circuit) = (plan(Strategy::PrefixAffinity), CircuitPlan::default());
    let rebuild = |bed: Bed, count: usize| {
        let members: Vec<_> = bed.endpoints[..count].iter().map(|e| (Arc::clone(e), 1)).collect();
        let ids = members.iter().map(|(e, _)| e.id).collect();
        let old = std::slice::from_ref(&bed.pool);
        let predecessor =
            crate::balance::pool_continuity::predecessors(old, &[(ids, &balance)]).remove(0);
        let pool = pool(members, &balance, &circuit, predecessor, &bed.registry);
        Bed { pool, ..bed }
    };
    let bed = rebuild(bed, 4);
    for (n, was) in (0..50).zip(&before).filter(|(_, was)| **was < 4) {
        assert_eq!(pick(&bed, n), *was);
    }
    // The counts of recent picks are kept.
    let home = pick(&bed, 1);
    let _busy: Vec<_> = (0..5).map(|backend| bed.occupy(backend, 1)).collect();
    (0..400).for_each(|_| _ = pick(&bed, 1));
    let bed = rebuild(bed, 5);
    assert!((0..10).all(|_| pick(&bed, 1) != home));
    // The retries that were spent are spent.
    while bed.pool.afford_retry(bed.now) {}
    let bed = rebuild(bed, 4);
    assert!(!bed.pool.afford_retry(bed.now));
}

#[test]
fn the_bound_holds_in_a_large_pool() {
    for strategy in [Strategy::ConsistentHash, Strategy::PrefixAffinity] {
        let bed = Bed::new(&plan(strategy), &[1; 200]);
        let blocks = conversation(1, 2);
        let request = PickRequest { session: Some(7), blocks: &blocks, ..bed.request() };
        let mut leases = std::collections::VecDeque::new();
        for n in 0..10_000 {
            leases.push_back(bed.pick(&request).1);
            if n >= 4000 {
                leases.pop_front();
            }
        }
        // Twenty each, and a quarter more.
        let most = bed.endpoints.iter().map(|e| e.in_flight()).max().unwrap();
        assert!((20..=26).contains(&most), "{strategy:?} {most}");
    }
}

#[test]
fn a_popular_beginning_spreads() {
    const BACKENDS: usize = 4;
    const REQUESTS: usize = 20_000;
    for weights in [[1, 1, 1, 1], [4, 2, 1, 1]] {
        let bed = Bed::new(&plan(Strategy::PrefixAffinity), &weights);
        let chance = crate::balance::random::Random::new(7);
        let mut counts = [0usize; BACKENDS];
        let mut open: Vec<(usize, Lease)> = Vec::new();
        let mut known: HashMap<u64, ()> = HashMap::new();
        for n in 0..REQUESTS {
            // Nine of ten requests begin alike, and those that hit a cache end sooner.
            let beginning = if chance.happens(0.9) { 1 } else { 2 + chance.below(50) };
            let blocks = conversation(beginning, n as u64 + 1);
            let (backend, lease) = bed.pick(&PickRequest { blocks: &blocks, ..bed.request() });
            let hit = known.insert(beginning * 10 + backend as u64, ()).is_some();
            counts[backend] += 1;
            open.push((n + if hit && backend == 0 { 5 } else { 40 }, lease));
            open.retain(|(end, _)| *end > n);
        }
        let total: u32 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(weights) {
            let share = REQUESTS as f64 * f64::from(weight) / f64::from(total);
            assert!(*count as f64 <= 1.25 * share, "{counts:?} by {weights:?}");
        }
        drop(open);
        assert!(bed.endpoints.iter().all(|e| e.in_flight() == 0));
    }
}

#[test]
fn a_circuit_lets_one_request_find_out() {
    for strategy in ALL {
        let mut bed = Bed::new(&plan(strategy), &[1, 1]);
        bed.fail(0);
        assert_eq!(bed.counts(20), [0, 20], "{strategy:?}");
        let excluded = [bed.endpoints[1].id];
        let first = PickRequest { excluded: &excluded, ..bed.request() };
        let unavailable = bed.pool.pick(&first).err().unwrap();
        assert_eq!(unavailable.retry_after, Some(30 * SECOND));
        // Another model is not concerned.
        assert_eq!(bed.pick(&PickRequest { model: "other", ..first }).0, 0);
        bed.now += 30 * SECOND;
        let first = PickRequest { excluded: &excluded, ..bed.request() };
        let (_, mut probe) = bed.pick(&first);
        assert!(bed.pool.pick(&first).is_err(), "{strategy:?}");
        probe.unreachable_at(bed.now);
        drop(probe);
        assert!(bed.pool.pick(&first).is_err(), "{strategy:?}");
        bed.now += 30 * SECOND;
        let first = PickRequest { excluded: &excluded, ..bed.request() };
        // Dropped without a word: the next one finds out.
        drop(bed.pick(&first));
        let (_, mut probe) = bed.pick(&first);
        probe.good_at(bed.now);
        let (_one, _two) = (bed.pick(&first), bed.pick(&first));
    }
}

#[test]
fn no_more_than_a_share_of_the_pool_is_left_alone() {
    let circuit = CircuitPlan { max_ejected: 0.5, ..CircuitPlan::default() };
    let mut bed = Bed::with(&plan(Strategy::LeastConnections), &circuit, &[1; 5]);
    for backend in 0..4 {
        bed.fail(backend);
        bed.now += SECOND;
    }
    // Two of five at most: those that failed first.
    let counts = bed.counts(300);
    assert_eq!(counts, [0, 0, 100, 100, 100]);
    let none = CircuitPlan { max_ejected: 0.0, ..circuit };
    let bed = Bed::with(&plan(Strategy::LeastConnections), &none, &[1; 2]);
    bed.fail(0);
    assert_eq!(bed.counts(10), [5, 5]);
}

#[test]
fn candidates_say_how_the_backends_stand() {
    let bed = Bed::new(&plan(Strategy::LeastConnections), &[1, 1, 2, 1, 1]);
    bed.endpoints[0].drain(true);
    bed.fail(1);
    let _busy = bed.occupy(2, 3);
    bed.endpoints[3]
        .state()
        .lease(("m", 1), CircuitPlan::default(), Trials::default())
        .busy_at(None, bed.now);
    let excluded = [bed.endpoints[4].id];
    let candidates = bed.pool.candidates(&PickRequest { excluded: &excluded, ..bed.request() }, 10);
    let actual: Vec<_> = candidates.iter().map(|c| (&*c.backend, c.score, c.barred)).collect();
    let expected = [
        ("b0", Some(0.0), Some("draining")),
        ("b1", Some(0.0), Some("open")),
        ("b2", Some(1.5), None),
        ("b3", Some(0.0), Some("busy")),
        ("b4", Some(0.0), Some("tried")),
    ];
    assert_eq!(actual, expected);
    assert_eq!(bed.pool.candidates(&bed.request(), 2).len(), 2);
    assert!(bed.pool.ready());
}

#[test]
fn leases_of_many_threads_all_come_back() {
    for strategy in ALL {
        let bed = Bed::new(&plan(strategy), &[1, 2, 3]);
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let bed = &bed;
                scope.spawn(move || {
                    for n in 0..2000u64 {
                        let blocks = [n % 50, n];
                        let request = PickRequest {
                            session: Some(n * thread),
                            blocks: &blocks,
                            ..bed.request()
                        };
                        let Ok(mut picked) = bed.pool.pick(&request) else { continue };
                        match n % 7 {
                            0 => picked.lease.failed().settle(Evidence::Inconclusive),
                            1 => picked.lease.busy(Some(Duration::ZERO)),
                            2 => picked.lease.first_token(SECOND, true),
                            _ => picked.lease.good(),
                        }
                    }
                });
            }
        });
        assert!(bed.endpoints.iter().all(|e| e.in_flight() == 0), "{strategy:?}");
    }
}
