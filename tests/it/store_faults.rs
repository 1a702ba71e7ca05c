//! Databases that change under a running gateway, or are not there: a table that is altered while
//! statements for it are prepared on many connections, a server that refuses or says nothing.

use std::{path::Path, process::Command, time::Duration};

use futures::future::join_all;
use llmproxy::sim::Sim;

use super::support::{
    Gateway, eventually, free_address,
    servers::{DATABASE, MariaDb, PASSWORD, Postgres, USER},
    sim,
};

/// Keys that are good; more than there are connections.
const GOOD: usize = 8;

/// A gateway whose keys are in a database, of which nothing is remembered.
async fn with_database(sim: &Sim, connection: &str, more: &str) -> Gateway {
    let storage = format!(
        "storage: {{databases: [{{name: main, max_open_conns: 4, {connection}}}]}}\n\
         auth:\n  pipeline:\n    - {{type: database, name: p, cache_ttl: 0, {more}database: {{storage: main}}}}\n"
    );
    Gateway::before(&[sim.url()], &storage).await
}

/// Asks as all keys at once, on all connections, and once more as each: whatever is prepared
/// anywhere is used.
async fn all_are_right(gateway: &Gateway, after: &str) {
    for _ in 0..2 {
        let good = join_all(
            (0..GOOD)
                .map(|n| format!("sk-good-{n}"))
                .map(async |key| gateway.ask_as(&key).await.status),
        );
        assert_eq!(good.await, [200; GOOD], "{after}:\n{}", gateway.log());
        for (key, status) in [("sk-off", 403), ("sk-none", 401), ("SK-GOOD-1", 401)] {
            assert_eq!(gateway.ask_as(key).await.status, status, "{after}: {key}");
        }
    }
}

/// While the table cannot be read no key is unknown.
async fn none_is_known(gateway: &Gateway, after: &str) {
    for key in ["sk-good-0", "sk-good-1", "sk-off", "sk-none", "sk-new"] {
        assert_eq!(gateway.ask_as(key).await.status, 503, "{after}: {key}");
    }
}

fn made(columns: &str) -> String {
    let names: Vec<_> =
        columns.split(", ").map(|column| column.split(' ').next().unwrap()).collect();
    let row = |key: &str, status: &str| {
        let value = |name: &&str| match *name {
            "api_key" => format!("'{key}'"),
            "status" => format!("'{status}'"),
            "total_quota" => "1000000000".to_owned(),
            "used_quota" => "0".to_owned(),
            _ => "NULL".to_owned(),
        };
        format!("({})", names.iter().map(value).collect::<Vec<_>>().join(", "))
    };
    let good = (0..GOOD).map(|n| row(&format!("sk-good-{n}"), "active"));
    let rows: Vec<_> = good.chain([row("sk-off", "disabled")]).collect();
    format!("CREATE TABLE api_keys ({columns}); INSERT INTO api_keys VALUES {}", rows.join(", "))
}

const COLUMNS: &str =
    "api_key VARCHAR(40), status VARCHAR(16), total_quota BIGINT, used_quota BIGINT";

