//! A Redis that responds with errors: it is out of memory, a replica, or busy. This is an outage: the policy
//! applies, and no reservation is kept forever.

use futures::future::join_all;
use llmproxy::sim::Sim;

use super::support::{
    Client, Gateway, chat, client::Response, eventually, servers::Redis, sim, sim_with,
};

/// The commands that make a server refuse, and those that end it.
struct Fault {
    name: &'static str,
    begin: &'static [&'static str],
    end: &'static [&'static str],
    /// Whether reservations can be released meanwhile.
    gives_back: bool,
}

const FAULTS: [Fault; 3] = [
    Fault {
        name: "no memory",
        begin: &["CONFIG", "SET", "maxmemory", "1"],
        end: &["CONFIG", "SET", "maxmemory", "0"],
        gives_back: true,
    },
    Fault {
        name: "a replica",
        begin: &["REPLICAOF", "127.0.0.1", "1"],
        end: &["REPLICAOF", "NO", "ONE"],
        gives_back: false,
    },
    Fault {
        name: "too few replicas",
        begin: &["CONFIG", "SET", "min-replicas-to-write", "1"],
        end: &["CONFIG", "SET", "min-replicas-to-write", "0"],
        gives_back: false,
    },
];

async fn limited(sim: &Sim, redis: &Redis, rules: &str) -> Gateway {
    let configuration = format!(
        "storage: {{caches: [{{name: main, driver: redis, addr: \"{}\"}}]}}\n\
         rate_limit:\n  storage: redis\n  redis: main\n  redis_timeout: 5s\n{rules}",
        redis.address
    );
    Gateway::before(&[sim.url()], &configuration).await
}

async fn ask(gateway: &Gateway) -> Response {
    gateway.ask_with("").await
}

/// Starts a stream that lasts until the test ends it at the simulated backend.
async fn stream(gateway: &Gateway) -> Client {
    let mut client = gateway.client().await;
    client.post("/v1/chat/completions", chat(true)).await;
    assert_eq!(client.head().await.status, 200);
    client.chunk().await.unwrap();
    client
}

/// The slots in use in Redis.
fn held(redis: &Redis) -> usize {
    let keys = redis.command(&["KEYS", "llmproxy:limit:held/*max_concurrent*"]);
    keys.lines().map(|key| redis.command(&["ZCARD", key]).parse::<usize>().unwrap()).sum()
}

/// Checks `policy` while the server refuses, with slots alone or with a rate, because the first write
/// decides what a server without memory accepts.
async fn refuses(fault: &Fault, policy: &str, rules: &str, mode: &str) {
    let what = format!("{}, {policy}, {rules}, {mode}", fault.name);
    let sim = sim_with(|b| (b.inter_token_ms, b.tokens) = (20, 100_000)).await;
    let redis = Redis::start().await;
    let rules = format!(
        "  on_redis_error: {policy}\n  mode: {mode}\n  hold_ttl: 10s\n  global: {{{rules}}}\n"
    );
    let gateway = limited(&sim, &redis, &rules).await;
    let streams = [stream(&gateway).await, stream(&gateway).await];
    assert_eq!(held(&redis), 2, "{what}");
    redis.command(fault.begin);
    // Detects the outage: afterwards no request is admitted by a leased share.
    ask_briefly(&sim, &gateway).await;
    let statuses: Vec<_> =
        join_all((0..40).map(|_| ask(&gateway))).await.iter().map(|a| a.status).collect();
    match policy {
        "allow" => assert_eq!(statuses, [200; 40], "{what}"),
        "deny" => assert_eq!(statuses, [503; 40], "{what}"),
        _ => assert!(
            statuses.contains(&200) && statuses.iter().all(|s| [200, 429].contains(s)),
            "{what}: {statuses:?}"
        ),
    }
    // Reservations are released if possible. Otherwise they expire, but only when the server is back,
    // because a replica expires nothing.
    drop(streams);
    if fault.gives_back {
        eventually(&format!("slots are given back: {what}"), async || held(&redis) == 0).await;
    }
    redis.command(fault.end);
    eventually(&format!("it is asked again: {what}"), async || {
        let before = redis.command(&["INFO", "commandstats"]);
        ask(&gateway).await.status == 200 && redis.command(&["INFO", "commandstats"]) != before
    })
    .await;
    eventually(&format!("nothing is held: {what}"), async || held(&redis) == 0).await;
    // All slots are free, and no more than that.
    let all: Vec<_> =
        join_all((0..5).map(|_| ask(&gateway))).await.iter().map(|a| a.status).collect();
    assert_eq!(all, [200; 5], "{what}");
    let errors = gateway.metric("llmproxy_limit_store_errors_total{action=\"take\"}").await;
    assert!(errors > 0.0, "{what}");
}

/// Makes responses short from now on.
async fn ask_briefly(sim: &Sim, gateway: &Gateway) {
    sim.change(|b| b.tokens = 1);
    ask(gateway).await;
}

const SLOTS: &str = "max_concurrent: 5";
const BOTH: &str = "max_concurrent: 5, requests_per_minute: 100000, tokens_per_minute: 100000000";

#[tokio::test]
async fn requests_pass_a_refusing_redis_if_configured() {
    for fault in &FAULTS {
        for rules in [SLOTS, BOTH] {
            refuses(fault, "allow", rules, "exact").await;
        }
    }
}

