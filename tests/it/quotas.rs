//! Quotas and balances: use is counted in the store of the keys, and enforced.

use std::{path::Path, process::Command, sync::Arc, time::Duration};

use llmproxy::base::{period::now, terms::time_seconds};
use serde_json::{Value, json};

use super::{
    admin::Admin,
    support::{
        Gateway, chat, eventually,
        servers::{MariaDb, Postgres, Redis},
        sim, sim_with,
    },
};

/// Tokens of each chat with the simulated backend.
const CHAT: f64 = 25.0;

const DAY: i64 = 24 * 3600;

/// Reads a field of a key.
type Read<'a> = &'a dyn Fn(&str, &str) -> String;

/// A missing value, in the notation of any store, is 0.
fn number(text: &str) -> f64 {
    let text = if matches!(text, "" | "None" | "NULL") { "0" } else { text };
    text.parse().unwrap_or_else(|_| panic!("`{text}` is not a number"))
}

async fn with_provider(backend: &str, provider: &str) -> Gateway {
    let auth = format!("auth:\n  pipeline:\n    - {provider}\n");
    Gateway::before(&[backend.to_owned()], &auth).await
}

/// When the quota of `sk-daily` was last reset.
fn two_days_ago() -> i64 {
    now() - 2 * DAY - 600
}

/// Sends a request and waits until the field of the key has this value.
async fn uses(gateway: &Gateway, read: Read<'_>, key: &str, field: &str, left: f64) {
    assert_eq!(gateway.ask_as(key).await.status, 200, "{key}");
    eventually(&format!("{field} of {key} is {left}"), async || number(&read(key, field)) == left)
        .await;
}

/// With `sk-quota` (30 tokens and a balance of 100), `sk-balance` (30) and `sk-daily` (30 of 30
/// tokens used, two days ago).
async fn counts(gateway: &Gateway, read: Read<'_>) {
    let refused = async |key: &str| {
        let answer = gateway.ask_as(key).await;
        assert_eq!(answer.status, 429, "{key}");
        assert_eq!(answer.json()["error"]["code"], "QUOTA_EXCEEDED", "{key}");
    };
    for used in [CHAT, 2.0 * CHAT] {
        uses(gateway, read, "sk-quota", "used_quota", used).await;
        assert_eq!(number(&read("sk-quota", "balance")), 100.0 - used);
    }
    refused("sk-quota").await;
    for left in [30.0 - CHAT, 30.0 - 2.0 * CHAT] {
        uses(gateway, read, "sk-balance", "balance", left).await;
    }
    refused("sk-balance").await;
    // The period that began two days ago is over, and so is the next.
    let before = two_days_ago();
    uses(gateway, read, "sk-daily", "used_quota", CHAT).await;
    let reset = time_seconds(&Value::from(read("sk-daily", "last_reset_at"))).unwrap();
    let moved = reset - before;
    assert!((2 * DAY - 60..=2 * DAY + 60).contains(&moved), "{moved}");
    uses(gateway, read, "sk-daily", "used_quota", 2.0 * CHAT).await;
    assert_eq!(time_seconds(&Value::from(read("sk-daily", "last_reset_at"))), Ok(reset));
    refused("sk-daily").await;
    let log = gateway.log();
    assert!(!log.contains("sk-") && !log.contains("counted"), "{log}");
}

#[tokio::test]
async fn use_is_counted_in_redis_hashes() {
    let (sim, redis) = (sim().await, Redis::start().await);
    let set = |key: &str, fields: &str| {
        let name = format!("llmproxy:key:{key}");
        let words = ["HSET", &name].into_iter().chain(fields.split(','));
        redis.command(&words.collect::<Vec<_>>());
    };
    set("sk-quota", "total_quota,30,balance, 100 ,used_quota,");
    set("sk-balance", "balance,30,user_id,u");
    let last = two_days_ago();
    set(
        "sk-daily",
        &format!("total_quota,30,used_quota,30,quota_reset_period,Daily,last_reset_at,{last}"),
    );
    let address = redis.address;
    let provider = format!("{{type: redis, redis: {{addr: \"{address}\"}}}}");
    let gateway = with_provider(&sim.url(), &provider).await;
    let read =
        |key: &str, field: &str| redis.command(&["HGET", &format!("llmproxy:key:{key}"), field]);
    counts(&gateway, &read).await;
    // No fields or keys were created.
    assert_eq!(redis.command(&["HLEN", "llmproxy:key:sk-balance"]), "2");
    assert_eq!(redis.command(&["HLEN", "llmproxy:key:sk-quota"]), "3");
    // A key deleted during a request stays deleted.
    set("sk-gone", "balance,30");
    let mut client = gateway.client().await;
    let stream = chat(true);
    let key = "Authorization: Bearer sk-gone\r\n";
    client.post_with("/v1/chat/completions", key, stream.as_bytes()).await;
    client.head().await;
    redis.command(&["DEL", "llmproxy:key:sk-gone"]);
    client.answer_rest().await;
    let counting = async || gateway.metric("llmproxy_quota_counting").await == 0.0;
    eventually("no count is pending", counting).await;
    assert_eq!(redis.command(&["EXISTS", "llmproxy:key:sk-gone"]), "0");
}