/// Alters the table under a gateway, in every way that keeps the keys; `own` are ways of this
/// database alone.
async fn altered(gateway: &Gateway, run: &dyn Fn(&str) -> String, own: &[&str]) {
    all_are_right(gateway, "at first").await;
    let common = [
        "ALTER TABLE api_keys ADD COLUMN note VARCHAR(20) DEFAULT 'disabled'",
        "ALTER TABLE api_keys ADD COLUMN more VARCHAR(20) DEFAULT 'sk-none'",
        "ALTER TABLE api_keys DROP COLUMN note",
        "ALTER TABLE api_keys RENAME COLUMN more TO other",
        "ALTER TABLE api_keys DROP COLUMN other",
        "ALTER TABLE api_keys RENAME COLUMN status TO state",
        // Between the two nobody asks: without a status every key is active.
        "ALTER TABLE api_keys RENAME COLUMN state TO status",
    ];
    for step in common.iter().chain(own) {
        run(step);
        if !step.ends_with("TO state") {
            all_are_right(gateway, step).await;
        }
    }
    for (step, back) in [
        (
            "ALTER TABLE api_keys RENAME COLUMN api_key TO secret".to_owned(),
            "ALTER TABLE api_keys RENAME COLUMN secret TO api_key".to_owned(),
        ),
        (
            "DROP TABLE api_keys".to_owned(),
            made(
                "status VARCHAR(16), note VARCHAR(9), api_key VARCHAR(40), used_quota BIGINT, total_quota BIGINT",
            ),
        ),
        ("ALTER TABLE api_keys RENAME TO gone".to_owned(), made("api_key TEXT, status TEXT")),
    ] {
        run(&step);
        none_is_known(gateway, &step).await;
        run(&back);
        // A failure is remembered for half a second, of each key by itself.
        assert_eq!(gateway.ask_as("sk-none-yet").await.status, 401, "{back}");
        let good = async || gateway.ask_as("sk-good-0").await.status == 200;
        eventually("keys are known again", good).await;
        tokio::time::sleep(Duration::from_millis(600)).await;
        all_are_right(gateway, &back).await;
    }
}

