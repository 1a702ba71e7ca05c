//! Usage records in files and in streams of a real Redis.

use std::{fs, net::SocketAddr, path::Path, sync::Arc};

use bytes::Bytes;
use llmproxy::{
    config::plan::{Destination, ReporterPlan, StreamPlan},
    store::{Stores, http, redis},
    usage::{
        Entry,
        sink::{self, DeliveryError, Resources, Sink},
    },
};
use serde_json::Value;

use super::support::{Gateway, PATIENCE, eventually, servers::Redis, sim};

fn entry(index: u64) -> Entry {
    let json = Bytes::from(format!(r#"{{"record_id":"rec_{index}","prompt_tokens":{index}}}"#));
    Entry { index, time: 0, json }
}

fn entries(n: u64) -> Vec<Entry> {
    (0..n).map(entry).collect()
}

const STREAM: &str = "llmproxy:usage";

/// The sink of a reporter that writes to a stream.
fn stream(address: SocketAddr, max_len: Option<u64>) -> (Arc<dyn Sink>, Stores) {
    let settings = redis::Settings {
        host: address.ip().to_string(),
        port: address.port(),
        tls: false,
        username: None,
        password: None,
        db: 0,
        connections: 1,
        connect_timeout: PATIENCE,
        timeout: PATIENCE,
    };
    let to = StreamPlan { settings, stream: STREAM.to_owned(), max_len, batch_size: 100 };
    let plan = ReporterPlan {
        name: "stream".to_owned(),
        to: Destination::Redis(to),
        max_age: PATIENCE,
        max_backoff: PATIENCE,
    };
    let stores = Stores::default();
    (sink::make(&plan, Resources { client: &http::client(), stores: &stores }), stores)
}

fn length(redis: &Redis) -> u64 {
    redis.command(&["XLEN", STREAM]).trim().parse().unwrap()
}

#[tokio::test]
async fn a_batch_is_entries_of_a_stream() {
    let redis = Redis::start().await;
    let (sink, _stores) = stream(redis.address, None);
    sink.deliver(&entries(3)).await.unwrap();
    let told = redis.command(&["XRANGE", STREAM, "-", "+"]);
    let mut lines = told.lines().filter(|line| !line.is_empty());
    for n in 0..3 {
        let id = lines.next().unwrap();
        assert!(id.contains('-'), "{told}");
        let fields: Vec<_> = lines.by_ref().take(4).collect();
        let json = format!(r#"{{"record_id":"rec_{n}","prompt_tokens":{n}}}"#);
        assert_eq!(fields, ["record", &json, "record_id", &format!("rec_{n}")]);
    }
    assert_eq!(lines.next(), None);
}

#[tokio::test]
async fn a_stream_is_kept_short() {
    let redis = Redis::start().await;
    let (sink, _stores) = stream(redis.address, Some(500));
    for _ in 0..30 {
        sink.deliver(&entries(100)).await.unwrap();
    }
    // Redis removes whole nodes, of a hundred entries or so.
    let length = length(&redis);
    assert!((500..1000).contains(&length), "{length}");
}

#[tokio::test]
async fn what_redis_refuses_is_told_and_leaves_nothing_behind() {
    let redis = Redis::start().await;
    let (sink, _stores) = stream(redis.address, None);
    redis.command(&["SET", STREAM, "something else"]);
    let failure = sink.deliver(&entries(3)).await.unwrap_err();
    assert_eq!(failure, DeliveryError::unavailable("the key `llmproxy:usage` is not a stream"));
    redis.command(&["DEL", STREAM]);

    redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
    let failure = sink.deliver(&entries(3)).await.unwrap_err();
    assert_eq!(failure, DeliveryError::unavailable("Redis is out of memory (OOM)"));
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(length(&redis), 0);

    sink.deliver(&entries(3)).await.unwrap();
    assert_eq!(length(&redis), 3);
}

#[tokio::test]
async fn a_stream_outlives_a_restart_of_its_server() {
    let mut redis = Redis::start().await;
    let (sink, _stores) = stream(redis.address, None);
    sink.deliver(&entries(1)).await.unwrap();
    redis.stop();
    let failure = sink.deliver(&entries(2)).await.unwrap_err();
    assert!(matches!(failure, DeliveryError::Unavailable { .. }), "{failure:?}");
    redis.restart().await;
    eventually("the records are taken", async || sink.deliver(&entries(2)).await.is_ok()).await;
    assert_eq!(length(&redis), 2, "an attempt that failed has added nothing");
}

/// The records in a file.
fn records(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    // The last one may be half written.
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole.map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn sequences(records: &[Value]) -> Vec<u64> {
    records.iter().map(|record| record["sequence"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn a_gateway_writes_to_a_file_and_a_stream() {
    let (sim, redis) = (sim().await, Redis::start().await);
    let more = format!(
        "storage: {{caches: [{{name: main, addr: \"{}\"}}]}}
usage:
  reporters:
    - {{type: file, file: {{path: records/usage.jsonl}}}}
    - {{type: redis, redis: {{storage: main}}}}
",
        redis.address
    );
    let gateway = Gateway::before(&[sim.url()], &more).await;
    let path = gateway.file.with_file_name("records").join("usage.jsonl");
    for _ in 0..5 {
        assert_eq!(gateway.ask_as("sk-any").await.status, 200);
    }
    eventually("all are in the file", async || records(&path).len() == 5).await;
    assert_eq!(sequences(&records(&path)), [1, 2, 3, 4, 5]);
    eventually("all are in the stream", async || length(&redis) == 5).await;
    let told = redis.command(&["XRANGE", STREAM, "-", "+"]);
    let in_stream = told.lines().filter(|line| line.starts_with('{'));
    let in_stream: Vec<Value> = in_stream.map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(in_stream, records(&path));

    // As logrotate does.
    let moved = path.with_extension("1");
    fs::rename(&path, &moved).unwrap();
    assert_eq!(gateway.ask_as("sk-any").await.status, 200);
    eventually("the next one is in a new file", async || records(&path).len() == 1).await;
    assert_eq!((sequences(&records(&path)), records(&moved).len()), (vec![6], 5));
}

#[tokio::test]
async fn a_stream_that_was_away_gets_everything_in_its_order() {
    let (sim, mut redis) = (sim().await, Redis::start().await);
    let more = format!(
        "storage: {{caches: [{{name: main, addr: \"{}\"}}]}}
usage:
  reporters: [{{type: redis, max_backoff: 200ms, redis: {{storage: main, batch_size: 3}}}}]
",
        redis.address
    );
    let gateway = Gateway::before(&[sim.url()], &more).await;
    redis.stop();
    for _ in 0..10 {
        assert_eq!(gateway.ask_as("sk-any").await.status, 200);
    }
    gateway.logs("Redis cannot be reached").await;
    redis.restart().await;
    eventually("all are in the stream", async || length(&redis) == 10).await;
    let told = redis.command(&["XRANGE", STREAM, "-", "+"]);
    let records = told.lines().filter(|line| line.starts_with('{'));
    let records: Vec<Value> = records.map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(sequences(&records), (1..=10).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_full_disk_holds_nobody_up_and_loses_nothing() {
    let sim = sim().await;
    let list = format!("backends: [{{url: \"{}\"}}]\n", sim.url());
    let reporters = |path: &str| {
        format!(
            "{list}usage:
  reporters:
    - {{name: full, type: file, max_backoff: 200ms, file: {{path: {path}}}}}
    - {{name: good, type: file, file: {{path: good.jsonl}}}}
"
        )
    };
    let gateway = Gateway::start(&reporters("/dev/full")).await;
    for _ in 0..5 {
        assert_eq!(gateway.ask_as("sk-any").await.status, 200);
    }
    let good = gateway.file.with_file_name("good.jsonl");
    eventually("the other file has all", async || records(&good).len() == 5).await;
    gateway.logs("/dev/full: No space left on device").await;

    gateway.rewrite(&reporters("mended.jsonl"));
    let mended = gateway.file.with_file_name("mended.jsonl");
    eventually("the first one has all", async || records(&mended).len() == 5).await;
    assert_eq!(records(&mended), records(&good));
}