#[tokio::test]
async fn use_is_counted_in_redis_json() {
    let (sim, redis) = (sim().await, Redis::start().await);
    let set = |key: &str, data: Value| {
        redis.command(&["SET", &format!("k:{key}"), &data.to_string(), "EX", "1000"]);
    };
    set("sk-quota", json!({"name": "n", "total_quota": 30, "balance": 100, "list": [1, {"a": 2}]}));
    set("sk-balance", json!({"balance": "30"}));
    set(
        "sk-daily",
        json!({"total_quota": 30, "used_quota": 30, "quota_reset_period": "daily",
            "last_reset_at": llmproxy::base::terms::time_text(two_days_ago())}),
    );
    let address = redis.address;
    let provider =
        format!("{{type: redis, redis: {{addr: \"{address}\", key_pattern: \"k:{{api_key}}\"}}}}");
    let gateway = with_provider(&sim.url(), &provider).await;
    let read = |key: &str, field: &str| {
        let text = redis.command(&["GET", &format!("k:{key}")]);
        let data: Value = serde_json::from_str(&text).unwrap();
        match &data[field] {
            Value::Null => "0".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        }
    };
    counts(&gateway, &read).await;
    assert_eq!(
        redis.command(&["GET", "k:sk-quota"]),
        r#"{"name":"n","total_quota":30,"balance":50,"list":[1,{"a":2}],"used_quota":50}"#
    );
    assert!(read("sk-daily", "last_reset_at").ends_with('Z'), "a text stays one");
    assert!(number(&redis.command(&["TTL", "k:sk-quota"])) > 0.0);
}

/// Two tables with the same keys, in different types.
fn tables(decimal: &str, moment: &str, double: &str, other_moment: &str) -> String {
    let columns = "quota_reset_period VARCHAR(16), total_quota INTEGER";
    let at = two_days_ago();
    let text = jiff::Timestamp::from_second(at).unwrap().strftime("%Y-%m-%d %H:%M:%S").to_string();
    let mut sql = format!(
        "CREATE TABLE api_keys (api_key VARCHAR(64) PRIMARY KEY, {columns}, used_quota BIGINT, balance {decimal}, last_reset_at {moment});
         CREATE TABLE other (api_key VARCHAR(64), {columns}, used_quota {double}, balance VARCHAR(30), last_reset_at {other_moment});\n"
    );
    for (table, last) in [("api_keys", format!("'{text}'")), ("other", at.to_string())] {
        sql.push_str(&format!(
            "INSERT INTO {table} VALUES ('sk-quota', NULL, 30, NULL, '100', NULL);
             INSERT INTO {table} VALUES ('sk-balance', '', 0, 7, '30', NULL);
             INSERT INTO {table} VALUES ('sk-daily', 'daily', 30, 30, NULL, {last});\n"
        ));
    }
    // For a case-insensitive database this is the same key.
    sql + "INSERT INTO other VALUES ('SK-QUOTA', NULL, 30, 0, '100', NULL);\n"
}

