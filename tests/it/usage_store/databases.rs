//! What the table of records does in each database: inserting, querying, paging, retention, migration.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::MetadataExt,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use llmproxy::{
    store::sql::{ColumnType, TableDefinition},
    usage::{
        sink::DeliveryError,
        store::{Column, Filter, PageCursor},
    },
};
use serde_json::{Map, Value, json};

use super::{
    super::support::servers::{MariaDb, Postgres},
    DAY, Process, entries, equal, id, record, with,
};

/// What must be so in each database.
async fn holds_records(process: &Process) {
    // A question before the first record finds nothing, and no fault.
    assert!(process.ids(&Filter::default()).await.is_empty());
    let full = record(0);
    let bare = with(
        record(1),
        json!({"ttft_ms": null, "usage": null, "usage_source": "none", "is_stream": false}),
    );
    let mut bare = bare.as_object().unwrap().clone();
    for name in [
        "key_id",
        "key_name",
        "team",
        "tier",
        "metadata",
        "tags",
        "response_model",
        "cached_tokens",
        "cache_write_tokens",
        "reasoning_tokens",
        "audio_prompt_tokens",
        "audio_completion_tokens",
        "cost",
        "queue_ms",
    ] {
        bare.shift_remove(name);
    }
    let bare = Value::Object(bare);
    process.put(&[full.clone(), bare.clone()]).await;
    let found = process.all(&Filter::default(), 10).await;
    assert_eq!(found.into_iter().map(Value::Object).collect::<Vec<_>>(), [bare, full.clone()]);

    // Repeats change nothing, in one batch or in several.
    process.put(&[full.clone(), with(full.clone(), json!({"user_id": "later"}))]).await;
    let many: Vec<_> = (0..2500).map(record).collect();
    process.put(&many).await;
    process.other().put(&many[..10]).await;
    assert_eq!(process.count().await, 2500);
    assert!(process.ids(&equal(Column::UserId, "later")).await.is_empty());
}

async fn holds_odd_records(process: &Process) {
    let users = ["用户😀", "a\0b", "A", "a", "a ", "", "%_'\"\\;--", &"界".repeat(400)];
    let odd = |(i, user): (usize, &&str)| with(record(9000 + i), json!({"user_id": user}));
    let odd: Vec<_> = users.iter().enumerate().map(odd).collect();
    process.put(&odd).await;
    for (i, user) in users.iter().enumerate() {
        let found = process.all(&equal(Column::UserId, user), 10).await;
        let ids: Vec<_> = found.iter().map(id).collect();
        assert_eq!(ids, [format!("rec_{:05}", 9000 + i)], "{user:?}");
    }
    assert_eq!(process.all(&equal(Column::UserId, "a\0b"), 10).await[0]["user_id"], "a\u{fffd}b");
    let since = Filter { from: Some(at(9000)), ..Filter::default() };
    let sums = process.store().sums(&since, &[Column::UserId], None, 100).await.unwrap();
    assert_eq!(sums.items.len(), users.len());

    let huge = json!({"prompt_tokens": u64::MAX, "total_tokens": u64::MAX, "cost": 1e308,
        "team": "huge", "latency_ms": u64::MAX});
    process.put(&[with(record(9100), huge.clone()), with(record(9101), huge)]).await;
    let only = equal(Column::Team, "huge");
    let sums = process.store().sums(&only, &[Column::Team], None, 10).await.unwrap();
    let sums = &sums.items[0];
    assert_eq!((sums.prompt_tokens, sums.completion_tokens), (i64::MAX, 9100 + 9101));
    assert_eq!(sums.cost, Some(2e15));

    // One that is none: nothing of the batch is there, and the others can be sent by themselves.
    let mut batch = entries(&[record(9200), record(9201)]);
    batch[1].json = "{\"a\":1}".into();
    let refused = process.sink().deliver(&batch).await;
    assert!(matches!(refused, Err(DeliveryError::Refused { .. })), "{refused:?}");
    assert!(process.ids(&equal(Column::RequestId, "req-9200")).await.is_empty());
}

/// When the `n`th record came.
fn at(n: i64) -> i64 {
    1000 * (1_795_219_200 + 60 * n)
}