fn sqlite(path: &Path, sql: &str) -> String {
    let script = "import sqlite3,sys
c = sqlite3.connect(sys.argv[1], timeout=30)
if sys.argv[2].startswith('SELECT'): print(c.execute(sys.argv[2]).fetchone()[0])
else: c.executescript(sys.argv[2])";
    let done = Command::new("python3").args(["-c", script]).arg(path).arg(sql).output().unwrap();
    assert!(done.status.success(), "{sql}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

/// What was counted in the row of a key grows with each request, also after the table was altered
/// between two counts.
async fn counts(gateway: &Gateway, run: &dyn Fn(&str) -> String, own: &[&str]) {
    let used = || -> f64 {
        run("SELECT used_quota FROM api_keys WHERE api_key = 'sk-good-0'").parse().unwrap()
    };
    let common = [
        "SELECT 1",
        "ALTER TABLE api_keys ADD COLUMN first_note VARCHAR(20) DEFAULT '7'",
        "ALTER TABLE api_keys ADD COLUMN second_note VARCHAR(20)",
        "ALTER TABLE api_keys DROP COLUMN first_note",
    ];
    for step in common.iter().chain(own) {
        // On every connection.
        let asked = join_all(
            (0..GOOD)
                .map(|n| format!("sk-good-{n}"))
                .map(async |key| gateway.ask_as(&key).await.status),
        );
        assert_eq!(asked.await, [200; GOOD]);
        let idle = async || gateway.metric("llmproxy_quota_counting").await == 0.0;
        eventually("all is counted", idle).await;
        let before = used();
        run(step);
        assert_eq!(gateway.ask_as("sk-good-0").await.status, 200, "{step}");
        let counted = async || used() > before;
        eventually(&format!("it is counted after {step}"), counted).await;
    }
    assert!(!gateway.log().contains("cannot be counted"), "{}", gateway.log());
}

#[tokio::test]
async fn a_table_of_sqlite_is_altered() {
    for mode in ["DELETE", "WAL"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.db");
        sqlite(&path, &format!("PRAGMA journal_mode = {mode}; {}", made(COLUMNS)));
        let sim = sim().await;
        let source = format!("driver: sqlite, path: \"{}\"", path.display());
        let run = |sql: &str| sqlite(&path, sql);
        let gateway = with_database(&sim, &source, "").await;
        counts(&gateway, &run, &[]).await;
        drop(gateway);
        // Whoever counts writes, and waits for others: that is not what is asked here.
        let gateway = with_database(&sim, &source, "count_usage: false, ").await;
        altered(&gateway, &run, &[]).await;
        assert!(!gateway.log().contains("panicked"), "{}", gateway.log());
    }
}

#[tokio::test]
async fn a_table_of_postgresql_is_altered() {
    let server = Postgres::start().await;
    server.run(&made(COLUMNS));
    let sim = sim().await;
    let (address, port) = (server.address.ip(), server.address.port());
    let source = format!(
        "driver: postgres, host: \"{address}\", port: {port}, user: {USER}, password: \"{PASSWORD}\", database: {DATABASE}"
    );
    let run = |sql: &str| server.run(sql);
    let gateway = with_database(&sim, &source, "").await;
    counts(
        &gateway,
        &run,
        &[
            "ALTER TABLE api_keys ALTER COLUMN used_quota TYPE NUMERIC(20, 2)",
            "ALTER TABLE api_keys ALTER COLUMN used_quota TYPE DOUBLE PRECISION",
            "ALTER TABLE api_keys ALTER COLUMN used_quota TYPE TEXT",
            "ALTER TABLE api_keys ALTER COLUMN used_quota TYPE BIGINT USING used_quota::NUMERIC",
        ],
    )
    .await;
    let own = [
        "ALTER TABLE api_keys ALTER COLUMN status TYPE TEXT",
        "CREATE TYPE state AS ENUM ('active', 'disabled'); ALTER TABLE api_keys ALTER COLUMN status TYPE state USING status::state",
        "ALTER TABLE api_keys ALTER COLUMN status TYPE VARCHAR(9); DROP TYPE state; CREATE TYPE state AS ENUM ('disabled', 'active'); ALTER TABLE api_keys ALTER COLUMN status TYPE state USING status::state",
        "ALTER TABLE api_keys ALTER COLUMN api_key TYPE TEXT",
        "ALTER TABLE api_keys ALTER COLUMN total_quota TYPE NUMERIC",
    ];
    altered(&gateway, &run, &own).await;
}

#[tokio::test]
async fn a_table_of_mariadb_is_altered() {
    let server = MariaDb::start().await;
    server.run(&made(COLUMNS));
    let sim = sim().await;
    let (address, port) = (server.address.ip(), server.address.port());
    let source = format!(
        "driver: mysql, host: \"{address}\", port: {port}, user: {USER}, password: \"{PASSWORD}\", database: {DATABASE}"
    );
    let run = |sql: &str| server.run(sql);
    let gateway = with_database(&sim, &source, "").await;
    counts(
        &gateway,
        &run,
        &[
            "ALTER TABLE api_keys MODIFY used_quota DECIMAL(20, 2)",
            "ALTER TABLE api_keys MODIFY used_quota DOUBLE",
            "ALTER TABLE api_keys MODIFY used_quota BIGINT UNSIGNED",
        ],
    )
    .await;
    let own = [
        "ALTER TABLE api_keys ADD COLUMN early VARCHAR(20) DEFAULT 'sk-none' FIRST",
        "ALTER TABLE api_keys MODIFY status ENUM('disabled', 'active')",
        "ALTER TABLE api_keys MODIFY status TEXT FIRST",
        "ALTER TABLE api_keys MODIFY api_key VARCHAR(80) CHARACTER SET ascii",
        "ALTER TABLE api_keys DROP COLUMN early",
    ];
    altered(&gateway, &run, &own).await;
}

#[tokio::test]
async fn a_key_that_is_no_text_is_a_failure_and_not_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.db");
    sqlite(
        &path,
        "CREATE TABLE api_keys (api_key, status); INSERT INTO api_keys VALUES ('sk-text-1', 'active')",
    );
    sqlite(
        &path,
        "CREATE TABLE numbers (api_key INTEGER, status); INSERT INTO numbers VALUES (12345678, 'active')",
    );
    let sim = sim().await;
    let source = format!("driver: sqlite, path: \"{}\"", path.display());
    let gateway = with_database(&sim, &source, "").await;
    assert_eq!(gateway.ask_as("sk-text-1").await.status, 200);
    sqlite(&path, "DROP TABLE api_keys; ALTER TABLE numbers RENAME TO api_keys");
    assert_eq!(gateway.ask_as("12345678").await.status, 503);
    assert_eq!(gateway.ask_as("sk-text-1").await.status, 401);
    gateway.logs("the key column `api_key` does not hold text").await;
}

/// Longer than a test has patience: what is waited for is not what fails fast.
const LONG: &str = "timeout: 300s, ";

/// New keys, one after the other, are answered 503, and after the first one without waiting for the
/// database: a wait for a connection would take until `LONG`, a wait for each look 2 s.
async fn fails_fast(gateway: &Gateway, what: &str) {
    let mut began = std::time::Instant::now();
    for n in 0..30 {
        if n == 1 {
            began = std::time::Instant::now();
        }
        let answer = gateway.ask_as(&format!("sk-new-{n}")).await;
        assert_eq!(answer.status, 503, "{what}: {n}");
        assert!(answer.header("retry-after").is_some(), "{what}");
    }
    let took = began.elapsed();
    assert!(took < 29 * Duration::from_millis(500), "{what}: {took:?} for 29 keys");
}

#[tokio::test]
async fn a_database_that_refuses_or_says_nothing_delays_nobody() {
    let sim = sim().await;
    let refused = free_address().port();
    // It takes connections, and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for driver in ["postgres", "mysql"] {
        for (what, port) in [("refused", refused), ("silent", silent.local_addr().unwrap().port())]
        {
            let source = format!(
                "driver: {driver}, host: \"127.0.0.1\", port: {port}, user: u, password: p, database: d, connect_timeout: 300s"
            );
            let gateway = with_database(&sim, &source, LONG).await;
            fails_fast(&gateway, &format!("{driver} {what}")).await;
            gateway.logs("queries fail until it is available again").await;
        }
    }
}

