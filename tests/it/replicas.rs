//! Limits that several gateways share through one Redis.

use std::time::{Duration, Instant};

use llmproxy::sim::Sim;

use super::support::{
    Client, Gateway, Receiver, chat, client::Response, eventually, servers::Redis, sim, sim_with,
};

const PATH: &str = "/v1/chat/completions";

fn shared(redis: &Redis, rules: &str) -> String {
    format!(
        "storage: {{caches: [{{name: main, driver: redis, addr: \"{}\"}}]}}\n\
         rate_limit:\n  storage: redis\n  redis: main\n{rules}",
        redis.address
    )
}

async fn gateway(sim: &Sim, redis: &Redis, rules: &str) -> Gateway {
    Gateway::before(&[sim.url()], &shared(redis, rules)).await
}

async fn ask(gateway: &Gateway) -> Response {
    gateway.ask_with("").await
}

/// Starts a stream and reads its head.
async fn stream(gateway: &Gateway) -> Client {
    let mut client = gateway.client().await;
    client.post(PATH, chat(true)).await;
    assert_eq!(client.head().await.status, 200);
    client.chunk().await.unwrap();
    client
}

/// Sends requests until the given time. Returns the statuses.
async fn hammer(gateway: &Gateway, until: Instant) -> Vec<u16> {
    let mut client = gateway.client().await;
    let mut statuses = Vec::new();
    while Instant::now() < until {
        statuses.push(client.ask(PATH, chat(false)).await.status);
    }
    statuses
}

/// The clock of Redis, in milliseconds.
fn time(redis: &Redis) -> i64 {
    let time = redis.command(&["TIME"]);
    let (seconds, micros) = time.split_once('\n').unwrap();
    seconds.parse::<i64>().unwrap() * 1000 + micros.parse::<i64>().unwrap() / 1000
}

/// The expiry times of the slots in use.
fn slots(redis: &Redis) -> Vec<i64> {
    let keys = redis.command(&["KEYS", "llmproxy:limit:held/*max_concurrent*"]);
    let Some(key) = keys.lines().next() else { return Vec::new() };
    let all = redis.command(&["ZRANGE", key, "0", "-1", "WITHSCORES"]);
    all.lines().skip(1).step_by(2).map(|score| score.parse().unwrap()).collect()
}

fn count(statuses: &[u16], status: u16) -> usize {
    statuses.iter().filter(|s| **s == status).count()
}

#[tokio::test]
async fn two_gateways_share_one_limit() {
    let (sim, redis) = (sim().await, Redis::start().await);
    let rules = "  global: {requests_per_second: 50, burst_size: 20}\n";
    let (a, b) = (gateway(&sim, &redis, rules).await, gateway(&sim, &redis, rules).await);
    let start = Instant::now();
    let until = start + Duration::from_secs(6);
    let all =
        tokio::join!(hammer(&a, until), hammer(&a, until), hammer(&b, until), hammer(&b, until));
    let longest = start.elapsed().as_secs_f64();
    let all = [all.0, all.1, all.2, all.3].concat();
    let passed = count(&all, 200) as f64;
    assert_eq!(count(&all, 200) + count(&all, 429), all.len());
    assert!(passed <= 1.02 * (50.0 * longest + 20.0), "{passed} in {longest} s");
    assert!(passed >= 0.98 * (50.0 * 6.0 + 20.0), "{passed} in 6 s");
}

#[tokio::test]
async fn a_leased_share_keeps_the_limit_within_a_share_per_gateway() {
    let (sim, redis) = (sim().await, Redis::start().await);
    let rules = "  mode: leased\n  lease_share: 0.1\n  \
                 global: {requests_per_second: 100, burst_size: 100}\n";
    let (a, b) = (gateway(&sim, &redis, rules).await, gateway(&sim, &redis, rules).await);
    let start = Instant::now();
    let until = start + Duration::from_secs(4);
    let (one, two) = tokio::join!(hammer(&a, until), hammer(&b, until));
    let longest = start.elapsed().as_secs_f64();
    let passed = (count(&one, 200) + count(&two, 200)) as f64;
    assert!(passed <= 100.0 * longest + 100.0 + 20.0, "{passed} in {longest} s");
    assert!(passed >= 0.9 * (100.0 * 4.0 + 100.0 - 20.0), "{passed} in 4 s");
}