async fn answers_questions(process: &Process) {
    // 2500 records have been put before, the first one at midnight.
    let recs = |those: &dyn Fn(usize) -> bool| -> BTreeSet<String> {
        (0..2500).filter(|n| those(*n)).map(|n| format!("rec_{n:05}")).collect()
    };
    let before = Filter { to: Some(at(2500)), ..Filter::default() };
    let also = |filter: Filter| Filter { to: before.to, ..filter };
    assert_eq!(process.ids(&before).await, recs(&|_| true));
    let span = Filter { from: Some(at(10)), to: Some(at(12)), ..Filter::default() };
    assert_eq!(process.ids(&span).await, recs(&|n| n == 10 || n == 11));
    type Those = fn(usize) -> bool;
    let questions: [(Column, &str, Those); 8] = [
        (Column::UserId, "user-1", |n| n % 3 == 1),
        // The second record was put without key and team.
        (Column::KeyId, "key-1", |n| n % 2 == 1 && n != 1),
        (Column::KeyName, "one", |n| n != 1),
        (Column::Team, "", |n| n == 1),
        (Column::Model, "big", |n| n.is_multiple_of(2)),
        (Column::Outcome, "upstream_error", |n| n % 5 == 1),
        (Column::RequestId, "req-77", |n| n == 77),
        (Column::Backend, "http://b0", |n| n.is_multiple_of(2)),
    ];
    for (column, text, those) in questions {
        let found = process.ids(&also(equal(column, text))).await;
        assert_eq!(found, recs(&those), "{column:?} {text}");
        assert!(process.ids(&also(equal(column, "nothing"))).await.is_empty(), "{column:?}");
    }
    for stream in [true, false] {
        let only = also(Filter { stream: Some(stream), ..Filter::default() });
        assert_eq!(process.ids(&only).await, recs(&|n| n.is_multiple_of(4) == stream));
    }
    let two = [(Column::UserId, "user-0".to_owned()), (Column::Model, "big".to_owned())];
    let both = also(Filter { equal: two.into(), ..Filter::default() });
    assert_eq!(process.ids(&both).await, recs(&|n| n.is_multiple_of(6)));
    sums_add_up(process, &before).await;
}

async fn sums_add_up(process: &Process, before: &Filter) {
    type Of = fn(usize) -> String;
    let groups: [(&[Column], Of); 6] = [
        (&[Column::UserId], |n| format!("user-{}", n % 3)),
        (&[Column::KeyId], |n| if n == 1 { String::new() } else { format!("key-{}", n % 2) }),
        (&[Column::Team], |n| if n == 1 { "" } else { "blue" }.to_owned()),
        (&[Column::Model], |n| if n.is_multiple_of(2) { "big" } else { "small" }.to_owned()),
        (&[Column::Day], |n| format!("2026-11-{}", 21 + n / 1440)),
        (&[Column::Day, Column::UserId], |n| format!("2026-11-{},user-{}", 21 + n / 1440, n % 3)),
    ];
    for (by, of) in groups {
        let mut wanted: BTreeMap<String, [i64; 10]> = BTreeMap::new();
        for n in 0..2500 {
            let (one, told) = (n as i64, i64::from(n != 1));
            let failed = i64::from(n % 5 == 1);
            let parts = [4, 3, 1, 2, 5].map(|tokens| tokens * told);
            let [cached, written, reasoning, audio, spoken] = parts;
            let more = [1, failed, 10, one, 10 + one, cached, written, reasoning, audio, spoken];
            let sums = wanted.entry(of(n)).or_default();
            sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        }
        for limit in [1, 2, 100] {
            let (mut found, mut next, mut pages) = (Vec::new(), None::<PageCursor>, 0);
            loop {
                let page = process.store().sums(before, by, next.as_ref(), limit).await.unwrap();
                pages += 1;
                assert!(page.items.len() <= limit);
                found.extend(page.items);
                next = page.next;
                if next.is_none() {
                    break;
                }
            }
            assert_eq!(pages, wanted.len().div_ceil(limit), "{by:?} {limit}");
            let names = found.iter().map(|s| {
                s.group.iter().map(|(_, value)| value.as_str()).collect::<Vec<_>>().join(",")
            });
            assert!(names.eq(wanted.keys().cloned()), "{by:?} {found:?}");
            for (sums, wanted) in found.iter().zip(wanted.values()) {
                let told = [
                    sums.requests,
                    sums.errors,
                    sums.prompt_tokens,
                    sums.completion_tokens,
                    sums.total_tokens,
                    sums.cached_tokens,
                    sums.cache_write_tokens,
                    sums.reasoning_tokens,
                    sums.audio_prompt_tokens,
                    sums.audio_completion_tokens,
                ];
                assert_eq!(&told, wanted, "{by:?}");
                let cost = Some(0.5 * wanted[7] as f64).filter(|cost| *cost > 0.0);
                assert_eq!(sums.cost, cost, "{by:?}");
            }
        }
    }
}

