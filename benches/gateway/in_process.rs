//! Measurements without a process: what single decisions of the library take.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{KEY, SCRIPT};

/// Prints the time of one call of a small script: build the tables, run it, read the result.
pub fn print_script() {
    use llmproxy::{
        auth::decision::{RequestView, ScriptInput},
        lua::{Limits, Script},
    };
    const CALLS: u32 = 200_000;
    let script = Script::compile("balance", SCRIPT, Limits::default()).unwrap();
    let data = serde_json::json!({"status": "active", "balance": "1000", "user_id": "user_001"});
    let (data, metadata) = (data.as_object().unwrap(), serde_json::Map::new());
    let headers = http::HeaderMap::new();
    let call = RequestView {
        method: &http::Method::POST,
        path: "/v1/chat/completions",
        ip: None,
        headers: &headers,
        model: Some("sim-model"),
        stream: false,
    };
    let question = ScriptInput { key: KEY, data, request: call, metadata: &metadata };
    let took = micros(CALLS, &mut || assert!(script.run_here(&question).0.unwrap().allow));
    let verdict = if took < 3.0 { "reached" } else { "missed" };
    println!("aim: a call of a small script in less than 3 µs: {verdict} ({took:.2} µs)");
}

/// Prints the time to admit and settle one request with eight limits, and to write the limit headers.
pub fn print_decision() {
    use llmproxy::{
        base::{TokenCounts, limits::Standings},
        config, dialect,
        limit::{Consumption, CountSource, Limiter, RequestFacts, Shared},
        store::Stores,
        telemetry::Metrics,
    };
    const CALLS: u32 = 100_000;
    let rules = "{requests_per_second: 1000000, requests_per_minute: 1000000000, tokens_per_minute: 100000000000, max_concurrent: 100000}";
    let text = format!(
        "backends: [{{url: \"http://x\"}}]\nrate_limit: {{global: {rules}, per_key: {rules}}}"
    );
    let plan = config::load_text(&text, Path::new("."), &|_| None).plan.unwrap();
    let (metrics, stores) = (Metrics::new(), Stores::default());
    let shared = std::sync::Arc::new(Shared::new(PathBuf::from("none"), &metrics));
    let limiter = Limiter::new(plan.limits, &shared, &stores, None);
    let counts = TokenCounts { prompt: 9, completion: 16, total: 25, ..TokenCounts::default() };
    let mut standings = Standings::default();
    let mut decide = || {
        let ask = RequestFacts {
            principal: None,
            address: Some(Ipv4Addr::LOCALHOST.into()),
            model: Some("sim-model"),
            now: 0,
            only_requests: false,
            enforce_quotas: true,
        };
        let mut wish = limiter.prepare(&ask, 1024, Some(16)).unwrap();
        let ticket = futures::executor::block_on(limiter.admit(&mut wish, true));
        let ticket = ticket.ok().unwrap();
        standings = ticket.standings().unwrap();
        ticket.settle(
            "sim-model",
            Consumption::Tokens { counts, cost: 0.0, credit: 0.0, source: CountSource::Complete },
        );
    };
    println!("deciding and settling with 8 limits: {:.2} µs", micros(CALLS, &mut decide));
    let mut tell = || {
        let mut head = pingora::http::ResponseHeader::build(200, Some(8)).unwrap();
        let mut fields = dialect::LimitHeaders::default();
        dialect::DIALECTS[0].limit_headers(&standings, &mut fields);
        fields.insert(&mut head).unwrap();
    };
    println!("telling how they stand: {:.2} µs", micros(CALLS, &mut tell));
}

/// Prints the time to select and release a backend with each strategy.
pub fn print_selection() {
    println!();
    for (count, aim) in [(10, 1.0), (1000, 5.0)] {
        for strategy in [
            "round_robin",
            "random",
            "p2c",
            "least_connections",
            "latency_based",
            "least_load",
            "consistent_hash",
            "prefix_affinity",
        ] {
            let took = selection(strategy, false, count);
            let verdict = if took < aim { "reached" } else { "missed" };
            println!(
                "aim: {strategy} chooses among {count} in less than {aim} µs: {verdict} ({took:.2})"
            );
        }
        let took = selection("round_robin", true, count);
        let verdict = if took < aim { "reached" } else { "missed" };
        println!(
            "aim: a session finds its place among {count} in less than {aim} µs: {verdict} ({took:.2})"
        );
    }
}

/// Microseconds per selection among backends with one request each, with or without session affinity.
fn selection(strategy: &str, bound: bool, count: usize) -> f64 {
    use llmproxy::{
        balance::{Endpoint, PickRequest, Pool, PoolOptions, Predecessor, endpoint::BackendIds},
        config::{
            self,
            plan::{Affinity, BalancePlan},
        },
        telemetry::Metrics,
    };
    const CALLS: u32 = 20_000;
    let url = |n| format!("http://10.0.{}.{}:80", n / 250, n % 250 + 1);
    let backends: String =
        (0..count).map(|n| format!("  - {{name: b{n}, url: \"{}\"}}\n", url(n))).collect();
    let text = format!("backends:\n{backends}");
    let plan = config::load_text(&text, Path::new("."), &|_| None).plan.unwrap();
    let ids = BackendIds::new(&Metrics::new());
    let member = |b: &config::plan::BackendPlan| {
        let address = b.literal().expect("the URL has an address");
        (std::sync::Arc::new(Endpoint::new(ids.get(b), b.clone(), &[address], &plan.timeouts)), 1)
    };
    let members: Vec<_> = plan.backends.iter().map(member).collect();
    let strategy = serde_json::from_value(strategy.into()).unwrap();
    let options = PoolOptions {
        balance: &BalancePlan {
            strategy,
            affinity: bound.then_some(Affinity::Key),
            ..BalancePlan::default()
        },
        circuit: &plan.routing.circuit,
        budget: &plan.routing.retry.budget,
        load_interval: Duration::from_secs(2),
        registry: &std::sync::Arc::default(),
        probed: true,
        predecessor: Predecessor::default(),
        seed: 1,
    };
    let pool = Pool::new(members, &options);
    let now = Instant::now();
    let mut n = 0u64;
    let mut choose = || {
        // Conversations of 8 KiB in blocks of 512 bytes; others share the first half.
        n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let blocks: [u64; 16] =
            std::array::from_fn(|i| if i < 8 { n % 100 + i as u64 } else { n + i as u64 });
        let request = PickRequest {
            model: "m",
            caller: n,
            ignore_ejections: false,
            session: Some(n),
            blocks: &blocks,
            excluded: &[],
            now,
        };
        let mut choice = pool.pick(&request).ok().unwrap();
        choice.lease.first_token(Duration::from_millis(100), true);
        choice.lease.good();
        choice.lease
    };
    let _others: Vec<_> = (0..count).map(|_| choose()).collect();
    micros(CALLS, &mut || drop(choose()))
}

/// Microseconds per call, the median of five rounds.
fn micros(calls: u32, call: &mut dyn FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..5)
        .map(|_| {
            let began = Instant::now();
            (0..calls).for_each(|_| call());
            began.elapsed().as_secs_f64() * 1e6 / f64::from(calls)
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[2]
}
