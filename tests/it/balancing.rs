//! Selection of a backend, and ejection of failing ones.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex},
};

use futures::future::join_all;
use llmproxy::sim::{Behaviour, Engine, Fail, Load, Sim};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::task::JoinSet;

use crate::support::{Client, Gateway, chat, client::Response, eventually, http, sim_with};

const PATH: &str = "/v1/chat/completions";

async fn fleet(count: usize, change: impl Fn(&mut Behaviour)) -> Vec<Sim> {
    let short = |b: &mut Behaviour| {
        b.tokens = 1;
        change(b);
    };
    join_all((0..count).map(|_| sim_with(short))).await
}

async fn before(sims: &[Sim], more: &str) -> Gateway {
    Gateway::before(&urls(sims), more).await
}

fn urls(sims: &[Sim]) -> Vec<String> {
    sims.iter().map(Sim::url).collect()
}

fn counts(sims: &[Sim]) -> Vec<u64> {
    sims.iter().map(|s| s.stats().requests()).collect()
}

fn open(sims: &[Sim]) -> u64 {
    sims.iter().map(|s| s.stats().open()).sum()
}

/// Requests of each backend since `before`.
fn since(sims: &[Sim], before: &[u64]) -> Vec<u64> {
    counts(sims).iter().zip(before).map(|(now, before)| now - before).collect()
}

async fn ask(gateway: &Gateway) -> Response {
    gateway.ask_with("").await
}

/// Sends this many requests in sequence; each must succeed.
async fn ask_well(gateway: &Gateway, times: usize) {
    let mut client = gateway.client().await;
    for _ in 0..times {
        assert_eq!(client.ask(PATH, chat(false)).await.status, 200);
    }
}

async fn gauge(gateway: &Gateway, name: &str, sim: &Sim) -> f64 {
    gateway.metric(&format!("{name}{{backend=\"{}\"}}", sim.url())).await
}

async fn metrics(gateway: &Gateway) -> String {
    http::get(gateway.url("/metrics")).await.unwrap().text().await.unwrap()
}

/// Header lines and the body.
type Request = (String, String);

