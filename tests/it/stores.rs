//! Keys in real stores: Redis, SQLite, PostgreSQL, MariaDB and HTTP services, in every form in
//! which they may stand there, and what happens while a store is away.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use llmproxy::sim::Sim;
use serde_json::{Value, json};

use super::support::{
    Gateway, Receiver, eventually,
    servers::{DATABASE, MariaDb, PASSWORD, Postgres, Redis, USER},
    sim,
};

/// A gateway with one provider.
async fn with_provider(sim: &Sim, provider: &str, more: &str) -> Gateway {
    Gateway::before(&[sim.url()], &format!("auth:\n  pipeline:\n    - {provider}\n{more}")).await
}

/// Questions that the provider `p` has been asked.
async fn asked(gateway: &Gateway) -> f64 {
    let mut sum = 0.0;
    for result in ["found", "unknown", "error"] {
        let name =
            format!("llmproxy_auth_query_seconds_count{{provider=\"p\",result=\"{result}\"}}");
        sum += gateway.metric(&name).await;
    }
    sum
}

/// Keys that mean the same in every store, and the status they are answered with.
const STATUSES: [(&str, u16); 14] = [
    ("sk-word-active", 200),
    ("sk-word-disabled", 403),
    ("sk-word-expired", 403),
    ("sk-word-quota_exceeded", 429),
    ("sk-word-paused", 403),
    ("sk-number-0", 200),
    ("sk-number-1", 403),
    ("sk-number-2", 429),
    ("sk-number-3", 403),
    ("sk-number-9", 403),
    ("sk-balance-5", 200),
    ("sk-balance-0", 429),
    ("sk-late", 403),
    ("sk-unknown", 401),
];

/// What a database is asked for with keys that were made to do harm.
const HARMFUL: [&str; 5] = [
    "' OR '1'='1",
    "x'; DROP TABLE api_keys; --",
    "\" OR \"\"=\"",
    "sk-word-activ_",
    "SK-WORD-ACTIVE",
];

async fn means_the_same(gateway: &Gateway, what: &str) {
    for (key, status) in STATUSES {
        assert_eq!(gateway.ask_as(key).await.status, status, "{what}: {key}");
    }
    for key in HARMFUL {
        assert_eq!(gateway.ask_as(key).await.status, 401, "{what}: {key}");
    }
    assert_eq!(gateway.ask_as("sk-word-active").await.status, 200, "{what}: afterwards");
}

#[tokio::test]
async fn redis_holds_keys_as_hashes_and_as_json() {
    let sim = sim().await;
    let redis = Redis::start_with(Some("s3cret word")).await;
    for (key, _) in STATUSES {
        let name = format!("llmproxy:key:{key}");
        let (field, value) = match key.split('-').collect::<Vec<_>>()[1..] {
            ["word" | "number", status] => ("status", status),
            ["balance", amount] => ("balance", amount),
            ["late"] => ("expires_at", "1600000000"),
            _ => continue,
        };
        redis.command(&["HSET", &name, field, value, "user_id", "user_001"]);
        let quoted =
            if value.parse::<i64>().is_ok() { value.into() } else { format!("\"{value}\"") };
        redis.command(&["SET", &format!("json:{key}"), &format!("{{\"{field}\":{quoted}}}")]);
    }
    redis.command(&["RPUSH", "llmproxy:key:sk-list", "1"]);
    redis.command(&["SET", "llmproxy:key:sk-text", "not json"]);
    let receiver = Receiver::start().await;
    let address = redis.address;
    let login = format!("addr: \"{address}\", password: \"s3cret word\"");
    let hashes = format!("{{type: redis, name: p, count_usage: false, redis: {{{login}}}}}");
    let gateway = with_provider(&sim, &hashes, &receiver.hook()).await;
    means_the_same(&gateway, "hash").await;
    let records = receiver.wait_for(STATUSES.len()).await;
    let served = records.iter().find(|r| r["status_code"] == 200).unwrap();
    assert_eq!(served["user_id"], "user_001");
    for wrong in ["sk-list", "sk-text"] {
        assert_eq!(gateway.ask_as(wrong).await.status, 503, "{wrong}");
    }
    gateway.logs("neither a hash nor a string").await;
    gateway.logs("not a JSON object").await;
    assert!(!gateway.log().contains("s3cret"));

    let named = "{type: redis, name: p, count_usage: false, redis: {storage: main, key_pattern: \"json:{api_key}\"}}";
    let storage = format!("storage: {{caches: [{{name: main, {login}, pool_size: 2}}]}}\n");
    let gateway = with_provider(&sim, named, &storage).await;
    means_the_same(&gateway, "json").await;

    let wrong =
        format!("{{type: redis, name: p, redis: {{addr: \"{address}\", password: wrong-pass}}}}");
    let gateway = with_provider(&sim, &wrong, "").await;
    let answer = gateway.ask_as("sk-word-active").await;
    assert_eq!(answer.json()["error"]["code"], "AUTH_UNAVAILABLE");
    assert!(answer.header("retry-after").is_some());
    assert!(!gateway.log().contains("wrong-pass"));
}