#[tokio::test]
async fn a_leased_share_saves_queries_to_redis() {
    let (sim, redis) = (sim().await, Redis::start().await);
    let rules = "  mode: leased\n  lease_lifetime: 30s\n  \
                 global: {requests_per_minute: 1000, tokens_per_minute: 1000000}\n";
    let gateway = gateway(&sim, &redis, rules).await;
    let mut client = gateway.client().await;
    for _ in 0..300 {
        assert_eq!(client.ask(PATH, chat(false)).await.status, 200);
    }
    let calls = redis.command(&["INFO", "commandstats"]);
    let questions: u64 = calls
        .lines()
        .filter_map(|line| line.strip_prefix("cmdstat_evalsha:calls="))
        .map(|rest| rest.split(',').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert!((1..30).contains(&questions), "{questions} questions");
}

#[tokio::test]
async fn slots_of_a_killed_gateway_are_released() {
    let sim = sim_with(|b| (b.inter_token_ms, b.tokens) = (50, 100_000)).await;
    let redis = Redis::start().await;
    let rules = "  hold_ttl: 3s\n  redis_timeout: 3s\n  global: {max_concurrent: 2}\n";
    let (mut a, b) = (gateway(&sim, &redis, rules).await, gateway(&sim, &redis, rules).await);
    let _streams = (stream(&a).await, stream(&a).await);
    let refused = ask(&b).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.json()["error"]["code"], "concurrency_limit_exceeded");
    // The slots are renewed.
    let first = slots(&redis);
    assert_eq!(first.len(), 2);
    let later = |now: &[i64]| now.iter().min() > first.iter().max();
    eventually("they last longer", async || later(&slots(&redis))).await;
    a.signal("KILL");
    a.ended().await;
    let killed = time(&redis);
    let ends = slots(&redis);
    assert!(ends.len() == 2 && ends.iter().all(|end| *end <= killed + 3000), "{ends:?}, {killed}");
    // By the clock of Redis: no request gets a slot before the first expiry, and one does after it.
    let end = *ends.iter().min().unwrap();
    sim.change(|b| b.tokens = 1);
    let given = loop {
        let before = time(&redis);
        let status = ask(&b).await.status;
        let after = time(&redis);
        assert!(status == 200 || status == 429 && before <= end, "{status} at {before}, {end}");
        if status == 200 {
            break after;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(given >= end, "a slot at {given}, before {end}");
}

#[tokio::test]
async fn a_stopped_gateway_returns_its_shares_and_slots() {
    let sim = sim_with(|b| (b.inter_token_ms, b.tokens) = (50, 100_000)).await;
    let redis = Redis::start().await;
    let rules = "  mode: leased\n  lease_share: 0.5\n  lease_lifetime: 60s\n  hold_ttl: 300s\n  redis_timeout: 10s\n  \
                 global: {requests_per_minute: 20, max_concurrent: 2}\n\
                 server: {graceful_shutdown_timeout: 100ms}\n";
    let (mut a, b) = (gateway(&sim, &redis, rules).await, gateway(&sim, &redis, rules).await);
    let _streams = (stream(&a).await, stream(&a).await);
    assert_eq!(slots(&redis).len(), 2);
    // The requests end while Redis is suspended: the gateway waits for it.
    redis.pause();
    a.signal("TERM");
    a.logs("the drain timeout is over").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    redis.resume();
    assert!(a.ended().await.success());
    assert_eq!(slots(&redis).len(), 0);
    assert!(!a.log().contains("could not"), "{}", a.log());
    // Two of 20 are used.
    sim.change(|b| b.tokens = 1);
    for _ in 0..18 {
        assert_eq!(ask(&b).await.status, 200);
    }
}

#[tokio::test]
async fn a_slot_released_by_another_gateway_is_used() {
    let sim = sim_with(|b| (b.inter_token_ms, b.tokens) = (20, 100_000)).await;
    let redis = Redis::start().await;
    let rules = "  global: {max_concurrent: 1}\n  queue: {max_queue_size: 10}\n";
    let (a, b) = (gateway(&sim, &redis, rules).await, gateway(&sim, &redis, rules).await);
    let first = stream(&a).await;
    let waiting = async {
        let answer = ask(&b).await;
        assert_eq!(answer.status, 200);
    };
    let freeing = async {
        eventually("one waits", async || b.metric("llmproxy_limit_queue_depth").await == 1.0).await;
        sim.change(|b| b.tokens = 1);
        drop(first);
    };
    tokio::join!(waiting, freeing);
    assert_eq!(b.metric("llmproxy_limit_queue_depth").await, 0.0);
}

/// Checks a policy for requests over the limit while Redis is down, and other requests.
async fn outage(policy: &str, during: impl Fn(&[u16]) -> bool) {
    let (sim, mut redis) = (sim().await, Redis::start().await);
    let rules = format!(
        "  on_redis_error: {policy}\n  global: {{requests_per_minute: 5, max_concurrent: 100}}\n"
    );
    let gateway = gateway(&sim, &redis, &rules).await;
    for expected in [200, 200, 200, 200, 200, 429] {
        assert_eq!(ask(&gateway).await.status, expected, "{policy}");
    }
    // Under load: no request hangs.
    let until = Instant::now() + Duration::from_secs(4);
    let disturb = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        redis.stop();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let during = hammer(&gateway, Instant::now() + Duration::from_secs(1)).await;
        redis.restart().await;
        during
    };
    let (statuses, seen) = tokio::join!(hammer(&gateway, until), disturb);
    assert!(!statuses.is_empty() && during(&seen), "{policy}: {seen:?}");
    // Redis lost the count with its memory and starts from zero.
    eventually("the limit is counted again", async || {
        ask(&gateway).await.status == 429 && {
            let names = redis.command(&["KEYS", "llmproxy:limit:*"]);
            names.contains("global/requests_per_minute")
        }
    })
    .await;
    let errors = gateway.metric("llmproxy_limit_store_errors_total{action=\"take\"}").await;
    assert!(errors > 0.0);
}

#[tokio::test]
async fn requests_pass_without_redis_if_configured() {
    outage("allow", |seen| seen.iter().all(|s| *s == 200)).await;
}

#[tokio::test]
async fn requests_are_refused_without_redis_if_configured() {
    outage("deny", |seen| seen.iter().all(|s| *s == 503)).await;
}

#[tokio::test]
async fn each_gateway_counts_in_memory_without_redis() {
    // Admitted requests were admitted in the checked second or before it.
    outage("local", |seen| count(seen, 200) <= 6 && count(seen, 429) > 0).await;
}

#[tokio::test]
async fn a_silent_redis_delays_no_request() {
    let (sim, redis) = (sim().await, Redis::start().await);
    let rules = "  on_redis_error: deny\n  redis_timeout: 100ms\n  global: {max_concurrent: 5}\n";
    let gateway = gateway(&sim, &redis, rules).await;
    assert_eq!(ask(&gateway).await.status, 200);
    redis.pause();
    let refused = ask(&gateway).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("2")));
    assert_eq!(refused.json()["error"]["code"], "limits_unavailable");
    // Not every request waits.
    let start = Instant::now();
    let many = (0..200).map(|_| ask(&gateway));
    let answers = futures::future::join_all(many).await;
    assert!(answers.iter().all(|a| a.status == 503));
    assert!(start.elapsed() < Duration::from_secs(10));
    redis.resume();
    eventually("it is asked again", async || ask(&gateway).await.status == 200).await;
    // Requests during the outage hold no slot.
    let all = futures::future::join_all((0..5).map(|_| ask(&gateway))).await;
    assert!(all.iter().all(|a| a.status == 200));
}

