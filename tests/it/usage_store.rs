//! The usage store: records in tables of real databases, and queries for them.

mod admin_api;
mod databases;
mod outages;

use std::{collections::BTreeSet, path::Path, time::Duration};

use jiff::Timestamp;
use llmproxy::{
    base::Secret,
    config::plan::{Destination, ReporterPlan, TablePlan},
    store::{
        Stores,
        sql::{Driver, Settings, Statement, Target},
    },
    usage::{
        Entry,
        sink::{self, Resources, Sink},
        store::{Column, Filter, PageCursor, Store},
    },
};
use serde_json::{Map, Value, json};

use super::support::http;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A process that has a database.
struct Process {
    stores: Stores,
    plan: TablePlan,
}

impl Process {
    fn new(driver: Driver, target: Target) -> Self {
        let settings = Settings {
            driver,
            target,
            max_connections: 4,
            connect_timeout: Duration::from_secs(5),
            max_lifetime: None,
            idle_timeout: None,
        };
        let table = "usage_records".to_owned();
        let plan = TablePlan { settings, table, batch_size: 100, retention: None, own: false };
        Self { stores: Stores::default(), plan }
    }

    fn file(path: &Path) -> Self {
        Self::new(Driver::Sqlite, Target::File(path.to_owned()))
    }

    fn postgres(url: &str) -> Self {
        Self::new(Driver::Postgres, Target::Dsn(Secret::new(url)))
    }

    fn mysql(url: &str) -> Self {
        Self::new(Driver::Mysql, Target::Dsn(Secret::new(url)))
    }

    /// Another process with the same database.
    fn other(&self) -> Self {
        Self { stores: Stores::default(), plan: self.plan.clone() }
    }

    fn sink(&self) -> std::sync::Arc<dyn Sink> {
        let plan = ReporterPlan {
            name: "r".to_owned(),
            to: Destination::Database(self.plan.clone()),
            max_age: DAY,
            max_backoff: DAY,
        };
        sink::make(&plan, Resources { client: &http::client(), stores: &self.stores })
    }

    async fn put(&self, records: &[Value]) {
        self.sink().deliver(&entries(records)).await.unwrap();
    }

    fn store(&self) -> Store {
        Store::new(&self.plan, &self.stores)
    }

    async fn run(&self, sql: &str) {
        let statement = Statement::new(self.plan.settings.driver, sql);
        self.stores.sql(&self.plan.settings).run(statement).await.unwrap();
    }

    /// The first number of an answer.
    async fn number(&self, sql: &str) -> i64 {
        let statement = Statement::new(self.plan.settings.driver, sql);
        let sql = self.stores.sql(&self.plan.settings);
        let rows = sql.rows(statement, Duration::from_secs(20)).await.unwrap();
        rows[0].values().next().unwrap().as_i64().unwrap()
    }

    async fn count(&self) -> i64 {
        self.number(&format!("SELECT COUNT(*) AS n FROM {}", self.plan.table)).await
    }

    /// All records that a filter lets through, from the newest on, page by page.
    async fn all(&self, filter: &Filter, limit: usize) -> Vec<Map<String, Value>> {
        let (store, mut all, mut next) = (self.store(), Vec::new(), None::<PageCursor>);
        loop {
            let page = store.records(filter, next.as_ref(), limit).await.unwrap();
            all.extend(page.items);
            next = page.next;
            if next.is_none() {
                return all;
            }
        }
    }

    async fn ids(&self, filter: &Filter) -> BTreeSet<String> {
        self.all(filter, 1000).await.iter().map(id).collect()
    }
}

fn id(record: &Map<String, Value>) -> String {
    record["record_id"].as_str().unwrap().to_owned()
}

/// The `n`th record, which comes `n` minutes after midnight.
fn record(n: usize) -> Value {
    let time = Timestamp::from_second(1_795_219_200 + 60 * n as i64).unwrap();
    let mut record = json!({
        "record_id": format!("rec_{n:05}"), "version": 1, "process": "gw_1", "sequence": n + 1,
        "request_id": format!("req-{n}"), "user_id": format!("user-{}", n % 3),
        "api_key": "sk-p***6789", "key_id": format!("key-{}", n % 2), "key_name": "one",
        "team": "blue", "tier": "vip", "metadata": {"a": [1, {"b": null}]}, "tags": ["x", "y"],
        "model": if n.is_multiple_of(2) { "big" } else { "small" }, "response_model": "m",
        "prompt_tokens": 10, "completion_tokens": n, "total_tokens": 10 + n, "cached_tokens": 4,
        "cache_write_tokens": 3, "reasoning_tokens": 1, "audio_prompt_tokens": 2,
        "audio_completion_tokens": 5, "cost": 0.5, "is_stream": n.is_multiple_of(4),
        "endpoint": "/v1/chat/completions", "timestamp": format!("{time:.3}"),
        "backend_url": format!("http://b{}", n % 2), "path": "/v1/chat/completions",
        "method": "POST", "status_code": 200, "latency_ms": 10, "ttft_ms": 5, "queue_ms": 1,
        "tries": 2, "outcome": if n % 5 == 1 { "upstream_error" } else { "complete" },
        "usage_source": "final",
        "usage": {"prompt_tokens": 10, "completion_tokens": n, "total_tokens": 10 + n},
    });
    record["custom"] = json!({"discount": 0.8});
    record["metered"] =
        json!({"prompt_tokens": n, "completion_tokens": 2, "total_tokens": n + 2, "cost": 0.7});
    record
}

fn with(mut record: Value, changes: Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        record[name] = value.clone();
    }
    record
}

fn entries(records: &[Value]) -> Vec<Entry> {
    let entry = |(i, record): (usize, &Value)| Entry {
        index: i as u64,
        time: 0,
        json: record.to_string().into(),
    };
    records.iter().enumerate().map(entry).collect()
}

fn equal(column: Column, text: &str) -> Filter {
    Filter { equal: vec![(column, text.to_owned())], ..Filter::default() }
}