async fn database(source: &str, query: impl Fn(&str) -> String) {
    let sim = sim().await;
    for table in ["api_keys", "other"] {
        let provider = format!("{{type: database, database: {{{source}, table: {table}}}}}");
        let gateway = with_provider(&sim.url(), &provider).await;
        let read = |key: &str, field: &str| {
            query(&format!(
                "SELECT {field} FROM {table} WHERE api_key = '{key}' ORDER BY {field} DESC LIMIT 1"
            ))
        };
        counts(&gateway, &read).await;
        // A key without a quota is not counted.
        assert_eq!(number(&read("sk-balance", "used_quota")), 7.0);
    }
    let sum = query("SELECT SUM(used_quota) FROM other WHERE api_key IN ('sk-quota', 'SK-QUOTA')");
    assert_eq!(number(&sum), 50.0);
    // Only existing columns are updated.
    let fields = "fields: [quota_reset_period, total_quota, balance]";
    let provider = format!("{{type: database, database: {{{source}, {fields}}}}}");
    let gateway = with_provider(&sim.url(), &provider).await;
    let read = |_: &str, _: &str| query("SELECT balance FROM api_keys WHERE api_key = 'sk-quota'");
    uses(&gateway, &read, "sk-quota", "balance", 25.0).await;
    let used = query("SELECT used_quota FROM api_keys WHERE api_key = 'sk-quota'");
    assert_eq!(number(&used), 50.0);
}

fn sqlite(path: &Path, sql: &str) -> String {
    let script = "import sqlite3,sys
c = sqlite3.connect(sys.argv[1], timeout=10)
if sys.argv[2].startswith('SELECT'): print(c.execute(sys.argv[2]).fetchone()[0])
else: c.executescript(sys.argv[2])";
    let done = Command::new("python3").args(["-c", script]).arg(path).arg(sql).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn use_is_counted_in_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.db");
    sqlite(&path, &tables("DECIMAL(10,2)", "DATETIME", "REAL", "INTEGER"));
    let source = format!("driver: sqlite, dsn: \"{}\"", path.display());
    database(&source, |sql| sqlite(&path, sql)).await;
}

#[tokio::test]
async fn use_is_counted_in_postgresql() {
    let server = Postgres::start().await;
    server.run(&tables("NUMERIC(10,2)", "TIMESTAMPTZ", "REAL", "BIGINT"));
    // A database user without UPDATE can still read keys.
    server.run(
        "CREATE ROLE reader LOGIN PASSWORD 'reader'; GRANT SELECT ON api_keys TO reader;
         INSERT INTO api_keys VALUES ('sk-read', NULL, NULL, 0, 100, NULL);",
    );
    let source = format!("driver: postgres, dsn: \"{}\"", server.url());
    database(&source, |sql| server.run(sql)).await;
    let sim = sim().await;
    let (host, port) = (server.address.ip(), server.address.port());
    let dsn = format!("postgres://reader:reader@{host}:{port}/llmproxy");
    let provider = format!("{{type: database, database: {{driver: postgres, dsn: \"{dsn}\"}}}}");
    let gateway = with_provider(&sim.url(), &provider).await;
    assert_eq!(gateway.ask_as("sk-read").await.status, 200);
    gateway
        .logs("usage cannot be counted at present: the database refused: permission denied")
        .await;
    assert_eq!(gateway.metric("llmproxy_quota_counting").await, 1.0);
}

#[tokio::test]
async fn use_is_counted_in_mariadb() {
    let server = MariaDb::start().await;
    server.run(&tables("DECIMAL(10,2)", "DATETIME", "BIGINT UNSIGNED", "BIGINT"));
    let source = format!("driver: mysql, dsn: \"{}\"", server.url());
    database(&source, |sql| server.run(sql)).await;
}

