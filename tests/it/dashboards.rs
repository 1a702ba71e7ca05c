//! The dashboard, the alerts and the runbook refer to metrics that gateways expose.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use llmproxy::sim::{Fail, Sim};
use serde_json::Value;

use crate::support::{
    Client, Gateway, Receiver, chat, eventually, free_address,
    promql::{Labels, Reader, Scrape},
    promtool, sim_with,
};

const PATH: &str = "/v1/chat/completions";
const DASHBOARD: &str = "helm/llmproxy/files/dashboard.json";
const ALERTS: &str = "helm/llmproxy/files/alerts.yaml";
const ALERTS_TEST: &str = "tests/dashboards/alerts_test.yaml";

/// Families that are neither on the dashboard nor in an alert, with the reason.
const LEFT_OUT: [(&str, &str); 1] =
    [("process_virtual_memory_bytes", "what is reserved and not used costs nothing")];

fn file(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// A configuration that exposes all metrics.
fn configuration(sims: &[Sim; 2], receiver: &Receiver, redis: std::net::SocketAddr) -> String {
    let [good, bad] = [sims[0].url(), sims[1].url()];
    let hook = receiver.url();
    format!(
        r#"
backends:
  - {{name: good, url: "{good}", models: [sim-model]}}
  - {{name: bad, url: "{bad}", models: [sim-model, bad-model]}}
discovery: {{sources: [{{type: file, file: {{path: engines.yaml}}}}]}}
health_check: {{path: /health}}
routing:
  load_balance_strategy: least_load
  load: {{interval: 100ms}}
  circuit: {{consecutive_failures: 1, cooldown: 1h}}
auth:
  mode: first_match
  pipeline:
    - {{type: file}}
    - name: scripted
      type: static
      static: {{keys: [{{key: sk-scripted-01}}]}}
      lua_script: "error('no')"
    - {{name: away, type: redis, redis: {{addr: "{redis}"}}}}
api_keys:
  - {{key: sk-good-000001, user_id: user_001}}
rate_limit:
  per_key: {{tokens_per_minute: 1000000}}
  models: {{sim-model: {{max_concurrent: 1}}}}
  per_model: {{max_concurrent: 100}}
  queue: {{max_queue_size: 1}}
usage:
  reconciliation: {{enabled: true, interval: 100ms}}
  reporters:
    - {{name: billing, type: webhook, max_backoff: 50ms, webhook: {{url: "{hook}", retry: 0}}}}
"#
    )
}

const KEY: &str = "Authorization: Bearer sk-good-000001\r\n";

/// Makes a gateway expose all metrics, and reads them.
async fn scrape() -> Scrape {
    let sims = [
        sim_with(|b| (b.inter_token_ms, b.tokens, b.reasoning_tokens) = (5, 100, 5)).await,
        sim_with(|b| {
            b.models.push("bad-model".to_owned());
            b.fail = Fail::BeforeHeaders;
        })
        .await,
    ];
    let receiver = Receiver::start().await;
    receiver.refuse(1);
    receiver.poison("poison");
    let gateway = Gateway::start(&configuration(&sims, &receiver, free_address())).await;
    let text = format!("- {{url: \"{}\", name: found, models: [found-model]}}\n", sims[0].url());
    fs::write(gateway.path("engines.yaml"), text).unwrap();

    // One request streams, one waits for its end, and a third is refused.
    let mut first = gateway.client().await;
    first.post_with(PATH, KEY, chat(true).as_bytes()).await;
    first.head().await;
    let mut second = gateway.client().await;
    second.post_with(PATH, KEY, chat(false).as_bytes()).await;
    shows(&gateway, "llmproxy_limit_queue_depth 1").await;
    assert_eq!(gateway.ask_with(KEY).await.status, 429);
    first.answer_rest().await;
    assert_eq!(second.answer().await.status, 200);

    // One is translated.
    let body =
        r#"{"model":"sim-model","max_tokens":5,"messages":[{"role":"user","content":"Hi"}]}"#;
    let mut client = gateway.client().await;
    client.post_with("/v1/messages", KEY, body.as_bytes()).await;
    assert_eq!(client.answer().await.status, 200);

    // A backend keeps failing, key lookups fail, a script fails, a record is refused.
    let bad = chat(false).replace("sim-model", "bad-model");
    gateway.client().await.ask_with_key(&bad).await;
    assert_eq!(gateway.ask_as("sk-unknown-001").await.status, 503);
    assert_eq!(gateway.ask_as("sk-scripted-01").await.status, 403);
    gateway.ask_with(&format!("{KEY}X-Request-Id: poison\r\n")).await;
    eventually("the failing one is chosen", async || {
        gateway.ask_with(KEY).await;
        gateway.metric("llmproxy_circuit_opened_total{backend=\"bad\"}").await > 0.0
    })
    .await;
    for line in [
        "llmproxy_usage_dead_letters_total{reporter=\"billing\"} 1",
        "llmproxy_usage_delivery_errors_total{reporter=\"billing\"}",
        "llmproxy_usage_drift_ratio{backend=\"good\",type=\"prompt\"}",
        "llmproxy_discovery_up{source=\"file\"} 1",
        "llmproxy_backend_load{backend=\"good\",kind=\"kv_cache\"}",
        "llmproxy_backend_in_flight{backend=\"found\"}",
    ] {
        shows(&gateway, line).await;
    }
    let mut scrape = Scrape::default();
    scrape.add(gateway.client().await.get("/metrics").await.text());
    scrape
}

impl Client {
    async fn ask_with_key(&mut self, body: &str) -> crate::support::client::Response {
        self.post_with(PATH, KEY, body.as_bytes()).await;
        self.answer().await
    }
}

/// Waits for a line of `/metrics` with this start.
async fn shows(gateway: &Gateway, start: &str) {
    eventually(start, async || {
        let answer = gateway.client().await.get("/metrics").await;
        answer.text().lines().any(|line| line.starts_with(start))
    })
    .await;
}

/// A query with values for Grafana's variables.
fn filled_in(query: &str) -> String {
    let mut query = query.replace("$__rate_interval", "5m").replace("$__range", "1h");
    for name in ["job", "namespace", "instance", "backend", "model"] {
        query = query.replace(&format!("${name}"), ".*");
    }
    assert!(!query.contains('$'), "an unknown variable: {query}");
    query
}

/// All texts between `start` and `end`.
fn between<'a>(text: &'a str, start: &'a str, end: char) -> impl Iterator<Item = &'a str> {
    text.split(start).skip(1).map(move |rest| rest.split(end).next().unwrap().trim())
}

/// Whether a unit fits to a query.
fn suits(unit: &str, query: &str) -> bool {
    let millis = query.contains("_ms_bucket");
    millis == (unit == "ms")
        && match unit {
            "ms" => millis,
            "s" => query.contains("_seconds") && !query.contains("_seconds_count"),
            "bytes" => query.contains("_bytes") && !query.contains(" / "),
            "percentunit" => {
                [" / ", "_ratio", "kv_cache", "avg("].iter().any(|part| query.contains(part))
            }
            "reqps" | "wps" | "ops" => query.contains("rate(") && !query.contains(" / "),
            "short" => !query.contains("_bucket{"),
            _ => false,
        }
}

fn check_dashboard(reader: &mut Reader<'_>) {
    let dashboard: Value = serde_json::from_str(&file(DASHBOARD)).unwrap();
    assert_eq!(dashboard["uid"], "llmproxy");
    let (mut ids, mut titles) = (BTreeSet::new(), BTreeSet::new());
    let all = dashboard["panels"].as_array().unwrap();
    assert!(all.iter().all(|panel| ids.insert(panel["id"].as_u64().unwrap())), "an id twice");
    let mut row = String::new();
    for panel in all {
        let title = panel["title"].as_str().unwrap();
        if panel["type"] == "row" {
            row = title.to_owned();
            continue;
        }
        assert!(titles.insert(format!("{row}: {title}")), "{title} twice in {row}");
        assert!(!panel["description"].as_str().unwrap().is_empty(), "{title}");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        let unit = panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap();
        for target in panel["targets"].as_array().unwrap() {
            let query = filled_in(target["expr"].as_str().unwrap());
            let labels = reader.labels(&query).unwrap_or_else(|e| panic!("{title}: {query}: {e}"));
            for label in between(target["legendFormat"].as_str().unwrap(), "{{", '}') {
                assert!(labels.contains(label), "{title}: {query} has no {label} for its legend");
            }
            // A heatmap counts events and has its unit on the axis.
            assert!(panel["type"] == "heatmap" || suits(unit, &query), "{title}: {unit}: {query}");
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let Some(query) = variable["query"]["query"].as_str() else {
            assert_eq!(variable["type"], "datasource");
            continue;
        };
        let inner = query.strip_prefix("label_values(").unwrap().strip_suffix(')').unwrap();
        let (selector, label) = inner.rsplit_once(", ").unwrap();
        let labels = reader.labels(&filled_in(selector)).unwrap();
        assert!(labels.contains(label), "{query}");
    }
}

/// The alerts, by their names.
fn alerts() -> BTreeMap<String, Value> {
    let rules: Value = serde_yaml::from_str(&file(ALERTS)).unwrap();
    let groups = rules["groups"].as_array().unwrap();
    let all = groups.iter().flat_map(|group| group["rules"].as_array().unwrap());
    let named = all.map(|rule| (rule["alert"].as_str().unwrap().to_owned(), rule.clone()));
    let alerts: BTreeMap<_, _> = named.collect();
    let count: usize = groups.iter().map(|group| group["rules"].as_array().unwrap().len()).sum();
    assert_eq!(alerts.len(), count, "an alert has the name of another");
    alerts
}

fn check_alert(name: &str, rule: &Value, labels: &Labels) {
    let severity = rule["labels"]["severity"].as_str().unwrap();
    assert!(["critical", "warning"].contains(&severity), "{name}");
    let (note, query) = (&rule["annotations"], rule["expr"].as_str().unwrap());
    let text = format!("{} {}", note["summary"], note["description"]);
    for label in between(&text, "$labels.", ' ') {
        let label = label.trim_end_matches(|c: char| !c.is_alphanumeric());
        assert!(labels.contains(label), "{name} has no label {label}");
    }
    // The value is formatted in the unit of the query.
    let formats = |how: &str| text.contains(&format!("$value | {how} "));
    let share = query.contains(" / ") && !query.contains("_ratio_sum") || query.contains("_ratio{");
    assert_eq!(formats("humanizePercentage"), share && text.contains("$value"), "{name}");
    let times = query.contains("_seconds") && query.contains(" > ") && !query.contains("changes(");
    assert_eq!(formats("humanizeDuration"), times, "{name}");
    let bytes = query.contains("_bytes") && !query.contains(" / ");
    assert_eq!(formats("humanize1024"), bytes, "{name}");
    let anchor = format!("/docs/runbook.md#{}", name.to_lowercase());
    assert!(note["runbook_url"].as_str().unwrap().ends_with(&anchor), "{name}");
}

#[tokio::test]
async fn every_query_reads_existing_metrics() {
    let scrape = scrape().await;
    let mut reader = Reader::new(&scrape);
    check_dashboard(&mut reader);
    for (name, rule) in &alerts() {
        let query = rule["expr"].as_str().unwrap();
        let labels = reader.labels(query).unwrap_or_else(|e| panic!("{name}: {e}"));
        check_alert(name, rule, &labels);
    }
    let left_out: BTreeSet<_> = LEFT_OUT.iter().map(|(name, _)| (*name).to_owned()).collect();
    let shown: BTreeSet<_> = reader.used.union(&left_out).cloned().collect();
    let there: BTreeSet<_> = scrape.families.keys().cloned().collect();
    assert_eq!(there, shown, "each metric is looked at, or left out for a reason");
    assert_eq!(reader.used.intersection(&left_out).next(), None);
}

#[test]
fn errors_in_queries_are_found() {
    let mut scrape = Scrape::default();
    scrape.add(
        "# TYPE a counter\na{b=\"x\",c=\"y\"} 1\n# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_sum 1\n",
    );
    let mut reader = Reader::new(&scrape);
    let good =
        reader.labels("sum by (b, job) (rate(a{b=\"x\", job=\"anything\"}[5m])) > 0").unwrap();
    assert_eq!(good, ["b", "job"].map(str::to_owned).into());
    assert!(reader.labels("histogram_quantile(0.9, sum by (le) (rate(h_bucket[5m])))").is_ok());
    assert_eq!(reader.used, ["a", "h"].map(str::to_owned).into());
    for wrong in [
        "sum(",
        "z",
        "a{d=\"x\"}",
        "a{b=\"z\"}",
        "a{b=~\"z.*\"}",
        "h",
        "sum by (d) (a)",
        "sum(a) by (b) / sum(a) by (c)",
        "a and on (d) a",
        "histogram_quantile(0.9, sum(rate(h_bucket[5m])))",
    ] {
        assert!(reader.labels(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn each_alert_has_a_section_in_the_runbook() {
    let runbook = file("docs/runbook.md");
    let headings = runbook.lines().filter_map(|line| line.strip_prefix("### "));
    let headings: BTreeSet<_> = headings.map(str::to_owned).collect();
    assert_eq!(headings, alerts().into_keys().collect());
    // Each section has text.
    for part in runbook.split("\n### ").skip(1) {
        let (name, text) = part.split_once('\n').unwrap();
        let text = text.split("\n## ").next().unwrap();
        for word in ["**Means.**", "**Look.**", "**Do.**"] {
            assert!(text.contains(word), "{name}: {word}");
        }
    }
}

#[test]
fn each_alert_fires_at_the_right_time() {
    promtool::check(&["check", "rules", ALERTS]);
    promtool::check(&["test", "rules", ALERTS_TEST]);
    let tests: Value = serde_yaml::from_str(&file(ALERTS_TEST)).unwrap();
    let mut tested: BTreeMap<String, [bool; 2]> = BTreeMap::new();
    for test in tests["tests"].as_array().unwrap() {
        let name = test["name"].as_str().unwrap().split(' ').next().unwrap();
        let label = format!("alertname=\"{name}\"");
        for asked in test["promql_expr_test"].as_array().unwrap() {
            let fires = asked["exp_samples"].to_string().replace('\\', "").contains(&label);
            tested.entry(name.to_owned()).or_default()[usize::from(fires)] = true;
        }
    }
    for name in alerts().keys() {
        assert_eq!(tested.get(name), Some(&[true, true]), "{name} is not tested both ways");
    }
}

/// Waits for a count of errors.
async fn blamed(gateway: &Gateway, reason: &str, side: &str, n: u32) {
    let line = format!("llmproxy_errors_total{{reason=\"{reason}\",side=\"{side}\"}} {n}");
    shows(gateway, &line).await;
}

#[tokio::test]
async fn errors_are_counted_by_side() {
    let sim = sim_with(|b| b.inter_token_ms = 20).await;
    let gateway = Gateway::before(&[sim.url()], "routing: {circuit: {enabled: false}}\n").await;
    assert_eq!(gateway.ask_with("").await.status, 200);
    assert_eq!(gateway.client().await.get("/nowhere").await.status, 404);
    blamed(&gateway, "refused", "client", 1).await;
    let unknown = chat(false).replace("sim-model", "no-model");
    assert_eq!(gateway.client().await.ask(PATH, &unknown).await.status, 404);
    blamed(&gateway, "status", "client", 1).await;

    let mut client = gateway.client().await;
    client.post(PATH, chat(true)).await;
    client.head().await;
    drop(client);
    blamed(&gateway, "client_gone", "client", 1).await;

    sim.change(|b| b.fail = Fail::MidStream);
    gateway.client().await.ask(PATH, chat(true)).await;
    blamed(&gateway, "connection_broken", "backend", 1).await;
    sim.change(|b| b.fail = Fail::Error);
    gateway.ask_with("").await;
    blamed(&gateway, "status", "backend", 1).await;
    sim.refuse().await.unwrap();
    gateway.ask_with("").await;
    blamed(&gateway, "connect_failure", "backend", 1).await;

    let answer = gateway.client().await.get("/metrics").await;
    let errors = answer.text().lines().filter(|line| line.starts_with("llmproxy_errors_total{"));
    let count = |line: &str| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap();
    let total: f64 = errors.map(count).sum();
    assert_eq!(total, 6.0, "each once, and what went well not at all");
}

#[tokio::test]
async fn a_refusal_by_every_backend_is_a_backend_error() {
    let sims = [sim_with(|b| b.fail = Fail::Error).await, sim_with(|b| b.fail = Fail::Error).await];
    let urls = sims.each_ref().map(Sim::url);
    let gateway = Gateway::before(&urls, "routing: {circuit: {enabled: false}}\n").await;
    assert_eq!(gateway.ask_with("").await.status, 500);
    blamed(&gateway, "status", "backend", 1).await;
    assert_eq!(gateway.client().await.ask(PATH, chat(true)).await.status, 500);
    blamed(&gateway, "status", "backend", 2).await;
    blamed(&gateway, "internal_error", "gateway", 0).await;
}
