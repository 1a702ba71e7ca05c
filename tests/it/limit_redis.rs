//! Limits in a real Redis with several replicas: counters of one process that share only the server.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::join_all;
use llmproxy::{
    base::limits::Scope,
    limit::{
        bucket::{Rate, SECOND},
        claim::{Charge, Claim, ClaimKind, Claims, Dim, FailedClaim, Shortfall, Spend, Unit},
        redis::{Lease, RedisCounter, Reservation, Settings},
    },
    store::{self, StoreError},
    telemetry::Metrics,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    runtime::Handle,
};

use super::support::{PATIENCE, eventually, servers::Redis};

/// A refill so slow that nothing is added during a test.
const NEVER: u64 = 10_000_000 * SECOND;

fn settings() -> Settings {
    Settings { prefix: "l:".into(), ttl: Duration::from_secs(30), timeout: PATIENCE, lease: None }
}

fn leased(share: f64, lifetime: Duration) -> Settings {
    Settings { lease: Some(Lease { share, lifetime }), ..settings() }
}

fn server(redis: &Redis) -> Arc<store::redis::Redis> {
    server_at(redis.address)
}

fn server_at(address: SocketAddr) -> Arc<store::redis::Redis> {
    let settings = store::redis::Settings {
        host: address.ip().to_string(),
        port: address.port(),
        tls: false,
        username: None,
        password: None,
        db: 0,
        connections: 2,
        connect_timeout: PATIENCE,
        timeout: PATIENCE,
    };
    Arc::new(store::redis::Redis::new(settings))
}

fn replica(redis: &Redis, settings: Settings) -> Arc<RedisCounter> {
    RedisCounter::new(server(redis), settings, Handle::current(), &Metrics::new())
}

fn claim(name: &str, dim: Dim, rate: Rate, amount: u64) -> Claim {
    let mut id = DefaultHasher::new();
    name.hash(&mut id);
    let (id, name) = (id.finish(), name.to_owned());
    Claim { id, name, scope: Scope::Key, dim, rate, amount, left: 0, reset: 0 }
}

/// A claim of `n` from a bucket of `capacity` without refill.
fn of(name: &str, dim: Dim, capacity: u64, n: u64) -> Claim {
    claim(name, dim, Rate { interval: NEVER, capacity }, n)
}

fn claims(takes: impl IntoIterator<Item = Claim>) -> Claims {
    Claims { takes: takes.into_iter().collect(), spends: Vec::new() }
}

fn slot(capacity: u64) -> Claims {
    claims([of("slots", Dim::Concurrent, capacity, 1)])
}

fn spend(start: i64, limit: f64) -> Claims {
    let spend = Spend {
        subject: "budget".into(),
        scope: Scope::Key,
        unit: Unit::Cost,
        limit,
        start,
        end: None,
    };
    Claims { takes: Vec::new(), spends: vec![spend] }
}

fn tokens(n: u64) -> Charge {
    Charge { output: n, ..Charge::default() }
}

fn cost(cost: f64) -> Charge {
    Charge { cost, ..Charge::default() }
}

async fn take(counter: &Arc<RedisCounter>, mut claims: Claims) -> Result<Reservation, FailedClaim> {
    counter.take(&mut claims).await.unwrap()
}

async fn error(counter: &Arc<RedisCounter>, mut claims: Claims) -> Option<StoreError> {
    counter.take(&mut claims).await.err()
}

/// The units in a bucket; `None` if it is full.
fn level(redis: &Redis, name: &str) -> Option<f64> {
    redis.command(&["HGET", &format!("l:{name}"), "l"]).parse().ok()
}

/// Whether a bucket has this many units, apart from the refill meanwhile.
fn is_level(redis: &Redis, name: &str, units: f64) -> bool {
    level(redis, name).is_some_and(|level| (level - units).abs() < 0.01)
}

/// The units reserved in a bucket.
fn held(redis: &Redis, name: &str) -> String {
    redis.command(&["HGET", &format!("l:{name}"), "h"])
}

fn holds(redis: &Redis, name: &str) -> String {
    redis.command(&["ZCARD", &format!("l:held/{name}")])
}

/// The clock of the server, in seconds.
fn time(redis: &Redis) -> f64 {
    let time = redis.command(&["TIME"]);
    let (seconds, micros) = time.split_once('\n').unwrap();
    seconds.parse::<f64>().unwrap() + micros.parse::<f64>().unwrap() / 1e6
}