#[tokio::test]
async fn use_is_counted_in_the_builtin_store() {
    let sim = sim().await;
    let admin = Admin::start(&[sim.url()], "").await;
    let path = admin.folder.path().join("keys.db");
    for spec in [
        json!({"key": "sk-quota-1", "name": "sk-quota", "total_quota": 30, "balance": 100}),
        json!({"key": "sk-balance-1", "name": "sk-balance", "balance": 30}),
        json!({"key": "sk-daily-1", "name": "sk-daily", "total_quota": 30, "used_quota": 30,
            "quota_reset_period": "daily"}),
    ] {
        assert_eq!(admin.post("/admin/v1/keys", spec).await.0, 201);
    }
    let last = two_days_ago();
    sqlite(&path, &format!("UPDATE api_keys SET last_reset_at = {last} WHERE name = 'sk-daily'"));
    let keys = admin.get("/admin/v1/keys").await;
    let key = |name: &str| {
        let all = keys["keys"].as_array().unwrap();
        all.iter().find(|k| k["name"] == name).unwrap().clone()
    };
    let (id, updated) = (key("sk-quota")["id"].clone(), key("sk-quota")["updated_at"].clone());
    let at = format!("/admin/v1/keys/{}", id.as_str().unwrap());
    let read = |name: &str, field: &str| {
        sqlite(&path, &format!("SELECT {field} FROM api_keys WHERE name = '{name}'"))
    };
    let ask = async |key: &str| admin.gateway.ask_as(key).await.status;
    let used = async |name: &str, used: f64| {
        eventually(&format!("{used} of {name} are used"), async || {
            number(&read(name, "used_quota")) == used
        })
        .await;
    };
    for sum in [25.0, 50.0] {
        assert_eq!(ask("sk-quota-1").await, 200);
        used("sk-quota", sum).await;
    }
    assert_eq!(ask("sk-quota-1").await, 429);
    let shown = admin.get(&at).await;
    assert_eq!((&shown["used_quota"], &shown["balance"]), (&json!(50.0), &json!(50.0)));
    assert_eq!((&shown["updated_at"], &shown["last_reset_at"]), (&updated, &Value::Null));
    assert_eq!(ask("sk-daily-1").await, 200);
    used("sk-daily", 25.0).await;
    let reset: i64 = read("sk-daily", "last_reset_at").parse().unwrap();
    assert_eq!(reset, last + 2 * DAY);
    // An operator's change takes effect immediately.
    let patch = json!({"used_quota": 0});
    assert_eq!(admin.ask(reqwest::Method::PATCH, &at, Some(patch)).await.0, 200);
    assert_eq!(ask("sk-quota-1").await, 200);
    used("sk-quota", 25.0).await;
    // A change of another field loses no counts.
    let patch = json!({"user_id": "u"});
    assert_eq!(admin.ask(reqwest::Method::PATCH, &at, Some(patch)).await.0, 200);
    assert_eq!(number(&read("sk-quota", "used_quota")), 25.0);
    for left in [5.0, -20.0] {
        assert_eq!(ask("sk-balance-1").await, 200);
        eventually("the balance is lower", async || number(&read("sk-balance", "balance")) == left)
            .await;
    }
    assert_eq!(ask("sk-balance-1").await, 429);
}

/// Two gateways, and twenty requests to each at once.
async fn nothing_is_lost(provider: &str, read: Read<'_>) {
    let sim = sim().await;
    let (one, two) =
        (with_provider(&sim.url(), provider).await, with_provider(&sim.url(), provider).await);
    let gateways = [Arc::new(one), Arc::new(two)];
    let asked: Vec<_> = (0..40)
        .map(|n| {
            let gateway = Arc::clone(&gateways[n % 2]);
            tokio::spawn(async move { gateway.ask_as("sk-many-00001").await.status })
        })
        .collect();
    for one in asked {
        assert_eq!(one.await.unwrap(), 200);
    }
    for gateway in &gateways {
        let metric = async || gateway.metric("llmproxy_quota_counting").await == 0.0;
        eventually("all counts are written", async || {
            metric().await && number(&read("sk-many-00001", "used_quota")) >= 1000.0
        })
        .await;
    }
    assert_eq!(number(&read("sk-many-00001", "used_quota")), 1000.0);
    assert_eq!(number(&read("sk-many-00001", "balance")), 99_000.0);
}

#[tokio::test]
async fn two_gateways_with_one_redis_lose_no_counts() {
    let redis = Redis::start().await;
    let data = r#"{"total_quota":100000,"balance":100000}"#;
    redis.command(&["HSET", "h:sk-many-00001", "total_quota", "100000", "balance", "100000"]);
    redis.command(&["SET", "s:sk-many-00001", data]);
    let provider = |prefix: &str| {
        let address = redis.address;
        format!(
            "{{type: redis, redis: {{addr: \"{address}\", key_pattern: \"{prefix}:{{api_key}}\"}}}}"
        )
    };
    nothing_is_lost(&provider("h"), &|key, field| {
        redis.command(&["HGET", &format!("h:{key}"), field])
    })
    .await;
    nothing_is_lost(&provider("s"), &|key, field| {
        let text = redis.command(&["GET", &format!("s:{key}")]);
        let data: Value = serde_json::from_str(&text).unwrap();
        data[field].as_i64().unwrap_or_default().to_string()
    })
    .await;
}