#[tokio::test]
async fn answers_are_remembered_and_one_question_serves_all() {
    let sim = sim().await;
    let redis = Redis::start().await;
    redis.command(&["HSET", "llmproxy:key:sk-known", "status", "active"]);
    let address = redis.address;
    let provider = |ttl: &str| {
        format!(
            "{{type: redis, name: p, cache_ttl: {ttl}, negative_cache_ttl: {ttl}, redis: {{addr: \"{address}\"}}}}"
        )
    };
    let gateway = Arc::new(with_provider(&sim, &provider("1h"), "").await);
    // A store that takes its time: all who come meanwhile wait for one answer.
    redis.pause();
    let many: Vec<_> = (0..1000)
        .map(|_| {
            let gateway = Arc::clone(&gateway);
            tokio::spawn(async move { gateway.ask_as("sk-known").await.status })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    redis.resume();
    for one in many {
        // The backend, in this one thread, may fail to accept a thousand connections at once: that
        // is no answer to the question who is calling.
        assert!(matches!(one.await.unwrap(), 200 | 502));
    }
    assert_eq!(asked(&gateway).await, 1.0);
    for _ in 0..5 {
        assert_eq!(gateway.ask_as("sk-nobody").await.status, 401);
    }
    assert_eq!(asked(&gateway).await, 2.0, "unknown keys are remembered too");
    // After its time an answer holds no longer.
    let short = with_provider(&sim, &provider("100ms"), "").await;
    assert_eq!(short.ask_as("sk-known").await.status, 200);
    redis.command(&["HSET", "llmproxy:key:sk-known", "status", "disabled"]);
    eventually("it is asked again", async || short.ask_as("sk-known").await.status == 403).await;
    assert_eq!(gateway.ask_as("sk-known").await.status, 200, "its answer still holds");
}

#[tokio::test]
async fn what_happens_while_a_store_is_away_is_configured() {
    let sim = sim().await;
    let mut redis = Redis::start().await;
    redis.command(&["HSET", "llmproxy:key:sk-known", "status", "active"]);
    let address = redis.address;
    let provider = |on_error: &str| {
        format!(
            "{{type: redis, name: p, cache_ttl: 0, timeout: 300ms, on_error: {on_error}, redis: {{addr: \"{address}\"}}}}"
        )
    };
    let deny = with_provider(&sim, &provider("deny"), "").await;
    let cached = with_provider(&sim, &provider("allow_cached"), "").await;
    let fallback = "api_keys: [{key: sk-known}]\n    - {type: file}\n";
    let (keys, file) = fallback.split_once('\n').unwrap();
    let next = with_provider(&sim, &format!("{}\n{file}", provider("deny")), keys).await;
    for gateway in [&deny, &cached, &next] {
        assert_eq!(gateway.ask_as("sk-known").await.status, 200);
    }
    // Slow, then gone: the same.
    redis.pause();
    for gone in [false, true] {
        if gone {
            redis.resume();
            redis.stop();
        }
        let refused = deny.ask_as("sk-known").await;
        assert_eq!(refused.status, 503, "gone: {gone}");
        assert_eq!(cached.ask_as("sk-known").await.status, 200, "gone: {gone}");
        assert_eq!(cached.ask_as("sk-never-seen").await.status, 503, "gone: {gone}");
        assert_eq!(next.ask_as("sk-known").await.status, 200, "gone: {gone}");
    }
    cached.logs("its last answer is still used").await;
    redis.restart().await;
    redis.command(&["HSET", "llmproxy:key:sk-known", "status", "active"]);
    eventually("the store is used again", async || deny.ask_as("sk-known").await.status == 200)
        .await;
}

/// The same table in three languages.
fn table(number: &str, decimal: &str, moment: &str, status: &str) -> String {
    let create = format!(
        "CREATE TABLE api_keys (id INTEGER, api_key VARCHAR(64) PRIMARY KEY, user_id VARCHAR(64), \
         status {status}, balance {decimal}, expired_at {moment}, tokens {number}, extra VARCHAR(200), secret_note VARCHAR(20));\n"
    );
    let rows = STATUSES.iter().enumerate().filter_map(|(i, (key, _))| {
        let (mut status, mut balance, mut expired) = ("NULL", "NULL", "NULL");
        let text;
        match key.split('-').collect::<Vec<_>>()[1..] {
            ["word" | "number", value] => {
                text = format!("'{value}'");
                status = &text;
            }
            ["balance", amount] => balance = amount,
            ["late"] => expired = "'2020-01-01 00:00:00'",
            _ => return None,
        }
        Some(format!(
            "INSERT INTO api_keys VALUES ({i}, '{key}', 'user_{i:03}', {status}, {balance}, {expired}, \
             9007199254740993, '{{\"a\":1}}', 'hidden');\n"
        ))
    });
    let numbers = "CREATE TABLE numbers (api_key VARCHAR(64) PRIMARY KEY, status INTEGER);\n\
         INSERT INTO numbers VALUES ('sk-0', 0), ('sk-1', 1), ('sk-2', 2), ('sk-3', 3), ('sk-9', 9);\n";
    create + numbers + &rows.collect::<String>()
}

/// A script that tells what it sees.
const TELL: &str = "lua_script: \"return {metadata = {row = json.encode(data)}}\"";

async fn the_row(gateway: &Gateway, receiver: &Receiver, key: &str) -> Value {
    let before = receiver.all().len();
    assert_eq!(gateway.ask_as(key).await.status, 200);
    let record = receiver.wait_for(before + 1).await.last().unwrap().clone();
    serde_json::from_str(record["metadata"]["row"].as_str().unwrap()).unwrap()
}

/// All that a database must do.
async fn database(source: &str, storage: &str) {
    let sim = sim().await;
    let receiver = Receiver::start().await;
    // The same rows serve several gateways, and must stay as they are.
    let provider =
        format!("{{type: database, name: p, count_usage: false, database: {{{source}}}}}");
    let gateway = with_provider(&sim, &provider, storage).await;
    means_the_same(&gateway, source).await;
    let provider =
        format!("{{type: database, name: p, count_usage: false, {TELL}, database: {{{source}}}}}");
    let gateway = with_provider(&sim, &provider, &format!("{storage}{}", receiver.hook())).await;
    let row = the_row(&gateway, &receiver, "sk-balance-5").await;
    assert_eq!(row["balance"], 5, "{row}");
    assert_eq!(row["tokens"], 9_007_199_254_740_993_i64);
    assert_eq!((&row["user_id"], row.get("status")), (&"user_010".into(), None));
    assert!(row.get("api_key").is_none(), "the key itself is not in its data: {row}");
    let late = the_row(&gateway, &receiver, "sk-late").await;
    let moment = llmproxy::base::terms::time_seconds(&late["expired_at"]);
    assert_eq!(moment, Ok(1_577_836_800), "{late}");
    // Only the columns that are wanted.
    let fields =
        format!("{source}, table: api_keys, key_column: api_key, fields: [user_id, extra]");
    let provider =
        format!("{{type: database, name: p, count_usage: false, {TELL}, database: {{{fields}}}}}");
    let gateway = with_provider(&sim, &provider, &format!("{storage}{}", receiver.hook())).await;
    let row = the_row(&gateway, &receiver, "sk-balance-5").await;
    assert_eq!(row, json!({"user_id": "user_010", "extra": "{\"a\":1}"}));
    let provider = format!("{{type: database, name: p, database: {{{source}, table: numbers}}}}");
    let gateway = with_provider(&sim, &provider, storage).await;
    for (key, status) in [("sk-0", 200), ("sk-1", 403), ("sk-2", 429), ("sk-3", 403), ("sk-9", 403)]
    {
        assert_eq!(gateway.ask_as(key).await.status, status, "{source}: number {key}");
    }
    // A column that is not there is the store's failure, not a reason to let anybody in.
    let fields = format!("{source}, fields: [nothing]");
    let provider = format!("{{type: database, name: p, database: {{{fields}}}}}");
    let gateway = with_provider(&sim, &provider, storage).await;
    assert_eq!(gateway.ask_as("sk-word-active").await.status, 503);
    gateway.logs("nothing").await;
    assert!(!gateway.log().contains("sk-word-active"));
    // SQLite would take the name of such a column for a text, and find it in every row.
    let fields = format!("{source}, key_column: nothing");
    let provider = format!("{{type: database, name: p, database: {{{fields}}}}}");
    let gateway = with_provider(&sim, &provider, storage).await;
    assert_eq!(gateway.ask_as("nothing").await.status, 503);
}

#[tokio::test]
async fn sqlite_is_a_database() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.db");
    let made = std::process::Command::new("python3")
        .args(["-c", "import sqlite3,sys; sqlite3.connect(sys.argv[1]).executescript(sys.argv[2])"])
        .arg(&path)
        .arg(table("BIGINT", "DECIMAL(10,2)", "DATETIME", "VARCHAR(16)"))
        .status();
    assert!(made.unwrap().success());
    let path = path.display();
    database(&format!("driver: sqlite, dsn: \"{path}\""), "").await;
    let storage =
        format!("storage: {{databases: [{{name: main, driver: sqlite, path: \"{path}\"}}]}}\n");
    database("storage: main", &storage).await;
    let sim = sim().await;
    let gone = "{type: database, name: p, database: {driver: sqlite, dsn: \"/no/such/file\"}}";
    let gateway = with_provider(&sim, gone, "").await;
    assert_eq!(gateway.ask_as("sk-word-active").await.status, 503);
    gateway.logs("unable to open database file").await;
}

#[tokio::test]
async fn postgresql_is_a_database() {
    let server = Postgres::start().await;
    server.run(&table("BIGINT", "NUMERIC(10,2)", "TIMESTAMP", "VARCHAR(16)"));
    database(&format!("driver: postgres, dsn: \"{}\"", server.url()), "").await;
    let (host, port) = (server.address.ip(), server.address.port());
    let storage = format!(
        "storage: {{databases: [{{name: main, driver: postgres, host: \"{host}\", port: {port}, user: {USER}, password: \"{PASSWORD}\", database: {DATABASE}}}]}}\n"
    );
    database("storage: main", &storage).await;
    // Types of its own.
    server.run(
        "CREATE TYPE mood AS ENUM ('active', 'disabled');
         CREATE TABLE own (api_key TEXT, status mood, allowed_ips TEXT[], metadata JSONB, expires_at TIMESTAMPTZ, ok BOOLEAN, part REAL, starts_at TIMESTAMP, small SMALLINT, day DATE, strange INET);
         INSERT INTO own VALUES ('sk-own', 'active', '{127.0.0.0/8}', '{\"tier\":\"gold\"}', '2100-01-01T00:00:00Z', true, 0.5, '-infinity', 7, '2026-01-01', NULL),
         ('sk-off', 'disabled', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
         ('sk-never', 'active', NULL, NULL, 'infinity', NULL, NULL, NULL, NULL, 'infinity', NULL),
         ('sk-always', 'active', NULL, NULL, '-infinity', NULL, NULL, NULL, NULL, NULL, NULL),
         ('sk-strange', 'active', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '10.0.0.1');",
    );
    let sim = sim().await;
    let receiver = Receiver::start().await;
    let source = format!("driver: postgres, dsn: \"{}\", table: own", server.url());
    let provider = format!("{{type: database, name: p, database: {{{source}}}}}");
    let gateway = with_provider(&sim, &provider, &receiver.hook()).await;
    assert_eq!(gateway.ask_as("sk-own").await.status, 200);
    assert_eq!(receiver.one().await["metadata"], json!({"tier": "gold"}));
    assert_eq!(gateway.ask_as("sk-off").await.status, 403);
    assert_eq!(gateway.ask_as("sk-never").await.status, 200);
    assert_eq!(gateway.ask_as("sk-always").await.status, 403);
    assert_eq!(gateway.ask_as("sk-strange").await.status, 503);
    gateway.logs("column `strange` has the type INET").await;
    let provider =
        format!("{{type: database, name: p, count_usage: false, {TELL}, database: {{{source}}}}}");
    let gateway = with_provider(&sim, &provider, &receiver.hook()).await;
    let row = the_row(&gateway, &receiver, "sk-own").await;
    assert_eq!(
        row,
        json!({"status": "active", "allowed_ips": ["127.0.0.0/8"], "metadata": {"tier": "gold"},
            "expires_at": 4_102_444_800_i64, "ok": true, "part": 0.5, "starts_at": 1, "small": 7, "day": 1_767_225_600})
    );
}

#[tokio::test]
async fn a_database_may_be_slow_or_away_and_come_back() {
    let mut server = Postgres::start().await;
    server.run(&table("BIGINT", "NUMERIC(10,2)", "TIMESTAMP", "VARCHAR(16)"));
    let sim = sim().await;
    let source = format!("driver: postgres, dsn: \"{}\"", server.url());
    let provider = format!(
        "{{type: database, name: p, cache_ttl: 0, timeout: 500ms, database: {{{source}}}}}"
    );
    let gateway = with_provider(&sim, &provider, "").await;
    assert_eq!(gateway.ask_as("sk-word-active").await.status, 200);
    server.pause();
    assert_eq!(gateway.ask_as("sk-word-active").await.status, 503);
    gateway.logs("no answer within 500ms").await;
    server.resume();
    let back = async || gateway.ask_as("sk-word-active").await.status == 200;
    eventually("the database is used again", back).await;
    server.stop();
    assert_eq!(gateway.ask_as("sk-word-active").await.status, 503);
    server.restart().await;
    eventually("the database is used again", back).await;
    assert!(!gateway.log().contains("p@ss"));
}

#[tokio::test]
async fn mariadb_is_a_database_also_away_and_back() {
    let mut server = MariaDb::start().await;
    server.run(&table("BIGINT", "DECIMAL(10,2)", "DATETIME", "VARCHAR(16)"));
    database(&format!("driver: mysql, dsn: \"{}\"", server.url()), "").await;
    let go = format!(
        "{USER}:{PASSWORD}@tcp({})/{DATABASE}?charset=utf8mb4&parseTime=True",
        server.address
    );
    database(&format!("driver: mysql, dsn: \"{go}\""), "").await;
    server.run(
        "CREATE TABLE own (api_key CHAR(40), status TINYINT(1), metadata JSON, big BIGINT UNSIGNED, part DOUBLE, day DATE, state ENUM('a','b'), span TIME);
         INSERT INTO own VALUES ('sk-own', 0, '{\"tier\":\"gold\"}', 18446744073709551615, 0.5, '2026-01-01', 'b', NULL), ('sk-off', 1, NULL, NULL, NULL, NULL, NULL, NULL), ('sk-span', 0, NULL, NULL, NULL, NULL, NULL, '01:00:00');",
    );
    let sim = sim().await;
    let source = format!("driver: mysql, dsn: \"{}\", table: own", server.url());
    let provider =
        format!("{{type: database, name: p, cache_ttl: 0, timeout: 2s, database: {{{source}}}}}");
    let gateway = with_provider(&sim, &provider, "").await;
    assert_eq!(gateway.ask_as("sk-own").await.status, 200);
    assert_eq!(gateway.ask_as("sk-off").await.status, 403);
    assert_eq!(gateway.ask_as("sk-span").await.status, 503);
    gateway.logs("column `span` of type TIME cannot be read").await;
    server.stop();
    assert_eq!(gateway.ask_as("sk-own").await.status, 503);
    server.restart().await;
    eventually("the database is used again", async || gateway.ask_as("sk-own").await.status == 200)
        .await;
    let mut client = gateway.client().await;
    assert_eq!(client.get("/health").await.status, 200);
    assert!(!gateway.log().contains("p@ss"));
}

/// A service that answers what the key says: `status-body`.
async fn service() -> (String, Arc<AtomicU64>) {
    type Asked = Arc<AtomicU64>;
    async fn answer(
        State(asked): State<Asked>,
        headers: HeaderMap,
        Json(question): Json<Value>,
    ) -> (StatusCode, String) {
        asked.fetch_add(1, Ordering::Relaxed);
        let key = question["api_key"].as_str().unwrap().to_owned();
        assert!(question["timestamp"].is_i64() && question.as_object().unwrap().len() == 2);
        assert_eq!(headers["x-secret"], "shared secret");
        if key == "200-slow" {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        let (status, body) = key.split_once('-').unwrap();
        (status.parse().unwrap(), body.to_owned())
    }
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}/check", listener.local_addr().unwrap());
    let asked = Asked::default();
    let app = Router::new().route("/check", post(answer)).with_state(Arc::clone(&asked));
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (url, asked)
}

#[tokio::test]
async fn a_webhook_lets_in_only_by_saying_so() {
    let sim = sim().await;
    let (url, asked) = service().await;
    let section = format!(
        "webhook: {{url: \"{url}\", timeout: 500ms, headers: {{X-Secret: shared secret}}}}"
    );
    let gateway = with_provider(&sim, &format!("{{type: webhook, name: p, {section}}}"), "").await;
    for (key, status) in [
        ("200-{}", 200),
        ("200-{\"code\":0,\"user_id\":\"u\",\"balance\":3}", 200),
        ("201-{\"status\":\"active\"}", 200),
        ("200-{\"code\":\"0\"}", 200),
        ("200-{\"code\":1}", 403),
        ("200-{\"status\":\"disabled\"}", 403),
        ("200-{\"balance\":0}", 429),
        ("200-[]", 503),
        ("200-true", 503),
        ("200-", 503),
        ("200-not json", 503),
        ("401-{}", 401),
        ("403-{\"status\":\"active\"}", 401),
        ("404-", 401),
        ("400-{}", 503),
        ("302-{}", 503),
        ("500-{\"status\":\"active\"}", 503),
        ("200-slow", 503),
    ] {
        assert_eq!(gateway.ask_as(key).await.status, status, "{key}");
    }
    let before = asked.load(Ordering::Relaxed);
    assert_eq!(gateway.ask_as("200-{}").await.status, 200);
    assert_eq!(asked.load(Ordering::Relaxed), before, "answers are remembered");
    assert!(!gateway.log().contains("shared secret"));
    let script = "lua: {name: webhook_result}";
    let gateway =
        with_provider(&sim, &format!("{{type: webhook, name: p, {script}, {section}}}"), "").await;
    let refused = gateway.ask_as("200-{\"code\":7,\"message\":\"\\u4f59\\u989d\"}").await;
    assert_eq!((refused.status, &refused.json()["error"]["message"]), (403, &"余额".into()));
    assert_eq!(gateway.ask_as("200-{\"code\":0}").await.status, 200);

    let nowhere = "webhook: {url: \"http://127.0.0.1:1/\"}";
    let gateway = with_provider(&sim, &format!("{{type: webhook, name: p, {nowhere}}}"), "").await;
    assert_eq!(gateway.ask_as("200-{}").await.status, 503);
}