#[tokio::test]
async fn a_database_that_is_away_is_used_again_when_it_is_back() {
    let mut server = Postgres::start().await;
    server.run(&made(COLUMNS));
    let sim = sim().await;
    let (address, port) = (server.address.ip(), server.address.port());
    let source = |user: &str, password: &str| {
        format!(
            "driver: postgres, host: \"{address}\", port: {port}, user: {user}, password: \"{password}\", database: {DATABASE}, connect_timeout: 300s"
        )
    };
    let more = format!("count_usage: false, {LONG}");
    server.run("CREATE ROLE reader LOGIN PASSWORD 'first'; GRANT SELECT ON api_keys TO reader");
    let wrong = with_database(&sim, &source("reader", "second"), &more).await;
    fails_fast(&wrong, "a wrong password").await;
    server.run("ALTER ROLE reader PASSWORD 'second'");
    eventually("the password is right", async || wrong.ask_as("sk-good-0").await.status == 200)
        .await;

    let gateway = with_database(&sim, &source(USER, PASSWORD), &more).await;
    for round in 0..2 {
        let up = async || gateway.ask_as("sk-good-0").await.status == 200;
        eventually("the database is used", up).await;
        let all = join_all(
            (0..GOOD)
                .map(|n| format!("sk-good-{n}"))
                .map(async |key| gateway.ask_as(&key).await.status),
        );
        all.await;
        match round {
            0 => server.stop(),
            _ => server.pause(),
        }
        fails_fast(&gateway, &format!("round {round}")).await;
        match round {
            0 => server.restart().await,
            _ => server.resume(),
        }
    }
    let back = async || gateway.ask_as("sk-good-1").await.status == 200;
    eventually("the database is used again", back).await;
    gateway.logs("the database is available again").await;
    assert!(!gateway.log().contains(PASSWORD));
}