#[tokio::test]
async fn two_gateways_with_one_database_lose_no_counts() {
    let make = "CREATE TABLE api_keys (api_key VARCHAR(64) PRIMARY KEY, total_quota BIGINT, used_quota BIGINT, balance DECIMAL(12,2));
         INSERT INTO api_keys VALUES ('sk-many-00001', 100000, 0, 100000);";
    let postgres = Postgres::start().await;
    postgres.run(make);
    let provider = |driver: &str, url: &str| {
        format!("{{type: database, cache_ttl: 0, database: {{driver: {driver}, dsn: \"{url}\"}}}}")
    };
    let select = |field: &str| format!("SELECT {field} FROM api_keys");
    nothing_is_lost(&provider("postgres", &postgres.url()), &|_, field| {
        postgres.run(&select(field))
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.db");
    sqlite(&path, make);
    nothing_is_lost(&provider("sqlite", &path.display().to_string()), &|_, field| {
        sqlite(&path, &select(field))
    })
    .await;
}

#[tokio::test]
async fn a_count_waits_for_a_store_that_is_down() {
    let (sim, mut postgres) = (sim().await, Postgres::start().await);
    postgres.run(
        "CREATE TABLE api_keys (api_key TEXT, total_quota BIGINT, used_quota BIGINT);
         INSERT INTO api_keys VALUES ('sk-away-00001', 60, NULL);",
    );
    let provider = format!(
        "{{type: database, cache_ttl: 1h, database: {{driver: postgres, dsn: \"{}\"}}}}",
        postgres.url()
    );
    let gateway = with_provider(&sim.url(), &provider).await;
    let select = "SELECT used_quota FROM api_keys";
    assert_eq!(gateway.ask_as("sk-away-00001").await.status, 200);
    eventually("the use is counted", async || postgres.run(select) == "25").await;
    postgres.stop();
    for _ in 0..2 {
        assert_eq!(gateway.ask_as("sk-away-00001").await.status, 200);
    }
    gateway.logs("usage cannot be counted at present").await;
    let settled = async || gateway.log().matches("ACCESS").count() == 3;
    eventually("all requests are settled", settled).await;
    // Pending counts are enforced by this gateway.
    assert_eq!(gateway.ask_as("sk-away-00001").await.status, 429);
    assert_eq!(gateway.metric("llmproxy_quota_counting").await, 1.0);
    postgres.restart().await;
    eventually("all use is counted", async || postgres.run(select) == "75").await;
    let lost = "llmproxy_quota_count_errors_total{provider=\"database\"}";
    assert_eq!(gateway.metric(lost).await, 0.0);
    assert!(!gateway.log().contains("sk-away"));
}

#[tokio::test]
async fn pending_counts_are_written_before_shutdown() {
    let (sim, redis) = (sim().await, Redis::start().await);
    redis.command(&["HSET", "llmproxy:key:sk-end-000001", "balance", "100"]);
    let address = redis.address;
    let provider = format!("{{type: redis, cache_ttl: 1h, redis: {{addr: \"{address}\"}}}}");
    let mut gateway = with_provider(&sim.url(), &provider).await;
    let balance = || redis.command(&["HGET", "llmproxy:key:sk-end-000001", "balance"]);
    assert_eq!(gateway.ask_as("sk-end-000001").await.status, 200);
    eventually("the use is counted", async || balance() == "75").await;
    redis.pause();
    assert_eq!(gateway.ask_as("sk-end-000001").await.status, 200);
    let counting = async || gateway.metric("llmproxy_quota_counting").await == 1.0;
    eventually("a count is pending", counting).await;
    gateway.signal("TERM");
    gateway.logs("no new connections").await;
    redis.resume();
    assert!(gateway.ended().await.success());
    assert_eq!(balance(), "50");
}

/// Without a cache the store is read while a count is being written: the same use must not count twice.
#[tokio::test]
async fn a_count_in_progress_is_not_counted_twice() {
    let (sim, redis) = (sim().await, Redis::start().await);
    redis.command(&["HSET", "llmproxy:key:sk-once-00001", "total_quota", "1000"]);
    let address = redis.address;
    let provider = format!("{{type: redis, cache_ttl: 0, redis: {{addr: \"{address}\"}}}}");
    let gateway = with_provider(&sim.url(), &provider).await;
    for n in 0..40 {
        assert_eq!(gateway.ask_as("sk-once-00001").await.status, 200, "request {n}");
    }
    let used = || redis.command(&["HGET", "llmproxy:key:sk-once-00001", "used_quota"]);
    eventually("all use is counted", async || used() == "1000").await;
    assert_eq!(gateway.ask_as("sk-once-00001").await.status, 429);
}

#[tokio::test]
async fn counting_can_be_switched_off() {
    let (sim, redis) = (sim().await, Redis::start().await);
    redis.command(&["HSET", "llmproxy:key:sk-else-00001", "total_quota", "30", "balance", "30"]);
    let address = redis.address;
    let provider = format!("{{type: redis, count_usage: false, redis: {{addr: \"{address}\"}}}}");
    let gateway = with_provider(&sim.url(), &provider).await;
    for _ in 0..4 {
        assert_eq!(gateway.ask_as("sk-else-00001").await.status, 200);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let all = redis.command(&["HGETALL", "llmproxy:key:sk-else-00001"]);
    assert_eq!(all, "total_quota\n30\nbalance\n30");
}

#[tokio::test]
async fn a_store_listed_twice_in_the_pipeline_is_counted_once() {
    let (sim, redis) = (sim().await, Redis::start().await);
    redis.command(&["HSET", "llmproxy:key:sk-twice-0001", "total_quota", "40"]);
    let address = redis.address;
    let provider = |name: &str, more: &str| {
        format!("{{type: redis, name: {name}, redis: {{addr: \"{address}\"}}{more}}}")
    };
    let (one, two) = (provider("one", ""), provider("two", ", lua_script: \"return true\""));
    let text = format!("auth: {{mode: all, pipeline: [{one}, {two}]}}\n");
    let gateway = Gateway::before(&[sim.url()], &text).await;
    let used = || redis.command(&["HGET", "llmproxy:key:sk-twice-0001", "used_quota"]);
    assert_eq!(gateway.ask_as("sk-twice-0001").await.status, 200);
    eventually("the use is counted", async || used() == "25").await;
    // Also after a reload, which keeps the cache.
    gateway.rewrite(&format!("backends: [{{url: \"{}\"}}]\n{text}", sim.url()));
    gateway.logs("configuration 2 is in force").await;
    assert_eq!(gateway.ask_as("sk-twice-0001").await.status, 200);
    eventually("the use is counted", async || used() == "50").await;
    assert_eq!(gateway.ask_as("sk-twice-0001").await.status, 429);
    assert_eq!(used(), "50");
}

#[tokio::test]
async fn an_aborted_stream_counts_the_metered_tokens() {
    let sim = sim_with(|b| (b.tokens, b.inter_token_ms) = (10_000, 20)).await;
    let redis = Redis::start().await;
    redis.command(&["HSET", "llmproxy:key:sk-left-00001", "total_quota", "30", "used_quota", "0"]);
    let address = redis.address;
    let provider = format!("{{type: redis, redis: {{addr: \"{address}\"}}}}");
    let gateway = with_provider(&sim.url(), &provider).await;
    let mut client = gateway.client().await;
    let key = "Authorization: Bearer sk-left-00001\r\n";
    client.post_with("/v1/chat/completions", key, chat(true).as_bytes()).await;
    client.head().await;
    for _ in 0..5 {
        client.chunk().await.unwrap();
    }
    drop(client);
    let used = || redis.command(&["HGET", "llmproxy:key:sk-left-00001", "used_quota"]);
    eventually("the use is counted", async || used() != "0").await;
    let used = number(&used());
    assert!((10.0..5000.0).contains(&used), "{used}");
}

/// Keys of the configuration, whose use the gateway counts in its own ledger.
fn in_the_file(more: &str) -> String {
    format!(
        "auth: {{}}\napi_keys:\n  \
         - {{key: sk-quota, total_quota: 130, used_quota: 100, quota_reset_period: monthly}}\n  \
         - {{key: sk-balance, balance: 30}}\n{more}"
    )
}

async fn used_up(gateway: &Gateway, key: &str) -> bool {
    let answer = gateway.ask_as(key).await;
    if answer.status == 200 {
        return false;
    }
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_str().unwrap()),
        (429, "QUOTA_EXCEEDED")
    );
    let wait: i64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=31 * DAY).contains(&wait), "{wait}");
    true
}