/// Two replicas take as much as they can for a while. `lost` is the most that they may keep unused at
/// the end.
async fn hammer(settings: &Settings, lost: f64) {
    const PER_SECOND: u64 = 1000;
    const CAPACITY: u64 = 10_000;
    const AMOUNT: u64 = 50;
    let redis = Redis::start().await;
    let replicas = [replica(&redis, settings.clone()), replica(&redis, settings.clone())];
    let rate = Rate::new(PER_SECOND as f64, SECOND, CAPACITY as f64);
    let wanted = || claims([claim("requests", Dim::RequestsPerMinute, rate, AMOUNT)]);
    let before = time(&redis);
    let _first = take(&replicas[0], wanted()).await.unwrap();
    let begun = time(&redis);
    let taken = AtomicU64::new(AMOUNT);
    let all_of = async |counter: &Arc<RedisCounter>| {
        let mut last = None;
        while last.is_none_or(|at: Instant| at.elapsed() < Duration::from_secs(2)) {
            last = last.or(Some(Instant::now()));
            match take(counter, wanted()).await {
                Ok(_) => _ = taken.fetch_add(AMOUNT, Ordering::Relaxed),
                Err(_) => tokio::time::sleep(Duration::from_millis(3)).await,
            }
        }
    };
    join_all(replicas.iter().cycle().take(8).map(all_of)).await;
    let late = time(&redis);
    for counter in &replicas {
        while take(counter, wanted()).await.is_ok() {
            taken.fetch_add(AMOUNT, Ordering::Relaxed);
        }
    }
    let after = time(&redis);
    let come = |time: f64| CAPACITY as f64 + time * PER_SECOND as f64;
    let taken = taken.into_inner() as f64;
    assert!(taken <= come(after - before) + 1e-3, "{taken} of {}", come(after - before));
    let least = come(late - begun) - AMOUNT as f64 - lost;
    assert!(taken >= least, "{taken}, not even {least}");
}

#[tokio::test]
async fn replicas_together_admit_what_the_rate_allows() {
    hammer(&settings(), 0.0).await;
}

#[tokio::test]
async fn leased_replicas_together_admit_what_the_rate_allows() {
    // Each keeps at most one share unused at the end.
    hammer(&leased(0.02, Duration::from_secs(60)), 2.0 * 200.0).await;
}

#[tokio::test]
async fn a_refused_claim_consumes_nothing() {
    let redis = Redis::start().await;
    for (settings, name) in [(settings(), "exact"), (leased(0.1, PATIENCE), "leased")] {
        let counter = replica(&redis, settings);
        let requests = format!("requests/{name}");
        let both = |tokens: u64| {
            claims([
                of(&requests, Dim::RequestsPerSecond, 5, 1),
                of(&format!("tokens/{name}"), Dim::Tokens, 100, tokens),
                of(&format!("slots/{name}"), Dim::Concurrent, 1, 1),
            ])
        };
        let first = take(&counter, both(10)).await.unwrap();
        for _ in 0..20 {
            let mut again = both(10);
            let refused = counter.take(&mut again).await.unwrap().err();
            assert_eq!(
                refused,
                Some(FailedClaim::Bucket(Shortfall { index: 2, wait: 0 })),
                "{name}"
            );
            assert_eq!(again.takes.iter().map(|c| c.left).collect::<Vec<_>>(), [4, 90, 0]);
        }
        for _ in 0..20 {
            let refused = take(&counter, both(95)).await.err();
            let Some(FailedClaim::Bucket(Shortfall { index: 1, wait })) = refused else {
                panic!("{name}: {refused:?}")
            };
            assert!(wait > 4 * NEVER && wait <= 5 * NEVER, "{name}: {wait}");
        }
        drop(first);
        let mut last = both(90);
        eventually("the slot is free again", async || {
            counter.take(&mut last).await.unwrap().is_ok()
        })
        .await;
        assert_eq!(last.takes[0].left, 3, "{name}");
    }
    assert!(is_level(&redis, "requests/exact", 3.0));
    assert!(is_level(&redis, "tokens/exact", 100.0));
    eventually("tokens are given back", async || held(&redis, "tokens/exact") == "0").await;
}