/// Pages are read while records come, some of them between those that were read.
async fn pages_have_no_gaps(process: &Process) {
    let only = equal(Column::Team, "paged");
    let paged = |n: usize| with(record(n), json!({"team": "paged"}));
    // Several at the same moment.
    let first: Vec<_> = (20_000..20_100)
        .map(|n| with(paged(n), json!({"timestamp": record(n / 7)["timestamp"]})))
        .collect();
    process.put(&first).await;
    let (store, mut seen, mut next) = (process.store(), Vec::new(), None::<PageCursor>);
    for round in 0.. {
        let page = store.records(&only, next.as_ref(), 9).await.unwrap();
        seen.extend(page.items.iter().map(id));
        next = page.next;
        if next.is_none() {
            break;
        }
        let more = 30_000 + 10 * round;
        process.put(&(more..more + 10).map(paged).collect::<Vec<_>>()).await;
    }
    let different: BTreeSet<_> = seen.iter().collect();
    assert_eq!(different.len(), seen.len(), "one came twice");
    assert_eq!(seen.len(), 100);
}

async fn retention_is_kept(process: &Process) {
    let mut kept = process.other();
    kept.plan.table = "kept_records".to_owned();
    kept.plan.retention = Some(5 * DAY);
    let old = Timestamp::now() - SignedDuration::from_hours(24 * 6);
    let old: Vec<_> =
        (0..2100).map(|n| with(record(n), json!({"timestamp": format!("{old:.3}")}))).collect();
    kept.put(&old).await;
    let young = Timestamp::now() - SignedDuration::from_hours(24 * 4);
    kept.put(&[with(record(5000), json!({"timestamp": format!("{young:.3}")}))]).await;
    assert_eq!(kept.count().await, 2101);
    kept.sink().tidy().await.unwrap();
    assert_eq!(kept.ids(&Filter::default()).await, ["rec_05000".to_owned()].into());
    process.sink().tidy().await.unwrap();
}

/// An index of the operator's own is no reason to lose a record: request ids may come from clients.
async fn clashes_are_refused(process: &Process) {
    let mut own = process.other();
    own.plan.table = "own_records".to_owned();
    own.put(&[record(0), record(1)]).await;
    own.run("CREATE UNIQUE INDEX own_request ON own_records (request_id)").await;
    let clash = with(record(3), json!({"request_id": "req-1"}));
    let refused = own.sink().deliver(&entries(&[record(1), record(2), clash])).await;
    let Err(DeliveryError::Refused { why }) = refused else { panic!("{refused:?}") };
    assert!(why.to_lowercase().contains("unique"), "{why}");
    assert_eq!(own.count().await, 2);
    own.put(&[record(1), record(2)]).await;
    assert_eq!(own.count().await, 3);

    let columns = [("record_id", ColumnType::Short(64))];
    let indexes: [(&str, &[&str]); 1] = [("record", &["record_id"])];
    let wish = TableDefinition { table: "own_records", columns: &columns, indexes: &indexes };
    let sql = own.stores.sql(&own.plan.settings);
    let found = sql.ensure(own.plan.settings.driver, &wish).await.unwrap();
    assert_eq!(found.unique_without(&["id", "record_id"]), ["own_request"]);
}