#[tokio::test]
async fn use_of_configured_keys_survives_a_restart() {
    let sim = sim().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("limits.db");
    let more = format!("rate_limit: {{db_path: \"{}\"}}\n", file.display());
    let mut gateway = Gateway::before(&[sim.url()], &in_the_file(&more)).await;
    for key in ["sk-quota", "sk-balance"] {
        assert!(!used_up(&gateway, key).await && !used_up(&gateway, key).await, "{key}");
        assert!(used_up(&gateway, key).await, "{key}");
    }
    assert!(
        gateway.metric("llmproxy_limit_refused_total{rule=\"per_key.total_quota\"}").await > 0.0
    );
    gateway.signal("TERM");
    assert!(gateway.ended().await.success());
    let gateway = Gateway::before(&[sim.url()], &in_the_file(&more)).await;
    for key in ["sk-quota", "sk-balance"] {
        assert!(used_up(&gateway, key).await, "{key}");
    }
    // A larger quota keeps the use so far.
    let granted = in_the_file(&more).replace("total_quota: 130", "total_quota: 160");
    gateway.rewrite(&format!("backends: [{{url: \"{}\"}}]\n{granted}", sim.url()));
    eventually("the quota is larger", async || gateway.ask_as("sk-quota").await.status == 200)
        .await;
    assert!(used_up(&gateway, "sk-quota").await);
}