#[tokio::test]
async fn replicas_never_exceed_the_slots() {
    let redis = Redis::start().await;
    let short = leased(0.1, Duration::from_secs(1));
    let replicas = [replica(&redis, settings()), replica(&redis, short)];
    let (busy, served) = (AtomicU64::new(0), AtomicU64::new(0));
    let all_of = async |counter: &Arc<RedisCounter>| {
        let mut own = 0;
        while own < 10 {
            if let Ok(held) = take(counter, slot(5)).await {
                assert!(busy.fetch_add(1, Ordering::SeqCst) < 5);
                tokio::task::yield_now().await;
                busy.fetch_sub(1, Ordering::SeqCst);
                held.settle(&Charge::default());
                own += 1;
                served.fetch_add(1, Ordering::SeqCst);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    join_all(replicas.iter().cycle().take(20).map(all_of)).await;
    assert_eq!(served.into_inner(), 200);
    eventually("all are free", async || holds(&redis, "slots") == "0").await;
}

#[tokio::test]
async fn slots_of_a_killed_replica_are_released() {
    let redis = Redis::start().await;
    let other = replica(&redis, settings());
    let both = || {
        let mut both = slot(1);
        both.takes.push(of("tokens", Dim::Tokens, 100, 60));
        both
    };
    let short = Settings { ttl: Duration::from_secs(2), ..settings() };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let killed =
        RedisCounter::new(server(&redis), short, runtime.handle().clone(), &Metrics::new());
    let held = take(&killed, both()).await.unwrap();
    // Longer than the lifetime without a renewal.
    let score = || redis.command(&["ZRANGE", "l:held/slots", "0", "-1", "WITHSCORES"]);
    let first = score();
    let until = |text: &str| text.lines().last().map_or(0, |n| n.parse::<u64>().unwrap());
    eventually("it is renewed", async || until(&score()) > until(&first) + 2000).await;
    assert_eq!(held_and_holds(&redis), ("60".into(), "1".into()));
    std::mem::forget(held);
    runtime.shutdown_background();
    drop(killed);
    eventually("the slot is released", async || take(&other, both()).await.is_ok()).await;
}

fn held_and_holds(redis: &Redis) -> (String, String) {
    (held(redis, "tokens"), holds(redis, "tokens"))
}

#[tokio::test]
async fn reservations_are_settled_at_the_actual_use() {
    let redis = Redis::start().await;
    let counter = replica(&redis, settings());
    let reserve = |n| claims([of("tokens", Dim::Tokens, 1000, n)]);
    let first = take(&counter, reserve(800)).await.unwrap();
    let mut second = reserve(201);
    assert!(counter.take(&mut second).await.unwrap().is_err());
    assert_eq!(second.takes[0].left, 200);
    first.settle(&tokens(300));
    eventually("300 are used", async || is_level(&redis, "tokens", 700.0)).await;
    assert_eq!(held_and_holds(&redis), ("0".into(), "0".into()));
    // More than was reserved, and more than the bucket has.
    let both =
        [take(&counter, reserve(100)).await.unwrap(), take(&counter, reserve(600)).await.unwrap()];
    for held in both {
        held.settle(&tokens(400));
    }
    eventually("a debt", async || is_level(&redis, "tokens", -100.0)).await;
    assert_eq!(held_and_holds(&redis), ("0".into(), "0".into()));
    // A claim above the capacity counts as the capacity; the key is deleted when the bucket is full.
    let more = || claims([of("more", Dim::Tokens, 1000, 5000)]);
    drop(take(&counter, more()).await.unwrap());
    eventually("nothing is used", async || is_level(&redis, "more", 1000.0)).await;
    let _held = take(&counter, more()).await.unwrap();
    assert!(take(&counter, claims([of("more", Dim::Tokens, 1000, 1)])).await.is_err());
    for key in ["l:more", "l:tokens", "l:held/more"] {
        assert!(redis.command(&["PTTL", key]).parse::<i64>().unwrap() > 30_000, "{key}");
    }
}

#[tokio::test]
async fn spending_is_shared_by_all_replicas() {
    let redis = Redis::start().await;
    let replicas = [replica(&redis, settings()), replica(&redis, settings())];
    for n in 0..50 {
        let held = take(&replicas[n % 2], spend(100, 10.0)).await;
        if let Ok(held) = held {
            held.settle(&cost(0.25));
        }
    }
    let amount = || redis.command(&["HGET", "l:spent/budget", "a"]).parse::<f64>().unwrap();
    eventually("it is spent", async || amount() >= 10.0).await;
    for counter in &replicas {
        assert_eq!(take(counter, spend(100, 10.0)).await.err(), Some(FailedClaim::Amount(0)));
        // A new period. A late spend of the old period is counted too.
        take(counter, spend(200, 10.0)).await.unwrap();
    }
    let late = take(&replicas[0], spend(100, 100.0)).await.unwrap();
    take(&replicas[1], spend(200, 10.0)).await.unwrap().settle(&cost(1.5));
    eventually("a new period", async || (amount() - 1.5).abs() < 1e-9).await;
    late.settle(&cost(0.5));
    eventually("what was late counts", async || (amount() - 2.0).abs() < 1e-9).await;
    // Invalid numbers and abandoned requests spend nothing.
    take(&replicas[0], spend(200, 10.0)).await.unwrap().settle(&cost(f64::NAN));
    drop(take(&replicas[0], spend(200, 10.0)).await.unwrap());
    let all = join_all((0..40).map(|n| take(&replicas[n % 2], spend(200, 10.0)))).await;
    for held in all {
        held.unwrap().settle(&cost(0.125));
    }
    eventually("all of it counts", async || (amount() - 7.0).abs() < 1e-9).await;
}

#[tokio::test]
async fn a_restart_of_redis_loses_no_script_and_no_reservation() {
    let mut redis = Redis::start().await;
    let short = Settings { ttl: Duration::from_secs(3), ..settings() };
    let counter = replica(&redis, short);
    let both = || {
        let mut both = slot(1);
        both.takes.push(of("tokens", Dim::Tokens, 100, 60));
        both
    };
    let held = take(&counter, both()).await.unwrap();
    redis.command(&["SCRIPT", "FLUSH"]);
    assert_eq!(
        take(&counter, both()).await.err(),
        Some(FailedClaim::Bucket(Shortfall { index: 1, wait: 20 * NEVER }))
    );
    redis.restart().await;
    let one = || claims([of("requests", Dim::RequestsPerMinute, 5, 1)]);
    eventually("it is asked again", async || error(&counter, one()).await.is_none()).await;
    eventually("it is held again", async || held_and_holds(&redis) == ("60".into(), "1".into()))
        .await;
    eventually("so is the slot", async || holds(&redis, "slots") == "1").await;
    assert!(take(&counter, both()).await.is_err());
    held.settle(&tokens(30));
    eventually("it ends", async || is_level(&redis, "tokens", 70.0)).await;
    assert_eq!(held_and_holds(&redis), ("0".into(), "0".into()));
    assert_eq!(holds(&redis, "slots"), "0");
}

#[tokio::test]
async fn a_silent_redis_delays_no_request() {
    let redis = Redis::start().await;
    let metrics = Metrics::new();
    let impatient = Settings { timeout: Duration::from_millis(250), ..settings() };
    let counter = RedisCounter::new(server(&redis), impatient, Handle::current(), &metrics);
    eventually("it answers", async || error(&counter, slot(1)).await.is_none()).await;
    eventually("the slot is free", async || holds(&redis, "slots") == "0").await;
    redis.pause();
    let (start, asked) = (Instant::now(), counter.round_trips());
    for _ in 0..2000 {
        assert!(error(&counter, slot(1)).await.is_some());
    }
    // One claim per half second. The end of each abandoned claim is sent once or several times.
    let seconds = start.elapsed().as_secs_f64();
    let asked = counter.round_trips() - asked;
    assert!((asked as f64) < 4.0 + 20.0 * seconds, "{asked} round trips in {seconds} s");
    assert!(metrics.limits.store_errors.with_label_values(&["take"]).get() >= 1);
    redis.resume();
    eventually("it answers again", async || error(&counter, slot(1)).await.is_none()).await;
    // A claim granted too late is returned.
    eventually("nothing stays held", async || holds(&redis, "slots") == "0").await;
    assert!(take(&counter, slot(1)).await.is_ok());
}

#[tokio::test]
async fn abandoned_claims_are_returned() {
    let redis = Redis::start().await;
    let counter = replica(&redis, settings());
    drop(take(&counter, slot(1)).await.unwrap());
    let mut wanted = slot(1);
    wanted.takes.push(of("tokens", Dim::Tokens, 100, 60));
    for _ in 0..20 {
        let mut wanted = wanted.clone();
        let given_up = counter.take(&mut wanted);
        // Sometimes long enough to send the claim, but too short for the answer.
        let _ = tokio::time::timeout(Duration::from_micros(300), given_up).await;
    }
    eventually("nothing is held", async || {
        holds(&redis, "slots") == "0" && holds(&redis, "tokens") == "0"
    })
    .await;
    eventually("all of it is there", async || take(&counter, wanted.clone()).await.is_ok()).await;
}

#[tokio::test]
async fn settlements_are_sent_when_redis_is_back() {
    let redis = Redis::start().await;
    let patient = Settings { ttl: PATIENCE, ..settings() };
    let counter = replica(&redis, patient);
    let wanted = || {
        let mut wanted = spend(100, 10.0);
        wanted.takes.push(of("tokens", Dim::Tokens, 1000, 500));
        wanted
    };
    let held = take(&counter, wanted()).await.unwrap();
    redis.pause();
    held.settle(&Charge { output: 200, cost: 3.0, ..Charge::default() });
    tokio::time::sleep(Duration::from_millis(100)).await;
    redis.resume();
    eventually("the settlement is applied", async || is_level(&redis, "tokens", 800.0)).await;
    assert_eq!(redis.command(&["HGET", "l:spent/budget", "a"]), "3");
}

#[tokio::test]
async fn a_leased_replica_queries_redis_rarely() {
    let redis = Redis::start().await;
    let lease = || leased(0.1, Duration::from_secs(60));
    let replicas = [replica(&redis, lease()), replica(&redis, lease())];
    let one = || claims([of("requests", Dim::RequestsPerMinute, 1000, 1)]);
    let many = join_all((0..600).map(|n| take(&replicas[n % 2], one()))).await;
    assert!(many.iter().all(Result::is_ok));
    // Concurrent claims share one request to Redis.
    let asked = || replicas.iter().map(|r| r.round_trips()).sum::<u64>();
    assert!(asked() <= 20, "{} questions", asked());
    let mut taken = 600;
    let mut refused = 0;
    while refused < 2 {
        refused = 0;
        for counter in &replicas {
            match take(counter, one()).await {
                Ok(_) => taken += 1,
                Err(_) => refused += 1,
            }
        }
    }
    assert_eq!(taken, 1000);
    assert!(is_level(&redis, "requests", 0.0));
    let before = asked();
    let start = Instant::now();
    for _ in 0..1000 {
        assert!(take(&replicas[0], one()).await.is_err());
    }
    let most = 2.0 + start.elapsed().as_secs_f64() * 10.0;
    assert!((asked() - before) as f64 <= most, "{} questions", asked() - before);
}

#[tokio::test]
async fn an_idle_share_is_returned() {
    let redis = Redis::start().await;
    let counter = replica(&redis, leased(0.1, Duration::from_millis(200)));
    take(&counter, claims([of("requests", Dim::RequestsPerMinute, 1000, 1)])).await.unwrap();
    eventually("99 go back", async || is_level(&redis, "requests", 999.0)).await;
    let reserve = |n| claims([of("tokens", Dim::Tokens, 1000, n)]);
    take(&counter, reserve(500)).await.unwrap().settle(&tokens(100));
    eventually("400 go back", async || is_level(&redis, "tokens", 900.0)).await;
    take(&counter, reserve(500)).await.unwrap().settle(&tokens(1100));
    eventually("a debt is paid", async || is_level(&redis, "tokens", -200.0)).await;
    assert!(take(&counter, reserve(1)).await.is_err());
    // Together with the local share, a claim above the capacity may pass.
    drop(take(&counter, claims([of("more", Dim::Tokens, 1000, 5000)])).await.unwrap());
    eventually("all of it is returned", async || is_level(&redis, "more", 1000.0)).await;
}

#[tokio::test]
async fn a_leased_replica_knows_the_spending() {
    let redis = Redis::start().await;
    let counter = replica(&redis, leased(0.1, Duration::from_secs(60)));
    let one = || {
        let mut one = spend(100, 2.0);
        one.takes.push(of("requests", Dim::RequestsPerMinute, 1000, 1));
        one
    };
    take(&counter, one()).await.unwrap().settle(&cost(1.0));
    let mut own = 1;
    while let Ok(held) = take(&counter, one()).await {
        held.settle(&cost(0.25));
        own += 1;
    }
    assert_eq!(own, 5);
    assert_eq!(take(&counter, one()).await.err(), Some(FailedClaim::Amount(0)));
    // One report for each spend, and one query.
    eventually("all spends are reported", async || counter.round_trips() == 6).await;
    eventually("it is spent", async || redis.command(&["HGET", "l:spent/budget", "a"]) == "2")
        .await;
    // A refused claim consumed nothing.
    let mut last = claims([of("requests", Dim::RequestsPerMinute, 1000, 95)]);
    counter.take(&mut last).await.unwrap().unwrap();
    assert_eq!(counter.round_trips(), 6);
    assert_eq!(last.takes[0].dim.kind(), ClaimKind::Take);
}

/// The address of a relay to the server that delays replies.
async fn far_away(redis: &Redis) -> SocketAddr {
    let (listener, there) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), redis.address);
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((here, _)) = listener.accept().await {
            let (mut asks, mut replies) = here.into_split();
            let there = TcpStream::connect(there).await.unwrap();
            let (mut answers, mut asked) = there.into_split();
            tokio::spawn(async move { copy(&mut asks, &mut asked).await });
            tokio::spawn(async move {
                let mut bytes = vec![0; 1 << 16];
                while let Ok(n @ 1..) = answers.read(&mut bytes).await {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    replies.write_all(&bytes[..n]).await.unwrap();
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn many_small_shares_in_sequence_are_no_outage() {
    let redis = Redis::start().await;
    let metrics = Metrics::new();
    // The timeout is shorter than the time of all claims.
    let timeout = Duration::from_millis(500);
    let settings = Settings { timeout, ..leased(0.000_1, Duration::from_secs(60)) };
    let far = server_at(far_away(&redis).await);
    let counter = RedisCounter::new(far, settings, Handle::current(), &metrics);
    let one = || claims([of("requests", Dim::RequestsPerMinute, 1000, 1)]);
    take(&counter, one()).await.unwrap();
    let many = join_all((0..200).map(|_| take(&counter, one()))).await;
    assert!(many.iter().all(Result::is_ok));
    assert_eq!(metrics.limits.store_errors.with_label_values(&["take"]).get(), 0);
    assert!(is_level(&redis, "requests", 799.0));
}

#[tokio::test]
async fn a_dropped_counter_returns_its_shares() {
    let redis = Redis::start().await;
    let metrics = Metrics::new();
    let settings = leased(0.5, Duration::from_secs(60));
    let counter = RedisCounter::new(server(&redis), settings, Handle::current(), &metrics);
    take(&counter, claims([of("requests", Dim::RequestsPerMinute, 1000, 1)])).await.unwrap();
    let reserve = || claims([of("tokens", Dim::Tokens, 1000, 100)]);
    let held = take(&counter, reserve()).await.unwrap();
    assert!(is_level(&redis, "requests", 500.0));
    drop(counter);
    // A lease keeps its counter alive.
    assert!(is_level(&redis, "requests", 500.0));
    held.settle(&tokens(700));
    eventually("what was not used", async || is_level(&redis, "requests", 999.0)).await;
    eventually("the debt", async || is_level(&redis, "tokens", 300.0)).await;
    eventually("nothing is under way", async || metrics.limits.pending.get() == 0).await;
}

#[tokio::test]
async fn settled_reservations_are_remembered_long_enough() {
    let redis = Redis::start().await;
    let long = Settings { ttl: Duration::from_secs(3600), ..settings() };
    let counter = replica(&redis, long);
    drop(take(&counter, slot(1)).await.unwrap());
    eventually("the request has ended", async || holds(&redis, "slots") == "0").await;
    let mark = redis.command(&["KEYS", "l:ended/*"]);
    let left: i64 = redis.command(&["PTTL", mark.trim()]).parse().unwrap();
    let most = PATIENCE + Duration::from_secs(11);
    assert!(left > 0 && left < most.as_millis() as i64, "{left}");
}