#[tokio::test]
async fn tokens_and_budgets_are_shared() {
    let (sim, redis) = (sim().await, Redis::start().await);
    let receiver = Receiver::start().await;
    let rules = format!(
        "  prices: {{\"*\": {{input: 1000, output: 1000}}}}\n  \
         global: {{tokens_per_minute: 100000}}\n  per_key: {{budget: 0.04}}\n{}",
        receiver.hook()
    );
    let (a, b) = (gateway(&sim, &redis, &rules).await, gateway(&sim, &redis, &rules).await);
    // 25 tokens, 0.025 each.
    for gateway in [&a, &b] {
        assert_eq!(ask(gateway).await.status, 200);
        eventually("the amount is in Redis", async || {
            let names = redis.command(&["KEYS", "llmproxy:limit:spent/*"]);
            !names.trim().is_empty()
        })
        .await;
    }
    eventually("both have heard of it", async || {
        let refused = ask(&a).await;
        refused.status == 429 && ask(&b).await.status == 429
    })
    .await;
    let refused = ask(&b).await;
    assert_eq!(refused.json()["error"]["code"], "budget_exceeded");
    assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() > 0);
    let left: f64 = refused.header("x-ratelimit-remaining-tokens").unwrap().parse().unwrap();
    assert!(left <= 100_000.0, "{left}");
}

#[tokio::test]
async fn spending_during_an_outage_is_reported_to_redis() {
    for policy in ["allow", "local"] {
        let (sim, redis) = (sim().await, Redis::start().await);
        let rules = format!(
            "  on_redis_error: {policy}\n  redis_timeout: 100ms\n  \
             prices: {{\"*\": {{input: 1000, output: 1000}}}}\n  \
             global: {{budget: 100, budget_period: never}}\n"
        );
        let gateway = gateway(&sim, &redis, &rules).await;
        assert_eq!(ask(&gateway).await.status, 200);
        redis.pause();
        for _ in 0..3 {
            assert_eq!(ask(&gateway).await.status, 200);
        }
        redis.resume();
        eventually("all of it is in Redis", async || {
            let name = "llmproxy:limit:spent/global/budget/never/all";
            let amount = redis.command(&["HGET", name, "a"]);
            amount.parse().is_ok_and(|spent: f64| (spent - 4.0 * 0.025).abs() < 1e-9)
        })
        .await;
    }
}