/// Runs conversations with several clients at a time. Within a conversation each response is awaited
/// before the next request. All must succeed.
async fn converse(gateway: &Gateway, clients: usize, conversations: Vec<Vec<Request>>) {
    let queue = Arc::new(Mutex::new(VecDeque::from(conversations)));
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let queue = Arc::clone(&queue);
        let mut client = gateway.client().await;
        tasks.spawn(async move {
            loop {
                let Some(conversation) = queue.lock().unwrap().pop_front() else { return };
                for (headers, body) in conversation {
                    client.post_with(PATH, &headers, body.as_bytes()).await;
                    let answer = client.answer().await;
                    assert_eq!(answer.status, 200, "{}", answer.text());
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

/// Requests that stay in flight until they are dropped.
async fn hold(gateway: &Gateway, sims: &[Sim], count: usize, headers: &str) -> Vec<Client> {
    sims.iter().for_each(|sim| sim.change(|b| b.fail = Fail::Wedge));
    let mut held = Vec::new();
    let before = open(sims);
    for n in 1..=count {
        let mut client = gateway.client().await;
        client.post_with(PATH, headers, chat(false).as_bytes()).await;
        held.push(client);
        eventually("the request is there", async || open(sims) == before + n as u64).await;
    }
    sims.iter().for_each(|sim| sim.change(|b| b.fail = Fail::None));
    held
}

const STRATEGIES: [&str; 8] = [
    "round_robin",
    "least_connections",
    "latency_based",
    "random",
    "p2c",
    "consistent_hash",
    "prefix_affinity",
    "least_load",
];

#[tokio::test]
async fn every_strategy_uses_all_backends_and_releases_all_slots() {
    join_all(STRATEGIES.map(serves)).await;
}

async fn serves(strategy: &str) {
    let sims = fleet(3, |_| {}).await;
    let one =
        |(sim, weight): (&Sim, u32)| format!("  - {{url: \"{}\", weight: {weight}}}\n", sim.url());
    let backends: String = sims.iter().zip([3, 2, 1]).map(one).collect();
    let text = format!("backends:\n{backends}routing: {{load_balance_strategy: {strategy}}}\n");
    let gateway = Gateway::start(&text).await;
    let request = |n| vec![(format!("X-Session-ID: s{n}\r\n"), chat(n % 2 == 0))];
    converse(&gateway, 6, (0..120).map(request).collect()).await;
    let counts = counts(&sims);
    assert_eq!(counts.iter().sum::<u64>(), 120, "{strategy}");
    let margin = match strategy {
        "round_robin" => 3,
        "random" => 30,
        _ => 120,
    };
    for (count, share) in counts.iter().zip([60u64, 40, 20]) {
        assert!(count.abs_diff(share) <= margin && *count > 0, "{strategy}: {counts:?}");
    }
    let in_flight = async || {
        let each = sims.iter().map(|sim| gauge(&gateway, "llmproxy_backend_in_flight", sim));
        join_all(each).await.iter().sum::<f64>()
    };
    let held = hold(&gateway, &sims, 6, "").await;
    eventually("six are in flight", async || in_flight().await == 6.0).await;
    // Disconnected clients release their slots too.
    drop(held);
    eventually("none is in flight", async || in_flight().await == 0.0).await;
    eventually("none is open", async || open(&sims) == 0).await;
}

fn waiting(waiting: u64) -> Option<Load> {
    Some(Load { running: 4, waiting, kv_cache_usage: 0.5 })
}

#[tokio::test]
async fn an_engine_with_a_long_queue_gets_no_requests() {
    join_all([Engine::Vllm, Engine::Sglang, Engine::Tgi, Engine::Llamacpp].map(unburdened)).await;
}

async fn unburdened(engine: Engine) {
    let sims = fleet(3, |b| b.engine = engine).await;
    sims[0].change(|b| b.reports = waiting(50));
    let load = "routing: {load_balance_strategy: least_load, load: {interval: 1s, timeout: 5s}}\n";
    let gateway = before(&sims, load).await;
    let series = format!("llmproxy_backend_load{{backend=\"{}\",kind=\"waiting\"}}", sims[0].url());
    eventually("its queue is known", async || gateway.metric(&series).await == 50.0).await;
    let before = counts(&sims);
    ask_well(&gateway, 40).await;
    let got = since(&sims, &before);
    assert!(got[0] <= 1 && got[1] >= 8 && got[2] >= 8, "{engine:?} {got:?}");
    let text = metrics(&gateway).await;
    for sim in &sims {
        let age = format!("llmproxy_backend_load_age_seconds{{backend=\"{}\"}}", sim.url());
        assert!(text.contains(&age), "{text}");
    }
    // Only the last reading counts.
    sims[0].change(|b| b.metrics = 500);
    gateway.logs("cannot be read: /metrics answered 500").await;
    let before = counts(&sims);
    eventually("the backend is used again", async || {
        ask_well(&gateway, 3).await;
        since(&sims, &before)[0] >= 10
    })
    .await;
    let age = async || gauge(&gateway, "llmproxy_backend_load_age_seconds", &sims[0]).await;
    eventually("the age of the load is exposed", async || age().await >= 3.0).await;
}

#[tokio::test]
async fn engines_report_their_load_in_responses() {
    let sims = fleet(3, |b| b.metrics = 500).await;
    sims[0].change(|b| b.reports = waiting(50));
    let load =
        "routing: {load_balance_strategy: least_load, load: {interval: 10m, from_answers: true}}\n";
    let gateway = before(&sims, load).await;
    let mut asked = 0;
    while sims[0].stats().requests() == 0 {
        assert_eq!(ask(&gateway).await.status, 200);
        asked += 1;
        assert!(asked < 30, "a backend without a known load must be used");
    }
    for n in 0..30 {
        let mut client = gateway.client().await;
        let answer = client.ask(PATH, chat(n % 2 == 0)).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("endpoint-load-metrics"), None);
    }
    assert_eq!(sims[0].stats().requests(), 1, "{:?}", counts(&sims));
    assert!(sims[0].stats().last().unwrap().header("endpoint-load-metrics-format").is_some());
}

#[tokio::test]
async fn least_connections_prefers_an_idle_backend() {
    let sims = fleet(3, |_| {}).await;
    let gateway = before(&sims, "routing: {load_balance_strategy: least_connections}\n").await;
    let held = hold(&gateway, &sims, 1, "").await;
    let busy = sims.iter().position(|s| s.stats().open() == 1).unwrap();
    let before = counts(&sims);
    // Each request ends before the next one, but its slot may be released slightly later.
    for _ in 0..20 {
        ask_well(&gateway, 1).await;
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let got = since(&sims, &before);
    assert!(got[busy] <= 2, "{busy} of {got:?}");
    drop(held);
}

#[tokio::test]
async fn latency_based_prefers_the_fastest_and_probes_the_others() {
    let sims = fleet(3, |_| {}).await;
    sims[1..].iter().for_each(|sim| sim.change(|b| b.first_token_ms = 300));
    let gateway = before(&sims, "routing: {load_balance_strategy: latency_based}\n").await;
    let mut client = gateway.client().await;
    for _ in 0..40 {
        assert_eq!(client.ask(PATH, chat(true)).await.status, 200);
    }
    let first = counts(&sims);
    assert!(first[0] >= 20 && first[1] > 0 && first[2] > 0, "{first:?}");
    sims[1..].iter().for_each(|sim| sim.change(|b| b.first_token_ms = 0));
    eventually("the other backends are probed", async || {
        client.ask(PATH, chat(true)).await;
        let got = since(&sims, &first);
        got[1] > 0 && got[2] > 0
    })
    .await;
}

/// The backends used by each session. The content of the request is the session.
fn places(sims: &[Sim]) -> BTreeMap<String, BTreeSet<usize>> {
    let mut places: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
    for (n, sim) in sims.iter().enumerate() {
        for seen in sim.stats().recent() {
            let body: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
            let session = body["messages"][0]["content"].as_str().unwrap().to_owned();
            places.entry(session).or_default().insert(n);
        }
    }
    places
}

fn says(text: &str) -> String {
    chat(false).replace("Hello", text)
}

#[tokio::test]
async fn a_session_stays_at_one_backend() {
    const SESSIONS: usize = 24;
    let keys: String = (0..SESSIONS)
        .map(|n| format!("  - {{key: sk-of-session-{n:02}, user_id: user-{}}}\n", n / 2))
        .collect();
    let auth = format!("auth: {{}}\napi_keys:\n{keys}");
    for (by, strategy) in [("header", "round_robin"), ("key", "p2c"), ("user", "least_connections")]
    {
        let sims = fleet(4, |_| {}).await;
        let more = format!(
            "{auth}routing: {{load_balance_strategy: {strategy}, affinity: {{by: {by}}}}}\n"
        );
        let gateway = before(&sims, &more).await;
        let request = |n: usize| {
            let n = n % SESSIONS;
            let key = format!("Authorization: Bearer sk-of-session-{n:02}\r\n");
            let headers = match by {
                "header" => format!("{key}X-Session-ID: s{n}\r\n"),
                _ => key,
            };
            let session = if by == "user" { n / 2 } else { n };
            (headers, says(&format!("session {session}")))
        };
        converse(&gateway, 1, vec![(0..4 * SESSIONS).map(request).collect()]).await;
        let places = places(&sims);
        assert!(places.values().all(|at| at.len() == 1), "by {by}: {places:?}");
        let used: BTreeSet<_> = places.values().flatten().collect();
        assert!(used.len() >= 3, "by {by}: {places:?}");
    }
}

#[tokio::test]
async fn a_session_moves_when_its_backend_is_overloaded() {
    let sims = fleet(4, |_| {}).await;
    let gateway = before(
        &sims,
        "routing: {load_balance_strategy: least_connections, affinity: {by: header}}\n",
    )
    .await;
    let held = hold(&gateway, &sims, 16, "X-Session-ID: a\r\n").await;
    let mut open: Vec<_> = sims.iter().map(|s| s.stats().open()).collect();
    open.sort_unstable();
    // At most a quarter above the average.
    assert!(open[3] <= 5 && open[0] >= 1, "{open:?}");
    drop(held);
}

/// Random words, so that no two conversations share them.
fn words(chance: &mut StdRng, bytes: usize) -> String {
    (0..bytes).map(|_| char::from(chance.random_range(b'a'..=b'z'))).collect()
}

/// Conversations of several turns. Their system prompts are those of a few applications, some of which
/// are used much more often.
fn conversations(count: usize, turns: usize) -> Vec<Vec<Request>> {
    const PROMPTS: usize = 24;
    let mut chance = StdRng::seed_from_u64(5);
    let prompts: Vec<_> = (0..PROMPTS).map(|_| words(&mut chance, 2048)).collect();
    let weights: Vec<f64> = (0..PROMPTS).map(|n| 1.0 / (n as f64 + 1.0)).collect();
    let total: f64 = weights.iter().sum();
    let mut conversation = || {
        let mut drawn = chance.random_range(0.0..total);
        let prompt = weights.iter().position(|weight| {
            drawn -= weight;
            drawn < 0.0
        });
        let system = &prompts[prompt.unwrap_or(0)];
        let mut messages = vec![serde_json::json!({"role": "system", "content": system})];
        let mut turn = || {
            for role in ["user", "assistant"] {
                let content = words(&mut chance, 640);
                messages.push(serde_json::json!({"role": role, "content": content}));
            }
            let said = &messages[..messages.len() - 1];
            let body = serde_json::json!({"model": "sim-model", "messages": said});
            (String::new(), body.to_string())
        };
        (0..turns).map(|_| turn()).collect()
    };
    (0..count).map(|_| conversation()).collect()
}

/// The share of cached prompt tokens, and the requests of each backend.
async fn hit_rate(strategy: &str) -> (f64, Vec<u64>) {
    // The prompts of all applications do not fit into the cache of one engine.
    let sims = fleet(4, |b| (b.prefix_cache, b.first_token_ms) = (300, 20)).await;
    let more = format!("routing: {{load_balance_strategy: {strategy}, prefix: {{block: 256}}}}\n");
    let gateway = before(&sims, &more).await;
    // The number of clients is not a multiple of the backends, so that turns do not bind them by accident.
    converse(&gateway, 13, conversations(160, 5)).await;
    let (cached, queried) = sims
        .iter()
        .map(|s| s.stats().cached())
        .fold((0, 0), |(hits, all), (hit, one)| (hits + hit, all + one));
    (cached as f64 / queried as f64, counts(&sims))
}

#[tokio::test]
async fn prefix_affinity_raises_the_cache_hit_rate() {
    let (by_turns, _) = hit_rate("round_robin").await;
    let (by_prefix, counts) = hit_rate("prefix_affinity").await;
    assert!(by_prefix > 1.5 * by_turns, "{by_prefix:.2} against {by_turns:.2}");
    let share = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
    assert!(counts.iter().all(|count| *count as f64 <= 1.25 * share), "{counts:?}");
}

#[tokio::test]
async fn keys_with_cache_salts_share_no_cache() {
    let sims = fleet(2, |b| b.prefix_cache = 1000).await;
    let gateway = before(
        &sims,
        "auth: {}\napi_keys: [{key: sk-first-00001}, {key: sk-second-0001}]\n\
         routing: {load_balance_strategy: prefix_affinity, cache_salt: per_key, cache_salt_secret: a-secret-of-32-characters-or-more}\n",
    )
    .await;
    let body = says(&words(&mut StdRng::seed_from_u64(1), 4096));
    let hits = async |key: &str| {
        let cached = || sims.iter().map(|s| s.stats().cached().0).sum::<u64>();
        let before = cached();
        let headers = format!("Authorization: Bearer {key}\r\n");
        converse(&gateway, 1, vec![vec![(headers, body.clone())]]).await;
        cached() - before
    };
    assert_eq!(hits("sk-first-00001").await, 0);
    assert!(hits("sk-first-00001").await > 900);
    assert_eq!(hits("sk-second-0001").await, 0);
    assert!(hits("sk-second-0001").await > 900);
}

#[tokio::test]
async fn a_reload_changes_the_strategy_under_load() {
    let sims = fleet(3, |b| b.first_token_ms = 5).await;
    let list: String = urls(&sims).iter().map(|url| format!("  - url: \"{url}\"\n")).collect();
    let text = |strategy| {
        format!(
            "backends:\n{list}routing: {{load_balance_strategy: {strategy}, load_bound: 100}}\n"
        )
    };
    let gateway = Gateway::start(&text("round_robin")).await;
    let request = || vec![("X-Session-ID: one\r\n".to_owned(), chat(true))];
    let traffic = converse(&gateway, 4, (0..600).map(|_| request()).collect());
    let reload = async {
        eventually("requests go on", async || open(&sims) > 0).await;
        gateway.rewrite(&text("consistent_hash"));
        gateway.signal("HUP");
        gateway.logs("configuration 2 is in force").await;
    };
    tokio::join!(traffic, reload);
    assert_eq!(counts(&sims).iter().sum::<u64>(), 600);
    let before = counts(&sims);
    converse(&gateway, 1, (0..20).map(|_| request()).collect()).await;
    let mut got = since(&sims, &before);
    got.sort_unstable();
    assert_eq!(got, [0, 0, 20]);
}

const OPEN: &str = "llmproxy_circuit_open";
const OPENED: &str = "llmproxy_circuit_opened_total";

#[tokio::test]
async fn a_failing_backend_is_ejected() {
    let sims = fleet(2, |_| {}).await;
    sims[0].change(|b| b.fail = Fail::Error);
    let more = "routing: {circuit: {consecutive_failures: 3, cooldown: 1h}}\n";
    let gateway = before(&sims, more).await;
    ask_well(&gateway, 30).await;
    assert_eq!(counts(&sims), [3, 30]);
    assert_eq!(gauge(&gateway, OPEN, &sims[0]).await, 1.0);
    assert_eq!(gauge(&gateway, OPENED, &sims[0]).await, 1.0);
    gateway.logs(&format!("backend {} fails: it is ejected for", sims[0].url())).await;
}

#[tokio::test]
async fn one_request_probes_an_ejected_backend() {
    let sims = fleet(2, |_| {}).await;
    sims[0].change(|b| b.fail = Fail::Error);
    let more = "routing: {circuit: {consecutive_failures: 2, cooldown: 200ms}}\n";
    let gateway = before(&sims, more).await;
    eventually("the backend is ejected", async || {
        ask_well(&gateway, 1).await;
        gauge(&gateway, OPEN, &sims[0]).await == 1.0
    })
    .await;
    sims[0].change(|b| b.fail = Fail::None);
    eventually("the backend is used again", async || {
        ask_well(&gateway, 1).await;
        gauge(&gateway, OPEN, &sims[0]).await == 0.0
    })
    .await;
    gateway.logs(&format!("backend {} serves sim-model again", sims[0].url())).await;
    let before = counts(&sims);
    ask_well(&gateway, 10).await;
    assert_eq!(since(&sims, &before), [5, 5]);
}

#[tokio::test]
async fn if_all_backends_are_ejected_clients_get_retry_after() {
    let sims = fleet(2, |b| b.fail = Fail::Error).await;
    let circuit = |more: &str| {
        format!(
            "server: {{trusted_proxies: [127.0.0.1/32]}}\n\
             routing: {{circuit: {{consecutive_failures: 2, cooldown: 1h{more}}}}}\n"
        )
    };
    // A new caller each time.
    let ask = async |gateway: &Gateway, n: u32| {
        gateway.ask_with(&format!("X-Forwarded-For: 198.51.100.{n}\r\n")).await
    };
    let gateway = before(&sims, &circuit(", max_ejected: 100%")).await;
    let mut answer = ask(&gateway, 0).await;
    for n in 1..10 {
        answer = ask(&gateway, n).await;
    }
    assert_eq!(answer.status, 503);
    let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=3600).contains(&wait), "{wait}");
    assert_eq!(counts(&sims), [2, 2]);
    // Unless the maximum of ejected backends is reached.
    let sims = fleet(2, |b| b.fail = Fail::Error).await;
    let gateway = before(&sims, &circuit("")).await;
    for n in 0..10 {
        answer = ask(&gateway, n).await;
        assert_eq!(answer.status, 500, "as the backend says");
    }
    let mut got = counts(&sims);
    got.sort_unstable();
    assert_eq!(got, [2, 10]);
}

#[tokio::test]
async fn one_failure_cools_one_model_of_a_backend() {
    let models = || vec!["sim-model".to_owned(), "other".to_owned()];
    let sims = fleet(2, |b| b.models = models()).await;
    sims[0].change(|b| (b.fail, b.fail_model) = (Fail::Error, "sim-model".to_owned()));
    let gateway = before(&sims, "fallback: {cooldown_seconds: 3600}\n").await;
    ask_well(&gateway, 20).await;
    assert_eq!(sims[0].stats().requests_for("sim-model"), 1);
    let mut client = gateway.client().await;
    for _ in 0..20 {
        let body = chat(false).replace("sim-model", "other");
        assert_eq!(client.ask(PATH, body).await.status, 200);
    }
    assert_eq!(sims.iter().map(|s| s.stats().requests_for("other")).collect::<Vec<_>>(), [10, 10]);
}

#[tokio::test]
async fn only_failures_of_a_backend_eject_it() {
    let strict = "routing: {circuit: {consecutive_failures: 1, cooldown: 1h}}\n";
    let sims = fleet(2, |_| {}).await;
    let gateway = before(&sims, strict).await;
    let mut client = gateway.client().await;
    for (body, status) in [
        (chat(false).replace("sim-model", "none"), 404),
        (chat(false).replace("messages", "nothing"), 400),
    ] {
        let before = counts(&sims);
        for _ in 0..10 {
            assert_eq!(client.ask(PATH, body.clone()).await.status, status);
        }
        assert_eq!(since(&sims, &before), [5, 5], "{status}");
    }
    // Full queues: requests go elsewhere, and the backend is tried again soon.
    for fail in [Fail::Busy, Fail::Backlog, Fail::Paused, Fail::Scaling] {
        sims[0].change(|b| b.fail = fail);
        let before = counts(&sims);
        ask_well(&gateway, 10).await;
        assert!(since(&sims, &before)[0] >= 1, "{fail:?}");
        sims[0].change(|b| b.fail = Fail::None);
        let before = counts(&sims);
        eventually("the backend is used again", async || {
            ask_well(&gateway, 1).await;
            since(&sims, &before)[0] >= 1
        })
        .await;
    }
    assert_eq!(gauge(&gateway, OPENED, &sims[0]).await, 0.0);
    assert_eq!(gauge(&gateway, OPEN, &sims[0]).await, 0.0);
}

#[tokio::test]
async fn a_busy_backend_cools_down_for_its_retry_after() {
    let sims = fleet(2, |b| b.retry_after = 3600).await;
    sims[0].change(|b| b.fail = Fail::TooMany);
    let gateway = before(&sims, "").await;
    ask_well(&gateway, 2).await;
    assert_eq!(sims[0].stats().requests(), 1);
    sims[0].change(|b| b.fail = Fail::None);
    ask_well(&gateway, 20).await;
    assert_eq!(counts(&sims), [1, 22]);
    assert_eq!(gauge(&gateway, OPENED, &sims[0]).await, 0.0);
}