#[tokio::test]
async fn a_database_that_takes_no_new_connections_is_used_over_those_there_are() {
    let server = Postgres::start().await;
    server.run(&made(COLUMNS));
    server.run("CREATE ROLE reader LOGIN PASSWORD 'first'; GRANT SELECT ON api_keys TO reader");
    let sim = sim().await;
    let (address, port) = (server.address.ip(), server.address.port());
    let source = format!(
        "driver: postgres, host: \"{address}\", port: {port}, user: reader, password: first, database: {DATABASE}, connect_timeout: 300s"
    );
    let gateway = with_database(&sim, &source, &format!("count_usage: false, {LONG}")).await;
    let all = async || {
        let asked = (0..GOOD).map(|n| format!("sk-good-{n}"));
        join_all(asked.map(async |key| gateway.ask_as(&key).await.status)).await
    };
    assert_eq!(all().await, [200; GOOD]);
    // Each question takes so long that the server is looked at, and all connections are in use.
    server.run(
        "ALTER ROLE reader PASSWORD 'second'; ALTER TABLE api_keys RENAME TO keys; \
         CREATE VIEW api_keys AS SELECT keys.* FROM keys CROSS JOIN pg_sleep(1.5); \
         GRANT SELECT ON api_keys TO reader",
    );
    // What was answered just now would be a reason not to take it for away.
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(all().await, [200; GOOD], "{}", gateway.log());
    let up = async || gateway.ask_as("sk-good-0").await.status == 200;
    eventually("it is used once more", up).await;
}

/// Records go into a table that is altered, dropped and made again under the gateway; each is there
/// in the end, and can be asked for.
async fn records_arrive(source: &str, run: &dyn Fn(&str) -> String, own: &[&str]) {
    let sim = sim().await;
    let configuration = format!(
        "usage:\n  reporters:\n    - {{type: database, max_backoff: 100ms, database: {{{source}, table: records}}}}\n"
    );
    let gateway = Gateway::before(&[sim.url()], &configuration).await;
    let count = || run("SELECT COUNT(*) FROM records").parse::<u32>().unwrap();
    let delivered = async |n: u32, after: &str| {
        let name = "llmproxy_usage_delivered_total{reporter=\"database\"}";
        let all = async || gateway.metric(name).await == f64::from(n);
        eventually(&format!("{n} records are delivered after {after}"), all).await;
    };
    let mut there = 0;
    let common = [
        "SELECT 1",
        "ALTER TABLE records ADD COLUMN note VARCHAR(20) DEFAULT 'x'",
        "ALTER TABLE records DROP COLUMN note",
    ];
    for step in common.iter().chain(own) {
        for _ in 0..6 {
            assert_eq!(gateway.ask_with("").await.status, 200);
            there += 1;
        }
        delivered(there, "some requests").await;
        run(step);
        assert_eq!(gateway.ask_with("").await.status, 200);
        there += 1;
        delivered(there, step).await;
        assert_eq!(count(), there, "{step}");
    }
    run("DROP TABLE records");
    assert_eq!(gateway.ask_with("").await.status, 200);
    delivered(there + 1, "the table was dropped").await;
    assert_eq!(count(), 1, "in the table that was made again");
    let dead = "llmproxy_usage_dead_letters_total{reporter=\"database\"}";
    assert_eq!(gateway.metric(dead).await as usize, 0);
}

#[tokio::test]
async fn records_go_into_a_table_that_is_altered() {
    let postgres = Postgres::start().await;
    let source = format!("driver: postgres, dsn: \"{}\"", postgres.url());
    let own = [
        "ALTER TABLE records ALTER COLUMN latency_ms TYPE NUMERIC",
        "ALTER TABLE records ALTER COLUMN model TYPE VARCHAR(200)",
    ];
    records_arrive(&source, &|sql| postgres.run(sql), &own).await;
    drop(postgres);
    let mariadb = MariaDb::start().await;
    let source = format!("driver: mysql, dsn: \"{}\"", mariadb.url());
    let own = [
        "ALTER TABLE records MODIFY latency_ms DOUBLE",
        "ALTER TABLE records MODIFY model VARCHAR(200) FIRST",
    ];
    records_arrive(&source, &|sql| mariadb.run(sql), &own).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("usage.db");
    let source = format!("driver: sqlite, dsn: \"{}\"", path.display());
    let run = |sql: &str| sqlite(&path, sql);
    records_arrive(
        &source,
        &run,
        &[
            "ALTER TABLE records RENAME COLUMN latency_ms TO other",
            "ALTER TABLE records DROP COLUMN other",
        ],
    )
    .await;
}