/// Usual questions read no more of a large table than they have to.
async fn indexes_are_used(process: &Process, analyze: &str) {
    let mut large = process.other();
    large.plan.table = "large_records".to_owned();
    let shared = |n: usize| {
        let owner =
            json!({"user_id": format!("user-{}", n % 40), "key_id": format!("key-{}", n % 50)});
        with(record(n), owner)
    };
    large.put(&(0..6000).map(shared).collect::<Vec<_>>()).await;
    if !analyze.is_empty() {
        large.run(analyze).await;
    }
    let span = Filter { from: Some(at(3000)), to: Some(at(3300)), ..Filter::default() };
    let of = |column, text| Filter { equal: equal(column, text).equal, ..span.clone() };
    let (user, key) = (of(Column::UserId, "user-7"), of(Column::KeyId, "key-7"));
    let questions: [(&Filter, &[Column], &str); 7] = [
        (&Filter::default(), &[], "large_records_at"),
        (&span, &[], "large_records_at"),
        (&span, &[Column::Day], "large_records_at"),
        (&user, &[], "large_records_user_at"),
        (&user, &[Column::Day], "large_records_user_at"),
        (&key, &[], "large_records_key_at"),
        (&key, &[Column::Model], "large_records_key_at"),
    ];
    let store = large.store();
    for (filter, by, index) in questions {
        let found = store.explain(filter, by, 100).await.unwrap();
        let values = found.iter().flat_map(Map::values);
        let told: Vec<_> = values.map(|v| v.as_str().unwrap_or_default()).collect();
        let told = told.join("\n");
        let words = |c: char| !c.is_alphanumeric() && c != '_';
        assert!(told.split(words).any(|word| word == index), "{filter:?} {by:?}:\n{told}");
        // Records are found in their order; PostgreSQL sorts when there are few.
        let sorted = ["filesort", "TEMP B-TREE"].iter().any(|text| told.contains(text));
        assert!(!sorted || !by.is_empty(), "{filter:?}:\n{told}");
    }
}

/// The database gives up a question that takes too long: the view reads on for ever.
async fn slow_questions_end(process: &Process, view: &str) {
    let mut slow = process.other();
    slow.plan.table = "slow_records".to_owned();
    slow.put(&[record(0)]).await;
    slow.run("ALTER TABLE slow_records RENAME TO kept_slow_records").await;
    slow.run(&format!("CREATE VIEW slow_records AS {view}")).await;
    let store = slow.store().patient(Duration::from_millis(300));
    // More often than there are connections: each of them is of use again.
    for _ in 0..6 {
        let why = store.records(&Filter::default(), None, 5).await.err().unwrap().to_string();
        let given_up = ["interrupted", "statement timeout", "max_statement_time"];
        assert!(given_up.iter().any(|text| why.contains(text)), "{why}");
    }
    assert!(store.sums(&Filter::default(), &[Column::Day], None, 5).await.is_err());
    slow.run("DROP VIEW slow_records").await;
    // A connection of SQLite that has not looked since would still see the view.
    slow.other().run("ALTER TABLE kept_slow_records RENAME TO slow_records").await;
    assert_eq!(store.records(&Filter::default(), None, 5).await.unwrap().items.len(), 1);
}

/// Several gateways start at once, with no table and with one of LLMProxy 0.5.
async fn tables_are_made_and_extended(process: &Process, seeds: &[&str]) {
    let mut anew = process.other();
    anew.plan.table = "new_records".to_owned();
    start_together(&anew).await;
    assert_eq!(anew.count().await, 40);

    let mut old = process.other();
    old.plan.table = "old_records".to_owned();
    for statement in seeds {
        old.run(statement).await;
    }
    start_together(&old).await;
    assert_eq!(old.count().await, 42);
    let rows = old.all(&equal(Column::UserId, "old-user"), 10).await;
    assert_eq!(rows.len(), 2);
    // From the newest on.
    let (second, first) = (&rows[0], &rows[1]);
    assert_eq!((&first["record_id"], &first["request_id"]), (&json!("old_1"), &json!("req-old-1")));
    assert_eq!(first["timestamp"], "2025-03-04T05:06:07.000Z");
    assert_eq!((&first["total_tokens"], &first["outcome"]), (&json!(30), &json!("complete")));
    assert_eq!(
        (&second["status_code"], &second["outcome"]),
        (&json!(502), &json!("upstream_error"))
    );
    let days = old.store().sums(&equal(Column::UserId, "old-user"), &[Column::Day], None, 9).await;
    let days: Vec<_> =
        days.unwrap().items.iter().map(|s| (s.group[0].1.clone(), s.total_tokens)).collect();
    assert_eq!(days, [("2025-03-04".to_owned(), 30), ("2025-03-05".to_owned(), 0)]);
    // What was there is as it was.
    let body = "SELECT COUNT(*) AS n FROM old_records WHERE request_body IS NOT NULL AND id = 1 \
                AND latency_ms = 77";
    assert_eq!(old.number(body).await, 1);
}

