//! Measurements without a process: what single decisions of the library take.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use llmproxy::{
    base::{TokenCounts, limits::Standings},
    config,
    limit::{Consumption, CountSource, Limiter, RequestFacts, Shared},
    store::Stores,
    telemetry::Metrics,
};

use super::{
    KEY,
    figures::table::{Column, Outcome, Row, Table},
    report::Report,
    rows::SCRIPT,
    settings::Settings,
};

/// Measures the sections `decisions` and `selection`.
pub fn measure(settings: &Settings, report: &mut Report) {
    if settings.selects_rows() {
        return;
    }
    if settings.section("decisions") {
        let took = [
            ("a call of a small script", script()),
            ("admitting and settling a request with 8 limits", decision()),
            ("writing the header fields of 8 limits", limit_headers()),
        ];
        report.table(decisions(&took), |report, table| {
            let script = table.value("a call of a small script", "µs");
            report.at_most("µs, a call of a small script", script, 3.0, 2);
        });
    }
    if settings.section("selection") {
        report.table(selections(), judge_selections);
    }
}

fn decisions(took: &[(&str, f64)]) -> Table {
    let row = |(name, took): &(&str, f64)| Row {
        name: (*name).to_owned(),
        outcome: Outcome::Measured(vec![Some(*took)]),
        raw: serde_json::Value::Null,
    };
    Table {
        name: "decisions".to_owned(),
        caption: "Single decisions, called in a loop in one process, median of five rounds."
            .to_owned(),
        columns: vec![Column::new("µs", 2)],
        rows: took.iter().map(row).collect(),
    }
}

/// The time of one call of a small script: build the tables, run it, read the result.
fn script() -> f64 {
    use llmproxy::{
        auth::decision::{RequestView, ScriptInput},
        lua::{Limits, Script},
    };
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
    micros(CALLS, &mut || assert!(script.run_here(&question).0.unwrap().allow))
}

/// The time to admit and settle one request with eight limits.
fn decision() -> f64 {
    let limiter = limiter();
    micros(CALLS, &mut || {
        std::hint::black_box(admitted(&limiter));
    })
}

/// The time to write the header fields of eight limits.
fn limit_headers() -> f64 {
    use llmproxy::dialect;
    let standings = admitted(&limiter());
    let mut write = || {
        let mut head = http::HeaderMap::with_capacity(16);
        let mut fields = dialect::LimitHeaders::default();
        dialect::DIALECTS[0].limit_headers(&standings, &mut fields);
        fields.insert(&mut head);
    };
    micros(CALLS, &mut write)
}

/// Calls in a round.
const CALLS: u32 = 100_000;

/// A limiter with four limits for all callers together and four for each key.
fn limiter() -> std::sync::Arc<Limiter> {
    let rules = "{requests_per_second: 1000000, requests_per_minute: 1000000000, tokens_per_minute: 100000000000, max_concurrent: 100000}";
    let text = format!(
        "backends: [{{url: \"http://x\"}}]\nrate_limit: {{global: {rules}, per_key: {rules}}}"
    );
    let plan = config::load_text(&text, Path::new("."), &|_| None).plan.unwrap();
    let (metrics, stores) = (Metrics::new(), Stores::default());
    let shared = std::sync::Arc::new(Shared::new(PathBuf::from("none"), &metrics));
    Limiter::new(plan.limits, &shared, &stores, None)
}

/// Admits and settles a request, and returns how its limits stand.
fn admitted(limiter: &Limiter) -> Standings {
    let ask = RequestFacts {
        principal: None,
        address: Some(Ipv4Addr::LOCALHOST.into()),
        model: Some("sim-model"),
        now: 0,
        only_requests: false,
        enforce_quotas: true,
    };
    let mut wish = limiter.prepare(&ask, 1024, Some(16)).unwrap();
    let ticket = futures::executor::block_on(limiter.admit(&mut wish, true)).ok().unwrap();
    let standings = ticket.standings().unwrap();
    let counts = TokenCounts { prompt: 9, completion: 16, total: 25, ..TokenCounts::default() };
    ticket.settle(
        "sim-model",
        Consumption::Tokens { counts, cost: 0.0, credit: 0.0, source: CountSource::Complete },
    );
    standings
}

/// The time to select and release a backend, with each strategy.
fn selections() -> Table {
    let strategies = [
        "round_robin",
        "random",
        "p2c",
        "least_connections",
        "latency_based",
        "least_load",
        "consistent_hash",
        "prefix_affinity",
    ];
    let all = strategies.map(|name| (name, name, false));
    let rows = all.into_iter().chain([("session affinity", "round_robin", true)]);
    let rows = rows.map(|(name, strategy, bound)| Row {
        name: name.to_owned(),
        outcome: Outcome::Measured(
            COUNTS.iter().map(|(count, ..)| Some(selection(strategy, bound, *count))).collect(),
        ),
        raw: serde_json::Value::Null,
    });
    let rows = rows.collect();
    Table {
        name: "selection".to_owned(),
        caption: "Selecting a backend, with taking and releasing its lease, median of five rounds."
            .to_owned(),
        columns: COUNTS.iter().map(|(_, title, _)| Column::new(title, 2)).collect(),
        rows,
    }
}

/// How many backends there are, the title of their column, and the most microseconds of a selection.
const COUNTS: [(usize, &str, f64); 2] =
    [(10, "µs among 10 backends", 1.0), (1000, "µs among 1000 backends", 5.0)];

fn judge_selections(report: &mut Report, table: &Table) {
    for (_, title, most) in COUNTS {
        let values = table.rows.iter().filter_map(|row| table.value(&row.name, title));
        let slowest = values.reduce(f64::max);
        report.at_most(&format!("{title}, the slowest strategy"), slowest, most, 2);
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
        selectable: false,
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
            strategy: None,
            binds: false,
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