#[tokio::test]
async fn requests_are_refused_with_a_refusing_redis_if_configured() {
    for fault in &FAULTS {
        refuses(fault, "deny", BOTH, "exact").await;
    }
    refuses(&FAULTS[0], "deny", SLOTS, "exact").await;
}

#[tokio::test]
async fn each_gateway_counts_in_memory_with_a_refusing_redis() {
    for fault in &FAULTS {
        refuses(fault, "local", BOTH, "exact").await;
    }
    refuses(&FAULTS[0], "local", SLOTS, "exact").await;
}

#[tokio::test]
async fn shares_are_leased_again_after_an_outage() {
    for policy in ["allow", "deny", "local"] {
        refuses(&FAULTS[0], policy, SLOTS, "leased").await;
    }
    refuses(&FAULTS[0], "allow", BOTH, "leased").await;
}

#[tokio::test]
async fn reservations_are_renewed_although_redis_has_no_memory() {
    let sim = sim_with(|b| (b.inter_token_ms, b.tokens) = (20, 100_000)).await;
    let redis = Redis::start().await;
    let rules = "  on_redis_error: deny\n  hold_ttl: 1s\n  global: {max_concurrent: 2, tokens_per_minute: 100000000}\n";
    let gateway = limited(&sim, &redis, rules).await;
    let streams = [stream(&gateway).await, stream(&gateway).await];
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
    // Three times the lifetime of a reservation without renewal.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(held(&redis), 2);
    assert_eq!(gateway.metric("llmproxy_limit_store_errors_total{action=\"renew\"}").await, 0.0);
    drop(streams);
    eventually("slots are released", async || held(&redis) == 0).await;
}

#[tokio::test]
async fn keys_are_read_and_counted_although_redis_refuses_writes() {
    for fault in &FAULTS {
        let (sim, redis) = (sim().await, Redis::start().await);
        for (key, form) in [("sk-hash", "hash"), ("sk-text", "text")] {
            let name = format!("llmproxy:key:{key}");
            match form {
                "hash" => redis.command(&["HSET", &name, "total_quota", "1000", "used_quota", "0"]),
                _ => redis.command(&["SET", &name, r#"{"total_quota":1000,"used_quota":0}"#]),
            };
        }
        let gateway = Gateway::before(
            &[sim.url()],
            &format!(
                "auth:\n  pipeline:\n    - {{type: redis, name: p, cache_ttl: 0, redis: {{addr: \"{}\"}}}}\n",
                redis.address
            ),
        )
        .await;
        redis.command(fault.begin);
        for key in ["sk-hash", "sk-text"] {
            assert_eq!(gateway.ask_as(key).await.status, 200, "{}: {key}", fault.name);
        }
        assert_eq!(gateway.ask_as("sk-none").await.status, 401, "{}", fault.name);
        gateway.logs("usage cannot be counted at present").await;
        redis.command(fault.end);
        let idle = async || gateway.metric("llmproxy_quota_counting").await == 0.0;
        eventually("it is counted in the end", idle).await;
        let used = redis.command(&["HGET", "llmproxy:key:sk-hash", "used_quota"]);
        assert_eq!(used, "25", "{}", fault.name);
        assert!(redis.command(&["GET", "llmproxy:key:sk-text"]).contains("25"), "{}", fault.name);
        let lost = "llmproxy_quota_count_errors_total{provider=\"p\"}";
        assert_eq!(gateway.metric(lost).await, 0.0, "{}", fault.name);
    }
}

#[tokio::test]
async fn a_busy_redis_is_an_outage_for_keys_and_limits() {
    let (sim, redis) = (sim().await, Redis::start().await);
    redis.command(&["HSET", "llmproxy:key:sk-a", "status", "active"]);
    redis.command(&["CONFIG", "SET", "busy-reply-threshold", "1"]);
    let configuration = format!(
        "storage: {{caches: [{{name: main, driver: redis, addr: \"{}\"}}]}}\n\
         rate_limit: {{storage: redis, redis: main, on_redis_error: deny, global: {{max_concurrent: 5}}}}\n\
         auth:\n  pipeline:\n    - {{type: redis, name: p, cache_ttl: 0, redis: {{storage: main}}}}\n",
        redis.address
    );
    let gateway = Gateway::before(&[sim.url()], &configuration).await;
    assert_eq!(gateway.ask_as("sk-a").await.status, 200);
    let address = redis.address;
    let busy = std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let script = "while true do end";
        write!(stream, "*3\r\n$4\r\nEVAL\r\n${}\r\n{script}\r\n$1\r\n0\r\n", script.len()).unwrap();
        let mut end = [0; 8];
        let _ = stream.read(&mut end);
    });
    // The key is neither unknown nor accepted.
    eventually("Redis is busy", async || gateway.ask_as("sk-none").await.status == 503).await;
    for key in ["sk-a", "sk-b", "sk-c"] {
        assert_eq!(gateway.ask_as(key).await.status, 503, "{key}");
    }
    redis.command(&["SCRIPT", "KILL"]);
    busy.join().unwrap();
    eventually("it is used again", async || gateway.ask_as("sk-a").await.status == 200).await;
    assert_eq!(gateway.ask_as("sk-none-2").await.status, 401);
}