/// The parts of tokens that records have had from the beginning are kept when a table gets columns for
/// those that came later, whether the table is queried first or written to.
async fn tables_get_columns_of_later_versions(process: &Process) {
    let later = ["cache_write_tokens", "audio_prompt_tokens", "audio_completion_tokens"];
    for queried_first in [true, false] {
        let mut before = process.other();
        before.plan.table = format!("before_{queried_first}");
        before.put(&[record(0), record(1)]).await;
        for column in later {
            let table = &before.plan.table;
            before.run(&format!("ALTER TABLE {table} DROP COLUMN {column}")).await;
        }
        let mut after = before.other();
        after.plan.table.clone_from(&before.plan.table);
        if queried_first {
            assert_eq!(after.all(&Filter::default(), 10).await.len(), 2);
        }
        after.put(&[record(2)]).await;
        let sums = after.store().sums(&Filter::default(), &[Column::Day], None, 10).await.unwrap();
        let sums = &sums.items[0];
        assert_eq!((sums.requests, sums.cached_tokens, sums.reasoning_tokens), (3, 12, 3));
        assert_eq!((sums.cache_write_tokens, sums.audio_prompt_tokens), (3, 2));
        // From the newest on.
        let rows = after.all(&Filter::default(), 10).await;
        assert_eq!(Value::Object(rows[0].clone()), record(2));
        let mut old = record(0);
        for column in later {
            old.as_object_mut().unwrap().shift_remove(column);
        }
        assert_eq!(Value::Object(rows[2].clone()), old);
    }
}

async fn start_together(process: &Process) {
    let others: Vec<_> = (0..4).map(|_| process.other()).collect();
    let put = others.iter().enumerate().map(|(i, other)| async move {
        let records: Vec<_> = (10 * i..10 * i + 10).map(record).collect();
        other.put(&records).await;
    });
    futures::future::join_all(put).await;
}

#[tokio::test]
async fn sqlite_holds_records() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/usage.db");
    let process = Process::file(&path);
    holds_records(&process).await;
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    holds_odd_records(&process).await;
    answers_questions(&process).await;
    pages_have_no_gaps(&process).await;
    retention_is_kept(&process).await;
    clashes_are_refused(&process).await;
    tables_get_columns_of_later_versions(&process).await;
    let view = "WITH RECURSIVE ever(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM ever) \
                SELECT kept_slow_records.* FROM kept_slow_records, ever WHERE n < 0";
    slow_questions_end(&process, view).await;
    indexes_are_used(&process, "").await;
    let table = "CREATE TABLE old_records (id INTEGER PRIMARY KEY AUTOINCREMENT, request_id TEXT NOT NULL, \
        timestamp DATETIME NOT NULL, api_key TEXT, user_id TEXT, method TEXT NOT NULL, \
        path TEXT NOT NULL, backend_url TEXT, status_code INTEGER, latency_ms INTEGER, \
        prompt_tokens INTEGER, completion_tokens INTEGER, total_tokens INTEGER, \
        request_body TEXT NOT NULL, created_at DATETIME DEFAULT CURRENT_TIMESTAMP)";
    let rows = "INSERT INTO old_records VALUES \
        (1, 'req-old-1', '2025-03-04 06:06:07.5+01:00', 'sk-1', 'old-user', 'POST', '/v1/x', 'http://o', 200, 77, 10, 20, 30, '{\"a\":1}', NULL), \
        (2, 'req-old-2', '2025-03-05 05:06:07.5 +0000 UTC m=+1.5', 'sk-1', 'old-user', 'POST', '/v1/x', 'http://o', 502, 1, NULL, NULL, NULL, '{}', NULL)";
    tables_are_made_and_extended(&process, &[table, rows]).await;
}