#[tokio::test]
async fn quotas_of_configured_keys_can_be_left_unenforced() {
    let sim = sim().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("limits.db");
    let more = format!("rate_limit: {{db_path: \"{}\"}}\n", file.display());
    let lenient = in_the_file(&more)
        .replace("auth: {}", "auth: {status_codes: {quota_exceeded: {allow: true}}}");
    let gateway = Gateway::before(&[sim.url()], &lenient).await;
    for _ in 0..4 {
        assert_eq!(gateway.ask_as("sk-quota").await.status, 200);
    }
    // Their use was still counted.
    gateway.rewrite(&format!("backends: [{{url: \"{}\"}}]\n{}", sim.url(), in_the_file(&more)));
    eventually("the quota is enforced", async || gateway.ask_as("sk-quota").await.status == 429)
        .await;
}

#[tokio::test]
async fn use_of_configured_keys_can_be_shared_in_redis() {
    let (sim, redis) = (sim().await, Redis::start().await);
    let more = format!(
        "storage: {{caches: [{{name: main, driver: redis, addr: \"{}\"}}]}}\n\
         rate_limit: {{storage: redis, redis: main}}\n",
        redis.address
    );
    let configuration = in_the_file(&more);
    let (a, b) = (
        Gateway::before(&[sim.url()], &configuration).await,
        Gateway::before(&[sim.url()], &configuration).await,
    );
    for key in ["sk-quota", "sk-balance"] {
        assert!(!used_up(&a, key).await, "{key}");
        assert!(!used_up(&b, key).await, "{key}");
        eventually("both gateways know the use", async || {
            used_up(&a, key).await && used_up(&b, key).await
        })
        .await;
    }
}

#[tokio::test]
async fn a_balance_is_in_money_if_tokens_have_prices() {
    let sim = sim().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("limits.db");
    // 9 tokens in and 16 out: 0.041.
    let more = format!(
        "rate_limit:\n  db_path: \"{}\"\n  \
         prices: {{\"sim-*\": {{input: 1000, output: 2000}}}}\n",
        file.display()
    );
    let configuration = in_the_file(&more).replace("balance: 30", "balance: 0.06");
    let gateway = Gateway::before(&[sim.url()], &configuration).await;
    assert!(!used_up(&gateway, "sk-balance").await && !used_up(&gateway, "sk-balance").await);
    assert!(used_up(&gateway, "sk-balance").await);
}

#[tokio::test]
async fn a_script_decides_alone_about_configured_keys() {
    let sim = sim().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("limits.db");
    let provider = "{type: static, lua_script: \"return true\", \
                    static: {keys: [{key: sk-scripted, total_quota: 30}]}}";
    let more = format!(
        "auth:\n  pipeline:\n    - {provider}\nrate_limit: {{db_path: \"{}\"}}\n",
        file.display()
    );
    let gateway = Gateway::before(&[sim.url()], &more).await;
    for _ in 0..4 {
        assert_eq!(gateway.ask_as("sk-scripted").await.status, 200);
    }
}