#[tokio::test]
async fn postgres_holds_records() {
    let server = Postgres::start().await;
    let process = Process::postgres(&server.url());
    holds_records(&process).await;
    holds_odd_records(&process).await;
    answers_questions(&process).await;
    pages_have_no_gaps(&process).await;
    retention_is_kept(&process).await;
    clashes_are_refused(&process).await;
    tables_get_columns_of_later_versions(&process).await;
    let view = "SELECT kept_slow_records.* FROM kept_slow_records, pg_sleep(600)";
    slow_questions_end(&process, view).await;
    indexes_are_used(&process, "ANALYZE large_records").await;
    let table = "CREATE TABLE old_records (id SERIAL PRIMARY KEY, request_id VARCHAR(255) NOT NULL, \
        timestamp TIMESTAMP NOT NULL, api_key VARCHAR(255), user_id VARCHAR(255), \
        method VARCHAR(10) NOT NULL, path VARCHAR(255) NOT NULL, backend_url VARCHAR(20), \
        status_code INT, latency_ms BIGINT, prompt_tokens INT, completion_tokens INT, \
        total_tokens INT, request_body JSONB NOT NULL, created_at TIMESTAMP NOT NULL DEFAULT now())";
    let rows = "INSERT INTO old_records VALUES \
        (1, 'req-old-1', '2025-03-04 05:06:07', 'sk-1', 'old-user', 'POST', '/v1/x', 'http://o', 200, 77, 10, 20, 30, '{\"a\":1}'), \
        (2, 'req-old-2', '2025-03-05 05:06:07', 'sk-1', 'old-user', 'POST', '/v1/x', 'http://o', 502, 1, NULL, NULL, NULL, '{}')";
    tables_are_made_and_extended(
        &process,
        &[table, rows, "SELECT setval('old_records_id_seq', 2)"],
    )
    .await;
    // A schema of its own.
    process.run("CREATE SCHEMA billing").await;
    let mut billing = process.other();
    billing.plan.table = "billing.usage_records".to_owned();
    billing.put(&[record(1)]).await;
    assert_eq!(server.run("SELECT record_id FROM billing.usage_records"), "rec_00001");
    assert_eq!(billing.ids(&Filter::default()).await.len(), 1);
}

#[tokio::test]
async fn mariadb_holds_records() {
    let server = MariaDb::start().await;
    let process = Process::mysql(&server.url());
    holds_records(&process).await;
    holds_odd_records(&process).await;
    answers_questions(&process).await;
    pages_have_no_gaps(&process).await;
    retention_is_kept(&process).await;
    clashes_are_refused(&process).await;
    tables_get_columns_of_later_versions(&process).await;
    let view = "SELECT * FROM kept_slow_records WHERE SLEEP(600) = 0";
    slow_questions_end(&process, view).await;
    indexes_are_used(&process, "ANALYZE TABLE large_records").await;
    let table = "CREATE TABLE old_records (id BIGINT AUTO_INCREMENT PRIMARY KEY, \
        request_id VARCHAR(255) NOT NULL, timestamp TIMESTAMP NOT NULL, api_key VARCHAR(255), \
        user_id VARCHAR(255), method VARCHAR(10) NOT NULL, path VARCHAR(255) NOT NULL, \
        backend_url VARCHAR(20), status_code INT, latency_ms BIGINT, prompt_tokens INT, \
        completion_tokens INT, total_tokens INT, request_body JSON NOT NULL, \
        created_at DATETIME DEFAULT CURRENT_TIMESTAMP) DEFAULT CHARSET = utf8mb4";
    let rows = "INSERT INTO old_records VALUES \
        (1, 'req-old-1', '2025-03-04 05:06:07', 'sk-1', 'old-user', 'POST', '/v1/x', 'http://o', 200, 77, 10, 20, 30, '{\"a\":1}', NULL), \
        (2, 'req-old-2', '2025-03-05 05:06:07', 'sk-1', 'old-user', 'POST', '/v1/x', 'http://o', 502, 1, NULL, NULL, NULL, '{}', NULL)";
    tables_are_made_and_extended(&process, &[table, rows]).await;
    let moment = "SELECT CAST(timestamp AS CHAR) FROM old_records WHERE id = 1";
    assert_eq!(server.run(moment), "2025-03-04 05:06:07");
}
